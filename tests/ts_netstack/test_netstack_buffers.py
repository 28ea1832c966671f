"""Buffers, scoreboard and fragments against their slow twins; checksums against each other."""

from __future__ import annotations

import importlib.util
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from golden.reassembly import SlowFlight, SlowReassembly, SlowReceiver
from ts_base.ip import checksum, ones_complement_sum
from ts_netstack import checksums
from ts_netstack.fragments import Reassembly, cut
from ts_netstack.tcp_buffers import ISLANDS_LIMIT, ReceiveBuffer, SendBuffer
from ts_netstack.tcp_flight import LOST, SACKED, Flight
from ts_netstack.wire import Fragment, Packet, parse_packet_untrusted, unwrap

STREAM = random.Random(11).randbytes(6000)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 900), st.integers(0, 400)), max_size=40))
def test_receive_buffer_agrees_with_the_slow_twin(arrivals):
    fast, slow = ReceiveBuffer(0), SlowReceiver(0)
    for seq, size, limit in arrivals:
        payload = STREAM[seq : seq + size]
        slow.arrive(seq, payload)
        if seq <= fast.next:
            if seq + size > fast.next:
                fast.accept(payload[fast.next - seq :])
        else:
            assert fast.insert(seq, payload)
        assert fast.next == slow.next
        assert [(island.start, island.end) for island in fast.islands] == slow.islands()
        assert all(island.end - island.start == sum(map(len, island.pieces)) for island in fast.islands)
        assert fast.read(limit) == slow.read(limit)
    assert fast.read(1 << 20) == slow.read(1 << 20)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 60), st.binary(min_size=1, max_size=12)), max_size=40))
def test_the_first_copy_of_an_early_byte_wins(arrivals):
    fast, slow = ReceiveBuffer(0), SlowReceiver(0)
    for seq, payload in arrivals:
        slow.arrive(seq + 1, payload)
        fast.insert(seq + 1, payload)
    fast.accept(b"!")
    slow.arrive(0, b"!")
    assert fast.read(1000) == slow.read(1000)


def test_islands_are_bounded():
    buffer = ReceiveBuffer(0)
    kept = [buffer.insert(10 + 2 * index, b"x") for index in range(ISLANDS_LIMIT + 50)]
    assert kept.count(False) == 50
    assert buffer.insert(11, b"y")


@settings(max_examples=100)
@given(st.lists(st.integers(1, 9000), max_size=12), st.data())
def test_send_buffer_cuts_what_was_written(sizes, data):
    buffer, whole = SendBuffer(1000), b""
    for size in sizes:
        text = random.Random(size).randbytes(size)
        buffer.append(text)
        whole += text
        released = data.draw(st.integers(0, len(whole)))
        if released > buffer.start - 1000:
            buffer.release(1000 + released)
        start = data.draw(st.integers(buffer.start, buffer.end))
        end = data.draw(st.integers(start, buffer.end))
        step = data.draw(st.integers(1, 1500))
        pieces = buffer.pieces(start, end, step)
        assert b"".join(pieces) == whole[start - 1000 : end - 1000]
        assert all(len(piece) == step for piece in pieces[:-1])


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "ack", "sack", "lose", "resend"]), st.integers(0, 200), st.integers(1, 60)),
        max_size=60,
    )
)
def test_flight_agrees_with_the_slow_twin(steps):
    fast, slow = Flight(), SlowFlight()
    una = nxt = 0
    for now, (step, place, size) in enumerate(steps):
        start, end = min(place, nxt), min(place + size, nxt)
        if step == "add":
            fast.add(nxt, nxt + size, float(now // 2))
            slow.add(nxt, nxt + size)
            nxt += size
        elif step == "ack":
            una = max(una, start)
            news = sum(span.end - span.start for span in fast.acknowledge(una))
            assert news == slow.acknowledge(una)
        elif start < end and end > una:
            start = max(start, una)
            if step == "sack":
                assert sum(span.end - span.start for span in fast.sack(start, end)) == slow.sack(start, end)
            elif step == "lose":
                fast.mark_lost_between(start, end)
                slow.lose(start, end)
            else:
                fast.resend(start, end, float(now))
                slow.resend(start, end)
        assert fast.sacked == slow.count("sacked")
        assert fast.lost == slow.count("lost")
        assert fast.pipe == slow.count("sent")
        expected = una
        for span in fast.spans:
            assert span.start == expected < span.end
            expected = span.end
        assert expected == nxt or not fast.spans
        assert sum(span.end - span.start for span in fast.spans if span.fate == SACKED) == fast.sacked
        assert sum(span.end - span.start for span in fast.spans if span.fate == LOST) == fast.lost


SOURCE, TARGET = bytes([100, 64, 0, 2]), bytes([100, 64, 0, 1])


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6), st.booleans()), max_size=14), st.booleans())
def test_reassembly_agrees_with_the_slow_twin(pieces, tidy):
    drops: Counter[str] = Counter()
    fast, slow = Reassembly(drops), SlowReassembly()
    if tidy:
        pieces = [(index, 1, index < 5) for index in sorted(range(6), key=lambda index: hash((index, len(pieces))))]
    seen: set[tuple[int, bytes, bool]] = set()
    for place, units, more in pieces:
        offset, payload = place * 8, STREAM[place * 8 : (place + units) * 8]
        if (offset, payload, more) in seen:
            continue  # an exact copy is forgiven; the twin does not know that
        seen.add((offset, payload, more))
        packet = Packet(SOURCE, TARGET, 17, payload, Fragment(b"same", offset, more))
        got, wanted = fast.add(packet, 0.0), slow.add(offset, payload, more)
        assert (None if got is None else got.payload) == wanted
        if wanted is not None:
            assert fast.cost == 0
            break


