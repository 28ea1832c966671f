"""A TUN device beside the stack: the kernel's own sockets speak to the tailnet, under the same addresses as ours.

Owns the device's descriptor, which packets of the kernel's are taken, and the few that it would not take at once. Who
gives the device its addresses and routes is `tailscale/kernel`. Linux, with CAP_NET_ADMIN.
"""

from __future__ import annotations

import errno
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from struct import pack

import trio

from tailscale.runtime.tun_switch import TunStatistics
from ts_base.ip import IP4_LENGTH, IP6_LENGTH, SERVICE_IP4, SERVICE_IP6, TCP, TUNNEL_MTU, UDP, is_multicast
from ts_base.who import Hop, Lanes, Origin, PeerId
from ts_netstack import icmp
from ts_netstack.arrivals import USUAL
from ts_netstack.ledger import Socket
from ts_netstack.path_sizes import SegmentLimits
from ts_netstack.stack import Stack

TUNSETIFF = 0x400454CA  # linux/if_tun.h
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000  # IP packets, without a header of the driver's
IFF_TUN_EXCL = 0x8000  # never one that is there already, which would stay when we go
READS_PER_BURST = 64
LARGEST_READ = 2048  # of a packet that is larger still only the head is needed, for the answer that it is too large
BACKLOG_LIMIT = 1024  # packets kept while the kernel takes none: a burst, not a second
SOURCE4, SOURCE6 = slice(12, 16), slice(8, 24)
DESTINATION4, DESTINATION6 = slice(16, 20), slice(24, 40)
PORTS4, PORTS6 = slice(20, 22), slice(40, 42)
SERVICES = (SERVICE_IP4, SERVICE_IP6)


