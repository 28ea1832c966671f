"""Packets between a TUN descriptor, the stack and the tailnet. A pair of datagram sockets stands for /dev/net/tun."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock

from tailscale import Device, TunFailed, TunHeld, tun
from tailscale.kernel.owner import TunOwner
from tailscale.metrics import exposition
from tailscale.runtime.bus import Bus
from tailscale.runtime.health import Health
from tailscale.runtime.tun import BACKLOG_LIMIT, SERVICES, StackBesideTun, TunDevice
from tailscale.testing import Tailnet
from tailscale.tun_options import TunOptions, TunStatus
from ts_base.ip import ICMP, ICMP6, TCP, TUNNEL_MTU, UDP, parse_address
from ts_base.ip_headers import ip_packet
from ts_netstack import icmp
from ts_netstack.stack import Stack
from ts_netstack.wire import parse_packet_untrusted, udp_payload

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="TUN devices are Linux's")
OWN4, OWN6 = parse_address("100.64.0.9"), parse_address("fd7a:115c:a1e0::9")
PEER4, PEER6 = parse_address("100.64.0.2"), parse_address("fd7a:115c:a1e0::2")
PORT = 41641


class Kernel:
    """The other end of a TUN device's descriptor."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.socket, theirs):
            end.setblocking(False)
        self.device = TunDevice("ts0", lambda: PORT, lambda name: theirs.detach())
        self.device.set_own([OWN4, OWN6])

    async def send(self, *packets: bytes) -> None:
        """What programs of this machine send, until the device has read all of it."""
        async with trio.open_nursery() as nursery:
            for packet in packets:
                self.socket.send(packet)
            nursery.start_soon(self.device.run_reader, nursery.cancel_scope.cancel)

    def received(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self.socket.recv(65_535))
            except BlockingIOError:
                return found


@pytest.fixture
async def kernel() -> AsyncIterator[Kernel]:
    made = Kernel()
    yield made
    made.device.close()
    made.socket.close()


def udp(source: bytes, destination: bytes, data: bytes = b"x", ports: tuple[int, int] = (5000, 7)) -> bytes:
    return ip_packet(source, destination, UDP, udp_payload((source, ports[0]), (destination, ports[1]), data))


async def test_packets_of_the_kernel_go_out_by_destination(kernel: Kernel) -> None:
    first, second, third = udp(OWN4, PEER4, b"1"), udp(OWN6, PEER6, b"2"), udp(OWN4, PEER4, b"3")
    await kernel.send(first, second, third)
    assert kernel.device.take() == [((PEER4, 0), [first, third]), ((PEER6, 0), [second])]
    assert kernel.device.take() == []


async def test_what_is_not_the_kernels_to_say_goes_nowhere(kernel: Kernel) -> None:
    for packet, reason in (
        (udp(parse_address("10.0.0.5"), PEER4), "foreign_source"),
        (udp(PEER4, OWN4), "foreign_source"),
        (udp(parse_address("fe80::1"), parse_address("ff02::2")), "multicast"),
        (udp(OWN4, parse_address("198.51.100.7"), ports=(PORT, 9)), "own_datagram"),
        (udp(OWN6, parse_address("2001:db8::7"), ports=(PORT, 9)), "own_datagram"),
        (b"\x45", "not_ip"),
        (b"\x00" * 40, "not_ip"),
        (b"\x60" + bytes(38), "not_ip"),
    ):
        await kernel.send(packet)
        assert kernel.device.drops[f"tun.{reason}"] >= 1, reason
    assert kernel.device.take() == []
    assert kernel.received() == []


@pytest.mark.slow
async def test_a_flood_of_junk_costs_nothing_but_its_count(kernel: Kernel) -> None:
    junk = [os.urandom(size) for size in range(1, 201)]
    left, sent = 100_000, 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kernel.device.run_reader, lambda: None)
        while sent < left:
            try:
                kernel.socket.send(junk[sent % len(junk)])
                sent += 1
            except BlockingIOError:
                await trio.lowlevel.checkpoint()
        while kernel.device.drops.total() < left:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert kernel.device.take() == []
    assert kernel.device.drops.total() == left


@pytest.mark.parametrize(("own", "peer"), [(OWN4, PEER4), (OWN6, PEER6)])
async def test_packet_that_is_too_large_is_told_as_a_router_would(kernel: Kernel, own: bytes, peer: bytes) -> None:
    await kernel.send(udp(own, peer, bytes(2500)))
    assert kernel.device.take() == []
    [told] = kernel.received()
    packet = parse_packet_untrusted(told)
    assert (packet.source, packet.destination) == (SERVICES[len(own) == 16], own)
    assert packet.protocol == (ICMP if len(own) == 4 else ICMP6)
    assert icmp.is_checksum_right(packet)
    report = icmp.read_error_untrusted(packet, *icmp.parse_untrusted(packet))
    assert report is not None
    assert (report.kind, report.mtu, report.remote) == (icmp.TOO_BIG, TUNNEL_MTU, peer)


async def test_kernel_hears_that_nobody_takes_a_packet(kernel: Kernel) -> None:
    both = StackBesideTun(Stack(entropy=os.urandom, apart=SERVICES), kernel.device)
    await kernel.send(udp(OWN4, PEER4))
    assert kernel.device.take()
    both.fail_hop((PEER4, 0))
    both.fail_hop((PEER4, 0))
    [told] = kernel.received()
    report = icmp.read_error_untrusted(packet := parse_packet_untrusted(told), *icmp.parse_untrusted(packet))
    assert report is not None
    assert (report.kind, report.remote) == (icmp.UNREACHABLE, PEER4)


