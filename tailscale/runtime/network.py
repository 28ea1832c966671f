"""The outside world as the runtime sees it: TCP out, one UDP port, our addresses, a wall clock, entropy.

`HostNetwork` is the machine's own; `tailscale.testing` has a virtual one with the same face.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from struct import Struct
from typing import Literal, NamedTuple, Protocol

import trio

from tailscale.runtime.around import LastAddresses, UplinkFor, bind_around, open_tcp_around
from tailscale.runtime.host_ping import HostPing
from tailscale.runtime.udp import HostUdp, HostUdpStatistics, Offloads
from ts_base.errors import BadPacket
from ts_base.ip import Prefix, format_address, is_tailscale_address, mask, parse_address
from ts_base.optional import optional
from ts_base.who import Direct, DirectRun

DirectRuns = list[DirectRun]
SOCKETS_ELSEWHERE = 1 << 16  # where the system says no number

LARGEST_RESOLV_CONF = 64 << 10
NETLINK_ROUTE = 0
SIOCGIFFLAGS = 0x8913  # linux/sockios.h
INTERFACE_FLAGS = Struct("=16sH22x")  # struct ifreq
IFF_UP_RUNNING = 0x1 | 0x40  # net/if.h
LINK_GROUPS = 0x1 | 0x10 | 0x100  # linux/rtnetlink.h: RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
# Interfaces of other overlay networks: carrying one overlay inside another amplifies both.
FOREIGN_OVERLAYS = ("zt", "wt0", "tailscale", "utun-ts", "docker", "br-", "virbr")

Reader = Callable[[], Awaitable[DirectRuns]]
Binding = Literal["", "device", "source"]


class Interface(NamedTuple):
    """One network interface of a machine, with the addresses that lead further than its own wire."""

    name: str
    addresses: tuple[str, ...]
    is_up: bool = True


class OneMoreSocket(Protocol):
    """A UDP socket beside the first, whose name is the zone of paths through it."""

    async def recv_many(self) -> DirectRuns: ...
    async def run_writer(self) -> None: ...


class UdpUnderlay(Protocol):
    """One UDP port in every family the machine has, and on every uplink."""

    @property
    def local_port(self) -> int: ...
    @property
    def has_ipv6(self) -> bool: ...
    @property
    def uplinks(self) -> tuple[str, ...]:
        """The interfaces it is bound to, each with sockets of its own; none: the system chooses."""

    def readers(self) -> Sequence[Callable[[], Awaitable[DirectRuns]]]:
        """One per socket: each waits for data, then returns a burst; trio.ClosedResourceError once it is closed."""

    async def more_readers(self) -> None:
        """Wait until `readers` has others than before."""

    def send_many(self, runs: DirectRuns) -> None:
        """Never blocks: what the kernel refuses now is kept within bounds, then dropped and counted."""

    def limit(self, offloads: Offloads) -> None:
        """Use no more of the kernel's help than this."""

    def take_unreachable(self) -> list[Direct]:
        """Where the host had no route to since last asked."""

    def use_uplinks(self, uplinks: Sequence[str]) -> None:
        """Be bound to these interfaces from now on, or to none; what one of them cannot be bound to waits for it."""

    def bound_by(self, uplink: str) -> Binding:
        """How its sockets are bound: "device", by address as "source", or "" where there are none."""

    async def run_writers(self) -> None:
        """Send what was kept as soon as the kernel takes it. Runs until cancelled."""

    def open_more(self, count: int) -> Mapping[str, OneMoreSocket]:
        """So many IPv4 sockets on other ports, or fewer where the system gives no more, by name."""

    def close_more(self, names: Iterable[str] | None) -> None:
        """Close these of them, or all."""

    def rebind(self) -> None:
        """Replace the sockets after the machine's network changed, on the same port if possible."""

    def statistics(self) -> HostUdpStatistics: ...
    def close(self) -> None: ...


