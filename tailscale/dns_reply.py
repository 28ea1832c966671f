"""What the device's resolver says to one question, as people and programs read it. Plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tailscale.foreign_text import for_terminal


@dataclass(frozen=True, slots=True)
class DnsRecord:
    """One record of an answer."""

    name: str
    type: str
    """As `A`; a number for a type that has no name here."""
    ttl: int
    body: str
    """In words; in hexadecimal for a type that has no name here."""


@dataclass(frozen=True, slots=True)
class DnsReply:
    """The answer to `Device.dns_query`.

    ```python
    reply = await device.dns_query("db", "AAAA")
    print(reply.code, [record.body for record in reply.answers])
    ```
    """

    name: str
    type: str
    code: str
    """Success, NameError, ServerFailure, Refused, NotImplemented, FormatError, or a number."""
    answers: tuple[DnsRecord, ...]
    resolvers: tuple[str, ...]
    """Who is asked for this name; empty where only the tailnet itself knows."""
    message: bytes = field(default=b"", repr=False)
    """The reply as it came."""

    def __str__(self) -> str:
        found = ", ".join(record.body for record in self.answers) or "nothing"
        return for_terminal(f"{self.name} {self.type}: {self.code}, {found}")

    def to_dict(self) -> dict[str, Any]:
        """As `tailscale dns query --json` writes it."""
        found: dict[str, Any] = {"Name": self.name, "QueryType": self.type}
        if self.resolvers:
            found["Resolvers"] = [{"Addr": address} for address in self.resolvers]
        found["ResponseCode"] = f"RCode{self.code}" if not self.code.isdigit() else self.code
        if self.code == "Success":
            found["Answers"] = [
                {
                    "Name": record.name,
                    "TTL": record.ttl,
                    "Class": "ClassINET",
                    "Type": f"Type{record.type}" if not record.type.isdigit() else record.type,
                    "Body": record.body,
                }
                for record in self.answers
            ]
        return found
