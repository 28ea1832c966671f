"""What anybody may send to the embedded servers' HTTP front: it ends one connection at most, never the server."""

from __future__ import annotations

import os

import pytest
import trio
import trio.testing

from tailscale.testing.control import ControlService
from tailscale.testing.http_front import Answer, Request, serve_http
from tailscale.testing.relay import RelayService
from ts_base.keys import NodePrivate
from ts_control.server import ControlServer


async def answered(serve: object, sent: bytes) -> bytes:
    """Everything that comes back for `sent` before the connection ends."""
    ours, theirs = trio.testing.memory_stream_pair()
    got = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, ours)  # type: ignore[arg-type]
        await theirs.send_all(sent)
        await theirs.send_eof()
        while data := bytes(await theirs.receive_some(65536)):
            got += data
    return got


def services() -> list[object]:
    server = ControlServer(entropy=os.urandom, wall_clock=lambda: 0.0)
    relay = RelayService(NodePrivate.generate(os.urandom(32)), entropy=os.urandom, admit=lambda key: True)
    return [ControlService(server, entropy=os.urandom).serve_stream, relay.serve_stream]


@pytest.mark.parametrize("path", ["/nothing", "/key?v=1", "/health", "/derp/probe", "/generate_204", "/ts2021"])
@pytest.mark.parametrize("which", [0, 1], ids=["control", "relay"])
async def test_head_gets_a_head_and_no_body(which: int, path: str) -> None:
    got = await answered(services()[which], b"HEAD %b HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())
    assert got.startswith(b"HTTP/1.1 ")
    assert got.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("which", [0, 1], ids=["control", "relay"])
async def test_other_methods_are_refused(which: int) -> None:
    for method in (b"CONNECT", b"PUT", b"X"):
        got = await answered(services()[which], method + b" /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert got.startswith(b"HTTP/1.1 405 ")


async def test_a_connection_goes_on_after_head() -> None:
    def route(request: Request) -> Answer:
        return Answer(200, request.path.encode())

    sent = b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n"
    got = await answered(lambda stream: serve_http(stream, route), sent)
    assert got.count(b"HTTP/1.1 200") == 2
    assert got.endswith(b"\r\n\r\n/b")
