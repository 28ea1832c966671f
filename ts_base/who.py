"""Who: peers, the paths to them, and runs. The nouns that every room of the packet path shares.

Owns their shapes, and the only code that asks a path what it looks like. Refuses to know which path is good.
Paths are plain tuples: they are keys of dictionaries, and are compared once per run on the packet path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from typing_extensions import TypeIs  # what mypy knows by heart; nothing is imported when we run

PeerId = int  # the control server's node id; 0 is nobody

# An address through one of several uplinks carries it as a zone (RFC 4007): ("192.0.2.7%wwan0", 41641). Without a zone
# the system chooses, so that a host with one uplink pays nothing for the others. A path through a socket beside the
# first has that one's number there: ("192.0.2.7%#3", 41641).
Direct = tuple[str, int]  # host and port
PeerRelayed = tuple[str, int, int]  # host, port and Geneve VNI of the peer that relays
Relayed = tuple[int, bytes]  # DERP region and the peer's node key
Path = Direct | PeerRelayed | Relayed

PathRun = tuple[Path, list[bytes]]
DirectRun = tuple[Direct, list[bytes]]
RelayedRun = tuple[Relayed, list[bytes]]
PeerRun = tuple[PeerId, list[bytes]]

# Of the overlay. Outbound packets name their next hop: where they go, and by which peer if not by the one that routes
# it (0). Inbound ones name the peer they came from, and whether what we send to their source goes to that peer anyway:
# if not, it speaks as one of several chosen exits, and only in the flows that were opened through it.
Hop = tuple[bytes, PeerId]
Origin = tuple[PeerId, bool]


class LaneOffer(NamedTuple):
    """One of several paths that may carry one connection together, by a number that its owner knows it by.

    `round_trip` is 0.0 where nobody knows. One that is not open takes nothing new, and what left by it may still
    arrive; what left by one that is not even offered is lost.
    """

    number: int
    round_trip: float
    is_open: bool = True


class Lanes(Protocol):
    """Who knows the lanes of each hop: asked and told while the overlay transmits. What a number means stays theirs."""

    def offers_to(self, hop: Hop, flow: bytes, now: float) -> Sequence[LaneOffer]:
        """All that a flow may use, the one first that carries what leaves by none; nothing for the usual way."""

    def send(self, hop: Hop, number: int, packets: list[bytes]) -> None:
        """These leave by that lane."""

    def on_silence(self, hop: Hop, number: int) -> None:
        """What left by a lane was not answered for too long."""

    def on_lost(self, hop: Hop, number: int, count: int) -> None:
        """So many bytes that left by a lane had to leave again."""

    def on_no_gain(self, hop: Hop, now: float) -> None:
        """Several lanes carried less than one of them would have alone."""


def is_relayed(path: Path) -> TypeIs[Relayed]:
    """By a DERP server."""
    return type(path[0]) is int


def is_direct(path: Path) -> TypeIs[Direct]:
    """Straight to the peer."""
    return len(path) == 2 and type(path[0]) is str


def is_peer_relayed(path: Path) -> TypeIs[PeerRelayed]:
    """By another peer that relays."""
    return len(path) == 3


def endpoint_of(path: Direct | PeerRelayed) -> Direct:
    """The UDP address that datagrams for this path are sent to."""
    return path[0], path[1]


def host_of(path: Direct | PeerRelayed) -> str:
    """The address without its zone, for whoever reads what it means."""
    return path[0].partition("%")[0]


def uplink_of(path: Direct | PeerRelayed) -> str:
    """The uplink that the path is bound to; empty where the system chooses."""
    return path[0].partition("%")[2].partition("#")[0]


def through_socket(place: Direct, socket: str) -> Direct:
    """The same place, through a socket of its own: one of those that `runtime/udp.py` opens beside the first."""
    return f"{place[0]}%{socket}", place[1]


def socket_of(path: Direct | PeerRelayed) -> str:
    """The name of that socket; empty for the one that everything else goes through."""
    zone = path[0].partition("%")[2]
    return zone if "#" in zone else ""
