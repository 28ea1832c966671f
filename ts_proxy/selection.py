"""Which exit is taken, as a function: candidates, what is remembered of them, a policy and a moment in, an order out.

Owns the order of preferences. Refuses to remember anything: `choice.py` does.
"""

# Theory of operation
#
# What is written here is the whole of it, in order:
#
#   1. An exit pinned by hand, and nobody else.
#   2. The named exits in their order. Without `fallback` nobody else ever: who named exits would rather have no
#      connection than one through a stranger.
#   3. The exit of the session; for a new session a hash over the pool says which.
#   4. The pool, most recently used first. Where that one is relayed, and another member has been direct for a while,
#      the direct one: not at once, for a path that comes and goes would move every connection.
#   5. The rest: direct before relayed, then the place's priority, then latency, then the id, so that two programs with
#      one view agree. Without a pool the one in use stays unless another is clearly nearer.
#
# A lost exit, one that fell silent and has not earned its place again, comes after all others of its kind: it is better
# than none. A broken one is not in the order at all.

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ts_proxy.filters import Candidate, fits, place_in
from ts_proxy.policy import Policy
from ts_proxy.sticky import rendezvous

DIRECT_FOR = 5.0  # seconds a path must have been direct before connections move off a relay for it
CLEARLY_NEARER, AT_LEAST = 0.9, 0.010  # by a tenth and by ten milliseconds

PINNED, NAMED, FALLBACK = "pinned by hand", "first of the named that is there", "no named exit is there"
SESSION, RECENT, OFF_RELAY = "the exit of its session", "most recently used", "direct, and the last one is relayed"
BEST, STAYS = "best by path, priority and latency", "in use, and no other is clearly nearer"
LAST_RESORT = "lost, and nobody else is left"


class Standing(NamedTuple):
    """What is remembered of one exit."""

    is_lost: bool = False
    is_broken: bool = False
    direct_since: float | None = None


class Memory(NamedTuple):
    """What is remembered of earlier choices."""

    pinned: str = ""
    """A name."""
    current: str = ""
    pool: tuple[str, ...] = ()
    session_exit: str = ""
    """Which exit the session went by."""


class Selection(NamedTuple):
    """Keys of exits, the best first; why the first is first; and who would fit if only its path were direct."""

    order: tuple[str, ...]
    reason: str = ""
    relayed: tuple[str, ...] = ()


NEW = Standing()


def select(
    policy: Policy,
    candidates: Sequence[Candidate],
    standings: Mapping[str, Standing],
    memory: Memory,
    now: float,
    session: str = "",
) -> Selection:
    """The order in which exits are tried at this moment."""
    if memory.pinned:
        pinned = [c.key for c in candidates if memory.pinned in c.names and not _standing(standings, c).is_broken]
        return Selection(tuple(pinned), PINNED if pinned else "")
    fitting = [c for c in candidates if fits(policy, c) and not _standing(standings, c).is_broken]
    relayed = tuple(c.key for c in fitting if policy.direct_only and not c.is_direct)
    usable = [c for c in fitting if c.key not in relayed]
    named = sorted((c for c in usable if place_in(policy, c) is not None), key=lambda c: (place_in(policy, c), c.key))
    others = [c for c in usable if place_in(policy, c) is None]
    ordered, reason = _order_of_others(policy, others, standings, memory, now, session)
    by_key = {c.key: c for c in others}
    whole = [*named, *(by_key[key] for key in ordered)]
    kept = [c.key for c in whole if not _is_lost(standings, c)]
    lost = [c.key for c in whole if _is_lost(standings, c)]
    if not kept:
        return Selection(tuple(lost), LAST_RESORT if lost else "", relayed)
    if policy.nodes:
        reason = NAMED if any(c.key == kept[0] for c in named) else FALLBACK
    return Selection((*kept, *lost), reason, relayed)


def _order_of_others(
    policy: Policy,
    others: Sequence[Candidate],
    standings: Mapping[str, Standing],
    memory: Memory,
    now: float,
    session: str,
) -> tuple[list[str], str]:
    """Those that nobody named: session, pool, rest; and why the first is first."""
    healthy = [c for c in others if not _is_lost(standings, c)]
    ranked = [c.key for c in sorted(healthy, key=merit)]
    first, reason = "", BEST
    if session:
        first, reason = _of_session(session, ranked, policy, memory), SESSION
    elif policy.sticky:
        first, reason = _of_pool(healthy, standings, memory, now)
    elif stays := _stays(healthy, ranked, memory.current):
        first, reason = stays, STAYS
    pool = [key for key in memory.pool if key in ranked] if policy.sticky else []
    lost = [c.key for c in sorted(others, key=merit) if _is_lost(standings, c)]
    order = dict.fromkeys([first, *pool, *ranked, *lost] if first else [*pool, *ranked, *lost])
    return list(order), reason if first else BEST


def _of_session(session: str, ranked: Sequence[str], policy: Policy, memory: Memory) -> str:
    if memory.session_exit in ranked:
        return memory.session_exit
    pool = [key for key in memory.pool if key in ranked]
    pool += [key for key in ranked if key not in pool][: max(0, policy.pool - len(pool))]
    return rendezvous(session, pool)


def _of_pool(
    healthy: Iterable[Candidate], standings: Mapping[str, Standing], memory: Memory, now: float
) -> tuple[str, str]:
    by_key = {c.key: c for c in healthy}
    members = [by_key[key] for key in memory.pool if key in by_key]
    if not members:
        return "", BEST
    if not members[0].is_direct:
        for member in members[1:]:
            since = _standing(standings, member).direct_since
            if member.is_direct and since is not None and now - since >= DIRECT_FOR:
                return member.key, OFF_RELAY
    return members[0].key, RECENT


def _stays(healthy: Sequence[Candidate], ranked: Sequence[str], current: str) -> str:
    """The exit in use, if it is as good as the best but for a little latency."""
    by_key = {c.key: c for c in healthy}
    if current not in by_key:
        return ""
    used, best = by_key[current], by_key[ranked[0]]
    if merit(used)[:2] != merit(best)[:2]:
        return ""
    return "" if is_clearly_nearer(best.latency, used.latency) else current


def is_clearly_nearer(latency: float | None, than: float | None) -> bool:
    """By a tenth and ten milliseconds: what is measured twice is never the same."""
    if latency is None or than is None:
        return than is None and latency is not None
    return latency < than * CLEARLY_NEARER and than - latency > AT_LEAST


def merit(candidate: Candidate) -> tuple[bool, int, float, str]:
    """Smaller is better."""
    latency = candidate.latency if candidate.latency is not None else float("inf")
    return (not candidate.is_direct, -candidate.priority, latency, candidate.key)


def _standing(standings: Mapping[str, Standing], candidate: Candidate) -> Standing:
    return standings.get(candidate.key, NEW)


def _is_lost(standings: Mapping[str, Standing], candidate: Candidate) -> bool:
    """Control's word that it is offline is enough to prefer another, and not enough to give it up."""
    return not candidate.is_online or _standing(standings, candidate).is_lost
