"""The kernel's own sockets on the tailnet by /dev/net/tun, beside the device's, against a tsnet node."""

from __future__ import annotations

import shutil
import socket

import pytest
import trio

import tailscale
from tests.interop import natlab
from tests.interop.kernel_state import picture
from tests.interop.natlab.namespaces import why_not
from tests.interop.ours import SERVICES, converse, serve
from tests.interop.pattern import pattern, pattern_sha256
from tests.interop.rig import Rig, TsnetPeer

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "there can be namespaces"),
]
MIB = 1 << 20
NAME, SERVICE = "pt-tun", "100.100.100.100"


async def test_kernel_and_device_share_one_node(r: Rig) -> None:
    async with natlab.lab(r) as (made, hs):  # this thread is in a namespace of the lab's, and so is the device
        site, key = made.site("none"), await hs.auth_key()
        async with r.tsnet(hs, key, "db", namespace=site.client) as db:
            before = await picture()
            options = {"control_url": hs.url, "auth_key": key}
            device = tailscale.Device("gate", overlay=tailscale.tun(NAME), **options)
            async with device, trio.open_nursery() as nursery:
                assert device.tun is not None
                assert device.tun.mode == "split"
                with trio.fail_after(60):
                    await kernel_dials(db.ip4, db.ip6)
                    await kernel_is_dialled(device, db)
                    await serve(device, nursery)  # ports of the device's own, which the kernel never sees
                    await both_at_once(device, db)
                    await names_are_looked_up(db)
                nursery.cancel_scope.cancel()
            with pytest.raises(OSError):
                socket.if_nametoindex(NAME)
            assert await picture() == before


async def say(*command: str) -> str:
    """What a program prints, while the device lives on in this thread."""
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {(done.stdout + done.stderr).decode()}"
    return done.stdout.decode()


async def names_are_looked_up(db: TsnetPeer) -> None:
    """By UDP and by TCP, through the interface."""
    if shutil.which("dig") is None:
        return
    for how in ("+notcp", "+tcp"):
        said = await say("dig", "+short", "+time=2", "+tries=3", how, f"@{SERVICE}", f"{db.name}.rig.test.", "A")
        assert said.strip() == db.ip4, how


async def kernel_dials(*addresses: str) -> None:
    for address in addresses:
        echoed = await converse(await trio.open_tcp_stream(address, 7), pattern(MIB))
        assert (echoed.received, echoed.sha256) == (MIB, pattern_sha256(MIB)), address
        with pytest.raises(OSError):
            await trio.open_tcp_stream(address, 4)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with trio.socket.socket(family, socket.SOCK_DGRAM) as udp:
            for size in (0, 1200) if ":" in address else (0, 1200, 4000):  # stock peers let no fragments of IPv6 pass
                await udp.sendto(pattern(size), (address, 7))
                assert await udp.recv(65_535) == pattern(size)


async def kernel_is_dialled(device: tailscale.Device, db: TsnetPeer) -> None:
    assert device.ipv4
    [listener] = await trio.open_tcp_listeners(0, host=device.ipv4)
    port = listener.socket.getsockname()[1]

    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, echo, [listener])
        got = await db.dial(device.ipv4, port, bytes=MIB, end="half", read=-1)
        assert got["sha256"] == pattern_sha256(MIB)
        pings = await db.ask("ping", host=device.ipv4, kind="ICMP")
        assert pings["pings"], "the kernel answers pings"
        nursery.cancel_scope.cancel()


async def both_at_once(device: tailscale.Device, db: TsnetPeer) -> None:
    done: list[str] = []

    async def by_device() -> None:
        echoed = await converse(await device.tcp_connect("db", 7), pattern(MIB))
        assert echoed.sha256 == pattern_sha256(MIB)
        assert (await device.ping("db", "icmp")).latency > 0
        done.append("device")

    async def by_kernel() -> None:
        await kernel_dials(db.ip4)
        done.append("kernel")

    async def to_device() -> None:
        got = await db.dial(device.ipv4, SERVICES["echo"], bytes=MIB, end="half", read=-1)
        assert got["sha256"] == pattern_sha256(MIB)
        done.append("to device")

    async with trio.open_nursery() as nursery:
        for deed in (by_device, by_kernel, to_device):
            nursery.start_soon(deed)
    assert sorted(done) == ["device", "kernel", "to device"]
