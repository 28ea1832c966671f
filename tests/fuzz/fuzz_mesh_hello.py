"""Anything as the first message of a session."""

from __future__ import annotations

from ts_base.errors import BadPacket
from ts_mesh.hello import Identity, Seen, decode_hello_untrusted, encode_hello, refusal

IDENTITY = Identity("notes", "01J4K9M2Z8AB3RNYQPW6H5TC0X", "laptop", "linux", "n1")
EPOCH = "0123456789abcdef"


def fuzz_one(data: bytes) -> None:
    for said in (data, data.decode("utf-8", "surrogateescape")):
        try:
            hello = decode_hello_untrusted(said)
        except BadPacket:
            continue
        assert hello.version >= 2
        assert hello.identity.device_id
        again = encode_hello(hello.identity, hello.features, hello.epoch, hello.seen)
        assert decode_hello_untrusted(again, largest=1 << 20).identity == hello.identity
        assert refusal(hello, app="notes", own_id="me", stable_id="") is not None


def seeds() -> list[bytes]:
    return [
        encode_hello(IDENTITY, ("ack", "bin", "files", "store"), EPOCH, Seen(EPOCH, 7)).encode(),
        encode_hello(IDENTITY, (), "").encode(),
        b'{"kind":"hello","version":2,"identity":{"app_id":"a","device_id":"x","device_name":"","os":""}}',
    ]
