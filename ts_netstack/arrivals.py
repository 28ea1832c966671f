"""What came in, with everything that is known of it before somebody claims it. Once per stray packet, not per segment.

Owns the rule who may speak in which flow. Refuses to know flows.
"""

from __future__ import annotations

from typing import NamedTuple

from ts_base.who import Hop, Origin, PeerId
from ts_netstack.wire import Address, Packet, Segment

USUAL: Origin = (0, True)  # nobody in particular, by the usual way: ourselves, or whoever has no peers


class Arrival(NamedTuple):
    """A segment of no known connection. `data` is the packet it came in, canonical; `mss` what the way back carries."""

    key: bytes
    local: Address
    remote: Address
    packet: Packet
    segment: Segment
    data: bytes
    peer: PeerId
    mss: int

    @property
    def back(self) -> Hop:
        """Where an answer goes: strangers are only heard by the usual way."""
        return (self.remote[0], 0)


def may_speak(origin: Origin, via: PeerId) -> bool:
    """One of several chosen exits speaks in the flows opened through it; whoever we route to by default in the rest."""
    peer, is_usual = origin
    return peer == via if via else is_usual
