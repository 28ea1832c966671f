"""A TUN device above the engine: the kernel's own sockets speak to the tailnet.

Owns the device's descriptor, the packets read from it and the few that it would not take at once. Who gives the device
its addresses and routes is not its business. Linux, with CAP_NET_ADMIN.
"""

from __future__ import annotations

import fcntl
import math
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from struct import pack
from types import MappingProxyType
from typing import TYPE_CHECKING, Never

import trio

from ts_base.ip import TUNNEL_MTU

if TYPE_CHECKING:
    from ts_base.who import Hop, Origin, PeerId

TUNSETIFF = 0x400454CA  # linux/if_tun.h; IFF_NO_PI: packets as they are, without a header of the driver's
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
NAME_LIMIT = 15
READS_PER_BURST = 64
WRITE_BACKLOG = 1024  # packets kept while the kernel takes no more: a burst, not a second
DESTINATION4, DESTINATION6 = slice(16, 20), slice(24, 40)


@dataclass(frozen=True)
class TunStatistics:
    """What went through the device, in packets."""

    read: int
    written: int
    waiting: int
    drops: dict[str, int]


class TunOverlay:
    """An overlay (ts_dataplane/overlay.py) that hands every packet to the kernel."""

    is_quiet = True  # what was written is the kernel's
    exits_in_use: Mapping[PeerId, int] = MappingProxyType({})  # and so are its flows

    def __init__(self, name: str) -> None:
        self.name = name
        self.drops: Counter[str] = Counter()
        self._read: dict[bytes, list[bytes]] = {}
        self._backlog: deque[bytes] = deque()
        self._has_backlog = trio.Event()
        self._packets_read = self._packets_written = 0
        self._descriptor = _open(name)

    # What the engine asks

    def receive(self, runs: list[tuple[Origin, list[bytes]]], now: float) -> None:
        """Packets of peers, on to the kernel. It has no word for several exits: theirs are taken as the usual one's."""
        for (_, is_usual), packets in runs:
            if is_usual:
                for packet in packets:
                    self._write(packet)
            else:
                self.drops["tun.wrong_peer"] += len(packets)

    def transmit(self, now: float, widths: object) -> list[tuple[Hop, list[bytes]]]:
        """What the kernel sent since the last call, by destination."""
        read, self._read = self._read, {}
        return [((destination, 0), packets) for destination, packets in read.items()]

    def handle_timer(self, now: float) -> None:
        """The kernel has its own."""

    def next_timer(self) -> float:
        return math.inf

    def take_messages(self) -> list[Never]:
        return []

    def set_addresses(self, own: tuple[bytes, ...], now: float) -> None:
        """The device's addresses are set by whoever made it."""

    def path_changed(self, address: bytes) -> None:
        """The kernel keeps its own estimates."""

    def close_all(self, now: float) -> None:
        """The kernel's connections outlive us: it will tell their owners what it thinks of the silence."""

    def statistics(self) -> TunStatistics:
        return TunStatistics(self._packets_read, self._packets_written, len(self._backlog), dict(self.drops))

    # Its tasks

    @trio.lowlevel.enable_ki_protection
    async def run_reader(self, kick: Callable[[], None]) -> None:
        """Wait until the kernel sends, take a burst, have it sent."""
        while True:
            await trio.lowlevel.wait_readable(self._descriptor)
            self._drain()
            kick()

    @trio.lowlevel.enable_ki_protection
    async def run_writer(self) -> None:
        """Write what the kernel would not take at once."""
        while True:
            await self._has_backlog.wait()
            await trio.lowlevel.wait_writable(self._descriptor)
            while self._backlog and self._write_now(self._backlog[0]):
                self._backlog.popleft()
            if not self._backlog:
                self._has_backlog = trio.Event()

    def close(self) -> None:
        if self._descriptor >= 0:
            trio.lowlevel.notify_closing(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _drain(self) -> None:
        for _ in range(READS_PER_BURST):
            try:
                packet = os.read(self._descriptor, 65_535)
            except BlockingIOError:
                return
            except OSError as error:  # the device is down, or gone
                self.drops[f"tun.read_{_reason(error)}"] += 1
                return
            version = packet[0] >> 4 if packet else 0
            if version == 4 and len(packet) >= 20:
                self._keep(packet[DESTINATION4], packet)
            elif version == 6 and len(packet) >= 40:
                self._keep(packet[DESTINATION6], packet)
            else:
                self.drops["tun.not_ip"] += 1

    def _keep(self, destination: bytes, packet: bytes) -> None:
        if len(packet) > TUNNEL_MTU:
            self.drops["tun.too_big"] += 1  # the device's MTU says so; raised by hand, it would not fit the tunnel
            return
        self._packets_read += 1
        self._read.setdefault(destination, []).append(packet)

    def _write(self, packet: bytes) -> None:
        if self._backlog or not self._write_now(packet):
            if len(self._backlog) >= WRITE_BACKLOG:
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
            self.drops[f"tun.write_{_reason(error)}"] += 1
        else:
            self._packets_written += 1
        return True


def _reason(error: OSError) -> str:
    return {5: "device_down", 22: "refused"}.get(error.errno or 0, f"errno_{error.errno}")


def _open(name: str) -> int:
    if sys.platform != "linux":
        raise OSError(f"a TUN device is made on Linux only; this is {sys.platform}")
    if not 0 < len(name.encode()) <= NAME_LIMIT:
        raise ValueError(f"{name!r} is no name for a network interface: 1 to {NAME_LIMIT} bytes")
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
