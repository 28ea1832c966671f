"""An internet in memory: hosts with addresses, TCP and UDP between them, and links that delay, lose, queue and block.

Owns addresses, ports and links; every choice comes from one seed. Nothing here touches a real socket or a real clock,
so a whole tailnet runs under `trio.testing.MockClock`. `VirtualHost` is what a Device takes as its network. A host may
have several uplinks, each with an address; "van%wwan0" names one where a host is asked for.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from tailscale.runtime.network import Binding, DirectRuns, Interface
from tailscale.runtime.udp import HostUdpStatistics, Offloads
from tailscale.testing.pipes import Link, Pipe, VirtualListener, VirtualStream
from tailscale.testing.routers import Kind, VirtualRouter
from ts_base.ip import Prefix, parse_address, parse_prefix, prefix_contains
from ts_base.who import Direct, host_of, socket_of, through_socket, uplink_of

EPOCH = 1_900_000_000.0  # virtual wall clocks start here, in 2030
FIRST_EPHEMERAL_PORT = 32_768
UDP_QUEUE_LIMIT = 4096  # datagrams one port holds unread
SOCKETS_LIMIT = 1 << 16  # of a virtual machine's program


@dataclass(eq=False)
class VirtualUdp:
    """One UDP port of a virtual host. Implements the runtime's `UdpUnderlay`."""

    host: VirtualHost
    local_port: int
    uplinks: tuple[str, ...] = ()
    name: str = ""  # of one beside the first: the zone of paths through it
    more: dict[str, VirtualUdp] = field(default_factory=dict)
    drops: Counter[str] = field(default_factory=Counter)
    _unreachable: dict[Direct, None] = field(default_factory=dict)
    _arriving: list[tuple[float, int, Direct, list[bytes]]] = field(default_factory=list)
    _held: int = 0
    _ended: trio.Event = field(default_factory=trio.Event)
    _news: trio.Event = field(default_factory=trio.Event)

    @property
    def has_ipv6(self) -> bool:
        return False

    def use_uplinks(self, uplinks: Sequence[str]) -> None:
        self.uplinks = tuple(uplinks)

    def bound_by(self, uplink: str) -> Binding:
        return "device" if uplink in self.uplinks and self.host.is_up(uplink) else ""

    def readers(self) -> Sequence[Callable[[], Awaitable[DirectRuns]]]:
        return (self.recv_many,)

    async def more_readers(self) -> None:
        await trio.sleep_forever()

    async def recv_many(self) -> DirectRuns:
        """Wait until something has arrived, then take all that has."""
        await trio.lowlevel.checkpoint()
        while not self._arriving or self._arriving[0][0] > trio.current_time():
            if self._ended.is_set():
                raise trio.ClosedResourceError
            self._news = trio.Event()
            with trio.move_on_at(self._arriving[0][0] if self._arriving else float("inf")):
                await self._news.wait()
        runs: DirectRuns = []
        now = trio.current_time()
        while self._arriving and self._arriving[0][0] <= now:
            _, _, source, datagrams = heapq.heappop(self._arriving)
            self._held -= len(datagrams)
            runs.append((through_socket((host_of(source), source[1]), self.name) if self.name else source, datagrams))
        return runs

    def send_many(self, runs: DirectRuns) -> None:
        for destination, datagrams in runs:
            source = self.host.source_by(uplink_of(destination) or (self.uplinks[0] if self.uplinks else ""))
            if source is None:
                self.drops["underlay.send_enetdown"] += len(datagrams)
                self._unreachable[destination] = None
                continue
            target = host_of(destination), destination[1]
            socket = self if not (name := socket_of(destination)) else self.more.get(name)
            if socket is None:
                self.drops["underlay.no_socket_of_family"] += len(datagrams)
            else:
                self.host.network.carry((source, socket.local_port), target, datagrams, self.drops)

    def open_more(self, count: int) -> Mapping[str, VirtualUdp]:
        made = {}
        for _ in range(min(count, self.host.sockets)):
            socket = self.host.bind_udp()
            socket.name = f"#{socket.local_port}"
            made[socket.name] = socket
        self.more |= made
        return made

    def close_more(self, names: Iterable[str] | None) -> None:
        for name in list(self.more) if names is None else names:
            if (socket := self.more.pop(name, None)) is not None:
                socket.close()

    def limit(self, offloads: Offloads) -> None:
        """There is no kernel here that helps."""

    def take_unreachable(self) -> list[Direct]:
        """Only an interface that is down is known to carry nothing; beyond it things are lost without a word."""
        taken, self._unreachable = list(self._unreachable), {}
        return taken

    def statistics(self) -> HostUdpStatistics:
        return HostUdpStatistics(1, {"segmentation": False, "coalescing": False}, 0, dict(self.drops))

    def arrive(self, at: float, order: int, source: Direct, datagrams: list[bytes]) -> None:
        if self._held + len(datagrams) > UDP_QUEUE_LIMIT:
            self.drops["underlay.receive_queue_full"] += len(datagrams)
            return
        self._held += len(datagrams)
        heapq.heappush(self._arriving, (at, order, source, datagrams))
        self._news.set()

    async def run_writers(self) -> None:
        await trio.sleep_forever()  # nothing is ever kept back

    async def run_writer(self) -> None:
        """Of one beside the first: until it is closed."""
        await self._ended.wait()

    def rebind(self) -> None:
        self._arriving.clear()
        self._held = 0

    def close(self) -> None:
        self.close_more(None)
        self.host.udp.pop(self.local_port, None)
        self._ended.set()
        self._news.set()


