"""What one relay allows: counts and patience. Everything that the internet can make it hold or wait for is here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class IngressLimits:
    """Times are seconds."""

    connections: int = 2048
    """Open at once. Who has not said yet which name it wants makes room for the next."""
    per_name: int = 1024
    """Of those, for one name, so that no name shuts the others out."""
    per_source: int = 64
    """Of those, from one IPv4 address or one IPv6 network of 64 bits."""
    hello: float = 10.0
    """For a client to say which name it wants, all of it, however slowly it sends."""
    target: float = 10.0
    """For a target to be reached and to answer."""
    idle: float = 3600.0
    """A connection that carries nothing for so long is ended."""
    grace: float = 10.0
    """For what is open when `shutdown` is set."""
    proxy_protocol: bool = False
    """Every connection must begin with a PROXY header, which is believed. Only behind a load balancer."""

    def __post_init__(self) -> None:
        counts = self.connections, self.per_name, self.per_source
        times = self.hello, self.target, self.idle, self.grace
        if min(counts) < 1 or min(times) <= 0:
            raise ValueError("limits of a relay are greater than nothing")