class DatagramSocket(Protocol):
    """Datagrams to and from one place outside; what that place refuses is an OSError. trio's sockets are such."""

    def send(self, data: bytes, /) -> Awaitable[int]: ...
    def recv(self, size: int, /) -> Awaitable[bytes]: ...
    def close(self) -> None: ...


class Network(Protocol):
    """Everything the runtime asks of the world outside."""

    async def open_tcp(self, host: str, port: int) -> trio.abc.HalfCloseableStream: ...
    async def connect_udp(self, address: str, port: int) -> DatagramSocket: ...
    async def open_udp(self, port: int, uplinks: Sequence[str] = ()) -> UdpUnderlay: ...
    def interfaces(self) -> list[Interface]:
        """Those that lead somewhere: not loopback, and none of another overlay's."""

    async def link_changed(self) -> None:
        """Wait until an interface or an address may be another; for ever where the system tells nobody."""

    async def ping(self, address: str, timeout: float) -> bool:
        """Whether that host answers an echo request; PermissionError where this machine lets us ask nobody."""

    def interface_addresses(self) -> list[str]: ...
    def nameservers(self) -> tuple[str, ...]:
        """The addresses of the resolvers that this world's own programs ask."""

    def interface_prefixes(self) -> frozenset[Prefix]:
        """The networks that this machine is in, each address of its own among them, loopback and all."""

    def socket_limit(self) -> int:
        """How many sockets the program may have at all."""

    def wall_clock(self) -> float: ...
    def entropy(self, length: int) -> bytes: ...


class HostNetwork:
    """The machine's own network."""

    def __init__(self) -> None:
        self._pings = HostPing()
        self._uplink_for: UplinkFor | None = None
        self._known_names = LastAddresses()

    def go_around(self, uplink_for: UplinkFor | None) -> None:
        """Bind what is opened to the interface that `uplink_for` names, while routes lead into our own tunnel."""
        self._uplink_for = uplink_for

    def last_addresses(self, host: str) -> tuple[bytes, ...]:
        """Where a host was when it was last reached."""
        return self._known_names.of(host)

    async def open_tcp(self, host: str, port: int) -> trio.abc.HalfCloseableStream:
        try:
            if self._uplink_for is not None:
                stream = await open_tcp_around(host, port, self._uplink_for, self._known_names)
            else:
                stream = await trio.open_tcp_stream(host, port, happy_eyeballs_delay=0.2)
        except (UnicodeError, OverflowError) as problem:  # the resolver's and the kernel's words for nonsense
            raise OSError(f"{host!a} port {port} is no place to dial: {problem}") from None
        self._known_names.keep(host, stream.socket)
        return stream

    async def connect_udp(self, address: str, port: int) -> DatagramSocket:
        made = trio.socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            if self._uplink_for is not None:
                bind_around(made, address, self._uplink_for)
            await made.connect((address, port))
        except BaseException:
            made.close()
            raise
        return made

    async def open_udp(self, port: int, uplinks: Sequence[str] = ()) -> UdpUnderlay:
        return HostUdp(port, uplinks)

    def interfaces(self) -> list[Interface]:
        return list_interfaces()

    async def link_changed(self) -> None:
        await wait_for_link_news()

    async def ping(self, address: str, timeout: float) -> bool:
        return await self._pings.ask(address, timeout)

    def interface_addresses(self) -> list[str]:
        return list_interface_addresses()

    def nameservers(self) -> tuple[str, ...]:
        return HOST_RESOLVERS.read()

    def interface_prefixes(self) -> frozenset[Prefix]:
        return list_interface_prefixes()

    def socket_limit(self) -> int:
        resource = optional("resource")  # of Unix
        if resource is None:
            return SOCKETS_ELSEWHERE
        soft: int = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return SOCKETS_ELSEWHERE if soft == resource.RLIM_INFINITY else soft

    def wall_clock(self) -> float:
        return time.time()

    def entropy(self, length: int) -> bytes:
        return os.urandom(length)


