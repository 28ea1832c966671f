"""What happens to a tailnet in a day: restarts, expiries, blocks, bad links, renames, policies, comings and goings.

Each is done, held for a while and undone. Traffic goes on meanwhile, and is expected to survive.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import trio
from soak.traffic import REFUSED_PORT, Failures, datagrams, must_be_refused, transfer

from tailscale import Device
from tailscale.testing import Tailnet

SETTLE = 30.0  # seconds the tailnet gets to learn of a change that is then checked
STRICT = {
    "acls": [{"action": "accept", "src": ["*"], "dst": [f"*:1-{REFUSED_PORT - 1}", f"*:{REFUSED_PORT + 1}-65535"]}]
}


class Day:
    """One tailnet and the hand that disturbs it. `slot` is how long an hour is."""

    def __init__(self, net: Tailnet, devices: list[Device], failures: Failures, seed: int, slot: float, real: bool):
        self._net, self._devices, self._failures = net, devices, failures
        self._dice = random.Random(f"{seed} day")
        self._hold = slot * 0.12
        self._settle = min(SETTLE, slot * 0.1)
        self._renamed = 0
        self.done: dict[str, int] = {}
        self.resting: set[Device] = set()
        self._verbs: list[Callable[[], Awaitable[None]]] = [
            *(self.control_restarts, self.control_is_away, self.relay_restarts, self.relay_is_away),
            *(self.udp_is_blocked, self.key_expires, self.key_is_renewed, self.device_is_renamed),
            *(self.policy_forbids, self.guest_comes_and_goes),
        ]
        if not real:
            self._verbs += [self.link_is_bad, self.link_is_slow]
        self._left: list[Callable[[], Awaitable[None]]] = []

    async def disturb(self, until: float) -> None:
        """One thing after the other; what cannot be undone in time is not begun."""
        while trio.current_time() + 3 * self._hold < until:
            await trio.sleep(self._dice.uniform(0.1, 0.5) * self._hold)
            if not self._left:
                self._left = self._dice.sample(self._verbs, len(self._verbs))  # each once before any comes again
            verb = self._left.pop()
            name = verb.__name__.replace("_", " ")
            self._failures.doing = name
            self.done[name] = self.done.get(name, 0) + 1
            await verb()
            await trio.sleep(self._settle)
            self._failures.doing = f"the time after: {name}"

    def _pair(self) -> tuple[Device, Device]:
        left, right = self._dice.sample(self._devices, 2)
        return left, right

    async def control_restarts(self) -> None:
        await self._net.control.restart()

    async def control_is_away(self) -> None:
        await self._net.control.stop()
        await trio.sleep(self._hold)
        await self._net.control.start()

    async def relay_restarts(self) -> None:
        await self._net.relay.restart()

    async def relay_is_away(self) -> None:
        await self._net.relay.stop()
        await trio.sleep(self._hold)
        await self._net.relay.start()

    async def udp_is_blocked(self) -> None:
        left, right = self._pair()
        self._net.block_udp(left, right)
        await trio.sleep(self._hold)
        self._net.unblock_udp(left, right)

    async def link_is_bad(self) -> None:
        left, right = self._pair()
        self._net.link(left, right, loss=self._dice.choice((0.005, 0.02, 0.05)))
        await trio.sleep(self._hold)
        self._net.link(left, right, loss=0.0)

    async def link_is_slow(self) -> None:
        left, right = self._pair()
        self._net.link(left, right, latency=self._dice.choice((0.02, 0.08, 0.2)))
        await trio.sleep(self._hold)
        self._net.link(left, right, latency=0.005)

    async def key_expires(self) -> None:
        """Nothing new is begun with the device until its owner logs in again; what was begun before goes on after."""
        device = self._dice.choice(self._devices[2:])  # the first two have a conversation that never pauses
        self.resting.add(device)
        self._net.expire(device)
        await trio.sleep(self._settle)
        await device.login()
        await trio.sleep(self._settle)
        self.resting.discard(device)

    async def key_is_renewed(self) -> None:
        await self._pair()[0].login()

    async def device_is_renamed(self) -> None:
        left, right = self._pair()
        self._renamed += 1
        name = f"renamed-{self._renamed}"
        self._net.rename(right, name)
        await trio.sleep(self._settle)
        try:
            found = await left.resolve(name)
        except OSError as error:
            self._failures.note(f"{left.hostname} looks up {name}", error)
        else:
            if found not in (right.ipv4, right.ipv6):
                self._failures.note(f"{left.hostname} looks up {name}", f"it is {found}, not {right.ipv4}")

    async def policy_forbids(self) -> None:
        self._net.policy(STRICT)
        await trio.sleep(self._settle)
        await must_be_refused(*self._pair(), self._failures)
        await trio.sleep(self._hold / 2)
        self._net.policy(None)

    async def guest_comes_and_goes(self) -> None:
        async with self._net.device("guest") as guest:
            other = self._pair()[0]
            await transfer(guest, other, self._dice, self._failures)
            await datagrams(guest, other, self._dice, self._failures)
