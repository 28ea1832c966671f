"""A peer whose policy says no tells us inside the tunnel: the dial fails at once, with the reason."""

from __future__ import annotations

import json

import pytest
import trio
from tailnet_scripts import runtime_of, until
from trio.testing import MockClock

import tailscale
from tailscale.testing import Tailnet
from ts_control.gojson import encode_json

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


async def test_a_policy_that_speaks_for_one_family_only_is_not_waited_for_in_the_other(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    """As with stock nodes, which say over IPv4 what they refuse, and nothing over IPv6."""
    a, b = await tailnet.device("a"), await tailnet.device("b")
    await a.ping("b", kind="tsmp")
    tailnet.policy(ONLY_WEB)
    await trio.sleep(1)
    netmap = runtime_of(b).directory.netmap
    assert netmap is not None
    ipv4_only = {
        "PeersChanged": [
            json.loads(encode_json(netmap.peers[a.node.id]))
            | {"Addresses": [f"{a.ipv4}/32"], "AllowedIPs": [f"{a.ipv4}/32"]}
        ]
    }
    tailnet.control.do(tailnet.control.server.send_to, b.node.id, ipv4_only)
    await until(lambda: b.peers["a"].ipv6 is None)
    began = trio.current_time()
    with pytest.raises(tailscale.ConnectionRefused, match="b port 22 refused the connection: its tailnet policy"):
        await a.tcp_connect("b", 22)
    assert trio.current_time() - began < 2.0
    assert b.status().drops["filter.not_owner"] >= 1
