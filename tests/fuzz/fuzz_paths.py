"""A peer that says anything at all, over any path, at any time: the finder must stay whole and bounded."""

from __future__ import annotations

from random import Random

from ts_base.keys import DiscoPrivate, NodePrivate
from ts_dataplane import disco
from ts_dataplane.candidates import MAX_CALLED, MAX_HEARD, MAX_LISTED
from ts_dataplane.paths import PathFinder
from ts_dataplane.peer_paths import PeerPaths

OURS, THEIRS, SERVER = (DiscoPrivate.generate(bytes([n]) * 32) for n in (3, 5, 7))
NODE = NodePrivate.generate(bytes([9]) * 32).public
PEER_KEY = bytes(range(32))
PATHS = [(900, PEER_KEY), (901, PEER_KEY), (900, bytes(32)), ("192.0.2.7", 1), ("2001:db8::7", 2), ("192.0.2.9", 3, 7)]


class PlainBox:
    """Instead of sealing: fuzzing is about what is inside."""

    def __init__(self, ours: object, theirs: object) -> None: ...

    def seal(self, plaintext: bytes, nonce: bytes) -> bytes:
        return nonce + bytes(16) + plaintext

    def open_untrusted(self, sealed: bytes) -> bytes:
        return sealed[40:]


def fuzz_one(data: bytes) -> None:
    """Records of: what to do 1, how long it takes 1, length 1, plaintext."""
    real, disco.Box = disco.Box, PlainBox  # type: ignore[misc, assignment]
    try:
        _run(data)
    finally:
        disco.Box = real  # type: ignore[misc]


def _run(data: bytes) -> None:
    finder = PathFinder(OURS, NODE, entropy=Random(1).randbytes)
    theirs, server = (disco.Boxes(key, bytes) for key in (THEIRS, SERVER))
    facts = PeerPaths(PEER_KEY, THEIRS.public.raw, ("192.0.2.7:1",), 900)
    finder.set_peers({1: facts, 2: PeerPaths(bytes(32), THEIRS.public.raw, (), 0, serves_relay=True)}, 0.0)
    finder.set_endpoints([("198.51.100.1", 5)], 0.0)
    now, at, sent = 0.0, 0, 0
    while at + 3 <= len(data):
        what, wait, length = data[at : at + 3]
        plaintext, at = data[at + 3 : at + 3 + length], at + 3 + length
        now += wait / 50
        path = PATHS[what % len(PATHS)]
        if what & 0x80:
            finder.on_data_sent([1, 2, 3], now)
        if what & 0x40:
            finder.on_data_heard([(1, path)], now)
        if finder.next_timer() <= now:
            finder.handle_timer(now)
            assert finder.next_timer() > now
        boxes = server if what & 0x20 else theirs
        datagram = disco.MAGIC + boxes.public + bytes(40) + plaintext
        finder.receive([(datagram, path)], now)
        if what & 0x10:
            pings = list(finder._outbox.ledger._pings)
            if pings:
                pong = disco.encode_message(disco.Pong(pings[-1], ("192.0.2.1", 1)))
                finder.receive([(disco.MAGIC + theirs.public + bytes(40) + pong, path)], now)
        sent += sum(len(run) for _, run in finder.transmit(now))
        finder.take_messages()
    for state in finder._states.values():
        assert len(state.candidates) <= MAX_LISTED + MAX_CALLED + MAX_HEARD + 1
    assert set(finder.paths) <= {1, 2}
    assert all(1 <= len(paths) <= 2 for paths in finder.paths.values())
    assert sent <= 200 * (len(data) // 3 + now + 1)


def seeds() -> list[bytes]:
    place = disco.RelayEndpoint(
        SERVER.public.raw, (OURS.public.raw, THEIRS.public.raw), 1, 7, 30 * 10**9, 300 * 10**9, (("192.0.2.9", 3),)
    )
    messages: list[disco.Message] = [
        disco.Ping(bytes(12), PEER_KEY),
        disco.CallMeMaybe((("192.0.2.7", 1), ("2001:db8::7", 2))),
        disco.CallMeMaybeVia(place),
        disco.Bind(disco.CHALLENGE, 7, 1, THEIRS.public.raw),
    ]
    plain = [disco.encode_message(message) for message in messages]
    script = b""
    for what in (0x80, 0x93, 0x33, 0x10, 0x15, 0x25, 0x05):
        for text in plain:
            script += bytes((what, 40, len(text))) + text
    return [script, script[::2], b"".join(bytes((n, n, 0)) for n in range(256))]
