"""What a stranger may send as HTTP: answers to the key request, HTTP/2 in both roles, c2n payloads, map frames."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from ts_base.errors import BadPacket
from ts_control.aws_identity import aws_token_of_untrusted, credentials_of_untrusted, word_of_untrusted
from ts_control.c2n import answer_c2n_untrusted
from ts_control.framing import FrameReader, encode_frame
from ts_control.http1 import Http1Client, Reply
from ts_control.http2 import Http2Connection
from ts_control.key_making import (
    github_token_of_untrusted,
    google_token_of_untrusted,
    key_of_untrusted,
    refusal_of_untrusted,
    token_of_untrusted,
)
from ts_control.services import SERVICE_HOST, addresses_in, hosted_untrusted

SECRET = "tskey-client-secret"


def _http1(data: bytes) -> Any:
    http = Http1Client()
    http.request("GET", "/key", [("Host", "h")])
    return http.receive_untrusted(data)


def _http2(data: bytes, *, client: bool) -> Any:
    connection, other = Http2Connection(client=client), Http2Connection(client=not client)
    if client:
        connection.request("GET", "h", "/", [], b"")
    connection.receive_untrusted(other.transmit())
    events = connection.receive_untrusted(data)
    connection.transmit()
    return events


def _key_answers(data: bytes) -> Any:
    """What an API that makes keys, or a cloud that signs tokens, may answer; no secret is quoted back."""
    reply = Reply(200, {}, data)
    assert SECRET not in refusal_of_untrusted(reply, (SECRET,))
    for read in TOKENS:
        try:
            assert read(reply)
        except BadPacket:
            continue


def _frames(data: bytes) -> Any:
    reader = FrameReader(compressed=True)
    reader.receive(data)
    while reader.next_frame_untrusted() is not None:
        pass


PARSERS: list[Callable[[bytes], Any]] = [
    _http1,
    lambda data: _http2(data, client=True),
    lambda data: _http2(data, client=False),
    lambda data: answer_c2n_untrusted(base64.b64encode(data).decode()),
    _key_answers,
    _frames,
    hosted_untrusted,
    lambda data: hosted_untrusted(b"HTTP/1.1 200 OK\r\n\r\n" + data),
    lambda data: addresses_in({SERVICE_HOST: [{"svc:web": [data.decode("latin-1")]}]}),
]
TOKENS = (
    token_of_untrusted,
    key_of_untrusted,
    github_token_of_untrusted,
    google_token_of_untrusted,
    word_of_untrusted,
    credentials_of_untrusted,
    aws_token_of_untrusted,
)


def fuzz_one(data: bytes) -> None:
    for parse in PARSERS:
        try:
            parse(data)
        except BadPacket:
            continue


def seeds() -> list[bytes]:
    pair = Http2Connection(client=True), Http2Connection(client=False)
    pair[0].request("POST", "h", "/machine/map", [("content-type", "application/json")], b"{}")
    asked = pair[0].transmit()
    pair[1].receive_untrusted(asked)
    pair[1].transmit()
    pair[1].respond(1, 200)
    pair[1].send_body(1, b"hello", end=True)
    return [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nrest",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi",
        asked[24:],
        pair[1].transmit(),
        b'{"access_token":"tskey-client-secret","expires_in":3600}',
        b'{"id":"k","key":"tskey-auth-x"}',
        b'{"message":"tskey-client-secret is wrong","error":"invalid_client"}',
        encode_frame(b'{"KeepAlive":true}', compressed=True),
    ]
