"""What one server allows: sizes, counts and patience. Everything a client can make us hold or wait for is here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Times are seconds, sizes are bytes."""

    connections: int = 1000
    """Open at once; more wait in the listener's backlog."""
    connections_per_peer: int = 250
    """Of those; the one of a peer that has been silent longest makes room for its next."""
    head: int = 64 << 10
    """Request line and headers."""
    websocket_message: int = 16 << 20
    head_timeout: float = 20.0
    """For a whole request head (and a TLS handshake), from its first byte."""
    idle_timeout: float = 75.0
    """Between requests of one connection."""
    stall_timeout: float = 60.0
    """Without any progress of a request body, or of a client reading our answer."""
    startup_timeout: float = 60.0
    shutdown_timeout: float = 10.0
    """For the app's lifespan to end."""
    grace: float = 10.0
    """For requests still running when `shutdown` is set."""
