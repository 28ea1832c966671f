"""Control-to-node requests: one serialised HTTP/1.x request in a ping, one serialised response back.

Owns: the paths we answer, which is `/echo`. Refuses to know: how the request came and the answer goes.
"""

from __future__ import annotations

import base64
import binascii

import h11

from ts_base.errors import BadPacket

REQUEST_LIMIT = 1 << 20
UNKNOWN_PATH = b"unknown c2n path\n"


def answer_c2n_untrusted(payload_base64: str) -> bytes:
    """BadPacket when the payload is not one whole HTTP request."""
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
    path = request.target.split(b"?", 1)[0]
    return _serialise(b"200 OK", bytes(body)) if path == b"/echo" else _serialise(b"400 Bad Request", UNKNOWN_PATH)


def _serialise(status: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)
