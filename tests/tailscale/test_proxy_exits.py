"""Exits by policy over a whole tailnet: who is taken, what happens when one dies, and what is never blamed on it."""

from __future__ import annotations

import trio
from proxy_scripts import NAME, cut, desk_and_exits, echoed_by, mend, outside, timed
from trio.testing import MockClock

from tailscale.proxy import Exits
from tailscale.testing import Tailnet


async def test_a_connection_goes_through_an_exit_of_the_policy(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss", "dutch")
    async with outside(tailnet) as web:
        chosen = Exits(desk, nodes=["dutch", "swiss"])
        assert await echoed_by(chosen) == "dutch"
        assert await echoed_by(chosen, NAME) == "dutch"
        assert web.visitors == ["dutch", "dutch"]
        assert [exit_node.node.hostname for exit_node in chosen.candidates] == ["dutch", "swiss"]
        assert chosen.current is not None
        assert chosen.current.node.hostname == "dutch"


async def test_a_dead_exit_costs_one_connection_a_second_and_the_next_nothing(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss", "dutch")
    async with outside(tailnet):
        chosen = Exits(desk, nodes=["swiss", "dutch"])
        assert await echoed_by(chosen) == "swiss"
        cut(tailnet, "swiss")
        name, seconds = await timed(chosen)
        assert name == "dutch"
        assert seconds <= 1.5
        for _ in range(5):
            name, seconds = await timed(chosen)
            assert (name, seconds < 0.1) == ("dutch", True)
            await trio.sleep(3)


async def test_a_better_exit_is_taken_back_after_three_answers_and_never_after_one(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss", "dutch")
    async with outside(tailnet):
        chosen = Exits(desk, nodes=["swiss", "dutch"])
        await echoed_by(chosen)
        cut(tailnet, "swiss")
        assert await echoed_by(chosen) == "dutch"
        lost_at = trio.current_time()
        mend(tailnet, "swiss")
        used = {}
        for _ in range(12):
            await trio.sleep(3)
            used[trio.current_time() - lost_at] = await echoed_by(chosen)
    back_at = min(at for at, name in used.items() if name == "swiss")
    assert 29 < back_at < 34, used
    assert [name for at, name in used.items() if at >= back_at] == ["swiss"] * sum(at >= back_at for at in used)
