"""As much of a PostgreSQL server as the snippets of docs/databases.md need: every query answers 1.

https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

from __future__ import annotations

from struct import pack, unpack_from

import trio

SSL_REQUEST = 80877103
INT4 = 23
READY = b"Z\0\0\0\5I"
SETTINGS = {"server_version": "15.0", "client_encoding": "UTF8", "standard_conforming_strings": "on"}


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + pack(">i", len(body) + 4) + body


def row_description(is_binary: bool) -> bytes:
    return message(b"T", pack(">h", 1) + b"one\0" + pack(">ihihih", 0, 0, INT4, 4, -1, is_binary))


def data_row(is_binary: bool) -> bytes:
    value = pack(">i", 1) if is_binary else b"1"
    return message(b"D", pack(">hi", 1, len(value)) + value)


async def speak_postgres(stream: trio.abc.Stream, data: bytes) -> None:
    """One session, to its end."""
    is_greeted = is_binary = False
    while True:
        start = 0 if not is_greeted else 1
        while len(data) < start + 4 or len(data) < start + unpack_from(">i", data, start)[0]:
            more = await stream.receive_some()
            if not more:
                return
            data += more
        end = start + unpack_from(">i", data, start)[0]
        kind, body, data = data[:start], data[start + 4 : end], data[end:]
        if kind == b"X":
            return
        if kind == b"B":
            is_binary = body[-2:] == b"\0\1"
        if not is_greeted and unpack_from(">i", body)[0] == SSL_REQUEST:
            await stream.send_all(b"N")
            continue
        await stream.send_all(answer(kind, body, is_binary))
        is_greeted = True


def answer(kind: bytes, body: bytes, is_binary: bool) -> bytes:
    match kind:
        case b"":
            settings = (message(b"S", f"{name}\0{value}\0".encode()) for name, value in SETTINGS.items())
            return message(b"R", pack(">i", 0)) + b"".join(settings) + message(b"K", bytes(8)) + READY
        case b"Q" if b"SELECT" in body.upper():
            return row_description(False) + data_row(False) + message(b"C", b"SELECT 1\0") + READY
        case b"Q":
            return message(b"C", b"OK\0") + READY
        case b"P":
            return message(b"1")
        case b"B":
            return message(b"2")
        case b"C":
            return message(b"3")
        case b"D":
            return (message(b"t", pack(">h", 0)) if body[:1] == b"S" else b"") + row_description(is_binary)
        case b"E":
            return data_row(is_binary) + message(b"C", b"SELECT 1\0")
        case b"S":
            return READY
    return b""
