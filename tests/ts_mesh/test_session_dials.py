"""Both ends dial at once: whatever order the bytes arrive in, one connection is left, and it is the same at both.

Two machines and the connections between them, as queues of what is on its way. A schedule says whose queue moves next;
all schedules of one meeting are walked through, and random ones of many meetings with losses between them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ts_mesh.session import Close, Dial, Session, State

EVEN = 0.5  # the same chance at both ends: nothing but the rule tells them apart
HELLO, GOODBYE, RESET = "hello", "goodbye", "reset"
Choose = Callable[[int], int]


@dataclass(eq=False)
class Wire:
    """One connection. What each end will hear, in order, and the number by which it knows the connection."""

    dialler: str
    to: dict[str, deque[str]] = field(default_factory=lambda: {"a": deque(), "b": deque()})
    number: dict[str, int] = field(default_factory=dict)
    over: set[str] = field(default_factory=set)


class World:
    """Two devices, both with something to say, for as long as the test runs."""

    def __init__(self, choose: Choose, waits: int = 0) -> None:
        self.choose = choose
        self.waits = waits  # so often time may pass while something is on its way: a link slower than a pause
        self.now = 0.0
        self.ends = {name: Session(name) for name in "ab"}
        self.epochs = {"a": "1" * 16, "b": "2" * 16}
        self.wires: list[Wire] = []
        self.dials = 0

    def want(self) -> None:
        for name, session in self.ends.items():
            session.want(self.now)
            self.act(name)

    def act(self, name: str) -> None:
        for act in self.ends[name].take_messages():
            if isinstance(act, Dial):
                self.dials += 1
                wire = Wire(name)
                wire.to[other(name)].append(HELLO)
                self.wires.append(wire)
            elif isinstance(act, Close):
                wire = next(wire for wire in self.wires if wire.number.get(name) == act.connection)
                self.hang_up(wire, name)

    def hang_up(self, wire: Wire, name: str) -> None:
        """Say goodbye; the owner of the connection tells the machine that it is over."""
        wire.over.add(name)
        wire.to[name].clear()
        wire.to[other(name)].append(GOODBYE)
        if name in wire.number:
            self.ends[name].closed(wire.number[name], self.now, EVEN, again=False)

    def hear(self, wire: Wire, name: str) -> None:
        session, said = self.ends[name], wire.to[name].popleft()
        if name in wire.over:
            return
        if said == HELLO:
            is_ours = wire.dialler == name
            if not is_ours:
                wire.to[other(name)].append(HELLO)
            number = len(self.wires) * 2 + (name == "b") + 100 * len(wire.number) + 1000 * self.wires.index(wire)
            epoch = self.epochs[other(name)]
            if session.opened(number, is_ours=is_ours, peer_id=other(name), epoch=epoch, now=self.now):
                wire.number[name] = number
            else:
                self.hang_up(wire, name)
        else:
            wire.over.add(name)
            if name in wire.number:
                session.closed(wire.number[name], self.now, EVEN, again=said == RESET)
            elif wire.dialler == name:
                session.failed(self.now, EVEN, again=True)
        self.act(name)

    def lose(self, wire: Wire) -> None:
        """Both ends hear of it, each in its own time; what was on its way is gone."""
        for queue in wire.to.values():
            queue.clear()
            queue.append(RESET)

    def step(self) -> bool:
        """One delivery, or else the next timer. False: nothing is left to happen soon."""
        moving = [(wire, name) for wire in self.wires for name in "ab" if wire.to[name]]
        if moving:
            may_wait = self.waits > 0 and self.next_timer() < self.now + 1  # no heartbeat: nobody answers one here
            chosen = self.choose(len(moving) + may_wait)
            if chosen == len(moving):
                self.waits -= 1
                return self.wait()
            self.hear(*moving[chosen])
            return True
        if all(session.state is State.OPEN for session in self.ends.values()):
            return False
        return self.wait()

    def wait(self) -> bool:
        """Until the next timer, whatever is on its way."""
        timer = self.next_timer()
        if timer == math.inf:
            return False
        self.now = max(self.now, timer)
        for name, session in self.ends.items():
            session.handle_timer(self.now)
            self.act(name)
        return True

    def next_timer(self) -> float:
        return min(session.next_timer() for session in self.ends.values())

    def settle(self) -> None:
        """Until nothing moves any more: one connection is left, and both mean it."""
        for _ in range(200):
            if not self.step():
                break
        else:
            pytest.fail("they never come to an end")
        left = [wire for wire in self.wires if not wire.over]
        assert len(left) == 1
        for name, session in self.ends.items():
            assert (session.state, session.current) == (State.OPEN, left[0].number[name])


def other(name: str) -> str:
    return "b" if name == "a" else "a"


def schedules(run: Callable[[Choose], None]) -> Iterator[list[int]]:
    """Run it once for every way to choose."""
    path: list[int] = []
    while True:
        options: list[int] = []

        def choose(count: int, options: list[int] = options) -> int:
            options.append(count)
            if len(options) > len(path):
                path.append(0)
            return path[len(options) - 1]

        run(choose)
        yield path
        del path[len(options) :]
        while path and path[-1] + 1 >= options[len(path) - 1]:
            path.pop()
        if not path:
            return
        path[-1] += 1


@pytest.mark.parametrize(("waits", "most_dials"), [(0, 2), (1, 3), (2, 4)])
def test_both_dial_at_once_in_every_order_and_one_stays(waits: int, most_dials: int) -> None:
    def meet(choose: Choose) -> None:
        world = World(choose, waits)
        world.want()
        world.settle()
        assert 2 <= world.dials <= most_dials, "nobody dials for ever"
        (left,) = [wire for wire in world.wires if not wire.over]
        assert left.dialler == "a" or waits, "the connection of the smaller id"

    assert sum(1 for _ in schedules(meet)) > 5


@given(st.data())
def test_both_dial_again_after_every_loss_and_settle_again(data: st.DataObject) -> None:
    world = World(lambda count: data.draw(st.integers(0, count - 1)))
    for _ in range(4):
        before = world.dials
        world.want()
        world.waits = data.draw(st.integers(0, 3))
        world.settle()
        assert world.dials - before <= 6
        for wire in world.wires:
            if not wire.over:
                world.lose(wire)


@settings(max_examples=30)
@given(st.data())
def test_an_end_that_alone_noticed_the_loss_is_let_in_when_the_other_has_noticed_too(data: st.DataObject) -> None:
    world = World(lambda count: data.draw(st.integers(0, count - 1)))
    world.want()
    world.settle()
    (wire,) = [wire for wire in world.wires if not wire.over]
    who = data.draw(st.sampled_from("ab"))
    wire.to[who].append(RESET)
    for _ in range(100):
        world.step()
        stuck = world.ends[other(who)]
        if stuck.current == wire.number[other(who)] and stuck.next_timer() <= world.now:
            break
    wire.to[other(who)].append(RESET)  # by then it has asked, and was told that there is no such connection
    world.settle()
