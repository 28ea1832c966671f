"""Records, states and the choice among paths: the pure rooms of several uplinks, and what may be done to them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ts_base.ip import TUNNEL_MTU
from ts_base.who import Path
from ts_dataplane.heard_log import PATHS_LIMIT, HeardLog, HeardOfPeer
from ts_dataplane.path_records import MINIMUM_WINDOW, Record
from ts_dataplane.path_states import DEAD, DEGRADED, FOLLOWS, GOOD, SUSPECT, UNKNOWN, Way
from ts_dataplane.peer_ways import PeerWays
from ts_dataplane.strategies import Backup, Best, Redundant, Spread, Strategy, Stripe, choose
from ts_dataplane.uplink_facts import UplinkFacts

WLAN: Path = ("192.0.2.7%wlan0", 41641)
WWAN: Path = ("192.0.2.7%wwan0", 41641)
RELAY: Path = (900, bytes(32))
LATENCIES = {WLAN: 0.02, WWAN: 0.06, RELAY: 0.08}


@dataclass
class Shown:
    """A path as the choice sees it."""

    path: Path
    uplink: str
    is_good: bool
    is_usable: bool
    is_doubted: bool
    rtt: float | None
    weight: float


shown = st.builds(
    Shown,
    path=st.sampled_from([WLAN, WWAN, RELAY, ("192.0.2.8%wlan0", 1), ("192.0.2.8%eth0", 1)]),
    uplink=st.just(""),
    is_good=st.booleans(),
    is_usable=st.booleans(),
    is_doubted=st.booleans(),
    rtt=st.none() | st.floats(0, 3),
    weight=st.floats(0, 10),
).map(lambda one: Shown(**{**vars(one), "uplink": str(one.path[0]).partition("%")[2]}))
strategies: st.SearchStrategy[Strategy] = st.one_of(
    st.just(Best()), st.just(Backup(["wlan0"])), st.builds(Redundant, st.integers(2, 4), st.booleans()),
    st.just(Spread()), st.just(Stripe()),
)  # fmt: skip


@given(st.lists(shown, max_size=6, unique_by=lambda one: one.path), strategies, st.none() | st.binary(), st.integers(0))
def test_a_choice_names_known_paths_once_and_some_where_there_are_any(
    records: list[Shown], strategy: Strategy, flow: bytes | None, size: int
) -> None:
    chosen = choose(records, strategy, flow, size, 0.0)
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= {record.path for record in records}
    assert bool(chosen) == bool(records)
    usable = {record.path for record in records if record.is_usable}
    assert not usable or set(chosen) <= usable
    if isinstance(strategy, Redundant):
        assert len(chosen) <= strategy.copies + 1
    else:
        assert len(chosen) <= 2


@given(st.lists(st.tuples(st.floats(0.001, 5), st.floats(0, 30)), min_size=1, max_size=60))
def test_the_smallest_round_trip_is_that_of_a_minute(samples: list[tuple[float, float]]) -> None:
    record, now, seen = Record(), 0.0, []
    for sample, pause in samples:
        now += pause
        record.on_round_trip(sample, now)
        seen.append((sample, now))
        lately = [one for one, at in seen if now - at <= MINIMUM_WINDOW]
        assert record.rtt_min(now) == min(lately)
        assert record.rtt is not None
        assert min(one for one, _ in seen) - 1e-9 <= record.rtt <= max(one for one, _ in seen) + 1e-9


@given(st.lists(st.tuples(st.integers(0, 80), st.integers(0, 80)), max_size=50))
def test_loss_is_a_share(verdicts: list[tuple[int, int]]) -> None:
    record = Record()
    for lost, total in verdicts:
        record.on_verdicts(lost, total)
        record.on_late()
        assert 0.0 <= record.loss <= 1.0


def test_a_rate_is_that_of_the_busiest_tenth_and_is_forgotten() -> None:
    record = Record()
    assert record.rate(0.0) is None
    for number in range(100):
        record.on_sent(1000, number * 0.01)
    assert record.rate(1.0) == pytest.approx(100_000, rel=0.15)
    assert record.rate(4.0) is None


def a_good_way(path: Path = WLAN, now: float = 0.0) -> Way:
    way = Way(path, 1, now)
    for mtu in (0, TUNNEL_MTU):
        way.on_asked(now, is_full=mtu > 0)
        way.on_pong(0.02, mtu, now + 0.02)
    return way


def test_a_path_is_good_once_large_datagrams_came_back() -> None:
    way = Way(WLAN, 1, 0.0)
    way.on_asked(0.0)
    way.on_pong(0.02, 0, 0.02)
    assert (way.state, way.is_usable, way.wants_full) == (UNKNOWN, True, True)
    way.on_asked(0.02, is_full=True)
    way.on_pong(0.02, TUNNEL_MTU, 0.04)
    assert (way.state, way.wants_full) == (GOOD, False)


def test_a_path_that_swallows_large_datagrams_is_never_used() -> None:
    way, now = Way(WLAN, 1, 0.0), 0.0
    for _ in range(200):
        if way.full_due_at() <= now:
            way.on_asked(now, is_full=True)
        way.on_asked(now)
        way.on_pong(0.02, 0, now + 0.02)
        now += 0.1
        way.handle_timer(now)
        if way.state is DEAD:
            break
    assert (way.state, way.is_usable) == (DEAD, False)
    assert "large" in way.why


def test_losses_degrade_a_path_and_five_good_seconds_heal_it() -> None:
    way = a_good_way()
    way.record.on_verdicts(10, 100)
    way.handle_timer(1.0)
    assert way.state is DEGRADED
    now = 1.0
    while way.state is DEGRADED and now < 60:
        way.record.on_verdicts(0, 20)
        now += 0.5
        way.handle_timer(now)
    assert way.state is GOOD
    assert now >= 6


def test_a_path_three_times_slower_for_two_seconds_is_degraded() -> None:
    way, now = a_good_way(), 0.1
    while way.state is GOOD and now < 30:
        way.on_asked(now)
        way.on_pong(0.3, 0, now + 0.3)
        now += 0.5
        way.handle_timer(now)
    assert way.state is DEGRADED
    assert 2 <= now <= 10


def test_a_strangers_pong_and_a_late_one_change_no_count_of_open_pings() -> None:
    way = a_good_way()
    way.on_asked(1.0)
    assert way.handle_timer(1.5) == 1.0  # given up
    before = way.record.loss
    way.on_pong(0.6, 0, 1.6)
    assert way.record.loss < before


@given(
    st.lists(
        st.tuples(st.sampled_from(["ask", "pong", "data", "suspect", "die", "time"]), st.floats(0, 3)), max_size=80
    )
)
def test_states_follow_their_table_whatever_happens(steps: list[tuple[str, float]]) -> None:
    way, now, before = Way(WLAN, 1, 0.0), 0.0, UNKNOWN
    for what, pause in steps:
        now += pause
        match what:
            case "ask":
                way.on_asked(now)
            case "pong":
                way.on_pong(min(pause, 1.0), TUNNEL_MTU, now)
            case "data":
                way.on_data(now, now)
            case "suspect":
                way.suspect("x", now)
            case "die":
                way.die("x", now)
            case "time":
                way.handle_timer(now)
        # What answers while dead passes through UNKNOWN at once.
        assert way.state is before or way.state in FOLLOWS[before] or (before is DEAD and way.state is GOOD)
        before = way.state
        assert not math.isnan(way.next_timer())
        assert way.retry_at() >= way.since or way.state is not DEAD


# ---- one peer's paths together


class Pair:
    """A peer with a path through each of two uplinks, both proven."""

    def __init__(self, strategy: Strategy | None = None) -> None:
        self.heard = HeardLog()
        self.facts = {"wlan0": UplinkFacts(), "wwan0": UplinkFacts()}
        of_peer: HeardOfPeer = self.heard.of(7)
        self.ways = PeerWays(7, of_peer, self.facts, strategy or Best(), 0.0)
        self.ways.keep([WLAN, WWAN, RELAY], 0.0)
        self.now = 0.0
        self.answers: list[tuple[float, Path, bool]] = []
        for path, latency in LATENCIES.items():
            for mtu in (0, TUNNEL_MTU):
                self.ways.on_asked(path, 0.0, is_full=mtu > 0)
                self.ways.on_pong(path, latency, mtu, latency)
        self.step(0.1)

    def step(self, seconds: float, answering: tuple[Path, ...] = ()) -> None:
        """Let time pass; these paths answer what they are asked."""
        until = self.now + seconds
        while self.now < until:
            due = min((answer[0] for answer in self.answers), default=math.inf)
            self.now = min(until, due, max(self.ways.next_timer(), self.now + 0.001))
            for at, path, is_full in [answer for answer in self.answers if answer[0] <= self.now]:
                self.answers.remove((at, path, is_full))
                self.ways.on_pong(path, LATENCIES[path], TUNNEL_MTU if is_full else 0, self.now)
            for path, is_full in self.ways.handle_timer(self.now):
                self.ways.on_asked(path, self.now, is_full=is_full)
                if path in answering:
                    self.answers.append((self.now + LATENCIES[path], path, is_full))

    @property
    def choice(self) -> tuple[Path, ...]:
        return self.ways.selection.choice(now=self.now)


def test_silence_doubles_at_once_and_moves_when_the_other_answers() -> None:
    pair = Pair()
    assert pair.choice == (WLAN,)
    pair.ways.on_sent(pair.now, asks=True)
    pair.step(0.21)
    assert pair.choice == (WLAN, WWAN)
    assert pair.ways.take_move()
    pair.step(1.0, answering=(WWAN, RELAY))
    assert pair.choice == (WWAN,)
    assert [(one.path, one.reason) for one in pair.ways.take_switches()[-1:]] == [(WWAN, "silent")]


def test_a_delayed_answer_costs_a_doubled_burst_and_no_change() -> None:
    pair = Pair()
    pair.ways.take_switches()
    pair.ways.on_sent(pair.now, asks=True)
    pair.step(0.25, answering=(WLAN, WWAN))
    pair.heard.note(7, WLAN, [b"late"], pair.now)
    pair.step(1.0, answering=(WLAN, WWAN))
    assert pair.choice == (WLAN,)
    assert not pair.ways.take_switches()


def test_two_dead_uplinks_leave_the_relay_and_the_first_to_come_back_is_taken() -> None:
    pair = Pair()
    pair.ways.on_sent(pair.now, asks=True)
    pair.step(5.0, answering=(RELAY,))
    assert pair.choice == (RELAY,)
    pair.step(15.0, answering=(RELAY, WWAN))
    assert pair.choice == (WWAN,)


def test_an_error_of_the_host_moves_at_once_and_a_full_buffer_does_not() -> None:
    pair = Pair()
    pair.ways.on_error(WLAN, pair.now)
    pair.ways.selection.decide(pair.now)
    assert pair.choice == (WWAN,)
    assert pair.ways.take_switches()[-1].reason == "error"


def test_an_uplink_that_is_switched_off_carries_nothing() -> None:
    pair = Pair()
    pair.facts["wlan0"].want(False, None, None)
    pair.ways.on_uplinks_changed(pair.now)
    pair.step(10.0, answering=(WLAN, WWAN, RELAY))
    assert pair.choice == (WWAN,)
    assert pair.ways.take_switches()[-1].reason == "network"


def test_pings_that_pass_where_data_does_not_are_not_believed_for_ever() -> None:
    pair = Pair()
    for _ in range(12):
        if pair.choice[0] != WLAN:
            break
        pair.ways.on_sent(pair.now, asks=True)
        pair.step(0.3, answering=(WLAN, WWAN, RELAY))  # pings come back by both
        pair.heard.note(7, WWAN, [b"the copy was answered"], pair.now)
        pair.step(0.3, answering=(WLAN, WWAN, RELAY))
    assert pair.choice == (WWAN,)


def test_nobody_is_asked_about_a_peer_that_nobody_talks_to() -> None:
    pair = Pair()
    pair.ways.sleep()
    assert pair.ways.next_timer() == math.inf
    assert pair.ways.handle_timer(pair.now + 1000) == []


def test_a_peer_heard_on_ever_new_addresses_costs_bounded_memory() -> None:
    pair = Pair()
    for number in range(500):
        pair.heard.note(7, (f"198.51.100.7%wlan{number}", number), [b"x"], number)
    assert len(pair.heard[7]) <= PATHS_LIMIT
    pair.ways.look(600.0)


def test_redundant_takes_different_uplinks_only() -> None:
    pair = Pair(Redundant(3))
    other: Path = ("192.0.2.8%wlan0", 41641)
    pair.ways.keep([WLAN, other, WWAN, RELAY], pair.now)
    for mtu in (0, TUNNEL_MTU):
        pair.ways.on_asked(other, pair.now, is_full=mtu > 0)
        pair.ways.on_pong(other, 0.0, mtu, pair.now)
    assert sorted(str(path[0]).partition("%")[2] for path in pair.choice) == ["", "wlan0", "wwan0"]


@pytest.mark.parametrize("copies", [0, 1, 5])
def test_copies_that_cannot_be_are_refused(copies: int) -> None:
    with pytest.raises(ValueError, match="2 to 4 copies"):
        Redundant(copies)


def test_spreads_that_cannot_be_are_refused() -> None:
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="spread of Stripe"):
            Stripe(wrong)
    with pytest.raises(TypeError, match="list of uplinks"):
        Backup("wlan0")
    assert SUSPECT in FOLLOWS[GOOD]


EVENTS = st.sampled_from(["sent", "heard", "error", "off", "on", "net"])
ANSWERING = st.sampled_from([(), (WLAN,), (WWAN,), (WLAN, WWAN, RELAY), (RELAY,)])


@settings(max_examples=30)
@given(st.lists(st.tuples(EVENTS, ANSWERING), max_size=8))
def test_a_timer_that_was_seen_to_is_never_due_again_at_once(steps: list[tuple[str, tuple[Path, ...]]]) -> None:
    pair = Pair()
    for what, answering in steps:
        match what:
            case "sent":
                pair.ways.on_sent(pair.now, asks=True)
            case "heard":
                pair.heard.note(7, WWAN, [b"x"], pair.now)
                pair.ways.look(pair.now)
            case "error":
                pair.ways.on_error(WLAN, pair.now)
            case "off" | "on":
                pair.facts["wlan0"].want(what == "on", None, None)
                pair.ways.on_uplinks_changed(pair.now)
            case "net":
                pair.ways.on_network_changed(pair.now)
        pair.step(7.0, answering)
        for path, is_full in pair.ways.handle_timer(pair.now):
            pair.ways.on_asked(path, pair.now, is_full=is_full)
        for path, is_full in pair.ways.handle_timer(pair.now):
            pair.ways.on_asked(path, pair.now, is_full=is_full)
        assert pair.ways.next_timer() > pair.now