class VirtualDatagrams:
    """A UDP port that speaks with one place only. Implements the runtime's `DatagramSocket`."""

    def __init__(self, port: VirtualUdp, remote: Direct) -> None:
        self._port, self._remote = port, remote
        self._read: deque[bytes] = deque()

    async def send(self, data: bytes, /) -> int:
        await trio.lowlevel.checkpoint()
        self._port.send_many([(self._remote, [data])])
        return len(data)

    async def recv(self, size: int, /) -> bytes:
        while not self._read:
            for source, datagrams in await self._port.recv_many():
                if (host_of(source), source[1]) == self._remote:
                    self._read += datagrams
        return self._read.popleft()[:size]

    def close(self) -> None:
        self._port.close()


class VirtualHost:
    """One machine. Implements the runtime's `Network`."""

    def __init__(self, network: VirtualNetwork, name: str, address: str) -> None:
        self.network = network
        self.name = name
        self.address = address  # of the first uplink, if there are any
        self.uplinks: dict[str, str] = {}  # name -> address
        self._down: set[str] = set()
        self._link_changed = trio.Event()
        self.tcp: dict[int, VirtualListener] = {}
        self.udp: dict[int, VirtualUdp] = {}
        self.streams: list[VirtualStream] = []
        self.resolvers: tuple[str, ...] = ()  # what stands in this machine's resolv.conf
        self.clock_ahead = 0.0  # seconds that this machine's clock is wrong by
        self.networks: tuple[str, ...] = ()  # prefixes that its interfaces are in, beside its own addresses
        self.may_ping = True  # whether its system lets programs send echo requests
        self.sockets = SOCKETS_LIMIT  # that its system lets one program have
        self.pings = 0  # echo requests that it was sent by other hosts
        self._ports = itertools.count(FIRST_EPHEMERAL_PORT)
        self._random = random.Random(f"{network.seed} {name}")  # noqa: S311 - repeatable is what it is for

    async def open_tcp(self, host: str, port: int) -> VirtualStream:
        await trio.lowlevel.checkpoint()
        return await self.network.connect(self, host, port)

    async def connect_udp(self, address: str, port: int) -> VirtualDatagrams:
        await trio.lowlevel.checkpoint()
        return VirtualDatagrams(self.bind_udp(), (address, port))

    async def open_udp(self, port: int, uplinks: Sequence[str] = ()) -> VirtualUdp:
        await trio.lowlevel.checkpoint()
        made = self.bind_udp(port)
        made.use_uplinks(uplinks)
        return made

    # ---- uplinks

    def interfaces(self) -> list[Interface]:
        return [Interface(name, (address,), self.is_up(name)) for name, address in self.uplinks.items()]

    def is_up(self, uplink: str) -> bool:
        return uplink in self.uplinks and uplink not in self._down

    def set_up(self, uplink: str, up: bool = True) -> None:
        """Switch an interface on or off; while it is off this machine knows at once that nothing leaves by it."""
        if uplink not in self.uplinks:
            raise ValueError(f"{self.name} has no uplink {uplink!r}: it has {', '.join(self.uplinks) or 'none'}")
        (self._down.discard if up else self._down.add)(uplink)
        self._link_changed.set()
        self._link_changed = trio.Event()

    async def link_changed(self) -> None:
        await self._link_changed.wait()

    def source_by(self, uplink: str) -> str | None:
        """The address that what is sent by an uplink comes from, "" for the system's choice; None for nowhere."""
        if uplink:
            return self.uplinks[uplink] if self.is_up(uplink) else None
        if not self.uplinks:
            return self.address
        return next((address for name, address in self.uplinks.items() if name not in self._down), None)

    def bind_udp(self, port: int = 0) -> VirtualUdp:
        port = port or self.free_port(self.udp)
        if port in self.udp:
            raise OSError(f"UDP port {port} of {self.name} is taken")
        made = self.udp[port] = VirtualUdp(self, port)
        return made

    def listen_tcp(self, port: int = 0) -> VirtualListener:
        port = port or self.free_port(self.tcp)
        if port in self.tcp:
            raise OSError(f"TCP port {port} of {self.name} is taken")
        made = self.tcp[port] = VirtualListener((self.address, port))
        return made

    def free_port(self, taken: dict[int, VirtualListener] | dict[int, VirtualUdp]) -> int:
        return next(port for port in self._ports if port not in taken)

    def unlisten(self, port: int) -> None:
        """Close the port; connections that were accepted live on."""
        listener = self.tcp.pop(port, None)
        if listener is not None:
            listener.close()

    def reset_streams(self) -> None:
        """Every TCP connection of this host breaks."""
        for stream in self.streams:
            stream.reset()
        self.streams.clear()

    async def ping(self, address: str, timeout: float) -> bool:
        """Whether that host exists and the way there and back is open."""
        await trio.lowlevel.checkpoint()
        if not self.may_ping:
            raise PermissionError(errno.EPERM, "this machine lets us send no echo request")
        return await self.network.ping(self, address, timeout)

    def interface_addresses(self) -> list[str]:
        if not self.uplinks:
            return [self.address]
        return [address for name, address in self.uplinks.items() if name not in self._down]

    def nameservers(self) -> tuple[str, ...]:
        return self.resolvers

    def interface_prefixes(self) -> frozenset[Prefix]:
        """Its own addresses, and the networks that it was told to be in."""
        own = {parse_prefix(address) for address in self.interface_addresses()}
        return frozenset(own | {parse_prefix(network) for network in self.networks})

    def socket_limit(self) -> int:
        return self.sockets

    def wall_clock(self) -> float:
        return self.network.wall_clock() + self.clock_ahead

    def entropy(self, length: int) -> bytes:
        return self._random.randbytes(length)


