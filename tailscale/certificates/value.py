"""A certificate with its key, as its user has it.

Owns what is told of it. Refuses to know where it came from; what a chain must be is `ts_acme/chains.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from ts_acme.chains import Chain, chain_untrusted, matching_key_untrusted


@dataclass(frozen=True, slots=True)
class Certificate:
    """A chain and the private key of its first certificate, both PEM.

    ```python
    certificate = await device.certificate()
    print(certificate.chain_pem.decode())
    ```
    """

    names: tuple[str, ...]
    """What it is for, in lower case."""
    begins: datetime
    expires: datetime
    chain_pem: bytes = field(repr=False)
    key_pem: bytes = field(repr=False)
    """Secret: PKCS #8 without a password."""
    chain: Chain = field(repr=False, compare=False)

    @classmethod
    def read_untrusted(cls, chain_pem: bytes, key_pem: bytes) -> Certificate:
        """BadPacket says what is wrong with them."""
        chain = chain_untrusted(chain_pem)
        key = matching_key_untrusted(key_pem, chain)
        begins, expires = (datetime.fromtimestamp(moment, UTC) for moment in (chain.begins, chain.expires))
        return cls(chain.names, begins, expires, chain.pem, key, chain)

    def covers(self, name: str) -> bool:
        """Whether a client that wants this name takes it."""
        return self.chain.covers(name.lower().rstrip("."))

    def seconds_left(self, wall_clock: float) -> float:
        """Until it expires; negative once it has."""
        return self.chain.expires - wall_clock