async def test_what_the_kernel_does_not_take_is_kept_within_bounds(kernel: Kernel) -> None:
    packet = udp(PEER4, OWN4, bytes(1000))
    while not kernel.device.statistics().waiting:
        kernel.device.write(packet)
    for _ in range(BACKLOG_LIMIT + 9):
        kernel.device.write(packet)
    assert kernel.device.statistics().waiting == BACKLOG_LIMIT
    assert kernel.device.drops["tun.backlog_full"] == 10
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kernel.device.run_writer)
        while kernel.device.statistics().waiting:
            kernel.received()
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


async def test_services_answer_the_kernel_and_the_device_alike(kernel: Kernel) -> None:
    stack = Stack(entropy=os.urandom, apart=SERVICES)
    both = StackBesideTun(stack, kernel.device)
    stack.share_loop(both.take_back)
    both.set_addresses([OWN4, OWN6], 0.0)
    service = stack.bind_udp(53, SERVICES[0])
    await kernel.send(udp(OWN4, SERVICES[0], b"who?", (5000, 53)))
    assert both.transmit(0.0, NoWidths(), None) == []
    data, source = service.receive() or (b"", (b"", 0))
    assert (data, source) == (b"who?", (OWN4, 5000))
    service.send(b"me", (OWN4, 5000), 0.0)
    assert both.transmit(0.0, NoWidths(), None) == [], "it never leaves this machine"
    [answer] = kernel.received()
    assert answer[-2:] == b"me"
    assert parse_packet_untrusted(answer).source == SERVICES[0]
    mine = stack.bind_udp(6000)
    service.send(b"you", (OWN4, 6000), 0.0)
    both.transmit(0.0, NoWidths(), None)
    assert (mine.receive() or (b"",))[0] == b"you"
    assert kernel.received() == []


async def test_one_flow_is_judged_once_and_a_change_of_flow_again(kernel: Kernel) -> None:
    stack = Stack(entropy=os.urandom, apart=SERVICES)
    both = StackBesideTun(stack, kernel.device)
    both.set_addresses([OWN4, OWN6], 0.0)
    mine = stack.bind_udp(7)
    run = [
        udp(PEER4, OWN4, b"ours 1"),
        udp(PEER4, OWN4, b"theirs 1", (5000, 8)),
        udp(PEER4, OWN4, b"theirs 2", (5000, 8)),
        ip_packet(PEER4, OWN4, TCP, (5000).to_bytes(2, "big") + (7).to_bytes(2, "big") + bytes(16)),
        udp(PEER4, OWN4, b"ours 2"),
        udp(PEER6, OWN6, b"ours 3"),
    ]
    both.receive([((1, True), run)], 0.0)
    assert [(mine.receive() or (b"",))[0] for _ in range(3)] == [b"ours 1", b"ours 2", b"ours 3"]
    assert kernel.received() == run[1:4]


class NoWidths:
    """Every way carries what the tunnel does."""

    def offered_to(self, hop: tuple[bytes, int]) -> int:
        return 0

    def carried_to(self, hop: tuple[bytes, int]) -> int:
        return 0


class Life:
    """A TUN device that ends as it is told."""

    def __init__(self, options: TunOptions, fails: str = "", *, mistake: bool = False) -> None:
        self.options, self._fails, self._mistake = options, fails, mistake
        self.lost = trio.Event()

    def status(self) -> TunStatus:
        return TunStatus(self.options.name, "split", 1280, (), (), (), {}, "off", 0)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        await trio.lowlevel.checkpoint()
        if self._fails:
            raise TunFailed(self._fails)
        task_status.started()
        await self.lost.wait()
        if self._mistake:
            raise ZeroDivisionError
        raise TunFailed("somebody removed it")


async def test_its_end_is_told_and_ends_nothing_else() -> None:
    health = Health(Bus())
    lives = [Life(tun("ts0"), "no root"), Life(tun("ts0")), Life(tun("ts1")), Life(tun("ts0"), mistake=True)]
    owner = TunOwner(lambda options: lives.pop(0), health)
    async with trio.open_nursery() as nursery:
        with pytest.raises(TunFailed, match="no root"):
            await owner.up(tun(), nursery)
        assert owner.status() is None
        assert not health.active, "who asked has heard of it"
        life = lives[0]
        await owner.up(tun(), nursery)
        with pytest.raises(TunHeld, match=f"ts0 is held by process {os.getpid()}"):
            await owner.up(tun(), nursery)
        life.lost.set()
        with pytest.raises(TunFailed, match="somebody removed it"):
            await owner.wait()
        assert [warning.code for warning in health.active] == ["tun-ended"]
        await owner.up(tun("ts1"), nursery)
        assert not health.active
        await owner.down()
        await owner.wait()
        assert owner.status() is None
        mistaken = lives[0]
        await owner.up(tun(), nursery)
        mistaken.lost.set()
        with pytest.raises(TunFailed, match="a mistake of pytailscale: ZeroDivisionError"):
            await owner.wait()


async def test_device_of_another_world_has_no_kernel(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    device: Device = await tailnet.device("desk")
    with pytest.raises(TunFailed, match="no kernel"):
        await device.tun_up()
    assert device.tun is None
    await device.tun_down()
    await device.tun_ended()
    shown = exposition(device)
    assert "pytailscale_tun_up 0" in shown
    assert 'pytailscale_tun_packets_total{direction="out"} 0' in shown
