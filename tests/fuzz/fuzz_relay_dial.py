"""An HTTP answer from whatever stands where a relay should, and a request to the embedded servers' front.

Both are coroutines over a stream that never waits, so they are stepped by hand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Coroutine
from typing import Any

import h11

from tailscale.testing.http_front import Request, _next_request
from ts_derp.dial import _connect_through_proxy, upgrade
from ts_derp.errors import RelayUnreachable
from ts_derp.regions import RelayNode

NODE = RelayNode("900a", "relay.example")


class Canned:
    """A stream that has heard everything already."""

    def __init__(self, data: bytes, piece: int) -> None:
        self.pieces = [data[at : at + piece] for at in range(0, len(data), piece)][::-1]

    async def receive_some(self, limit: int | None = None) -> bytes:
        return self.pieces.pop() if self.pieces else b""

    async def send_all(self, data: bytes) -> None: ...

    async def aclose(self) -> None: ...


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits for something")


def fuzz_one(data: bytes) -> None:
    piece = (data[0] % 50 + 1) * 3 if data else 1
    # Both errors are what ts_derp.client turns into "this relay cannot be reached".
    with contextlib.suppress(RelayUnreachable, h11.RemoteProtocolError):
        early = _run(upgrade(Canned(data, piece), NODE))
        assert len(early) <= len(data)
    with contextlib.suppress(RelayUnreachable, h11.RemoteProtocolError):
        _run(_connect_through_proxy(Canned(data, piece), "http://u:p@proxy:1", "relay.example", 443))
    with contextlib.suppress(h11.RemoteProtocolError):
        request = _run(_next_request(h11.Connection(h11.SERVER), Canned(data, piece)))  # type: ignore[arg-type]
        assert request is None or isinstance(request, Request)


def seeds() -> list[bytes]:
    return [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nX: 2\r\n\r\n\1\0\0\0\2ab",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 407 Proxy Authentication Required\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"GET /derp HTTP/1.1\r\nHost: h\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n",
        b"POST /ts2021?a=b HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody",
    ]
