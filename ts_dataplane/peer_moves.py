"""A peer that is heard elsewhere than until now, while we still send to where it was: it may have lost that way.

Whoever has several uplinks goes on by another one when one dies, and we, who have one, are not told. So for a moment
both ways get everything, the old one is asked, and if it does not answer the new one is used. Owns that moment. A peer
that sends copies by two ways is heard by turns, and that is no move: one that has just changed is not believed again.
"""

from __future__ import annotations

import math

from ts_base.who import Path, is_direct, is_relayed
from ts_dataplane.path_scoring import PathQuality
from ts_dataplane.peer_paths import STANDBY_LIFE, PeerState

SETTLED = 1.0  # heard on one path for so long
LOOK_AGAIN = 0.05
PATIENCE = 0.1  # the old path has so long, and two round trips, to answer


def on_heard(state: PeerState, path: Path, now: float) -> bool:
    """The tunnel heard the peer on another path than before. True when it has moved: the old path is to be asked."""
    before, since = state.heard_by, state.heard_by_since
    state.heard_by, state.heard_by_since = path, now
    best = state.best
    if best is None or path == best.path:
        state.moved_to, state.move_look_at = None, math.inf
        return False
    if before != best.path or state.moved_to is not None or not _is_proven(state, path, now):
        return False
    if now - since < SETTLED:
        state.move_look_at = now + LOOK_AGAIN
        return False
    return _begin(state, path, best, now)


def _begin(state: PeerState, path: Path, best: PathQuality, now: float) -> bool:
    state.moved_to, state.moved_until = path, now + PATIENCE + 2 * best.latency
    return True


def on_second_look(state: PeerState, now: float) -> bool:
    """It had changed its path shortly before it did again. True when it has not come back, and so has moved."""
    state.move_look_at = math.inf
    best, path = state.best, state.heard_by
    if best is None or path is None or path == best.path or not _is_proven(state, path, now):
        return False
    return _begin(state, path, best, now)


def _is_proven(state: PeerState, path: Path, now: float) -> bool:
    """Nobody gets our datagrams because a few of the peer's came from there: anybody on the way can repeat those."""
    if is_relayed(path):
        return True
    candidate = state.candidates.get(path) if is_direct(path) else None
    return candidate is not None and now - candidate.ponged_at <= STANDBY_LIFE and now >= candidate.blocked_until


def follow(state: PeerState, now: float) -> PathQuality | None:
    """The old path did not answer in time: the quality of the new one, or None where that is a relay."""
    path, state.moved_to = state.moved_to, None
    if path is None or not is_direct(path):
        return None
    candidate = state.candidates.get(path)
    return None if candidate is None else PathQuality(path, candidate.latency)