class TunDevice:
    """One network interface of this machine, made here, gone when closed."""

    def __init__(self, name: str, own_port: Callable[[], int], open_device: Callable[[str], int] | None = None) -> None:
        """`own_port` is the UDP port of our tunnel: what comes from it has been through here, and must not go round.

        `open_device` gives another descriptor than one of /dev/net/tun; each read of it is one packet.
        """
        self.name = name
        self.drops: Counter[str] = Counter()
        self._own: Collection[bytes] = ()
        self._own_port = own_port
        self._read: dict[bytes, list[bytes]] = {}
        self._taken: dict[bytes, list[bytes]] = {}
        self._asked: list[bytes] = []
        self._backlog: deque[bytes] = deque()
        self._has_backlog = trio.Event()
        self._packets_read = self._packets_written = 0
        self._descriptor = (open_device or _open)(name)

    def set_own(self, addresses: Collection[bytes]) -> None:
        """From these addresses the kernel may send, from no other."""
        self._own = frozenset(addresses)

    def take(self) -> list[tuple[Hop, list[bytes]]]:
        """What the kernel sent to the tailnet since last asked, by destination."""
        if not self._read:
            return []
        self._taken, self._read = self._read, {}
        return [((destination, 0), packets) for destination, packets in self._taken.items()]

    def take_asked(self) -> list[bytes]:
        """What the kernel sent to this device's own services."""
        asked, self._asked = self._asked, []
        return asked

    def refuse(self, destination: bytes) -> None:
        """Tell the kernel that nobody takes what it sent there."""
        if packets := self._taken.pop(destination, None):
            service = SERVICES[len(destination) == 16]
            self.write(icmp.host_unreachable(packets[0], service, packets[0][_source_of(packets[0])]))

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
        """Wait until the kernel sends, take a burst, have it sent on. OSError when the device is gone."""
        while True:
            await trio.lowlevel.wait_readable(self._descriptor)
            self._drain()
            kick()

    def _drain(self) -> None:
        """One burst. The loop is written out: it runs for every packet of the kernel's."""
        descriptor, own, waiting = self._descriptor, self._own, self._read
        own_port = self._own_port().to_bytes(2, "big")
        for _ in range(READS_PER_BURST):
            try:
                packet = os.read(descriptor, LARGEST_READ)
            except BlockingIOError:
                return
            size = len(packet)
            version = packet[0] >> 4 if size else 0
            if version == 4 and size >= 20:
                source, destination, protocol = packet[SOURCE4], packet[DESTINATION4], packet[9]
                whole, port = IP4_LENGTH(packet)[0], packet[PORTS4]
            elif version == 6 and size >= 40:
                source, destination, protocol = packet[SOURCE6], packet[DESTINATION6], packet[6]
                whole, port = IP6_LENGTH(packet)[0] + 40, packet[PORTS6]
            else:
                self.drops["tun.not_ip"] += 1
                continue
            if source not in own:
                self.drops["tun.multicast" if is_multicast(destination) else "tun.foreign_source"] += 1
            elif whole > TUNNEL_MTU:
                self._tell_too_big(packet, source)
            elif protocol == UDP and port == own_port:
                self.drops["tun.own_datagram"] += 1
            elif destination in SERVICES:
                self._packets_read += 1
                self._asked.append(packet)
            else:
                self._packets_read += 1
                if (run := waiting.get(destination)) is None:
                    waiting[destination] = [packet]
                else:
                    run.append(packet)

    def _tell_too_big(self, packet: bytes, source: bytes) -> None:
        """Somebody raised the device's MTU, and the tunnel carries no more: as a router would. RFC 1191, 8201."""
        self.drops["tun.too_big"] += 1
        self.write(icmp.too_big(packet, SERVICES[len(source) == 16], source, TUNNEL_MTU))

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
        return TunStatistics(1, self._packets_read, self._packets_written, len(self._backlog), dict(self.drops))

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
            if held := self._sorted_out(packets, origin[0]):
                ours.append((origin, held))
        if ours:
            self._stack.receive(ours, now)

    def _sorted_out(self, packets: list[bytes], peer: PeerId) -> list[bytes]:
        """What sockets of ours wait for; the rest is written. Packets of one flow in a row are judged once."""
        held: list[bytes] = []
        write, last, is_ours = self._tun.write, b"", False
        for packet in packets:
            # Protocol, addresses and ports; a header with options, and all but whole TCP and UDP, is judged by itself.
            if packet[0] == 0x45 and packet[9] in (TCP, UDP) and not packet[6] & 0x3F and not packet[7]:
                flow = packet[9:10] + packet[12:24]
            elif packet[0] >> 4 == 6 and packet[6] in (TCP, UDP):
                flow = packet[6:7] + packet[8:44]
            else:
                flow = b""
            if not flow or flow != last:
                is_ours, last = self._stack.holds(packet, peer), flow
            if is_ours:
                held.append(packet)
            else:
                write(packet)
        return held

    def transmit(self, now: float, widths: SegmentLimits, lanes: Lanes | None) -> list[tuple[Hop, list[bytes]]]:
        if asked := self._tun.take_asked():
            self._stack.receive([(USUAL, asked)], now)
        return self._stack.transmit(now, widths, lanes) + self._tun.take()

    def take_back(self, looped: list[bytes]) -> list[bytes]:
        """Of what the stack says to its own addresses, what is for itself; its services also answer the kernel."""
        kept = []
        for packet in looped:
            if packet[_source_of(packet)] in SERVICES and not self._stack.holds(packet, 0):
                self._tun.write(packet)
            else:
                kept.append(packet)
        return kept

    def handle_timer(self, now: float) -> None:
        self._stack.handle_timer(now)

    def next_timer(self) -> float:
        return self._stack.next_timer()

    def take_messages(self) -> list[Socket]:
        return self._stack.take_messages()

    def statistics(self) -> TunStatistics:
        return self._tun.statistics()

    def set_addresses(self, own: Sequence[bytes], now: float, services: Sequence[bytes] = ()) -> None:
        self._tun.set_own(own)
        self._stack.set_addresses(own, now, services)

    def path_changed(self, address: bytes) -> None:
        self._stack.path_changed(address)

    def path_moved(self, address: bytes, now: float) -> None:
        self._stack.path_moved(address, now)

    def take_resent(self) -> dict[bytes, int]:
        return self._stack.take_resent()

    def fail_hop(self, hop: Hop) -> None:
        if not hop[1]:
            self._tun.refuse(hop[0])
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


def _source_of(packet: bytes) -> slice:
    return SOURCE4 if packet[0] >> 4 == 4 else SOURCE6


def _open(name: str) -> int:
    if sys.platform != "linux":
        raise OSError(errno.ENOTSUP, f"a TUN device is made on Linux only; this is {sys.platform}")
    import fcntl  # not on Windows, which imports this file too

    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        flags = IFF_TUN | IFF_NO_PI | IFF_TUN_EXCL
        fcntl.ioctl(descriptor, TUNSETIFF, pack("16sH22x", name.encode(), flags))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
