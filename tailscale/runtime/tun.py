"""A TUN device beside the stack: the kernel's own sockets speak to the tailnet, under the same addresses as ours.

Owns the device's descriptor, the packets read from it and the few that it would not take at once. Who gives the device
its addresses and routes is not its business. Linux, with CAP_NET_ADMIN.
"""

from __future__ import annotations

import errno
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence, Set
from struct import pack
from typing import NamedTuple

import trio

from ts_base.ip import TUNNEL_MTU
from ts_base.who import Hop, Origin, PeerId
from ts_netstack.ledger import Socket
from ts_netstack.path_sizes import SegmentLimits
from ts_netstack.stack import Stack
from ts_netstack.tcp_lanes import Lanes

TUNSETIFF = 0x400454CA  # linux/if_tun.h
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000  # IP packets, without a header of the driver's
NAME_LIMIT = 15
READS_PER_BURST = 64
BACKLOG_LIMIT = 1024  # packets kept while the kernel takes none: a burst, not a second
DESTINATION4, DESTINATION6 = slice(16, 20), slice(24, 40)


class TunStatistics(NamedTuple):
    """What went through the device, in packets."""

    read: int
    written: int
    waiting: int
    drops: dict[str, int]


class TunDevice:
    """One network interface of this machine, made here, gone when closed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.drops: Counter[str] = Counter()
        self._read: dict[bytes, list[bytes]] = {}
        self._backlog: deque[bytes] = deque()
        self._has_backlog = trio.Event()
        self._packets_read = self._packets_written = 0
        self._descriptor = _open(name)

    def take(self) -> list[tuple[Hop, list[bytes]]]:
        """What the kernel sent since last asked, by destination."""
        read, self._read = self._read, {}
        return [((destination, 0), packets) for destination, packets in read.items()]

    def write(self, packet: bytes) -> None:
        """Hand a packet to the kernel. Never blocks: what it does not take now is kept within bounds."""
        if self._backlog or not self._write_now(packet):
            if len(self._backlog) >= BACKLOG_LIMIT:
                self.drops["tun.backlog_full"] += 1
                return
            self._backlog.append(packet)
            self._has_backlog.set()

    def _write_now(self, packet: bytes) -> bool:
        """False where it has to wait; what the kernel refuses is lost, and counted."""
        try:
            os.write(self._descriptor, packet)
        except BlockingIOError:
            return False
        except OSError as error:
            self.drops["tun.device_down" if error.errno == errno.EIO else "tun.refused"] += 1
        else:
            self._packets_written += 1
        return True

    @trio.lowlevel.enable_ki_protection
    async def run_reader(self, kick: Callable[[], None]) -> None:
        """Wait until the kernel sends, take a burst, have it sent on. Runs until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._descriptor)
            self._drain()
            kick()

    def _drain(self) -> None:
        for _ in range(READS_PER_BURST):
            try:
                packet = os.read(self._descriptor, 65_535)
            except BlockingIOError:
                return
            version = packet[0] >> 4 if packet else 0
            if len(packet) > TUNNEL_MTU:
                self.drops["tun.too_big"] += 1  # somebody raised the device's MTU: the tunnel carries no more
            elif version == 4 and len(packet) >= 20:
                self._keep(packet[DESTINATION4], packet)
            elif version == 6 and len(packet) >= 40:
                self._keep(packet[DESTINATION6], packet)
            else:
                self.drops["tun.not_ip"] += 1

    def _keep(self, destination: bytes, packet: bytes) -> None:
        self._packets_read += 1
        self._read.setdefault(destination, []).append(packet)

    @trio.lowlevel.enable_ki_protection
    async def run_writer(self) -> None:
        """Write what the kernel would not take at once. Runs until cancelled."""
        while True:
            await self._has_backlog.wait()
            await trio.lowlevel.wait_writable(self._descriptor)
            while self._backlog and self._write_now(self._backlog[0]):
                self._backlog.popleft()
            if not self._backlog:
                self._has_backlog = trio.Event()

    def statistics(self) -> TunStatistics:
        return TunStatistics(self._packets_read, self._packets_written, len(self._backlog), dict(self.drops))

    def close(self) -> None:
        if self._descriptor >= 0:
            trio.lowlevel.notify_closing(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1


class StackBesideTun:
    """An overlay of two (ts_dataplane/overlay.py): what sockets of the stack wait for is theirs, the rest the kernel's.

    Both may pick the same local port towards the same service; the stack's connection then wins.
    """

    def __init__(self, stack: Stack, tun: TunDevice) -> None:
        self._stack = stack
        self._tun = tun

    def receive(self, runs: list[tuple[Origin, list[bytes]]], now: float) -> None:
        ours: list[tuple[Origin, list[bytes]]] = []
        for origin, packets in runs:
            if not origin[1]:
                ours.append((origin, packets))  # the kernel opens nothing by an exit of its choice
                continue
            held: list[bytes] = []
            for packet in packets:
                if self._stack.holds(packet, origin[0]):
                    held.append(packet)
                else:
                    self._tun.write(packet)
            if held:
                ours.append((origin, held))
        if ours:
            self._stack.receive(ours, now)

    def transmit(self, now: float, widths: SegmentLimits, lanes: Lanes | None) -> list[tuple[Hop, list[bytes]]]:
        return self._stack.transmit(now, widths, lanes) + self._tun.take()

    def handle_timer(self, now: float) -> None:
        self._stack.handle_timer(now)

    def next_timer(self) -> float:
        return self._stack.next_timer()

    def take_messages(self) -> list[Socket]:
        return self._stack.take_messages()

    def set_addresses(self, own: Sequence[bytes], now: float) -> None:
        self._stack.set_addresses(own, now)

    def path_changed(self, address: bytes) -> None:
        self._stack.path_changed(address)

    def path_moved(self, address: bytes, now: float) -> None:
        self._stack.path_moved(address, now)

    def take_resent(self) -> dict[bytes, int]:
        return self._stack.take_resent()

    def fail_hop(self, hop: Hop) -> None:
        self._stack.fail_hop(hop)

    def follow_routes(self, peer_for: Callable[[bytes, PeerId], PeerId | None], exits: Set[PeerId]) -> None:
        self._stack.follow_routes(peer_for, exits)

    @property
    def exits_in_use(self) -> Mapping[PeerId, int]:
        return self._stack.exits_in_use

    @property
    def is_quiet(self) -> bool:
        return self._stack.is_quiet

    def close_all(self, now: float) -> None:
        self._stack.close_all(now)


def _open(name: str) -> int:
    if sys.platform != "linux":
        raise OSError(errno.ENOTSUP, f"a TUN device is made on Linux only; this is {sys.platform}")
    if not 0 < len(name.encode()) <= NAME_LIMIT:
        raise ValueError(f"{name!r} is no name for a network interface: 1 to {NAME_LIMIT} bytes")
    import fcntl  # not on Windows, which imports this file too

    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
