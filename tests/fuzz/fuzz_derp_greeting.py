"""What is inside a relay's greeting once its box is open: the seal is made here, so that mutations get behind it."""

from __future__ import annotations

import contextlib

from ts_base.box import Box
from ts_base.errors import BadPacket
from ts_base.keys import NodePrivate
from ts_derp import greeting

CLIENT, SERVER = NodePrivate.generate(bytes(range(32))), NodePrivate.generate(bytes(range(1, 33)))


def fuzz_one(data: bytes) -> None:
    with contextlib.suppress(BadPacket):
        greeting.decode_server_key_untrusted(data)
    with contextlib.suppress(BadPacket):
        greeting.decode_client_info_untrusted(data, SERVER)
    with contextlib.suppress(BadPacket):
        greeting.decode_server_info_untrusted(data, CLIENT, SERVER.public)
    sealed = Box(CLIENT, SERVER.public).seal(data, bytes(24))
    with contextlib.suppress(BadPacket):
        assert greeting.decode_client_info_untrusted(CLIENT.public.raw + sealed, SERVER) == CLIENT.public
    with contextlib.suppress(BadPacket):
        limit = greeting.decode_server_info_untrusted(sealed, CLIENT, SERVER.public)
        assert limit is None or (limit.bytes_per_second > 0 and limit.burst > 0)


def seeds() -> list[bytes]:
    return [
        greeting.encode_server_key(SERVER.public),
        greeting.encode_client_info(CLIENT, SERVER.public, bytes(24)),
        greeting.encode_server_info(SERVER, CLIENT.public, bytes(24), greeting.RateLimit(10, 20)),
        b'{"version":2,"TokenBucketBytesPerSecond":1000,"TokenBucketBytesBurst":1e5}',
        b'{"version":2,"CanAckPings":true,"meshKey":""}',
    ]
