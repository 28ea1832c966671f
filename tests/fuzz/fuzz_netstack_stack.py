"""A whole stack with a listener, a connection and a UDP port, fed a script of hostile packets and passing time.

Each step takes a byte that says what to do: mutate a plausible segment of the connection, or hand over raw bytes.
Nothing may raise, tables stay bounded, timers stay finite, and what is sent parses.
"""

from __future__ import annotations

import random
from contextlib import suppress

from ts_netstack.stack import Stack
from ts_netstack.tcp import TcpConnection
from ts_netstack.tcp_inbound import MAXIMUM_BUFFER
from ts_netstack.wire import parse_packet_untrusted, parse_segment_untrusted, tcp_packet

US, PEER = bytes([100, 64, 0, 1]), bytes([100, 64, 0, 2])
IRS = 5000
STEP = 12
STEPS_LIMIT = 60


def fuzz_one(data: bytes) -> None:
    stack = Stack(entropy=random.Random(1).randbytes)
    stack.set_addresses([US])
    listener = stack.listen(80)
    stack.bind_udp(53)
    now = 1.0
    connection, iss = _established(stack, now)
    for at in range(0, min(len(data), STEP * STEPS_LIMIT), STEP):
        step = data[at : at + STEP].ljust(STEP, b"\0")
        now += step[1] / 50
        _act(stack, connection, iss, step, data[at : at + 64], now)
        if stack.next_timer() <= now:
            stack.handle_timer(now)
        for destination, packets in stack.transmit(now):
            for packet in packets:
                assert parse_packet_untrusted(packet, True).destination == destination
        if (accepted := listener.accept()) is not None:
            accepted.close(now)
        assert stack.next_timer() > now - 1e-9 or stack.next_timer() <= now
        assert connection.unread <= 2 * MAXIMUM_BUFFER
        assert connection.statistics().in_flight >= 0
        assert connection.statistics().outstanding >= 0
    stack.take_messages()


def _established(stack: Stack, now: float) -> tuple[TcpConnection, int]:
    connection = stack.connect((PEER, 99), now)
    syn = parse_segment_untrusted(parse_packet_untrusted(stack.transmit(now)[0][1][0]).payload)
    options = b"\x02\x04\x04\xd8\x04\x02\x08\x0a" + (1000).to_bytes(4, "big") + bytes(4) + b"\x01\x03\x03\x07"
    answer = tcp_packet((PEER, 99), connection.local, IRS, syn.seq + 1, 0x12, 60000, options)
    stack.receive([answer], now)
    stack.transmit(now)
    assert connection.is_established
    return connection, syn.seq


def _act(stack: Stack, connection: TcpConnection, iss: int, step: bytes, raw: bytes, now: float) -> None:
    kind = step[0] % 8
    if kind == 0:
        stack.receive([raw], now)
    elif kind == 1:
        connection.read(step[2] * 64)
    elif kind == 2:
        with suppress(ValueError):  # after send_eof
            connection.write(bytes(step[2] * 40))
    elif kind == 3 and step[2] > 240:
        (connection.close, connection.send_eof, connection.abort)[step[3] % 3](now)
    elif kind == 4:
        port = 80 if step[2] & 1 else 53
        seq = int.from_bytes(step[3:7], "big")
        stack.receive([tcp_packet((PEER, step[7] + 1), (US, port), seq, seq, step[8], 100, b"", raw[:20])], now)
    else:
        # A segment of the connection, near what it expects.
        seen = connection.statistics()
        seq = IRS + seen.received + int.from_bytes(step[2:4], "big", signed=True) // (1 + step[4] % 64)
        ack = iss + seen.acknowledged + int.from_bytes(step[5:7], "big", signed=True) // (1 + step[7] % 64)
        blocks = b""
        if step[8] & 1:
            start = iss + seen.acknowledged + step[9] * 20
            pair = (start & 0xFFFFFFFF).to_bytes(4, "big") + (start + step[10] * 20 & 0xFFFFFFFF).to_bytes(4, "big")
            blocks = b"\x01\x01\x05\x0a" + pair
        stamps = b"\x01\x01\x08\x0a" + (int(now * 1000) + 1000).to_bytes(4, "big") + step[5:9]
        flags = 0x10 if step[11] < 200 else step[11]
        packet = tcp_packet(
            (PEER, 99), connection.local, seq, ack, flags, step[9] * 256, stamps + blocks, bytes(step[10] * 5)
        )
        stack.receive([packet] * (1 + step[8] % 3), now)


def seeds() -> list[bytes]:
    dice = random.Random(3)
    return [
        bytes(STEP * 4),
        bytes([2, 1, 200] + [0] * 9) + bytes([5, 1, 0, 0, 1, 0, 50, 1, 1, 100, 50, 0]) * 8,
        bytes([3, 0, 255, 1] + [0] * 8) + bytes([6, 9, 0, 0, 1, 0, 1, 1, 0, 10, 0, 0x11]) * 3,
        dice.randbytes(STEP * 20),
        dice.randbytes(STEP * 40),
    ]
