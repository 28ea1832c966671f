"""Two Devices, one of them behind a hard NAT of the virtual internet."""

from __future__ import annotations

import pytest
import trio
from tailnet_scripts import echo_service, until

from tailscale.metrics import exposition
from tailscale.testing import Tailnet


async def talk(device, host: str, seconds: float) -> None:
    """A little data every now and then, and every answer read."""
    async with await device.tcp_connect(host, 7) as stream:
        end = trio.current_time() + seconds
        while trio.current_time() < end:
            await stream.send_all(b"x")
            await stream.receive_some(1)
            await trio.sleep(0.2)


@pytest.mark.parametrize("hard", ["runner", "home"])
async def test_a_device_behind_a_hard_nat_is_reached_directly(hard: str, autojump_clock: object) -> None:
    async with Tailnet(latency=0.01) as net:
        for name in ("runner", "home"):
            await net.nat(name, "hard" if name == hard else "easy")
        home, runner = await net.device("home"), await net.device("runner")
        async with echo_service(home, 7):
            await trio.sleep(3)
            assert runner.peer_status("home").path.kind == "relay"
            await talk(runner, "home", 17.0)
            path = runner.peer_status("home").path
            assert path.kind == "direct"
            assert "%" not in path.where
            assert path.uplink == ""
            told = exposition(runner if hard == "runner" else home)
            assert 'pytailscale_hard_nat_attempts_total{outcome="opened"} 1' in told
            assert "pytailscale_hard_nat_sockets 1\n" in told
            assert "pytailscale_hard_nat_probes_total 0\n" not in told


async def test_a_switch_forbids_it_and_explain_says_so(autojump_clock: object) -> None:
    async with Tailnet(latency=0.01) as net:
        await net.nat("runner", "hard")
        await net.nat("home")
        home, runner = await net.device("home"), await net.device("runner", hard_nats=False)
        async with echo_service(home, 7):
            await until(lambda: bool(runner.status().endpoints))
            await talk(runner, "home", 17.0)
            assert runner.peer_status("home").path.kind == "relay"
            assert runner.status().counters.levels["paths.hard_nats.probes"] == 0
            assert "hard_nats=False or several uplinks forbid" in str(await runner.explain("home"))


async def test_all_sockets_are_closed_with_the_device(autojump_clock: object) -> None:
    async with Tailnet(latency=0.01) as net:
        await net.nat("runner", "hard")
        await net.nat("home", "hard")
        await net.device("home", hard_nats=False)
        async with net.device("runner") as runner:
            with pytest.raises(OSError, match="refused"):
                await runner.tcp_connect("home", 9)
            async with await runner.udp() as socket:
                for _ in range(30):
                    await socket.send_to(b"x", ("home", 9))
                    await trio.sleep(0.1)
            assert runner.status().counters.levels["paths.hard_nats.sockets"] > 100
        assert net.host("runner").udp == {}
