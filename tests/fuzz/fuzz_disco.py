"""Anything as the plaintext of a disco message, and as a datagram to be opened."""

from __future__ import annotations

import contextlib

from ts_base.errors import BadPacket
from ts_base.keys import DiscoPrivate
from ts_dataplane import disco

BOXES = disco.Boxes(DiscoPrivate.generate(bytes(range(32))), bytes)


def fuzz_one(data: bytes) -> None:
    try:
        message = disco.decode_message_untrusted(data)
    except BadPacket:
        pass
    else:
        assert disco.decode_message_untrusted(disco.encode_message(message)) == message
    with contextlib.suppress(BadPacket):
        BOXES.open_untrusted(data)


def seeds() -> list[bytes]:
    key, place = bytes(range(32)), ("192.0.2.7", 41641)
    endpoint = disco.RelayEndpoint(key, (key, key), 9, 7, 30 * 10**9, 300 * 10**9, (place, ("2001:db8::9", 7778)))
    messages: list[disco.Message] = [
        disco.Ping(bytes(12), key, 3),
        disco.Pong(bytes(12), place),
        disco.CallMeMaybe((place,)),
        disco.Bind(disco.BIND, 7, 1, key),
        disco.CallMeMaybeVia(endpoint),
        disco.AllocateRequest((key, key), 3),
        disco.AllocateResponse(3, endpoint),
    ]
    plain = [disco.encode_message(message) for message in messages]
    return [*plain, BOXES.seal(DiscoPrivate.generate(b"\x05" * 32).public.raw, messages[0])]
