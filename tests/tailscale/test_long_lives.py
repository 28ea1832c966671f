"""Hours of a connection's life, and hours of silence, in moments: two Devices on the virtual network, clock and all."""

from __future__ import annotations

import pytest
import trio
from tailnet_scripts import echo_service
from trio.testing import MockClock

from tailscale import Device
from tailscale.testing import Tailnet

pytestmark = pytest.mark.slow
HOUR = 3600.0
REKEYS_PER_HOUR = 29  # every two minutes and a round trip


async def rekeys(device: Device, seen: list[float]) -> None:
    """Every time a session with the only peer is a new one."""
    age = 0.0
    while True:
        await trio.sleep(5)
        before, age = age, device.status().peers[0].handshake_age or 0.0
        if age < before:
            seen.append(trio.current_time())


@pytest.mark.parametrize("relayed", [False, True], ids=["direct", "relayed"])
async def test_a_connection_crosses_an_hour_of_rekeys_without_a_stall(autojump_clock: MockClock, relayed: bool) -> None:
    async with Tailnet(latency=0.03) as net, net.device("a") as a, net.device("b") as b:
        if relayed:
            net.block_udp(a, b)
        async with echo_service(b, 7), await a.tcp_connect("b", 7) as stream, trio.open_nursery() as nursery:
            seen: list[float] = []
            nursery.start_soon(rekeys, a, seen)
            worst, until = 0.0, trio.current_time() + HOUR
            while trio.current_time() < until:
                began = trio.current_time()
                await stream.send_all(b"still there?")
                got = b""
                while len(got) < 12:
                    got += await stream.receive_some(12 - len(got))
                worst = max(worst, trio.current_time() - began)
                await trio.sleep(1)
            nursery.cancel_scope.cancel()
        assert len(seen) >= REKEYS_PER_HOUR
        assert worst < 1


@pytest.mark.parametrize("relayed", [False, True], ids=["direct", "relayed"])
async def test_after_three_idle_hours_the_first_byte_is_back_within_two_seconds(
    autojump_clock: MockClock, relayed: bool
) -> None:
    async with Tailnet(latency=0.03) as net, net.device("a") as a, net.device("b") as b:
        if relayed:
            net.block_udp(a, b)
        async with echo_service(b, 7), await a.tcp_connect("b", 7) as stream:
            for idle in (0, 3 * HOUR, 3 * HOUR):
                await trio.sleep(idle)
                began = trio.current_time()
                await stream.send_all(b"x")
                assert await stream.receive_some(1) == b"x"
                assert trio.current_time() - began < 2
