"""One stream of ours by two uplinks at once, to a node of ours and to a stock one, through slow lines.

The lines are made in user space, on our side of the wire: this machine's kernel may have no queueing disciplines.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import trio

from tailscale import Best, Device, Stripe
from tailscale.runtime.network import DirectRuns, HostNetwork, UdpUnderlay
from tests.interop import natlab
from tests.interop.natlab.namespaces import inside, why_not
from tests.interop.ours import SERVICES, converse
from tests.interop.processes import poll_until
from tests.interop.rig import Rig
from ts_base.who import Direct, uplink_of

pytestmark = [
    pytest.mark.interop,
    pytest.mark.root,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "there can be namespaces"),
]

RATE = 1.5e6  # bytes a second of each line
DELAYS = {"eth0": 0.02, "eth1": 0.045}  # on the way out; answers come back at once
SIZE = 8 << 20


class SlowUdp:
    """A UDP port whose uplinks have a rate, a delay and a queue of 100 ms."""

    def __init__(self, udp: UdpUnderlay) -> None:
        self._udp = udp
        self._free_at = dict.fromkeys(DELAYS, 0.0)
        self._waiting: list[tuple[float, int, Direct, bytes]] = []
        self._order = itertools.count()
        self._news = trio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._udp, name)

    def send_many(self, runs: DirectRuns) -> None:
        now = trio.current_time()
        for path, datagrams in runs:
            uplink = uplink_of(path)
            if uplink not in DELAYS:
                self._udp.send_many([(path, datagrams)])
                continue
            for datagram in datagrams:
                begins = max(now, self._free_at[uplink])
                if begins - now < 0.1:
                    self._free_at[uplink] = begins + len(datagram) / RATE
                    arrives = self._free_at[uplink] + DELAYS[uplink]
                    heapq.heappush(self._waiting, (arrives, next(self._order), path, datagram))
        self._news.set()

    async def _carry(self) -> None:
        while True:
            self._news = trio.Event()
            with trio.move_on_at(self._waiting[0][0] if self._waiting else float("inf")):
                await self._news.wait()
            due: dict[Direct, list[bytes]] = {}
            while self._waiting and self._waiting[0][0] <= trio.current_time():
                _, _, path, datagram = heapq.heappop(self._waiting)
                due.setdefault(path, []).append(datagram)
            self._udp.send_many(list(due.items()))

    async def run_writers(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._udp.run_writers)
            nursery.start_soon(self._carry)


class SlowNetwork(HostNetwork):
    async def open_udp(self, port: int, uplinks: Sequence[str] = ()) -> UdpUnderlay:
        return SlowUdp(await super().open_udp(port, uplinks))  # type: ignore[return-value]


async def seconds_for(us: Device, host: str, data: bytes) -> float:
    """The peer answers what it heard with its hash."""
    began = trio.current_time()
    with trio.fail_after(120):
        async with await us.tcp_connect(host, SERVICES["hash"]) as stream:
            answer = await converse(stream, data)
    assert hashlib.sha256(data).hexdigest().encode() in answer.head
    return trio.current_time() - began


@pytest.mark.slow
@pytest.mark.parametrize("theirs", ["ours", "tsnet"])
async def test_one_stream_goes_by_two_slow_lines(r: Rig, theirs: str) -> None:
    async with natlab.lab(r) as (made, hs):
        van, home = made.site("none"), made.site("none")
        await made.second_uplink(van)
        key = await hs.auth_key(ephemeral=False)
        start = r.tsnet if theirs == "tsnet" else r.ours
        async with start(hs, key, "db", namespace=home.client, port=natlab.NODE_PORT) as db:
            with inside(van.client):
                us = Device.on(
                    SlowNetwork(), "van", control_url=hs.url, auth_key=key, uplinks=list(DELAYS), paths=Best()
                )
                async with us:

                    async def proven() -> bool:
                        await us.ping("db")
                        return {w.uplink for w in us.paths("db") if w.kind == "direct" and w.state == "good"} == {
                            *DELAYS
                        }

                    await poll_until("a good path through each uplink", proven, 30)
                    data = bytes(range(251)) * (SIZE // 251)
                    alone = await seconds_for(us, db.ip4, data)
                    await us.set(paths=Stripe())
                    before = {one.name: one.sent for one in us.uplinks}
                    both = await seconds_for(us, db.ip4, data)
                    moved = {one.name: one.sent - before[one.name] for one in us.uplinks}
                    print(
                        f"one stream, {theirs} there: {alone / both:.2f} x ({alone:.1f} s, {both:.1f} s); {moved}",
                        flush=True,
                    )
                    assert min(moved.values()) > SIZE / 5
