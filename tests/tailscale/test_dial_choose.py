"""Which way a connection goes, and what it says when that way leads nowhere. `test_http_transport.py` has the names."""

from __future__ import annotations

import pytest
import trio
from tailnet_scripts import echo_service, runtime_of
from trio.testing import MockClock

import tailscale
from tailscale.testing import Tailnet


async def test_a_tailnet_name_goes_over_the_tailnet(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    assert await a.way_to("b") == (True, "b")
    assert await a.way_to("localhost") == (False, "localhost")
    assert await a.way_to("example.com") == (False, "example.com")
    async with echo_service(b, 80), await a.connect_anywhere("b", 80) as stream:
        assert isinstance(stream, tailscale.TcpStream)
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello"


async def test_the_machines_own_way_has_a_timeout_too(
    autojump_clock: MockClock, tailnet: Tailnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def vanish(host: str, port: int) -> None:
        await trio.sleep_forever()

    a = await tailnet.device("a")
    monkeypatch.setattr(runtime_of(a).network, "open_tcp", vanish)
    with pytest.raises(tailscale.ConnectionTimedOut, match=r"example\.com port 80 did not answer within 3 s"):
        await a.connect_anywhere("example.com", 80, timeout=3)
