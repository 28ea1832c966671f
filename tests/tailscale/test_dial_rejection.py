"""A peer whose policy says no tells us inside the tunnel: the dial fails at once, with the reason."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

import tailscale
from tailscale.testing import Tailnet

ONLY_WEB = {"acls": [{"action": "accept", "src": ["*"], "dst": ["*:80"]}]}


async def test_dial_rejected_by_policy_fails_at_once_and_says_so(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, _ = await tailnet.device("a"), await tailnet.device("b")
    await a.ping("b", kind="tsmp")
    tailnet.policy(ONLY_WEB)
    await trio.sleep(1)
    began = trio.current_time()
    with pytest.raises(tailscale.ConnectionRefused, match="b port 22 refused the connection: its tailnet policy"):
        await a.tcp_connect("b", 22)
    assert trio.current_time() - began < 1.0
    with pytest.raises(tailscale.ConnectionRefused, match="nothing listens"):
        await a.tcp_connect("b", 80)
