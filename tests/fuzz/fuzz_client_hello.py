"""A TLS client's first bytes, whole and cut: the same hello or the same alert, whatever they are and however cut."""

from __future__ import annotations

from ts_base.client_hello import BadHello, ClientHello, HelloReader, decode_hello_untrusted, encode_alert


def fuzz_one(data: bytes) -> None:
    whole = _read(data)
    middle = len(data) // 2
    assert _read(data[:middle], data[middle:]) == whole
    if isinstance(whole, ClientHello):
        assert whole.name == whole.name.lower()
        assert whole.name.isascii()
        assert 0 < len(whole.name) <= 253
    try:
        decode_hello_untrusted(data)
    except BadHello as problem:
        encode_alert(problem.alert)


def _read(*pieces: bytes) -> ClientHello | int | None:
    reader, found = HelloReader(), None
    for piece in pieces:
        if found is None:
            try:
                found = reader.receive_untrusted(piece)
            except BadHello as problem:
                return problem.alert
    return found


def seeds() -> list[bytes]:
    body = (
        b"\3\3" + bytes(32) + b"\0\0\2\x13\1\1\0\0\x18"  # no session, one suite, no compression, 24 of extensions
        b"\0\0\0\x0e\0\x0c\0\0\x09a.example\x0a\x0a\0\2\0\0"
    )
    message = b"\1" + len(body).to_bytes(3, "big") + body
    record = b"\x16\3\1" + len(message).to_bytes(2, "big") + message
    halves = message[:50], message[50:]
    cut = b"".join(b"\x16\3\1" + len(half).to_bytes(2, "big") + half for half in halves)
    return [body, record, cut, b"\x80\x2e\1\0\2", b"GET / HTTP/1.1\r\n", encode_alert(0)]