@pytest.mark.parametrize("family", [4, 16])
@pytest.mark.parametrize("size", [1300, 8192, 65000])
def test_what_is_cut_is_put_together_again_in_any_order(family, size):
    source, target = (
        (SOURCE, TARGET) if family == 4 else (b"\xfd" + SOURCE.rjust(15, b"\0"), b"\xfd" + bytes(14) + b"1")
    )
    payload = random.Random(size).randbytes(size)
    packets = cut(source, target, 17, payload, 1280, 0x1234)
    assert max(map(len, packets)) <= 1280
    random.Random(1).shuffle(packets)
    reassembly = Reassembly(Counter())
    done = [reassembly.add(parse_packet_untrusted(packet, True), 0.0) for packet in packets]
    assert done[:-1] == [None] * (len(packets) - 1)
    assert done[-1] is not None
    assert done[-1].payload == payload


@settings(max_examples=60)
@given(st.integers(1, 70), st.integers(0, 1500))
def test_burst_sums_agree_with_the_plain_sum(count, size):
    payloads = [random.Random(index).randbytes(size) for index in range(count)]
    payloads[0] = b"\xff" * size
    plain = [ones_complement_sum(payload) for payload in payloads]
    assert [one % 0xFFFF for one in checksums.burst_sums_by_folding(payloads)] == plain
    assert [one % 0xFFFF for one in checksums.burst_sums(payloads)] == plain


@pytest.mark.skipif(importlib.util.find_spec("numpy") is None, reason="numpy is not installed")
@pytest.mark.parametrize("size", [2, 536, 1208, 1228, 1229, 8848])
def test_numpy_sums_agree_with_folding(size):
    payloads = [random.Random(index).randbytes(size) for index in range(50)]
    folded = checksums.burst_sums_by_folding(payloads)
    fastest = checksums.fastest_burst_sums()
    assert fastest is checksums.burst_sums_by_numpy
    assert [one % 0xFFFF for one in fastest(payloads)] == [one % 0xFFFF for one in folded]


def test_numpy_is_imported_when_enough_was_sent_for_it_to_pay(monkeypatch):
    looked_for = []
    monkeypatch.setattr(checksums, "optional", lambda *names: looked_for.append(names[0]))
    monkeypatch.setattr(checksums, "burst_sums", checksums.burst_sums_until_numpy_pays)
    monkeypatch.setattr(checksums, "_numpy", None)
    monkeypatch.setattr(checksums, "_left", 3000)
    burst = [bytes(1000)] * 2
    assert checksums.burst_sums(burst) == [0, 0]
    assert not looked_for
    assert [checksums.burst_sums(burst) for _ in range(3)] == [[0, 0]] * 3
    assert looked_for == ["numpy"]  # once, also where there is none
    assert checksums.burst_sums is checksums.burst_sums_by_folding


def test_payload_sum_pads_odd_lengths():
    assert checksums.payload_sum(b"\x12\x34\x56") == 0x1234 + 0x5600
    assert checksum(b"\x12\x34\x56") == ~(0x1234 + 0x5600) & 0xFFFF


@given(st.integers(-(1 << 40), 1 << 40), st.integers(-(1 << 31), (1 << 31) - 1))
def test_unwrap_finds_the_nearest_number(reference, distance):
    assert unwrap(reference + distance & 0xFFFFFFFF, reference) == reference + distance
