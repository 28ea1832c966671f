"""What the path finder tells its shell: rare facts, in the past tense but for one wish."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ts_base.who import Direct, Path, PeerId


@dataclass(frozen=True, slots=True)
class BestPathChanged:
    """The best path that is not a relay became another one, or none."""

    peer: PeerId
    path: Path | None
    latency: float
    reason: str = ""  # said where there are several uplinks: first, better, silent, error, lost, strategy, network
    gap: float | None = None  # seconds without a word of the peer before it


@dataclass(frozen=True, slots=True)
class PathsMoved:
    """Datagrams to the peer go another way since a moment, or one more: what the old one may have lost is due again."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class PingAnswered:
    peer: PeerId
    token: int
    path: Path
    latency: float


@dataclass(frozen=True, slots=True)
class PingLost:
    """`path` is None where there was none to ping on."""

    peer: PeerId
    token: int
    path: Path | None


@dataclass(frozen=True, slots=True)
class NeedStun:
    """Somebody is about to be told our addresses and they are stale."""

    reason: str


@dataclass(frozen=True, slots=True)
class SocketsWanted:
    """Somebody is about to use many sockets: `PathFinder.on_sockets` says which there are."""

    count: int


@dataclass(frozen=True, slots=True)
class SocketsOver:
    """Nobody uses these sockets any more."""

    sockets: tuple[str, ...]


class HardNatOutlook(NamedTuple):
    """What is done about a hard NAT on the way to a peer. `rest`: seconds until the next attempt may begin."""

    is_ours_hard: bool = False
    is_allowed: bool = True
    is_trying: bool = False
    rest: float = 0.0


@dataclass(frozen=True, slots=True)
class PathReport:
    """How a peer is reached, for people."""

    best: Path | None
    latency: float
    is_trusted: bool
    relay: Path | None
    candidates: tuple[tuple[Direct, float], ...] = ()
    blocked: tuple[Direct, ...] = ()
    hard_nat: HardNatOutlook = field(default_factory=HardNatOutlook)


FinderMessage = BestPathChanged | PathsMoved | PingAnswered | PingLost | NeedStun | SocketsWanted | SocketsOver
