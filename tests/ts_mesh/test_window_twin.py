"""Two windows over a network that breaks: what is promised about messages holds, whoever crashes."""

from __future__ import annotations

import random
from collections import deque

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from golden.window import Promises
from ts_mesh.envelope import Envelope, decode_text_untrusted, encode_envelope
from ts_mesh.facts import Answered, Arrived, Cancelled, Parcel, Restarted, Settled
from ts_mesh.hello import Seen
from ts_mesh.limits import MeshLimits
from ts_mesh.window import Window

LIMITS = MeshLimits(unacked=12, unacked_bytes=2000, credit=4, credit_bytes=1000, held=3, held_time=2.0)
NAMESPACES = ("chat", "news", "nobody")


class End:
    """One device: a process with a window, subscribers that take what they are given, and what it wants to send."""

    def __init__(self, name: str, ours: Promises, theirs: Promises) -> None:
        self.name = name
        self.ours = ours  # what we send
        self.theirs = theirs
        self.life = 0
        self.counter = 0
        self.start()

    def start(self) -> None:
        """A new process: nothing of the old one is left."""
        self.life += 1
        self.window = Window(LIMITS, f"{self.life:08x}{ord(self.name):08x}")
        self.epoch = f"{self.life:08x}{ord(self.name):08x}"
        self.said: Seen | None = None  # in a hello that is still on its way
        self.queue: deque[tuple[str, int]] = deque()
        self.parcels: dict[int, int] = {}  # id of a parcel: its message
        self.alive: list[Parcel] = []
        self.listens = {"chat", "news"}

    def send(self, namespace: str, size: int) -> bool:
        if not self.window.has_room(namespace, size + 12):
            return False
        self.counter += 1
        number = self.counter
        payload = msgspec.json.encode([number, "x" * size])
        parcel = Parcel(Envelope(namespace, "message", msgspec.Raw(payload)))
        self.parcels[id(parcel)] = number
        self.alive.append(parcel)
        self.ours.sent(number, namespace, self.life)
        self.window.send(parcel)
        return True

    def hear(self, now: float) -> None:
        while facts := self.window.take_messages():
            for fact in facts:
                match fact:
                    case Arrived(envelope=envelope):
                        self.deliver(envelope, now)
                    case Settled(parcel=parcel, why=""):
                        self.ours.returned(self.parcels[id(parcel)])
                    case Settled(parcel=parcel):
                        self.ours.refused(self.parcels[id(parcel)])
                    case Restarted():
                        pass
                    case Answered() | Cancelled():
                        raise AssertionError(fact)

    def deliver(self, envelope: Envelope, now: float) -> None:
        if envelope.namespace not in self.listens:
            self.window.hold(envelope, now, for_listener=True)
            return
        number = msgspec.json.decode(envelope.payload or b"")[0]
        self.theirs.got(number, envelope.namespace, self.life)
        self.queue.append((envelope.namespace, self.window.life))

    def listen(self, now: float) -> None:
        self.listens.add("nobody")
        for envelope in self.window.release("nobody"):
            self.deliver(envelope, now)

    def take(self) -> None:
        if self.queue:
            namespace, life = self.queue.popleft()
            self.window.took(namespace, life)


class World:
    """Two ends, and at most one connection, which loses everything in flight when it breaks."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        there, back = Promises(), Promises()
        self.a, self.b = End("a", there, back), End("b", back, there)
        self.wires: dict[str, deque[str]] = {}
        self.now = 0.0

    @property
    def ends(self) -> tuple[End, End]:
        return self.a, self.b

    def connect(self) -> None:
        """Hellos crossed: either may have been written before the other's was read."""
        if self.wires:
            self.break_off()
        seen = [
            end.said if end.said is not None and self.chance.random() < 0.5 else end.window.seen() for end in self.ends
        ]
        self.wires = {"a": deque(), "b": deque()}
        self.a.window.connect(self.b.epoch, seen[1], acks=True)
        self.b.window.connect(self.a.epoch, seen[0], acks=True)
        for end in self.ends:
            end.hear(self.now)

    def break_off(self) -> None:
        self.wires = {}
        for end in self.ends:
            end.window.disconnect()

    def crash(self, end: End) -> None:
        self.break_off()
        end.start()

    def write(self, end: End) -> None:
        if self.wires:
            for envelope in end.window.transmit():
                text = encode_envelope(envelope, binary=True)
                assert isinstance(text, str)
                self.wires[end.name].append(text)
            end.hear(self.now)

    def read(self, end: End) -> None:
        other = "b" if end is self.a else "a"
        if self.wires:
            wire = self.wires[other]
            for _ in range(self.chance.randint(1, 5)):
                if wire:
                    end.window.receive(decode_text_untrusted(wire.popleft()))
            end.hear(self.now)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        for end in self.ends:
            end.window.handle_timer(self.now)
            end.hear(self.now)

    def step(self, action: int) -> None:
        end = self.a if self.chance.random() < 0.5 else self.b
        match action:
            case 0:
                end.send(self.chance.choice(NAMESPACES), self.chance.choice((0, 0, 10, 300)))
            case 1 | 2:
                self.write(end)
            case 3 | 4:
                self.read(end)
            case 5:
                end.take()
            case 6:
                self.connect()
            case 7:
                self.break_off()
            case 8 if self.chance.random() < 0.2:
                self.crash(end)
            case 9:
                self.wait(self.chance.choice((0.1, 1.0, 3.0)))
            case 10:
                end.said = end.window.seen()
            case 11 if self.chance.random() < 0.2:
                end.listen(self.now)

    def settle(self) -> None:
        """Everybody reads, nothing breaks: all that is alive arrives."""
        self.connect()
        for _ in range(200):
            for end in self.ends:
                self.write(end)
                self.read(end)
                end.take()
            self.wait(0.5)
        for end in self.ends:
            assert end.window.is_quiet
            end.ours.over(end.life)
            for namespace in NAMESPACES:  # everything was taken: all credit is back
                assert all(end.send(namespace, 0) for _ in range(LIMITS.credit))
                assert not end.send(namespace, 0)


@given(seed=st.integers(0, 2**32), actions=st.lists(st.integers(0, 11), max_size=150))
def test_window_keeps_its_promises(seed: int, actions: list[int]) -> None:
    world = World(seed)
    for action in actions:
        world.step(action)
    world.settle()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(300))
def test_window_keeps_its_promises_for_long(seed: int) -> None:
    world = World(seed)
    chance = random.Random(seed)
    for _ in range(2000):
        world.step(chance.choices(range(12), weights=(6, 4, 4, 4, 4, 5, 1, 0.3, 0.3, 1, 0.5, 0.2))[0])
    world.settle()


def test_window_that_is_left_in_peace_says_nothing() -> None:
    world = World(0)
    world.connect()
    for end in (*world.ends, *world.ends):
        world.write(end)
        world.read(end)
    for end in world.ends:
        assert end.window.transmit() == []
        assert end.window.next_timer() == float("inf")
        assert end.window.statistics().resent == 0
