"""The live choice of one policy: what became of dials goes in, which exit comes next goes out.

Owns what is remembered of each exit: breaker, losses, trials; and the pool and sessions. Refuses to know connections
and clocks: `now` is an argument, and who dials tells what came of it.
"""

# Theory of operation
#
# An exit is *unproven* until its tunnel has spoken since it was chosen or lost. Through an unproven exit one dial goes
# at a time, and whoever comes meanwhile waits for what it shows: a crowd that finds no exit makes one attempt. A proven
# exit takes everybody at once.
#
# An exit is *lost* when a dial through it met nothing but silence. It stands behind all others from then on, so nobody
# else has to meet that silence. What brings it back depends on what it is. A named exit that is better than the one in
# use is asked every ten seconds and has to answer three times in a row: one that comes and goes would otherwise take
# every connection with it, again and again. Any other is forgiven when its tunnel speaks, when control or the path
# finder have good news of it, or after a while. To be lost is a question of rank: where nobody else is left, it is
# tried again, after 1, 2, 4, 8 seconds. To be broken (breaker.py) is not: it is left alone until its time is over.
#
# An exit is *gone* when control says so: its node, its default route or its key. There is nothing to wait for.

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from ts_proxy.breaker import SILENCE, USUAL, Breaker, ExitBreaker, State
from ts_proxy.filters import Candidate, fits, place_in, why_not
from ts_proxy.policy import Policy
from ts_proxy.selection import DIRECT_FOR, Memory, Selection, Standing, select
from ts_proxy.sticky import Pool, Sessions

ASK_EVERY = 10.0  # seconds between the questions to a better exit that was lost
ANSWERS_NEEDED = 3  # in a row
FIRST_RETRY, LONGEST_RETRY = 1.0, 8.0
FORGIVEN_AFTER = 300.0  # of an exit that nobody asks
RECORDS = 4096  # of exits that are there or were lost
OFFLINE, GONE, FELL_SILENT = "control says that it is offline", "it is no exit any more", "its tunnel fell silent"


class Outcome(Enum):
    """What came of one dial through one exit."""

    CONNECTED = "connected"
    TARGET = "the target said no"  # a refusal, a reset, no such name: the exit did its part
    TIMED_OUT = "the target did not answer"  # though the exit's tunnel spoke
    SILENT = "the tunnel did not speak"
    GONE = "the exit is none any more"
    CUT = "given up"  # by whoever dialled: nothing is learnt


