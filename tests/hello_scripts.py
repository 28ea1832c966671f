"""ClientHellos: those that OpenSSL writes, and those that are put together here, in any pieces."""

from __future__ import annotations

import ssl

EXTENSION = tuple[int, bytes]


def hello_of_openssl(name: str | None, *protocols: str) -> bytes:
    """The record that a client sends first."""
    context = ssl.create_default_context()
    context.check_hostname = name is not None
    if protocols:
        context.set_alpn_protocols(list(protocols))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("nobody answered")


def vector(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size, "big") + data


def server_name(*names: bytes, kind: int = 0) -> EXTENSION:
    return 0, vector(2, b"".join(bytes([kind]) + vector(2, name) for name in names))


def body_of(*extensions: EXTENSION, version: bytes = b"\3\3", session: bytes = b"", suites: bytes = b"\x13\1") -> bytes:
    told = b"".join(kind.to_bytes(2, "big") + vector(2, data) for kind, data in extensions)
    return version + bytes(32) + vector(1, session) + vector(2, suites) + vector(1, b"\0") + vector(2, told)


def message(body: bytes, kind: int = 1) -> bytes:
    return bytes([kind]) + vector(3, body)


def records(data: bytes, size: int = 1 << 14) -> bytes:
    """A message in records of at most so many bytes."""
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"\x16\3\1" + vector(2, part) for part in parts)


def hello(name: bytes) -> bytes:
    return records(message(body_of(server_name(name))))
