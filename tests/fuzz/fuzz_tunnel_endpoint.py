"""Fuzz target: two endpoints whose conversation the input steers: lost, doubled, damaged, delayed.

Each byte is one step. Whatever happens, no exception, bounded tables, exact timers, and only packets that were sent
may come out, at most once each.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

from ts_base.keys import NodePrivate
from ts_tunnel.endpoint import Endpoint

_A, _B = 1, 2
_WAITS = (0.0, 0.001, 0.1, 1.0, 5.0, 10.0, 15.0, 60.0, 120.0, 180.0)


def _entropy(name: bytes) -> Callable[[int], bytes]:
    count = 0

    def draw(n: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.shake_256(name + count.to_bytes(8, "big")).digest(n)

    return draw


_PRIVATE_A, _PRIVATE_B = (NodePrivate.generate(_entropy(name)(32)) for name in (b"key a", b"key b"))


def _damage(datagram: bytes, how: int) -> bytes:
    if how % 4 == 0:
        return datagram[: how % (len(datagram) + 1)]
    if how % 4 == 1:
        return datagram + bytes(how % 17)
    at = how * 7 % max(len(datagram), 1)
    return datagram[:at] + bytes([datagram[at] ^ (1 << how % 8)]) + datagram[at + 1 :] if datagram else b""


def _check(endpoint: Endpoint, now: float) -> None:
    statistics = endpoint.statistics()
    assert statistics.sessions <= 3
    assert statistics.pending_handshakes <= 1
    endpoint.handle_timer(now)
    assert endpoint.next_timer() > now
    assert not math.isnan(endpoint.next_timer())


def fuzz_one(data: bytes) -> None:
    now = 0.0
    ends = (
        Endpoint(_PRIVATE_A, entropy=_entropy(b"a"), wall_clock=lambda: 1.7e9 + now),
        Endpoint(_PRIVATE_B, entropy=_entropy(b"b"), wall_clock=lambda: 1.7e9 + now),
    )
    ends[0].set_peers({_B: _PRIVATE_B.public.raw}, now)
    ends[1].set_peers({_A: _PRIVATE_A.public.raw}, now)
    wires: tuple[list[bytes], list[bytes]] = ([], [])  # what goes to each
    sent: set[bytes] = set()
    got: set[bytes] = set()
    for step, code in enumerate(data[:200]):
        side, action, detail = code & 1, code >> 1 & 7, code >> 4
        endpoint, wire = ends[side], wires[side]
        if action == 0:
            packet = b"packet %4d from %d" % (step, side)
            sent.add(packet)
            endpoint.send([((_B, _A)[side], [packet])], now)
        elif action == 1:
            now += _WAITS[detail % len(_WAITS)]
        elif action == 2 and wire:
            wire.append(wire[detail % len(wire)])
        elif action == 3 and wire:
            wire.append(_damage(wire[detail % len(wire)], step + detail))
        elif action == 4 and wire:
            del wire[detail % len(wire)]
        elif action == 5:
            endpoint.expect_restart((_B, _A)[side])
        else:
            batch = wire[: detail + 1] if action == 6 else wire[::-1]
            del wire[: len(batch)]
            for _peer, _path, plaintexts in endpoint.receive([(("192.0.2.1", 1), batch)], now):
                for plaintext in plaintexts:
                    clear = plaintext.rstrip(b"\0")
                    assert clear in sent
                    assert clear not in got
                    got.add(clear)
        for index in (0, 1):
            _check(ends[index], now)
            for _peer, datagrams in ends[index].transmit(now):
                wires[1 - index].extend(datagrams[:50])
            for _path, replies in ends[index].take_replies():
                wires[1 - index].extend(replies)


def seeds() -> list[bytes]:
    send_a, send_b, take_a, take_b = 0x00, 0x01, 0xFC, 0xFD
    wait = 0x82
    return [
        bytes([send_a, take_b, take_a, take_b, send_b, take_a]),
        bytes([send_a, send_b, take_a, take_b, take_a, take_b, wait, send_a, take_b]),
        bytes([send_a, 0x05, 0x07, 0x17, take_b, 0x06, 0x16, take_a, take_b, 0x05, take_b]),
    ]