async def wait_for_link_news() -> None:
    """Linux tells whoever listens of links and addresses (rtnetlink(7)); elsewhere this waits for ever."""
    family = getattr(socket, "AF_NETLINK", None)
    if family is None:
        await trio.sleep_forever()
    with socket.socket(family, socket.SOCK_RAW, NETLINK_ROUTE) as news:
        news.setblocking(False)
        news.bind((0, LINK_GROUPS))
        await trio.lowlevel.wait_readable(news)


class ResolvConf:
    """The resolvers of a resolv.conf, read anew when the file has changed."""

    def __init__(self, path: str = "/etc/resolv.conf") -> None:
        self._path = path
        self._known: tuple[tuple[int, int], tuple[str, ...]] | None = None

    def read(self) -> tuple[str, ...]:
        """Empty where there is no such file, or nothing in it."""
        try:
            found = os.stat(self._path)
            mark = found.st_mtime_ns, found.st_size
            if self._known is None or self._known[0] != mark:
                with open(self._path, encoding="utf-8", errors="replace") as file:
                    self._known = mark, nameservers_in(file.read(LARGEST_RESOLV_CONF))
        except OSError:
            return ()
        return self._known[1]


def nameservers_in(text: str) -> tuple[str, ...]:
    """The addresses that a resolv.conf names, as far as they are addresses."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            try:
                found.append(format_address(parse_address(words[1].partition("%")[0])))
            except BadPacket:
                continue
    return tuple(dict.fromkeys(found))


HOST_RESOLVERS = ResolvConf()


def list_interface_addresses() -> list[str]:
    """Our addresses worth telling peers, best first; loopback only where there is nothing else."""
    regular: list[str] = []
    reserve: list[str] = []
    loopback: list[str] = []
    for name, address, _ in _interfaces():
        text = format_address(address)
        if name.startswith(FOREIGN_OVERLAYS) or is_tailscale_address(address) or text.startswith("fe8"):
            continue
        if text.startswith("127.") or text == "::1":
            loopback.append(text)
        elif text.startswith(("169.254.", "fd", "fc")):
            reserve.append(text)
        else:
            regular.append(text)
    return regular or reserve or loopback


def list_interfaces() -> list[Interface]:
    """The interfaces that may be uplinks, in the system's order, each with its addresses."""
    found: dict[str, list[str]] = {}
    for name, address, _ in _interfaces():
        text = format_address(address)
        foreign = name.startswith(FOREIGN_OVERLAYS) or is_tailscale_address(address)
        if not (foreign or text.startswith(("127.", "fe8")) or text == "::1"):
            found.setdefault(name, []).append(text)
    return [Interface(name, tuple(addresses), has_carrier(name)) for name, addresses in found.items()]


def has_carrier(name: str) -> bool:
    """Whether an interface is switched on and something is at the other end; believed where this system cannot tell."""
    fcntl = optional("fcntl")  # of Unix
    if fcntl is None or sys.platform != "linux":
        return True
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            answer = fcntl.ioctl(sock, SIOCGIFFLAGS, INTERFACE_FLAGS.pack(name.encode(), 0))
        except OSError:
            return False
    flags: int = INTERFACE_FLAGS.unpack(answer)[1]
    return flags & IFF_UP_RUNNING == IFF_UP_RUNNING


def list_interface_prefixes() -> frozenset[Prefix]:
    """The networks of all interfaces, and our address in each as a host prefix."""
    found: set[Prefix] = set()
    for _, address, length in _interfaces():
        found |= {(mask(address, length), length), (address, 8 * len(address))}
    return frozenset(found)


def _interfaces() -> Iterator[tuple[str, bytes, int]]:
    """The name, an address and its network's length, for each address of each interface."""
    import ifaddr  # 15 ms of ctypes that a warm start can overlap with dialling

    for adapter in ifaddr.get_adapters():
        for entry in adapter.ips:
            text = entry.ip if isinstance(entry.ip, str) else entry.ip[0]
            try:
                address = parse_address(text.partition("%")[0])
            except BadPacket:
                continue
            yield adapter.name, address, min(max(int(entry.network_prefix), 0), 8 * len(address))
