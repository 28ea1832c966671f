"""What stands above the engine: whoever takes the packets that are for us, and makes those that we send.

Owns the contract and nothing else. ts_netstack.stack.Stack keeps it; a TUN device would keep it as well. Whoever opens
sockets (connect, listen, bind) talks to the stack itself: the engine has no part in that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Protocol

from ts_base.who import Hop, Lanes, Origin, PeerId


class Owner(Protocol):
    """Who sleeps until a socket changes."""

    def wake(self) -> None: ...


class Changed(Protocol):
    """A socket of the overlay that is not as it was: the one thing an overlay tells."""

    @property
    def owner(self) -> Owner | None: ...


class SegmentSizes(Protocol):
    """How large a packet may be on its way; sizes of whole IP packets, 0 where the MTU is all there is."""

    def offered_to(self, hop: Hop) -> int:
        """What a connection's opening may say that we take, so that the other side may send it if a way carries it."""

    def carried_to(self, hop: Hop) -> int:
        """What the way of this moment carries."""


class Overlay(Protocol):
    """The five verbs of ARCHITECTURE.md, and what the runtime tells of the world."""

    def receive(self, runs: list[tuple[Origin, list[bytes]]], now: float) -> None:
        """Whole IP packets for us, admitted, in the order they came from each origin, without padding.

        An origin that is not the usual one for the source is an exit that a flow of ours goes through: what comes from
        it belongs to flows opened with that peer as `via`, and to nobody else.
        """

    def transmit(self, now: float, widths: SegmentSizes, lanes: Lanes | None) -> list[tuple[Hop, list[bytes]]]:
        """All that is ready to leave, by hop; what leaves by a lane of a hop is handed to `lanes`, where there are any.

        Both are good for this call only.
        """

    def handle_timer(self, now: float) -> None:
        """A deadline came; what it causes leaves with the next transmit."""

    def next_timer(self) -> float:
        """The next deadline, infinity where nothing will happen. What waits to be sent waits for transmit."""

    def take_messages(self) -> Sequence[Changed]:
        """The sockets that changed since last asked, each once."""

    def set_addresses(self, own: Sequence[bytes], now: float, services: Sequence[bytes] = ()) -> None:
        """Our own addresses, and those of services, are these from now on; what was bound to another one ends."""

    def path_changed(self, address: bytes) -> None:
        """Datagrams to `address` go another way: what was learnt of the old one's MTU is void."""

    def path_moved(self, address: bytes, now: float) -> None:
        """Datagrams to `address` have another way since a moment, and the old one may have lost some: do not wait."""

    def take_resent(self) -> Mapping[bytes, int]:
        """Bytes that were sent again since last asked, by where they went: what TCP knows of losses."""

    def fail_hop(self, hop: Hop) -> None:
        """Packets by `hop` were dropped, since nobody takes them: what cannot go on ends now."""

    def follow_routes(self, peer_for: Callable[[bytes, PeerId], PeerId | None], exits: Set[PeerId]) -> None:
        """Routes are others now: what was opened through a peer that takes it no more ends, though it say nothing."""

    @property
    def exits_in_use(self) -> Mapping[PeerId, int]:
        """The peers that open flows go through as `via`, and how many: one mapping, which is always of this moment."""

    @property
    def is_quiet(self) -> bool:
        """Whether every connection has said all it will say, and was heard."""

    def close_all(self, now: float) -> None:
        """Let go of every connection as its owner would: before the device says goodbye."""
