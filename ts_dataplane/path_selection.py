"""Which of a peer's paths is in use: ranks, the patience before a better one is taken, and the way back after a loss.

Owns the path in use and the changes of it. Refuses to know how paths come to their states: `peer_ways.py` sees to that.

A path gives way at once when it is dead, and to one of a better kind. To one that is only faster it gives way when that
has been so for two seconds, by a fifth and by 10 ms. One that died is taken back after 5 s of being good. After six
changes in a minute the next waits for half a minute, during which what is sent still goes by whatever works.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Mapping
from typing import Literal, NamedTuple

from ts_base.who import Path, is_relayed
from ts_dataplane.heard_log import HeardOfPeer
from ts_dataplane.path_states import DEAD, DEGRADED, ENOUGH_VERDICTS, GOOD, SUSPECT, Way
from ts_dataplane.strategies import Backup, Strategy, choose
from ts_dataplane.uplink_facts import UplinkFacts

BETTER_PART, BETTER_LEAST, BETTER_FOR = 0.2, 0.01, 2.0
QUEUE_OF_OURS = 0.3  # seconds that our own bulk may add to a round trip before it counts against the path
BULK_RATE = 50_000  # bytes a second
UNSEEN_LOSS = 0.0002  # of a path on which none was seen
MUCH_BETTER = 0.6
RETURN_AFTER = 5.0
SWITCHES, SWITCHES_WITHIN, HOLD = 6, 60.0, 30.0

Reason = Literal["first", "better", "silent", "error", "lost", "strategy", "network"]


class Ask(NamedTuple):
    """A ping that is due."""

    path: Path
    is_full: bool


class Switch(NamedTuple):
    """The path in use became another one; None for none. `gap`: for how long nothing had been heard by then."""

    path: Path | None
    latency: float
    reason: Reason
    gap: float | None


class Selection:
    """One peer's. `ways` is shared with whoever keeps them."""

    def __init__(
        self, ways: Mapping[Path, Way], heard: HeardOfPeer, uplinks: Mapping[str, UplinkFacts], strategy: Strategy
    ) -> None:
        self.strategy = strategy
        self.current: Way | None = None
        self.switches: list[Switch] = []
        self.has_moved = False  # datagrams go by other paths now: what waits for an answer is sent again at once
        self.changed: Reason | None = None  # why the ranks are others than a moment ago
        self.died_at: dict[Path, float] = {}  # of paths that have not earned trust again
        self.silent_since: float | None = None  # when the path in use was last heard before it was doubted
        self.answered_at: float | None = None  # the first word by another path after that
        self.ways = ways
        self._heard = heard
        self._uplinks = uplinks
        self._rival: Way | None = None
        self._rival_since = math.inf
        self._rival_asked = False
        self._switched_at: deque[float] = deque(maxlen=SWITCHES)
        self._has_been_direct = False

    # ---- facts

    def apply_uplinks(self) -> None:
        """What users and the system say of uplinks is one of the things that rank paths."""
        for way in self.ways.values():
            facts = self._uplinks.get(way.uplink)
            way.weight = 1.0 if facts is None else facts.weight

    def follow_strategy(self, strategy: Strategy) -> None:
        if strategy != self.strategy:
            self.strategy, self.changed = strategy, "strategy"

    def allows(self, way: Way) -> bool:
        """Whether users and the system let anything go there."""
        return self.allows_uplink(way.uplink)

    def allows_uplink(self, uplink: str) -> bool:
        facts = self._uplinks.get(uplink)
        return facts is None or facts.is_usable

    def _is_metered(self, way: Way) -> bool:
        facts = self._uplinks.get(way.uplink)
        return facts is not None and facts.metered

    def on_doubt(self, heard_at: float) -> None:
        """The path in use came into doubt; it was last heard at that moment."""
        self.silent_since, self.answered_at = heard_at, None

    def on_word(self, way: Way, at: float) -> None:
        """Something came by a path."""
        if way is self.current:
            self.answered_at = self.answered_at if way.state is SUSPECT else None
        elif self.silent_since is not None and self.answered_at is None:
            self.answered_at = at

    def let_go(self, way: Way) -> None:
        """The path is none any more."""
        self.died_at.pop(way.path, None)
        if way is self.current:
            self.changed = self.changed or "lost"

    def next_timer(self) -> float:
        rival = math.inf
        if self._rival is not None:
            rival = self._rival_since + (BETTER_FOR if self._rival_asked else BETTER_FOR / 2)
        return min(rival, self.returns_at())

    # ---- which is in use

    def ranked(self) -> list[Way]:
        """The path in use first, then the best to take its place."""
        rest = sorted((way for way in self.ways.values() if way is not self.current), key=self._rank)
        rest = [way for way in rest if self.allows(way)]
        return rest if self.current is None else [self.current, *rest]

    def _rank(self, way: Way) -> tuple[float, ...]:
        state = {GOOD: 0, DEGRADED: 1, SUSPECT: 3, DEAD: 4}.get(way.state, 2)
        rtt = way.rtt if way.rtt is not None else math.inf
        return (state > 2, *self._order(way), way.kind_rank, state, rtt, self._is_metered(way), -way.is_ipv6, way.order)

    def _order(self, way: Way) -> tuple[float, ...]:
        """The place among uplinks that users gave."""
        if not isinstance(self.strategy, Backup):
            return ()
        order = self.strategy.order
        place = order.index(way.uplink) if way.uplink in order else len(order)
        return (is_relayed(way.path), self._is_metered(way), place)

    def decide(self, now: float) -> None:
        """Keep the path in use, or take another."""
        self._forgive(now)
        current, reason = self.current, self.changed
        self.changed = None
        is_gone = current is None or current.path not in self.ways
        if is_gone or current is None or not current.is_usable or not self.allows(current):
            self._replace(reason or ("first" if current is None else "silent"), now)
        elif reason == "strategy" or isinstance(self.strategy, Backup):
            self._follow_order(current, reason or "better", now)
        if self.current is not None and self.current is current:
            self._consider_rival(current, now)
            if current.state is not SUSPECT:
                self.silent_since = None

    def _replace(self, reason: Reason, now: float) -> None:
        had_one = self.current is not None
        lost = self.current if self.current is not None and self.current.path in self.ways else None
        self.current = None
        usable = [way for way in self.ranked() if way.is_usable and way is not lost]
        if usable:
            self._switch(usable[0], reason, now)
        elif lost is not None and lost.state is DEAD:
            self.current = lost  # there is nothing else: what is sent still goes there, and may be the first to arrive
        elif had_one:
            self._switch(None, reason, now)

    def _follow_order(self, current: Way, reason: Reason, now: float) -> None:
        """The order of the user's is kept without hysteresis, but for what has failed lately."""
        best = next((way for way in sorted(self.ways.values(), key=self._rank) if way.is_good and way.is_full), None)
        if best is None or best is current or current.state is SUSPECT or not self._has_earned_trust(best):
            return
        if isinstance(self.strategy, Backup) and self._order(best) < self._order(current):
            self._switch(best, reason, now)

    def _has_earned_trust(self, way: Way) -> bool:
        """A path that failed is taken back after it was good for a while."""
        return way.path not in self.died_at

    def _forgive(self, now: float) -> None:
        for path in list(self.died_at):
            way = self.ways.get(path)
            if way is None or (way.is_good and now >= way.since + RETURN_AFTER):
                del self.died_at[path]

    def returns_at(self) -> float:
        """When the next path that failed may be taken back."""
        healing = [self.ways[path] for path in self.died_at if path in self.ways and self.ways[path].is_good]
        return min((way.since + RETURN_AFTER for way in healing), default=math.inf)

    def _consider_rival(self, current: Way, now: float) -> None:
        rival = self._best_rival(current, now)
        if rival is not self._rival:
            self._rival, self._rival_since, self._rival_asked = rival, now if rival else math.inf, False
        if rival is None:
            return
        at_once = current.kind_rank > rival.kind_rank
        is_over = now >= self._rival_since + BETTER_FOR
        if not at_once and not is_over:
            return
        if not self._is_held(now) and (at_once or rival.answered_at > self._rival_since):
            self._switch(rival, "better" if self._has_been_direct else "first", now)
            self._rival, self._rival_since = None, math.inf
        elif is_over:
            self._rival_since, self._rival_asked = now, False  # its answer was lost, or changes are many: once more

    def _best_rival(self, current: Way, now: float) -> Way | None:
        if current.state is SUSPECT or isinstance(self.strategy, Backup):
            return None
        for way in self.ranked()[1:]:
            works = way.state is GOOD or (way.state is DEGRADED and way.kind_rank < current.kind_rank)
            if works and self._has_earned_trust(way) and self._is_better(way, current, now):
                return way
        return None

    def _is_better(self, way: Way, current: Way, now: float) -> bool:
        if way.kind_rank != current.kind_rank:
            return way.kind_rank < current.kind_rank
        if way.rtt is None or current.rtt is None:
            return False
        if current.state is DEGRADED:
            return True
        theirs, ours = way.rtt, self._unloaded(current, now)
        margin = max(BETTER_PART * ours, BETTER_LEAST)
        if self._is_metered(way) != self._is_metered(current):
            return self._is_metered(current) and theirs <= ours + margin
        return ours - theirs >= margin or self._carries_more(way, current, now)

    def _carries_more(self, way: Way, current: Way, now: float) -> bool:
        """Bulk is slowed by losses: its rate falls with the round trip and the root of loss (Mathis et al., 1997)."""
        if (current.record.rate(now) or 0.0) < BULK_RATE or current.record.judged < ENOUGH_VERDICTS:
            return False
        theirs = (way.rtt or 0.0) * math.sqrt(max(way.record.loss, UNSEEN_LOSS))
        ours = self._unloaded(current, now) * math.sqrt(max(current.record.loss, UNSEEN_LOSS))
        return theirs <= MUCH_BETTER * ours

    def _unloaded(self, way: Way, now: float) -> float:
        """Its round trip as it would be without what we send: our own queue is no reason to go elsewhere."""
        rtt, least = way.rtt or 0.0, way.record.rtt_min(now)
        if least is not None and rtt - least < QUEUE_OF_OURS and (way.record.rate(now) or 0.0) > BULK_RATE:
            return least
        return rtt

    def rival_asks(self, now: float) -> list[Ask]:
        """Numbers of a standby may be ten seconds old: ask both before they are compared for good."""
        if self._rival is None or self._rival_asked or now < self._rival_since + BETTER_FOR / 2:
            return []
        self._rival_asked = True
        asked = [self._rival] if self.current is None else [self._rival, self.current]
        return [Ask(way.path, False) for way in asked if not is_relayed(way.path)]

    def _is_held(self, now: float) -> bool:
        """Too many changes lately."""
        at = self._switched_at
        return len(at) == SWITCHES and at[-1] - at[0] <= SWITCHES_WITHIN and now - at[-1] < HOLD

    def _switch(self, way: Way | None, reason: Reason, now: float) -> None:
        if way is not None and self._is_held(now):
            self.current = way
            self.has_moved = True
            return
        gap = None
        if self.silent_since is not None:
            gap = max(0.0, (self.answered_at or now) - self.silent_since)
        elif reason in ("silent", "error", "network", "lost") and (heard := self._heard.at) > -math.inf:
            gap = max(0.0, now - heard)
        self.silent_since = self.answered_at = None
        self._has_been_direct |= way is not None and not is_relayed(way.path)
        self._switched_at.append(now)
        self.current = way
        self._rival, self._rival_since = None, math.inf
        self.has_moved = True
        latency = way.rtt if way is not None and way.rtt is not None else math.inf
        self.switches.append(Switch(None if way is None else way.path, latency, reason, gap))

    def choice(self, *, now: float, flow: Hashable = None, size: int = 0) -> tuple[Path, ...]:
        """By which paths datagrams go; copies where there are several."""
        return choose(self.ranked(), self.strategy, flow, size, now)