@dataclass(frozen=True, slots=True)
class Chosen:
    """The next connection without a session goes by another exit than the last one would have."""

    key: str  # empty: by none
    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The breaker opened."""

    key: str
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Recovered:
    """It is as good as before it was lost, or broken."""

    key: str


@dataclass(frozen=True, slots=True)
class TunnelDead:
    """What goes through this exit will never be answered."""

    key: str


News = Chosen | Lost | Broken | Recovered | TunnelDead


class Pick(NamedTuple):
    """Whom to dial by; or nobody, and when it is worth asking again if nothing is heard before."""

    key: str
    again_at: float = math.inf


class Dial(NamedTuple):
    """One dial under way, and whether it is the one that a half-open breaker lets through."""

    key: str
    is_trial: bool


class ExitState(NamedTuple):
    """One exit as it stands."""

    key: str
    fits: bool
    why_not: str
    breaker: State
    reason: str  # why it is lost or broken
    failures: int
    again_at: float  # when it may be tried again; -inf at any time
    dials: int  # under way


class ChoiceStatistics(NamedTuple):
    exits: int
    fitting: int
    lost: int
    broken: int
    sessions: int
    sessions_forgotten: int
    dials: int


@dataclass(slots=True)
class _Record:
    breaker: ExitBreaker
    lost: str = ""  # why
    lost_at: float = -math.inf
    ask_at: float = math.inf
    answers: int = 0  # in a row, since it was lost
    retries: int = 0
    retry_at: float = -math.inf
    direct_since: float | None = None
    is_proven: bool = False
    dials: int = 0


class Choice:
    """One policy's. Every verb is a transaction; `take_messages` has the news, `next_timer` when time makes some."""

    def __init__(self, policy: Policy, limits: Breaker = USUAL, pool: Iterable[str] = ()) -> None:
        self.policy = policy
        self.pool = Pool(policy.pool, pool)
        self.sessions = Sessions()
        self.pinned = ""
        self.current = ""
        self._limits = limits
        self._candidates: dict[str, Candidate] = {}
        self._fitting: list[Candidate] = []
        self._records: dict[str, _Record] = {}
        self._messages: list[News] = []

    # What is known of exits

    def observe(self, candidates: Sequence[Candidate], now: float) -> None:
        """All exit nodes that there are now, also those that the policy does not want."""
        before = self._candidates
        self._candidates = {candidate.key: candidate for candidate in candidates}
        self._fitting = [candidate for candidate in candidates if fits(self.policy, candidate)]
        for key, candidate in self._candidates.items():
            record = self._record(key)
            if not candidate.is_direct:
                record.direct_since = None
            elif record.direct_since is None:
                record.direct_since = now
            if record.lost and not self._is_named(key) and _is_good_news(record.lost, before.get(key), candidate):
                self._restore(key, record)
        for key, candidate in before.items():
            after = self._candidates.get(key)
            if fits(self.policy, candidate) and (after is None or (candidate.is_online and not after.is_online)):
                self._lose(key, OFFLINE if after else GONE, now)
        self._settle(now)

    def use_pool(self, keys: Iterable[str], now: float) -> None:
        """What an earlier run kept."""
        self.pool = Pool(self.policy.pool, (*self.pool.keys, *keys))
        self._settle(now)

    def pin(self, name: str, now: float) -> None:
        """This exit and nobody else; an empty name goes back to the policy."""
        self.pinned = name
        self._settle(now)

    def _record(self, key: str) -> _Record:
        record = self._records.get(key)
        if record is None:
            record = self._records[key] = _Record(ExitBreaker(self._limits))
            if len(self._records) > RECORDS:
                idle = (k for k, r in self._records.items() if k not in self._candidates and not r.dials and k != key)
                self._records.pop(next(idle, ""), None)
        return record

    def _wanted(self, candidates: Iterable[Candidate] | None = None) -> Iterator[tuple[str, _Record]]:
        """The records of these exits, or of those that the policy lets in."""
        for candidate in self._fitting if candidates is None else candidates:
            yield candidate.key, self._records[candidate.key]

    def _is_named(self, key: str) -> bool:
        candidate = self._candidates.get(key)
        return candidate is not None and place_in(self.policy, candidate) is not None

    # Who is next

    def selection(self, now: float, session: str = "") -> Selection:
        """The whole order at this moment."""
        candidates = list(self._candidates.values()) if self.pinned else self._fitting
        standings = {
            key: Standing(
                is_lost=bool(record.lost) or record.breaker.cause == SILENCE,
                is_broken=record.breaker.state(now) == "open",
                direct_since=record.direct_since,
            )
            for key, record in self._wanted(candidates)
        }
        memory = Memory(self.pinned, self.current, self.pool.keys, self.sessions.exit_of(session) if session else "")
        return select(self.policy, candidates, standings, memory, now, session)

    def next_exit(self, now: float, session: str = "", without: Collection[str] = ()) -> Pick:
        """The exit to dial by now, without those that were tried already."""
        again_at = math.inf
        for key in self.selection(now, session).order:
            if key in without:
                continue
            record = self._record(key)
            if not record.is_proven and record.dials:
                return Pick("", again_at)  # somebody is finding out
            if not record.breaker.may_pass(now):
                continue
            if record.retry_at > now:
                again_at = min(again_at, record.retry_at)
                continue
            return Pick(key)
        closed = [r.breaker.until for _, r in self._wanted() if r.breaker.state(now) == "open"]
        return Pick("", min(again_at, *closed, math.inf))

    def may_dial(self, key: str, now: float) -> bool:
        """Whether its breaker lets somebody pass."""
        return self._record(key).breaker.may_pass(now)

    # What becomes of dials

    def begin(self, key: str, now: float) -> Dial:
        """Somebody dials by this exit, and hands the answer to `end`."""
        record = self._record(key)
        record.dials += 1
        return Dial(key, record.breaker.begin(now))

    def end(self, dial: Dial, outcome: Outcome, now: float, target: str = "", session: str = "") -> None:
        """What came of it."""
        key, is_trial = dial
        record = self._record(key)
        record.dials -= 1
        match outcome:
            case Outcome.CONNECTED:
                self._connected(key, record, session)
            case Outcome.TARGET:
                self._hear(key, record)
            case Outcome.TIMED_OUT:
                self._hear(key, record)
                if record.breaker.timed_out(target, now, is_trial=is_trial):
                    self._tell_broken(key, record, now)
            case Outcome.SILENT:
                self._lose(key, FELL_SILENT, now)
                if record.breaker.fell_silent(now, is_trial=is_trial):
                    self._tell_broken(key, record, now)
                    self._messages.append(TunnelDead(key))
            case Outcome.GONE:
                self._lose(key, GONE, now)
        if is_trial:
            record.breaker.let_go()
        self._settle(now)

    def spoke(self, key: str, now: float) -> None:
        """Its tunnel gave an authenticated packet."""
        self._hear(key, self._record(key))
        self._settle(now)

    def fell_silent(self, key: str, now: float) -> None:
        """A dial by it has met nothing but silence for too long, and goes on."""
        self._lose(key, FELL_SILENT, now)
        self._settle(now)

    def _connected(self, key: str, record: _Record, session: str) -> None:
        self._hear(key, record)
        self._restore(key, record, closes=True)
        if session:
            self.sessions.assign(session, key)
            self.pool.add(key, [other for other in self.pool.keys if self._is_away(other)])
        elif key == self.current or not self.pool.keys or self._is_away(self.pool.keys[0]):
            self.pool.use(key)

    def _is_away(self, key: str) -> bool:
        return key not in self._candidates or bool(self._record(key).lost or self._record(key).breaker.cause)

    def _hear(self, key: str, record: _Record) -> None:
        record.is_proven, record.retries, record.retry_at = True, 0, -math.inf
        record.breaker.heard()
        if not self._is_named(key) or key == self.current:
            self._restore(key, record)

    def _lose(self, key: str, reason: str, now: float) -> None:
        record = self._record(key)
        record.is_proven = False
        record.answers = 0
        record.retry_at = now + min(FIRST_RETRY * 2**record.retries, LONGEST_RETRY)
        record.retries += 1
        record.ask_at = now + ASK_EVERY
        if not record.lost:
            record.lost, record.lost_at = reason, now
            self._messages.append(Lost(key, reason))

    def _restore(self, key: str, record: _Record, *, closes: bool = False) -> None:
        """It is not lost any more. What the breaker holds against it stays, unless something `closes` that."""
        was_away = bool(record.lost or record.breaker.cause)
        record.lost, record.ask_at, record.answers = "", math.inf, 0
        record.retries, record.retry_at = 0, -math.inf
        if closes:
            record.breaker.succeeded()
        else:
            record.breaker.heard()
        if was_away and not record.breaker.cause:
            self._messages.append(Recovered(key))

    def _tell_broken(self, key: str, record: _Record, now: float) -> None:
        self._messages.append(Broken(key, record.breaker.cause, record.breaker.until - now))

    # Questions to lost exits

    def asks(self, now: float) -> list[str]:
        """Better exits than the one in use that were lost, and are to be asked now whether they are back."""
        due = [key for key in self._better_and_lost(now) if self._record(key).ask_at <= now]
        for key in due:
            self._record(key).ask_at = now + ASK_EVERY
        return due

    def answered(self, key: str, has_answered: bool, now: float) -> None:
        """What came of such a question."""
        record = self._record(key)
        record.answers = record.answers + 1 if has_answered else 0
        if record.lost and record.answers >= ANSWERS_NEEDED:
            record.is_proven = True
            self._restore(key, record)
        self._settle(now)

    def tunnel_stayed_silent(self, key: str, now: float) -> None:
        """It was asked for long whether it is there, after it was lost, and nothing came."""
        if self._record(key).lost:
            self._messages.append(TunnelDead(key))
        self._settle(now)

    def _better_and_lost(self, now: float) -> list[str]:
        if self.pinned or not self.policy.nodes:
            return []
        found = []
        for candidate in self._candidates.values():
            place, record = place_in(self.policy, candidate), self._record(candidate.key)
            if record.lost and place is not None and fits(self.policy, candidate) and candidate.key != self.current:
                used = self._candidates.get(self.current)
                best = place_in(self.policy, used) if used is not None else None
                if best is None or place < best:
                    found.append(candidate.key)
        return found

    # Time

    def handle_timer(self, now: float) -> None:
        """What time alone changes: paths that stayed direct, losses that are forgiven, breakers whose time is over."""
        for key, record in self._wanted():
            if record.lost and not self._is_named(key) and now - record.lost_at >= FORGIVEN_AFTER:
                self._restore(key, record)
        self._settle(now)

    def next_timer(self, now: float) -> float:
        """When `asks` or `handle_timer` have something to say."""
        due = [self._record(key).ask_at for key in self._better_and_lost(now)]
        for key, record in self._wanted():
            if record.direct_since is not None and self.policy.sticky and not self.policy.nodes:
                due.append(record.direct_since + DIRECT_FOR)
            if record.lost and not self._is_named(key):
                due.append(record.lost_at + FORGIVEN_AFTER)
            if record.breaker.cause:
                due.append(record.breaker.until)
        return min((at for at in due if at > now), default=math.inf)

    def _settle(self, now: float) -> None:
        selection = self.selection(now)
        best = selection.order[0] if selection.order else ""
        if best != self.current:
            self.current = best
            self._messages.append(Chosen(best, selection.reason))

    # For people

    def take_messages(self) -> list[News]:
        taken, self._messages = self._messages, []
        return taken

    def states(self, now: float) -> list[ExitState]:
        """Every exit that is there."""
        found = []
        for key, candidate in self._candidates.items():
            record = self._record(key)
            why = why_not(self.policy, candidate) if not self.pinned else ""
            if not why and self.policy.direct_only and not candidate.is_direct:
                why = "its path is not direct"
            again_at = max(record.retry_at, record.breaker.until if record.breaker.cause else -math.inf)
            reason = (
                record.breaker.cause or record.lost or ("" if candidate.is_online else "control says it is offline")
            )
            state = record.breaker.state(now)
            found.append(ExitState(key, not why, why, state, reason, record.breaker.failures, again_at, record.dials))
        return found

    def statistics(self) -> ChoiceStatistics:
        fitting = [key for key, candidate in self._candidates.items() if fits(self.policy, candidate)]
        return ChoiceStatistics(
            exits=len(self._candidates),
            fitting=len(fitting),
            lost=sum(bool(record.lost) for record in self._records.values()),
            broken=sum(bool(record.breaker.cause) for record in self._records.values()),
            sessions=len(self.sessions),
            sessions_forgotten=self.sessions.forgotten,
            dials=sum(record.dials for record in self._records.values()),
        )


def _is_good_news(lost: str, before: Candidate | None, after: Candidate) -> bool:
    """Whether an exit is worth another try: control takes its word back, or a path to it was found."""
    if not after.is_online:
        return False
    if lost in (OFFLINE, GONE):
        return before is None or not before.is_online
    return after.is_direct and (before is None or not before.is_direct)
