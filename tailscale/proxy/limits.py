"""What one proxy allows: sizes, counts and patience. Everything a client can make us hold or wait for is here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProxyLimits:
    """Times are seconds, sizes are bytes."""

    clients: int = 4096
    """Open at once. Who has not said yet what it wants makes room for the next."""
    handshake: float = 10.0
    """For a client to say which language it speaks, and all of a SOCKS request."""
    head: int = 64 << 10
    """Request line and headers of an HTTP request."""
    head_timeout: float = 20.0
    """For all of those, from their first byte."""
    dial: float = 30.0
    exit_wait: float = 10.0
    """For an exit to appear while there is none, on top of `dial`."""
    idle: float = 3600.0
    """A connection that carries nothing for so long is ended."""
    udp_targets: int = 256
    """Destinations of one UDP association; the one silent longest makes room."""
    udp_idle: float = 300.0
    grace: float = 10.0
    """For what is open when `shutdown` is set."""
    proxy_protocol: bool = False
    """Every connection must begin with a PROXY header, which is believed. Only behind a load balancer."""
    allow_local: bool = False
    """Let clients reach this machine itself, its link-local neighbours and cloud metadata services."""