class VirtualNetwork:
    """All hosts and the links between them. Made inside `trio.run`, because it reads trio's clock."""

    def __init__(self, *, seed: int = 0, latency: float = 0.0, loss: float = 0.0) -> None:
        self.seed = seed
        self.latency, self.loss = latency, loss  # of links not spoken about
        self.clock_offset = EPOCH - trio.current_time()
        self._random = random.Random(f"{seed} links")  # noqa: S311 - repeatable is what it is for
        self._hosts: dict[str, VirtualHost] = {}
        self._names: dict[str, VirtualHost] = {}
        self._uplinks: dict[str, str] = {}  # address -> which of its host's uplinks has it
        self._links: dict[tuple[str, str], Link] = {}
        self._order = itertools.count()
        self._routers: dict[str, VirtualRouter] = {}  # by the address behind them, and by their own
        self._fenced: list[tuple[Prefix, set[str]]] = []
        self.drops: Counter[str] = Counter()

    def fence(self, prefix: str, members: set[str]) -> None:
        """Only these hosts, by name, get to the addresses of `prefix`; the set may change."""
        self._fenced.append((parse_prefix(prefix), members))

    def has(self, address: str) -> bool:
        """Whether some host has it."""
        return address in self._hosts

    def _gets_to(self, source: VirtualHost, address: str) -> bool:
        if not self._fenced or address in self._names:
            return True
        target = parse_address(address)
        return all(source.name in members or not prefix_contains(fenced, target) for fenced, members in self._fenced)

    def wall_clock(self) -> float:
        return self.clock_offset + trio.current_time()

    def host(self, name: str, *addresses: str, uplinks: Sequence[str] = ()) -> VirtualHost:
        """The host `name`, made when new, with an address for each of its uplinks, or with these of its own."""
        known = self._names.get(name)
        if known is None:
            own = addresses or (self._new_address(),)
            if taken := next((address for address in own if address in self._hosts), ""):
                raise ValueError(f"{taken} is the address of {self._hosts[taken].name}")
            known = self._names[name] = VirtualHost(self, name, own[0])
            self._hosts |= dict.fromkeys(own, known)
            for uplink in uplinks:
                address = self._new_address() if known.uplinks else known.address
                known.uplinks[uplink] = address
                self._hosts[address] = known
                self._uplinks[address] = uplink
        return known

    def _new_address(self) -> str:
        number = len(self._hosts) + 1
        return f"10.77.{number >> 8}.{number & 255}"

    def link(self, source: str, destination: str) -> Link:
        """The link from one host, by name, "name%uplink" or address, to another; one direction."""
        key = (self._address(source), self._address(destination))
        known = self._links.get(key)
        if known is None:
            known = self._links[key] = Link(self.latency, self.loss)
        return known

    def change(self, first: str, second: str, **changes: float | bool) -> None:
        """Change both directions between two hosts, or with `one_way` that from the first: what `Link` has."""
        both = ((first, second), (second, first))
        for source, destination in both[:1] if changes.pop("one_way", False) else both:
            self.link(source, destination).change(**changes)  # type: ignore[arg-type]

    def _address(self, name: str) -> str:
        if name in self._hosts:
            return name
        host, _, uplink = name.partition("%")
        found = self.find(host)
        if uplink and uplink not in found.uplinks:
            raise OSError(f"{host} has no uplink {uplink!r}")
        return found.uplinks.get(uplink, found.address)

    def find(self, name: str) -> VirtualHost:
        known = self._names.get(name) or self._hosts.get(name)
        if known is None:
            raise OSError(f"no host {name!r} on the virtual network")
        return known

    async def connect(self, source: VirtualHost, host: str, port: int) -> VirtualStream:
        target = self.find(host)
        if not self._gets_to(source, target.address):
            raise OSError(errno.EHOSTUNREACH, f"{source.name} has no way to {host}")
        there, back = self.link(source.address, target.address), self.link(target.address, source.address)
        await there.wait_tcp_open()
        await back.wait_tcp_open()
        if there.latency + back.latency:
            await trio.sleep(there.latency + back.latency)
        listener = target.tcp.get(port)
        local = (source.address, source.free_port(source.tcp))
        forth_pipe, back_pipe = Pipe(there), Pipe(back)
        accepted = VirtualStream(forth_pipe, back_pipe, (target.address, port), local)
        if listener is None or not listener.offer(accepted):
            raise ConnectionRefusedError(f"nothing listens on {host}:{port}")
        made = VirtualStream(back_pipe, forth_pipe, local, (target.address, port))
        for owner, stream in ((source, made), (target, accepted)):
            owner.streams = [known for known in owner.streams if not known.is_closed]
            owner.streams.append(stream)
        return made

    async def ping(self, source: VirtualHost, address: str, timeout: float) -> bool:
        target = self._hosts.get(address)
        if target is None or not self._gets_to(source, address):
            return False
        there, back = self.link(source.address, address), self.link(address, source.address)
        target.pings += not there.udp_blocked
        if there.udp_blocked or back.udp_blocked or there.latency + back.latency > timeout:
            await trio.sleep(timeout)
            return False
        await trio.sleep(there.latency + back.latency)
        return True

    def put_behind(self, name: str, kind: Kind) -> VirtualRouter:
        """From now on all UDP of the host passes a router of its own."""
        inside = self.host(name).address
        outside = self.host(f"router of {name}")
        made = VirtualRouter(outside.address, kind, self._random)
        self._routers[inside] = self._routers[outside.address] = made
        return made

    def _translated(self, source: Direct, destination: Direct) -> tuple[Direct, Direct] | None:
        """Both addresses as the one who hears it sees them; None where a router lets it not in."""
        now = trio.current_time()
        ours, theirs = self._routers.get(source[0]), self._routers.get(destination[0])
        if ours is not None:
            source = ours.outbound(source, destination, now)
        if theirs is None:
            return source, destination
        inside = theirs.inbound(source, destination[1], now) if destination[0] == theirs.public else None
        return None if inside is None else (source, inside)

    def carry(self, source: Direct, destination: Direct, datagrams: list[bytes], drops: Counter[str]) -> None:
        """Datagrams onto a link; they arrive, or are counted."""
        host = source[0]
        if self._routers:
            translated = self._translated(source, destination)
            if translated is None:
                self.drops["network.not_let_in"] += len(datagrams)
                return
            source, destination = translated
        target = self._hosts.get(destination[0])
        if target is None or not self._gets_to(self._hosts[host], destination[0]):
            drops["underlay.no_such_host"] += len(datagrams)
            return
        link = self.link(host, destination[0])
        if link.udp_blocked:
            self.drops["network.blocked"] += len(datagrams)
            return
        if max(map(len, datagrams), default=0) > link.largest:
            self.drops["network.too_large"] += sum(len(datagram) > link.largest for datagram in datagrams)
            datagrams = [datagram for datagram in datagrams if len(datagram) <= link.largest]
        if link.loss:
            kept = [datagram for datagram in datagrams if self._random.random() >= link.loss]
            self.drops["network.lost"] += len(datagrams) - len(kept)
            datagrams = kept
        port = target.udp.get(destination[1])
        if port is None:
            drops["underlay.port_closed"] += len(datagrams)
        elif datagrams:
            uplink = self._uplinks.get(destination[0], "")
            if uplink and not target.is_up(uplink):
                self.drops["network.interface_down"] += len(datagrams)
                return
            if port.uplinks and uplink not in port.uplinks:
                drops["underlay.port_closed"] += len(datagrams)  # its sockets are bound to others
                return
            if port.uplinks:
                source = f"{source[0]}%{uplink}", source[1]
            if link.is_plain:
                port.arrive(trio.current_time() + link.latency, next(self._order), source, datagrams)
            else:
                self._carry_singly(link, port, source, datagrams)

    def _carry_singly(self, link: Link, port: VirtualUdp, source: Direct, datagrams: list[bytes]) -> None:
        """Where each datagram takes a time of its own."""
        now = trio.current_time()
        for datagram in datagrams:
            at = link.arrival(len(datagram), now, self._random.random())
            if at is None:
                self.drops["network.queue_full"] += 1
            else:
                port.arrive(at, next(self._order), source, [datagram])
