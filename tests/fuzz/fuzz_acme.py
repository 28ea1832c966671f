"""What ACME servers, certificate files and TLS clients say: a value or BadPacket, and no address that leads back."""

from __future__ import annotations

import contextlib

from tailscale.daemon.durations import seconds_untrusted
from ts_acme import messages
from ts_acme.authority import Authority, request_untrusted
from ts_acme.chains import chain_untrusted, matching_key_untrusted
from ts_acme.messages import Reply
from ts_acme.server import AcmeServer
from ts_acme.signing import ENTROPY_LENGTH, key_text, key_untrusted, new_key
from ts_base.errors import BadPacket

WHERE = "https://acme.test/dir"
ENTROPY = bytes(range(1, 65))


def entropy(length: int) -> bytes:
    return (ENTROPY * length)[:length]


def clock() -> float:
    return 1_800_000_000.0


KEY = new_key(entropy(ENTROPY_LENGTH))
CHAIN = Authority(entropy, clock).issue(KEY.public_key(), ["web.test"], 86_400.0)
SERVER = AcmeServer(url="https://acme.test", records=lambda _: [], entropy=entropy, wall_clock=clock)


def fuzz_one(data: bytes) -> None:
    text = data.decode("latin-1")
    reply = Reply(200, {"retry-after": text, "location": text, "replay-nonce": text, "content-type": text}, data)
    messages.retry_after_untrusted(reply, clock())
    messages.nonce_untrusted(reply)
    messages.problem_untrusted(reply)
    parsers = (messages.directory_untrusted, messages.order_untrusted, messages.authorization_untrusted)
    for parse in (*parsers, messages.location_untrusted):
        with contextlib.suppress(BadPacket):
            parse(reply, WHERE)
    with contextlib.suppress(BadPacket):
        messages.window_untrusted(reply, clock(), 60.0)
    for read in (key_untrusted, request_untrusted):
        with contextlib.suppress(BadPacket):
            read(data)
    with contextlib.suppress(BadPacket):
        assert seconds_untrusted(text[:100]) >= 0
    with contextlib.suppress(BadPacket):
        matching_key_untrusted(data, chain_untrusted(CHAIN))
    with contextlib.suppress(BadPacket):
        chain = chain_untrusted(data)
        assert chain.names
        assert chain.begins <= chain.expires
    assert SERVER.answer("POST", "/orders", data).status >= 400


def seeds() -> list[bytes]:
    return [
        CHAIN,
        key_text(KEY),
        b'{"newNonce":"https://a.test/n","newAccount":"https://a.test/a","newOrder":"https://a.test/o"}',
        b'{"status":"pending","authorizations":["https://a.test/z"],"finalize":"https://a.test/f"}',
        b'{"status":"pending","identifier":{"type":"dns","value":"a.test"},"challenges":[{"type":"dns-01",'
        b'"url":"https://a.test/c","token":"abc","status":"pending","error":{"type":"urn:x","detail":"no"}}]}',
        b'{"suggestedWindow":{"start":"2027-01-02T04:00:00Z","end":"2027-01-03T04:00:00Z"}}',
        b"1h30m5.5s250ms",
        b'{"protected":"e30","payload":"","signature":""}',
    ]
