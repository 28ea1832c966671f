"""What counts as a changed network, and what follows from it."""

from __future__ import annotations

from typing import Any

import trio
import trio.testing

from tailscale.runtime.bus import Bus
from tailscale.runtime.link_actor import LinkWatch, run_link
from tailscale.runtime.messages import NetworkChanged


def test_the_order_of_addresses_means_nothing() -> None:
    watch = LinkWatch(["a", "b"], 100.0, 0.0)
    assert watch.look(["b", "a"], 103.0, 3.0) == (False, 0.0)
    assert watch.look(["b"], 106.0, 6.0) == (True, 0.0)
    assert watch.look(["b"], 109.0, 9.0) == (False, 0.0)


def test_a_wall_clock_that_ran_ahead_means_sleep_and_one_that_was_set_back_does_not() -> None:
    watch = LinkWatch([], 100.0, 0.0)
    assert watch.look([], 100.0 + 3600 + 3, 3.0) == (False, 3600.0)
    assert watch.look([], 100.0 + 3600 + 6, 6.0) == (False, 0.0)
    assert watch.look([], 0.0, 9.0) == (False, 0.0)
    assert watch.look([], 20.0, 12.0) == (False, 0.0)


class FakeWorld:
    uplinks = ()

    def __init__(self) -> None:
        self.addresses = ["192.0.2.1"]
        self.ahead = 1000.0
        self.rebinds = 0

    def interface_addresses(self) -> list[str]:
        return self.addresses

    def wall_clock(self) -> float:
        return trio.current_time() + self.ahead

    def rebind(self) -> None:
        self.rebinds += 1


async def test_a_new_address_rebinds_and_is_said_once(autojump_clock: trio.testing.MockClock) -> None:
    bus, world, woken = Bus(), FakeWorld(), []
    fake: Any = world
    with bus.subscribe(NetworkChanged) as inbox:
        async with trio.open_nursery() as nursery:
            await nursery.start(run_link, bus, fake, fake, woken.append)
            await trio.sleep(10)
            assert len(inbox) == 0
            world.addresses = ["198.51.100.7"]
            assert await inbox.receive() == NetworkChanged(rebound=True)
            assert (world.rebinds, woken) == (1, [])
            await trio.sleep(20)
            assert len(inbox) == 0
            world.ahead += 60
            assert await inbox.receive() == NetworkChanged(rebound=False)
            assert (world.rebinds, len(woken)) == (1, 1)
            nursery.cancel_scope.cancel()
