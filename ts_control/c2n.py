"""Control-to-node requests: one serialised HTTP/1.x request in a ping, one serialised response back.

Owns: the paths we answer and what is true of us there. Refuses to know: how the request came and the answer goes.
Paths and answers: ipn/ipnlocal/c2n.go.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping

import h11

from ts_base.errors import BadPacket

REQUEST_LIMIT = 1 << 20

Answer = tuple[bytes, bytes]
"""A status line's text and a body."""

OK, NO_CONTENT = b"200 OK", b"204 No Content"
UNKNOWN_PATH: Answer = (b"400 Bad Request", b"unknown c2n path\n")
WRONG_METHOD: Answer = (b"405 Method Not Allowed", b"bad method\n")


def _says(answer: bytes) -> Callable[[bytes], Answer]:
    return lambda _body: (OK, answer)


# What is asked by which methods, and the answer to a body. Everything here is a fact about every device of ours.
HANDLERS: Mapping[bytes, tuple[frozenset[bytes], Callable[[bytes], Answer]]] = {
    b"/echo": (frozenset({b"GET", b"POST", b"PUT", b"HEAD"}), lambda body: (OK, body)),
    # A library neither updates itself nor can be told to.
    b"/update": (frozenset({b"GET", b"POST"}), _says(b'{"Enabled":false,"Supported":false}')),
    # No log leaves this machine, so whatever was to be flushed is.
    b"/logtail/flush": (frozenset({b"POST"}), lambda _body: (NO_CONTENT, b"")),
    # Nothing is read from the machine beyond its system's name.
    b"/posture/identity": (frozenset({b"GET"}), _says(b'{"PostureDisabled":true}')),
    # Tailscale Services are not hosted.
    b"/vip-services": (frozenset({b"GET"}), _says(b'{"VIPServices":[],"ServicesHash":""}')),
}


def answer_c2n_untrusted(payload_base64: str) -> bytes:
    """BadPacket when the payload is not one whole HTTP request."""
    request, body = _read_untrusted(payload_base64)
    methods, answer = HANDLERS.get(request.target.split(b"?", 1)[0], (frozenset(), None))
    if answer is None:
        return _serialise(*UNKNOWN_PATH)
    return _serialise(*(answer(body) if request.method in methods else WRONG_METHOD))


def _read_untrusted(payload_base64: str) -> tuple[h11.Request, bytes]:
    if len(payload_base64) > REQUEST_LIMIT:
        raise BadPacket("c2n request too long")
    try:
        payload = base64.b64decode(payload_base64, validate=True)
    except (binascii.Error, ValueError):
        raise BadPacket("c2n payload is not base64") from None
    connection = h11.Connection(h11.SERVER)
    try:
        connection.receive_data(payload)
        request = connection.next_event()
        if not isinstance(request, h11.Request):
            raise BadPacket("c2n payload is not a whole HTTP request")
        body = bytearray()
        while isinstance(event := connection.next_event(), h11.Data):
            body += event.data
    except h11.RemoteProtocolError:
        raise BadPacket("c2n payload is not HTTP") from None
    if not isinstance(event, h11.EndOfMessage):
        raise BadPacket("c2n payload is not a whole HTTP request")
    return request, bytes(body)


def _serialise(status: bytes, body: bytes) -> bytes:
    # RFC 9110 section 8.6: no Content-Length in a 204.
    length = b"" if status == NO_CONTENT else b"Content-Length: %d\r\n" % len(body)
    return b"HTTP/1.1 %b\r\n%b\r\n%b" % (status, length, body)
