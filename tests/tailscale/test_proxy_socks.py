"""SOCKS 5 over raw bytes, in virtual time: every field cut and split, every code, and nothing told before it is so."""

from __future__ import annotations

import pytest
import trio
from proxy_scripts import (
    CHOSEN_NO_LOGIN,
    ECHO_PORT,
    NO_LOGIN,
    bytewise,
    echoed,
    login,
    read_all,
    read_exactly,
    scene,
    socks_open,
    socks_request,
)

from tailscale.testing import Tailnet


async def test_socks_connects_and_says_our_real_end(tailnet: Tailnet) -> None:
    async with scene(tailnet) as s, await s.connect() as stream:
        reply = await socks_open(stream, "web", ECHO_PORT)
        assert reply[:4] == b"\5\0\0\1"
        assert reply[4:8] == bytes(map(int, (s.desk.ipv4 or "").split(".")))
        assert await echoed(stream) == b"hello"
        assert s.proxy.statistics().carried == 1
        await stream.send_eof()
        assert await read_all(stream) == b""
        await trio.sleep(1)
        assert s.proxy.statistics().carried == 0
        assert s.proxy.statistics().bytes_sent == s.proxy.statistics().bytes_received == 5
