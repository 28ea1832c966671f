"""Exits by policy over a whole tailnet: who is taken, what happens when one dies, and what is never blamed on it."""

from __future__ import annotations

import pytest
from exit_scripts import WEB, exits
from trio.testing import MockClock

import tailscale
from tailscale.proxy import DIRECT, NO_EXIT, Exits, NoExit
from tailscale.testing import Tailnet


async def test_a_connection_goes_through_an_exit_of_the_policy(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with exits(tailnet, "swiss", "dutch") as (desk, [swiss, dutch]):
        chosen = Exits(desk, nodes=["dutch", "swiss"])
        async with await chosen.tcp_connect(WEB, 80) as stream:
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"
            assert stream.exit is not None
            assert stream.exit.hostname == "dutch"
        assert (len(swiss.visitors), len(dutch.visitors)) == (0, 1)
        assert [exit_node.node.hostname for exit_node in chosen.candidates] == ["dutch", "swiss"]
        with pytest.raises(NoExit):
            await Exits(desk, tag="exit").tcp_connect(WEB, 80)
        with pytest.raises(tailscale.NoRoute):
            await NO_EXIT.on(desk).tcp_connect(WEB, 80)
        assert DIRECT.on(desk).candidates == ()
