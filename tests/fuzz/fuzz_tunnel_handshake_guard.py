"""Handshake messages of strangers, with right macs: noise behind the first check, cookies, and a loaded endpoint.

A forged response or cookie reply must leave the initiation in flight as it was: the true response still opens.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Callable

from ts_base.errors import BadPacket
from ts_base.keys import NodePrivate
from ts_tunnel.cookie import append_macs, cookie_key_of, mac1_key_of, open_cookie_untrusted
from ts_tunnel.endpoint import Endpoint
from ts_tunnel.handshake import Initiation, encode_timestamp, read_initiation_untrusted
from ts_tunnel.wire import decode_response_untrusted, kind_of


def _entropy(name: bytes) -> Callable[[int], bytes]:
    count = 0

    def draw(n: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.shake_256(name + struct.pack(">Q", count)).digest(n)

    return draw


OURS, THEIRS = NodePrivate.generate(bytes(range(32))), NodePrivate.generate(bytes(range(2, 34)))
PATH = ("192.0.2.7", 41641)
STRANGER = ("198.51.100.9", 1)


def _initiation() -> Initiation:
    stamp = encode_timestamp(1 << 40)
    return Initiation(OURS.raw, THEIRS.public.raw, ephemeral=_entropy(b"e")(32), timestamp=stamp, index=7)


TRUE_RESPONSE = read_initiation_untrusted(THEIRS.raw, _initiation().body + bytes(32)).respond(
    ephemeral=_entropy(b"r")(32), index=9
)[0]
TRUE_MESSAGE = decode_response_untrusted(TRUE_RESPONSE + bytes(32))[-1]


def fuzz_one(data: bytes) -> None:
    initiation, forged = _initiation(), data[-48:]
    if forged != TRUE_MESSAGE:
        with contextlib.suppress(BadPacket):
            initiation.read_response_untrusted(forged)
            raise AssertionError("a forged response was taken")
    assert initiation.read_response_untrusted(TRUE_MESSAGE)
    with contextlib.suppress(BadPacket):
        mac1, nonce, sealed = (data[a:b].ljust(b - a, b"\0") for a, b in ((0, 16), (16, 40), (40, 72)))
        open_cookie_untrusted(THEIRS.public.raw, mac1, nonce, sealed)
    _knock(data)


def _knock(data: bytes) -> None:
    """The same bytes, with macs that are right, at the door of an endpoint with one peer, idle and under load."""
    endpoint = Endpoint(OURS, entropy=_entropy(b"ours"), wall_clock=lambda: 1.7e9)
    endpoint.set_peers({1: THEIRS.public.raw}, 0.0)
    endpoint.send([(1, [b"hello"])], 0.0)
    first = endpoint.transmit(0.0)
    kind = kind_of(data)
    body = data[: {1: 116, 2: 60}.get(kind, len(data))]
    knock = append_macs(body, mac1_key_of(OURS.public.raw), None) if kind in (1, 2) else data
    for repeat in (1, 60):
        heard = endpoint.receive([(STRANGER, [knock] * repeat), (PATH, [data])], 0.5)
        assert not [plain for _, _, plain in heard if plain]
        replies = endpoint.take_replies()
        assert sum(map(len, (run for _, runs in replies for run in runs))) <= repeat * len(knock) + len(data)
    assert first
    assert endpoint.statistics().sessions <= 1


def seeds() -> list[bytes]:
    stranger = NodePrivate.generate(bytes(range(5, 37)))
    hello = Initiation(
        stranger.raw, OURS.public.raw, ephemeral=bytes(range(32)), timestamp=encode_timestamp(5), index=3
    ).body
    peer = Initiation(
        THEIRS.raw, OURS.public.raw, ephemeral=bytes(range(32)), timestamp=encode_timestamp(5), index=3
    ).body
    sealed = bytes(24) + cookie_key_of(THEIRS.public.raw)
    return [
        hello + bytes(32),
        peer + bytes(32),
        TRUE_RESPONSE + bytes(32),
        b"\3\0\0\0\7\0\0\0" + sealed,
        b"\4" + bytes(60),
    ]
