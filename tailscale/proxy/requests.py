"""What a client of a proxy asks for, as plain values: what `allow=` is shown, and what the log and the counters say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tailscale.nodes import Node

Kind = Literal["socks", "udp", "connect", "http"]


@dataclass(frozen=True, slots=True)
class Request:
    """One connection, or one destination of datagrams, that a client wants.

    ```python
    def only_web(request: Request) -> bool:
        return request.port in (80, 443) or request.user == "alice"
    ```
    """

    kind: Kind
    """SOCKS 5 CONNECT, SOCKS 5 UDP, HTTP CONNECT, or a request for an http URL."""
    host: str
    """An address in its usual form, or a name in ASCII."""
    port: int
    client: tuple[str, int]
    """Where it comes from; behind a load balancer with `limits.proxy_protocol` whom that speaks for."""
    peer: Node | None = None
    """The node it comes from, for a proxy that is served on the tailnet."""
    user: str = ""
    session: str = ""
    """Asked for by the user name; connections of one session keep to one exit."""
    ttl: int = field(default=0, repr=False)
    method: str = ""
    """Of a request for an http URL."""

    def __str__(self) -> str:
        where = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind} {where}:{self.port}"
