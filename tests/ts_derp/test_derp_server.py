"""The relay against our own client machines: admission, fairness, notices, and clients that misbehave."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from derp_scripts import SERVER, Entropy, key_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ts_base.keys import NodePrivate
from ts_derp import frames, outbox, server
from ts_derp.frames import encode_frame, encode_packets
from ts_derp.greeting import RateLimit
from ts_derp.machine import DerpMachine, DerpMessage, PeerGone
from ts_derp.outbox import Outbox
from ts_derp.server import ClientAdmitted, ClientClosed, DerpServer

DISCO = server.DISCO_MAGIC + b"hello"
A, B, C, D = (key_of(name) for name in "abcd")


class Room:
    """One server and clients around it, joined by nothing but function calls."""

    def __init__(self, **options: object) -> None:
        self.server = DerpServer(SERVER, entropy=Entropy("server"), **options)  # type: ignore[arg-type]
        self.machines: dict[int, DerpMachine] = {}
        self.inbound: dict[int, list[tuple[bytes, bytes]]] = {}
        self.facts: dict[int, list[DerpMessage]] = {}

    def join(self, key: NodePrivate, now: float = 0.0) -> int:
        number = self.server.connect(now)
        assert number is not None
        machine = self.machines[number] = DerpMachine(key, entropy=Entropy(repr(key.public)))
        self.inbound[number], self.facts[number] = [], []
        machine.start(now)
        self.settle(now)
        return number

    def settle(self, now: float = 0.0) -> None:
        for _ in range(100):
            moved = False
            for number, machine in self.machines.items():
                if data := machine.transmit(now):
                    self.server.receive(number, data, now)
                    moved = True
                if data := self.server.transmit(number, now):
                    for source, packets in machine.receive(data, now):
                        self.inbound[number] += [(source, packet) for packet in packets]
                    moved = True
                self.facts[number] += machine.take_messages()
            if not moved:
                return
        raise AssertionError("they never stop talking")

    def send(self, number: int, to: NodePrivate, *packets: bytes, now: float = 0.0) -> None:
        self.machines[number].send([(to.public.raw, list(packets))], now)
        self.settle(now)

    def leave(self, number: int, now: float = 0.0) -> None:
        self.server.disconnect(number, now)
        del self.machines[number]
        self.settle(now)

    def gone(self, number: int) -> list[PeerGone]:
        return [fact for fact in self.facts[number] if isinstance(fact, PeerGone)]


def test_packets_travel_both_ways() -> None:
    room = Room()
    a, b = room.join(A), room.join(B)
    room.send(a, B, b"one", b"two")
    room.send(b, A, b"three")
    assert room.inbound == {a: [(B.public.raw, b"three")], b: [(A.public.raw, b"one"), (A.public.raw, b"two")]}
    assert room.server.take_messages() == [ClientAdmitted(a, A.public), ClientAdmitted(b, B.public)]


def test_peer_gone_reaches_those_who_received_from_it_and_nobody_else() -> None:
    room = Room()
    a, b, c = room.join(A), room.join(B), room.join(C)
    room.send(a, B, b"x")
    room.leave(a)
    assert room.gone(b) == [PeerGone(A.public.raw, frames.GONE_DISCONNECTED)]
    assert room.gone(c) == []
    room.leave(b)
    assert room.server.statistics().watchers == 0


def test_not_here_answers_disco_only_and_only_so_often() -> None:
    room = Room()
    a = room.join(A)
    room.send(a, D, b"data")
    assert room.gone(a) == []
    for _ in range(50):
        room.send(a, D, DISCO)
    assert room.gone(a) == [PeerGone(D.public.raw, frames.GONE_NOT_HERE)] * 3
    room.send(a, D, DISCO, now=1.0)
    assert len(room.gone(a)) == 4
    assert room.server.drops[server.UNKNOWN_DESTINATION] == 52


def test_of_two_connections_with_one_key_the_last_writer_receives() -> None:
    room = Room()
    first, second, b = room.join(A), room.join(A), room.join(B)
    room.send(b, A, b"to the newer")
    room.send(first, B, b"I am here")
    room.send(b, A, b"to the speaker")
    assert [p for _, p in room.inbound[second]] == [b"to the newer"]
    assert [p for _, p in room.inbound[first]] == [b"to the speaker"]
    room.leave(first)
    assert room.gone(b) == []
    room.send(b, A, b"to the one left")
    assert [p for _, p in room.inbound[second]] == [b"to the newer", b"to the one left"]
    room.leave(second)
    assert len(room.gone(b)) == 1


def test_the_admission_hook_decides() -> None:
    room = Room(admit=lambda key: key == A.public.raw)
    a, b = room.join(A), room.join(B)
    assert room.server.take_messages() == [ClientAdmitted(a, A.public), ClientClosed(b, "not admitted")]
    assert not room.machines[b].greeted
    assert room.server.connected_keys == {A.public.raw}


def test_a_client_that_does_not_introduce_itself_is_closed() -> None:
    s = DerpServer(SERVER, entropy=Entropy())
    number = s.connect(0.0)
    assert number is not None
    assert s.next_timer() == server.GREETING_TIMEOUT
    s.handle_timer(10.0)
    assert s.take_messages() == [ClientClosed(number, "it did not say who it is")]
    assert s.next_timer() == math.inf


def test_keep_alives_come_between_60_and_65_seconds() -> None:
    room = Room()
    a = room.join(A)
    due = room.server.next_timer()
    assert 60.0 <= due <= 65.0
    room.server.handle_timer(due)
    assert room.server.take_ready() >= {a}
    assert room.server.transmit(a, due) == encode_frame(frames.KEEP_ALIVE)
    assert due + 60.0 <= room.server.next_timer() <= due + 65.0


@pytest.mark.parametrize(
    "frame",
    [
        encode_frame(frames.FORWARD_PACKET, bytes(70)),
        encode_frame(frames.WATCH_CONNS),
        encode_frame(frames.CLOSE_PEER, B.public.raw),
        encode_frame(frames.SEND_PACKET, bytes(31)),
        encode_frame(frames.SEND_PACKET, B.public.raw + bytes(65_537)),
        encode_frame(frames.NOTE_PREFERRED, b"12"),
        encode_frame(frames.PING, bytes(7)),
        encode_frame(frames.PING, bytes(1001)),
        frames.HEADER.pack(0x77, 1 << 31),
    ],
)
def test_what_a_client_may_not_say_closes_it(frame: bytes) -> None:
    room = Room()
    a, b = room.join(A), room.join(B)
    room.server.take_messages()
    room.server.receive(a, frame, 0.0)
    [closed] = room.server.take_messages()
    assert isinstance(closed, ClientClosed)
    assert closed.connection == a
    assert room.server.connected_keys == {B.public.raw}
    room.server.receive(a, encode_frame(frames.PING, bytes(8)), 0.0)
    assert room.server.transmit(a, 0.0) == b""
    room.send(b, A, DISCO)
    assert room.gone(b) == [PeerGone(A.public.raw, frames.GONE_NOT_HERE)]


def test_unknown_frames_are_skipped() -> None:
    room = Room()
    a, b = room.join(A), room.join(B)
    wire = encode_frame(0x99, b"new") + encode_packets(frames.SEND_PACKET, [(B.public.raw, [b"after"])])
    room.server.receive(a, wire, 0.0)
    room.settle()
    assert room.inbound[b] == [(A.public.raw, b"after")]
    assert room.server.drops == {server.UNKNOWN_FRAME: 1}


def test_ping_is_answered_once_per_turn() -> None:
    room = Room()
    a = room.join(A)
    room.server.receive(a, encode_frame(frames.PING, b"1234567890") * 3, 0.0)
    assert room.server.transmit(a, 0.0) == encode_frame(frames.PONG, b"12345678")
    assert room.server.drops == {server.PINGS_TOO_FAST: 2}


def test_a_flood_displaces_only_itself() -> None:
    room = Room()
    flooder, quiet, target = room.join(A), room.join(B), room.join(C)
    flood = encode_packets(frames.SEND_PACKET, [(C.public.raw, [bytes([i % 4]) + bytes(1299) for i in range(200)])])
    modest = encode_packets(frames.SEND_PACKET, [(C.public.raw, [b"\4modest", DISCO])])
    for _ in range(20):
        room.server.receive(flooder, flood, 0.0)
        room.server.receive(quiet, modest, 0.0)
    room.settle()
    from_quiet = [packet for source, packet in room.inbound[target] if source == B.public.raw]
    assert from_quiet.count(b"\4modest") == 20
    assert from_quiet.count(DISCO) == 20
    from_flooder = len(room.inbound[target]) - 40
    assert from_flooder + room.server.drops[outbox.QUEUE_FULL] == 4000
    assert from_flooder * 1400 <= outbox.QUEUE_LIMIT


def test_senders_take_turns() -> None:
    box = Outbox(Counter())
    box.add(b"a", [b"%d" % i for i in range(100)])
    box.add(b"b", [b"x"])
    assert [(who, len(packets)) for who, packets in box.take()] == [
        (b"a", 32),
        (b"b", 1),
        (b"a", 32),
        (b"a", 32),
        (b"a", 4),
    ]
    assert not box


@given(
    st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.lists(st.binary(max_size=50), min_size=1)), max_size=20)
)
def test_outbox_keeps_each_senders_order(runs: list[tuple[bytes, list[bytes]]]) -> None:
    box = Outbox(Counter())
    for who, packets in runs:
        box.add(who, packets)
    assert len(box) == sum(len(packets) for _, packets in runs)
    out = box.take()
    for who in (b"a", b"b", b"c"):
        assert [p for w, ps in out if w == who for p in ps] == [p for w, ps in runs if w == who for p in ps]
    assert (box.weight, bool(box)) == (0, False)


def test_large_packets_take_turns_by_bytes() -> None:
    box = Outbox(Counter())
    box.add(b"bulk", [bytes(32_000)] * 20)
    box.add(b"chat", [bytes(100)] * 3)
    out = box.take()
    assert [(who, len(packets)) for who, packets in out[:3]] == [(b"bulk", 3), (b"chat", 3), (b"bulk", 3)]
    assert sum(len(packet) for _, packets in out for packet in packets) < outbox.BURST_LIMIT + outbox.QUANTUM_BYTES * 2
    while more := box.take():
        out += more
    assert sum(len(packets) for who, packets in out if who == b"bulk") == 20
    assert (box.weight, bool(box)) == (0, False)


def test_an_outbox_nobody_empties_stays_bounded() -> None:
    drops: Counter[str] = Counter()
    box = Outbox(drops)
    for i in range(3000):
        box.add(bytes([i % 7]), [bytes(1000)] * 3)
        box.add_disco(b"d", [b"disco"])
    assert box.weight <= outbox.QUEUE_LIMIT
    assert len(box) + sum(drops.values()) == 12_000
    assert drops[outbox.DISCO_QUEUE_FULL] == 3000 - outbox.DISCO_LIMIT


def test_the_rate_limit_is_told_and_enforced() -> None:
    room = Room(rate_limit=RateLimit(100_000, 70_000))
    a, b = room.join(A), room.join(B)
    assert room.server.pause_until(a) <= 0.0
    honest = room.machines[a]
    honest.send([(B.public.raw, [bytes(1000)] * 100)], 0.0)
    assert honest.drops
    room.settle()
    assert room.server.pause_until(a) <= 0.0
    greedy = encode_packets(frames.SEND_PACKET, [(A.public.raw, [bytes(1000)] * 200)])
    room.server.receive(b, greedy, 0.0)
    assert room.server.pause_until(b) == pytest.approx((len(greedy) - 70_000) / 100_000, abs=0.01)
    assert room.server.pause_until(99) == -math.inf


def test_a_full_server_refuses() -> None:
    s = DerpServer(SERVER, entropy=Entropy(), connection_limit=2)
    assert [s.connect(0.0) for _ in range(3)] == [1, 2, None]
    s.disconnect(1, 0.0)
    assert s.connect(0.0) == 3
    assert s.drops == {server.REFUSED_CONNECTION: 1}


def test_nothing_is_left_of_clients_that_left() -> None:
    room = Room()
    for _ in range(5):
        numbers = [room.join(key) for key in (A, B, C)]
        for sender in numbers:
            for key in (A, B, C):
                room.send(sender, key, b"x", DISCO)
        for number in numbers:
            room.leave(number)
    s = room.server
    left = s.statistics()
    assert (left.connections, left.clients, left.watchers) == (0, 0, 0)
    assert s.next_timer() == math.inf


def test_preferred_clients_are_counted() -> None:
    room = Room()
    a = room.join(A)
    room.machines[a].prefer(True)
    room.settle()
    assert room.server.statistics().homes == 1


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=200), max_size=5))
def test_hostile_bytes_never_raise_and_never_hurt_others(chunks: list[bytes]) -> None:
    room = Room()
    hostile, b, c = room.join(A), room.join(B), room.join(C)
    unknown = room.server.connect(0.0)
    assert unknown is not None
    del room.machines[hostile]
    for chunk in chunks:
        room.server.receive(hostile, chunk, 0.0)
        room.server.receive(unknown, chunk, 0.0)
    room.send(b, C, b"still works")
    assert (B.public.raw, b"still works") in room.inbound[c]
