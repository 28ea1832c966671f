"""One stream over several lanes: what it gains, what it never loses, and what becomes of it when a lane goes."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netsim import Net, Path

from ts_base.who import Hop, LaneOffer
from ts_netstack.tcp import TcpConnection

MIB = 1 << 20
MBIT = 1e6


class Roads:
    """The lanes of everything; `told` counts what the stack says of them."""

    def __init__(self, numbers: tuple[int, ...]) -> None:
        self.numbers, self.closed = numbers, set[int]()
        self.bursts: list[tuple[int, list[bytes]]] = []
        self.sent: Counter[int] = Counter()
        self.told: Counter[str] = Counter()

    def offers_to(self, hop: Hop, flow: bytes, now: float) -> tuple[LaneOffer, ...]:
        return tuple(LaneOffer(number, 0.0, number not in self.closed) for number in self.numbers)

    def send(self, hop: Hop, number: int, packets: list[bytes]) -> None:
        self.sent[number] += sum(map(len, packets))
        self.bursts.append((number, packets))

    def on_silence(self, hop: Hop, number: int) -> None:
        self.told[f"silent {number}"] += 1

    def on_lost(self, hop: Hop, number: int, count: int) -> None:
        self.told[f"lost {number}"] += count

    def on_no_gain(self, hop: Hop, now: float) -> None:
        self.told["no gain"] += 1


class Divided(Net):
    """A network where `a` has several ways to `b`; acknowledgements all come back by the first."""

    def __init__(self, paths: list[dict[str, float]], seed: int = 1, **options: Any) -> None:
        super().__init__(seed, **options)
        self.paths = {number: Path(**path) for number, path in enumerate(paths, 1)}  # type: ignore[arg-type]
        self.to_b, self.to_a = self.paths[1], Path(delay=self.paths[1].delay)
        self.roads = Roads(tuple(self.paths))
        self.lanes[self.a] = self.roads

    def settle(self) -> None:
        super().settle()
        bursts, self.roads.bursts = self.roads.bursts, []
        for number, packets in bursts:
            self.carry(packets, self.paths[number], self.b)


def line(rate: float = 5, trip: float = 0.02, **faults: float) -> dict[str, float]:
    return {"rate": rate * MBIT, "delay": trip / 2, "queue": int(rate * MBIT / 8 * 0.1), **faults}


def goodput(paths: list[dict[str, float]], size: int = 4 * MIB, seed: int = 1) -> float:
    """Bytes a second, once windows are open."""
    net = Divided(paths, seed)
    client, server = net.pair()
    net.transfer(client, server, bytes(MIB))
    return size / net.transfer(client, server, random.Random(seed).randbytes(size))


@pytest.mark.slow
def test_two_lines_carry_nearly_twice_as_much_as_one():
    near, far = line(trip=0.02), line(trip=0.045)
    assert goodput([near, far]) >= 1.8 * max(goodput([near]), goodput([far]))


def test_a_stream_by_one_lane_is_what_it_always_was():
    net = Divided([line()])
    client, server = net.pair()
    net.transfer(client, server, bytes(MIB))
    assert not net.roads.sent


def test_a_small_stream_is_not_divided():
    net = Divided([line(), line()])
    client, server = net.pair()
    for _ in range(50):
        net.transfer(client, server, bytes(1000))
    assert not net.roads.sent


def test_disorder_between_lanes_is_no_loss():
    """300 ms against 20: nothing is lost, so nothing is sent again, though a receiver sees holes all the time."""
    net = Divided([line(queue=1 << 30), line(trip=0.3, queue=1 << 30)])
    client, server = net.pair()
    net.transfer(client, server, bytes(4 * MIB))
    assert min(net.roads.sent.values()) > 100_000
    assert client.statistics().resent < 20_000


def test_what_a_lane_loses_cuts_the_window_of_that_lane_alone():
    net = Divided([line(), line()])
    client, server = net.pair()
    net.transfer(client, server, bytes(MIB))
    net.paths[2].loss = 0.1
    before = net.roads.sent.copy()
    net.transfer(client, server, bytes(4 * MIB))
    moved = net.roads.sent - before
    assert moved[1] > 2 * moved[2]


def test_a_lane_that_dies_without_a_word_costs_a_moment():
    net = Divided([line(), line()])
    client, server = net.pair()
    net.transfer(client, server, bytes(MIB))
    net.paths[2].up = False
    seconds = net.transfer(client, server, random.Random(3).randbytes(2 * MIB))
    assert seconds < 2 * MIB / (0.6 * 5 * MBIT / 8)
    assert net.roads.told["silent 2"]


def test_a_lane_that_is_no_longer_offered_has_lost_what_left_by_it():
    net = Divided([line(), line()])
    client, server = net.pair()
    net.transfer(client, server, bytes(MIB))
    for _ in range(20):
        fill(client)
        net.step()
    net.paths[2].up = False
    net.roads.numbers = (1,)
    at = net.now
    while client.statistics().resent == 0:
        fill(client)
        assert net.step()
    assert net.now - at < 0.03
    assert not net.roads.told["silent 2"]


def fill(client: TcpConnection) -> None:
    while client.write(bytes(64 << 10)):
        pass


def test_a_closed_lane_takes_nothing_new_and_what_is_on_its_way_arrives():
    net = Divided([line(queue=1 << 30), line(queue=1 << 30)])
    client, server = net.pair()
    net.transfer(client, server, bytes(MIB))
    net.roads.closed.add(2)
    resent, before = client.statistics().resent, net.roads.sent[2]
    net.transfer(client, server, bytes(MIB))
    assert client.statistics().resent == resent
    assert net.roads.sent[2] == before


def test_without_lanes_a_divided_stream_goes_the_usual_way():
    net = Divided([line(), line()])
    client, server = net.pair()
    net.transfer(client, server, bytes(MIB))
    net.roads.numbers = ()
    before = net.roads.sent.copy()
    net.transfer(client, server, random.Random(5).randbytes(MIB))
    assert net.roads.sent == before


faults = st.fixed_dictionaries(
    {
        "delay": st.sampled_from([0.001, 0.01, 0.05, 0.2]),
        "loss": st.sampled_from([0.0, 0.0, 0.01, 0.1]),
        "reorder": st.sampled_from([0.0, 0.25]),
        "duplicate": st.sampled_from([0.0, 0.05]),
        "corrupt": st.sampled_from([0.0, 0.002]),
    }
)


@settings(max_examples=10, deadline=None)
@given(
    lanes=st.lists(faults, min_size=2, max_size=3),
    seed=st.integers(0, 1 << 16),
    changes=st.lists(st.sampled_from(["close 2", "open 2", "drop 2", "offer 2", "die 2", "live 2"]), max_size=5),
)
def test_bytes_are_exact_whatever_lanes_do(lanes: list[dict[str, float]], seed: int, changes: list[str]):
    net = Divided(lanes, seed, verify=True)
    client, server = net.pair()
    data = random.Random(seed).randbytes(96 << 10)
    everything = net.roads.numbers
    for change in ["", *changes]:
        match change.split():
            case "close", _:
                net.roads.closed.add(2)
            case "open", _:
                net.roads.closed.discard(2)
            case "drop", _:
                net.roads.numbers = tuple(one for one in everything if one != 2)
            case "offer", _:
                net.roads.numbers = everything
            case "die" | "live", _:
                net.paths[2].up = change == "live 2"
        net.transfer(client, server, data)  # compares what arrived
    client.close(net.now)
    server.close(net.now)
    net.run(300)
    assert not net.a.connections


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_several_lines_are_never_worse_than_the_best_of_them(seed: int):
    draw = random.Random(seed)
    trip = draw.choice((0.01, 0.04, 0.1))
    lines = [
        line(draw.choice((2, 5, 10)), trip + draw.choice((0, 0.02, 0.09)), loss=draw.choice((0.0, 0.0, 0.002, 0.02)))
        for _ in range(2)
    ]
    # A line that loses one in fifty holds the others up until the loss rule gives it up: docs/uplinks.md says so.
    floor = 0.75 if any(one["loss"] == 0.02 for one in lines) else 0.95
    alone = max([goodput([one], seed=seed) for one in lines])
    assert goodput(lines, seed=seed) >= floor * alone
