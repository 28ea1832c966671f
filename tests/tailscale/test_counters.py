"""The snapshot of counters: how it is read off the machines, and that it says what happened."""

from __future__ import annotations

import json
from enum import Enum
from typing import NamedTuple

import trio
from tailnet_scripts import echo_service, echoed
from trio.testing import MockClock

from tailscale.event_readers import Readers
from tailscale.events import QUEUE_LIMIT, StateChanged
from tailscale.metrics import view
from tailscale.runtime.awaited_answers import AwaitedAnswers
from tailscale.runtime.bus import Bus
from tailscale.runtime.control_line import JOB_LIMIT, Jobs
from tailscale.runtime.counters import CountersTaker
from tailscale.runtime.health import WARNING_LIMIT, Health
from tailscale.runtime.supervision import Supervision
from tailscale.status import FileTransfer, PathTraffic, Status
from tailscale.testing import Tailnet
from ts_dataplane.path_messages import PingAnswered, PingLost
from ts_dataplane.path_tally import PathTally

PATH = ("192.0.2.7", 41641)


class Mood(Enum):
    GOOD = 1


class Inner(NamedTuple):
    full: bool
    drops: dict[str, int]


class Outer(NamedTuple):
    open: int
    age: float
    word: str
    moods: dict[Mood, int]
    parts: dict[int, Inner]
    drops: dict[str, int]


class Machine:
    def statistics(self) -> Outer:
        inner = {7: Inner(True, {"a.b": 1, "a.never": 0}), 8: Inner(False, {})}
        return Outer(3, 0.5, "x", {Mood.GOOD: 2}, inner, {"a.b": 1})


def test_drops_are_summed_and_whole_numbers_are_levels_however_deep() -> None:
    taken = CountersTaker(PathTally(), PathTally(), {"one": Machine(), "two": Machine()}).take()
    assert taken.drops == {"a.b": 4}
    levels = {"one.open": 3, "one.moods.good": 2, "one.parts.7.full": 1, "one.parts.8.full": 0}
    assert taken.levels == levels | {name.replace("one", "two"): level for name, level in levels.items()}


def both(a: Status, b: Status, label: str) -> tuple[tuple[PathTraffic, PathTraffic], tuple[PathTraffic, PathTraffic]]:
    """What each sent by this kind of path, beside what the other received."""
    sent, received = [one.counters.sent[label] for one in (a, b)], [one.counters.received[label] for one in (b, a)]
    return (sent[0], received[0]), (sent[1], received[1])


async def test_bytes_by_path_are_the_bytes_that_moved(autojump_clock: MockClock) -> None:
    async with Tailnet() as net, net.device("a") as a, net.device("b") as b, echo_service(b, 80):
        assert await echoed(a, "b", 80, bytes(200_000)) == bytes(200_000)
        await trio.sleep(1)  # what is on the wire arrives
        for label in ("direct_ipv4", "derp"):
            for sent, received in both(a.status(), b.status(), label):
                assert sent == received
        (there, _), (back, _) = both(a.status(), b.status(), "direct_ipv4")
        packets = 200_000 // 1280 + 1
        for traffic in (there, back):
            assert 200_000 < traffic.bytes < 200_000 + 2 * packets * 100, "payload and headers, no more"


async def test_what_goes_by_relay_is_counted_as_relayed(autojump_clock: MockClock) -> None:
    async with Tailnet() as net, net.device("a") as a, net.device("b") as b, echo_service(b, 80):
        net.block_udp(a, b)
        assert await echoed(a, "b", 80, bytes(50_000)) == bytes(50_000)
        await trio.sleep(1)
        for sent, received in both(a.status(), b.status(), "derp"):
            assert sent == received
            assert sent.bytes > 50_000
        assert a.status().counters.sent["direct_ipv4"] == PathTraffic(0, 0)


async def test_the_status_as_json_carries_the_counters(autojump_clock: MockClock) -> None:
    async with Tailnet() as net, net.device("a") as a:
        status = a.status()
        told = json.loads(json.dumps(status.to_dict()))
        assert told["drops"] == status.drops == status.counters.drops
        assert told["counters"] == status.counters.to_dict()
        assert told["counters"]["levels"]["relays.links.900.connected"] == 1


def test_warnings_beyond_the_bound_are_counted() -> None:
    bus = Bus()
    for number in range(WARNING_LIMIT + 50):
        Health(bus).show(f"c{number}", "x")
    assert bus.statistics().drops == {"health.warnings_full": 50}


async def test_jobs_beyond_the_bound_are_counted() -> None:
    jobs = Jobs(Supervision(Bus()))
    assert [jobs.start(trio.lowlevel.checkpoint) for _ in range(JOB_LIMIT + 1)].count(False) == 1
    assert (jobs.statistics().waiting, jobs.statistics().drops) == (JOB_LIMIT, {"control.jobs_full": 1})


def test_answers_that_nobody_waits_for_are_counted() -> None:
    answers = AwaitedAnswers()
    answers.hear(PingAnswered(2, 7, PATH, 0.1))
    answers.hear(PingLost(2, 7, PATH))  # no answer, so none is dropped
    assert answers.statistics().drops == {"answers.nobody_waits": 1}


async def test_events_that_a_forgotten_reader_missed_stay_counted() -> None:
    readers = Readers()
    stream = readers.open_stream()
    for number in range(QUEUE_LIMIT + 3):
        readers.put(StateChanged(str(number), ""))
    del stream
    assert readers.statistics().drops == {"events.reader_lagged": 3}


async def test_guests_are_counted_while_they_are_there_and_their_drops_stay(autojump_clock: MockClock) -> None:
    async with Tailnet() as net, net.device("a") as a:
        with a.include("guest", Machine()), a.include("guest", Machine()):
            counters = a.status().counters
            assert (counters.levels["guest.open"], counters.drops["a.b"]) == (6, 4)
        counters = a.status().counters
        assert "guest.open" not in counters.levels
        assert counters.drops["a.b"] == 4, "what only grows does not shrink"


async def test_transfers_are_shown_by_those_who_carry_them(autojump_clock: MockClock) -> None:
    async with Tailnet() as net, net.device("a") as a:
        done = [10]
        with a.show_transfer(lambda: FileTransfer("x", "b", True, done[0], 100, None)):
            done[0] = 20
            assert [one.done for one in a.transfers] == [20]
            assert view(a)["transfers"] == [a.transfers[0].to_dict()]
        assert a.transfers == ()
