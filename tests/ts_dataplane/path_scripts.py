"""A small Internet for PathFinders: routers that translate and filter, a relay that always works, virtual time."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from ts_base.keys import DiscoPrivate, NodePrivate
from ts_base.who import endpoint_of, host_of, is_direct, is_peer_relayed, is_relayed, socket_of, through_socket
from ts_dataplane import disco, geneve
from ts_dataplane.hard_nats import HardNatLimits
from ts_dataplane.path_messages import BestPathChanged, NeedStun, SocketsOver, SocketsWanted
from ts_dataplane.paths import PathFinder
from ts_dataplane.peer_paths import PeerPaths, PeerState

REGION = 900
NO_SOCKETS = HardNatLimits(sockets=0)
DIRECT_DELAY = 0.04
RELAY_DELAY = 0.06
DATA = b"\x04\0\0\0 tunnel data"
STUN_SERVER = ("198.51.100.1", 3478)


@dataclass
class Router:
    """One NAT. `hard`: another port for every destination. `filtering`: none (full cone), address or port."""

    public: str
    hard: bool = False
    filtering: str = "port"
    draws: random.Random | None = None  # ports at random, as hard ones take them
    blocks_udp: bool = False
    mappings: dict = field(default_factory=dict)
    owners: dict = field(default_factory=dict)
    allowed: set = field(default_factory=set)
    ports: itertools.count = field(default_factory=lambda: itertools.count(20001))

    def out(self, source, destination):
        key = (source, destination) if self.hard else source
        port = self.mappings.get(key)
        if port is None:
            port = self.mappings[key] = self.new_port(source)
            self.owners[port] = source
        self.allowed.add((port, destination))
        self.allowed.add((port, destination[0]))
        return (self.public, port)

    def new_port(self, source):
        if not self.hard and source[1] not in self.owners:
            return source[1]
        if self.draws is None:
            return next(self.ports)
        return next(p for p in iter(lambda: self.draws.randrange(1024, 65536), None) if p not in self.owners)

    def into(self, source, port):
        owner = self.owners.get(port)
        if owner is None:
            return None
        if self.filtering == "port" and (port, source) not in self.allowed:
            return None
        if self.filtering == "address" and (port, source[0]) not in self.allowed:
            return None
        return owner

    def flush(self):
        self.mappings.clear(), self.owners.clear(), self.allowed.clear()


class Host:
    def __init__(
        self, world, number, address, router=None, *, never_direct=False, home=REGION, endpoints=None, limits=NO_SOCKETS
    ):
        self.world, self.number, self.address, self.router = world, number, address, router
        rng = random.Random(number)
        self.disco = DiscoPrivate.generate(rng.randbytes(32))
        self.node = NodePrivate.generate(rng.randbytes(32))
        self.home = home
        self.finder = PathFinder(
            self.disco, self.node.public, entropy=rng.randbytes, never_direct=never_direct, hard_nats=limits
        )
        self.sockets: dict[str, int] = {}  # names of sockets beside the first, and their ports
        self.fixed_endpoints = endpoints
        self.data: list[tuple[float, int, tuple]] = []  # (when, from, path)
        self.heard: dict[int, tuple] = {}
        self.messages: list = []
        self.answers_stun = True
        self.sent: list[tuple[float, tuple, bytes]] = []
        self.listed: dict[int, tuple[str, ...]] = {}

    @property
    def key(self):
        return self.node.public.raw

    def facts(self, **changes) -> PeerPaths:
        values = {
            "node_key": self.key,
            "disco_key": self.disco.public.raw,
            "endpoints": tuple(f"{h}:{p}" if ":" not in h else f"[{h}]:{p}" for h, p in self.endpoints()),
            "home_region": self.home,
        } | changes
        return PeerPaths(**values)

    def endpoints(self):
        if self.fixed_endpoints is not None:
            return self.fixed_endpoints
        found = []
        if self.router is not None and not self.router.blocks_udp:
            found.append(self.router.out(self.address, STUN_SERVER))
        return (*found, self.address)

    def stun(self):
        self.finder.set_endpoints(self.endpoints(), self.world.now)
        self.finder.set_hard_router(self.router.public if self.router is not None and self.router.hard else "")
        self.world.pump(self)

    def send_data(self, peer: Host) -> None:
        for path in self.finder.paths.get(peer.number, ()):
            self.world.carry(self, path, DATA)
        self.finder.on_data_sent([peer.number], self.world.now)
        self.world.pump(self)

    def is_direct(self, peer: Host) -> bool:
        paths = self.finder.paths.get(peer.number, ())
        return len(paths) == 1 and is_direct(paths[0])

    def paths_to(self, peer: Host) -> tuple:
        return self.finder.paths.get(peer.number, ())


class World:
    def __init__(self, *, loss: float = 0.0, seed: int = 7):
        self.now = 1000.0
        self.hosts: list[Host] = []
        self.queue: list = []
        self.order = itertools.count()
        self.rng = random.Random(seed)
        self.loss = loss
        self.blocked: Callable[[Host, tuple, bytes], bool] = lambda host, to, datagram: False

    def host(self, address, router=None, **options) -> Host:
        host = Host(self, len(self.hosts) + 1, address, router, **options)
        self.hosts.append(host)
        return host

    def meet(self, *, listed=True, fresh=True) -> None:
        """Everybody learns of everybody, as control would tell it."""
        for host in self.hosts:
            if fresh:
                host.stun()
        for host in self.hosts:
            others = {h.number: h.facts(**({} if listed else {"endpoints": ()})) for h in self.hosts if h is not host}
            host.finder.set_peers(others, self.now)
            self.pump(host)

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.queue, (when, next(self.order), what))

    def pump(self, host: Host) -> None:
        for path, datagrams in host.finder.transmit(self.now):
            for datagram in datagrams:
                self.carry(host, path, datagram)
        for message in host.finder.take_messages():
            host.messages.append((self.now, message))
            if isinstance(message, NeedStun) and host.answers_stun:
                self.at(self.now + 0.05, host.stun)
            elif isinstance(message, SocketsWanted):
                self.at(self.now + 0.01, partial(self.open_sockets, host, message.number))
            elif isinstance(message, SocketsOver):
                for name in message.sockets:
                    del host.sockets[name]

    def open_sockets(self, host: Host, count: int) -> None:
        host.sockets = {**host.sockets, **{f"#{n}": n for n in range(next(self.order) + 1000, 9999)[:count]}}
        host.finder.on_sockets([*host.sockets][-count:], self.now)
        self.pump(host)

    def carry(self, host: Host, path: tuple, datagram: bytes) -> None:
        host.sent.append((self.now, path, datagram))
        if is_peer_relayed(path):
            path, (datagram,) = endpoint_of(path), geneve.encapsulate(path[2], [datagram])
        if is_relayed(path):
            target = next((h for h in self.hosts if h.key == path[1]), None)
            if target is not None:
                source = (path[0], host.key)
                self.at(self.now + RELAY_DELAY, lambda: self.deliver(target, source, host, datagram))
            return
        if self.blocked(host, path, datagram) or self.rng.random() < self.loss:
            return
        routed = self.route(host, path)
        if routed is not None:
            target, source = routed
            self.at(self.now + DIRECT_DELAY, lambda: self.deliver(target, source, host, datagram))

    def route(self, host: Host, to: tuple):
        """Who gets it, where from as seen there, and by which of its sockets."""
        source = host.address
        if socket := socket_of(to):
            if socket not in host.sockets:
                return None
            source, to = (source[0], host.sockets[socket]), (host_of(to), to[1])
        for other in self.hosts:  # same network
            if other.address == to and other.router is host.router:
                return other, source
        if host.router is not None:
            if host.router.blocks_udp or to[0] == host.router.public:  # no hairpin
                return None
            source = host.router.out(source, to)
        for other in self.hosts:
            if other.router is None and other.address == to:
                return other, source
            if other.router is not None and other.router.public == to[0] and not other.router.blocks_udp:
                owner = other.router.into(source, to[1])
                if owner is not None and owner[0] == other.address[0]:
                    names = [name for name, port in other.sockets.items() if port == owner[1]]
                    if names or owner == other.address:
                        return other, through_socket(source, names[0]) if names else source
        return None

    def deliver(self, target: Host, path: tuple, origin: Host, datagram: bytes) -> None:
        if isinstance(target, RelayServer):
            target.serve(datagram, path)
            return
        if geneve.is_geneve(datagram):
            path = (*path, geneve.decode_header_untrusted(datagram)[1])
            datagram = datagram[geneve.HEADER_LENGTH :]
        if datagram == DATA:
            target.data.append((self.now, origin.number, path))
            if target.heard.get(origin.number) != path:
                target.heard[origin.number] = path
                target.finder.on_data_heard([(origin.number, path)], self.now)
        else:
            target.finder.receive([(datagram, path)], self.now)
        self.pump(target)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            timer = min((h.finder.next_timer() for h in self.hosts), default=end)
            event = self.queue[0][0] if self.queue else end
            when = min(timer, event)
            if when > end:
                break
            assert when >= self.now - 1e-9 or when == timer
            self.now = max(self.now, when)
            if event <= timer and self.queue:
                heapq.heappop(self.queue)[2]()
            else:
                for host in self.hosts:
                    if host.finder.next_timer() <= self.now:
                        host.finder.handle_timer(self.now)
                        assert host.finder.next_timer() > self.now
                        self.pump(host)
            if when == end:
                break
        self.now = end

    def talk(self, a: Host, b: Host, seconds: float, *, every: float = 0.1, answered: bool = True) -> None:
        """`a` sends data for a while, and `b` answers every piece that arrives."""
        end = self.now + seconds
        seen = len(b.data)
        while self.now < end:
            a.send_data(b)
            self.run(min(every, end - self.now))
            if answered and len(b.data) > seen:
                b.send_data(a)
            seen = len(b.data)

    def time_to_direct(self, a: Host, b: Host, limit: float = 10.0, every: float = 0.02) -> float:
        """Seconds until both send directly only, or infinity."""
        start = self.now
        while self.now - start < limit:
            self.talk(a, b, every, every=every)
            if a.is_direct(b) and b.is_direct(a):
                return self.now - start
        return float("inf")


class RelayServer(Host):
    """A peer that carries others' datagrams: allocates, binds by challenge, forwards. Written from its own side."""

    vni = 77

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.boxes = disco.Boxes(self.disco, self.world.rng.randbytes)
        self.gate = disco.Boxes(DiscoPrivate.generate(bytes(range(7, 39))), self.world.rng.randbytes)
        self.bound: dict[bytes, tuple] = {}
        self.clients: tuple[bytes, bytes] | None = None
        self.lamport = 0
        self.is_dead = False
        self.challenges: dict[tuple, bytes] = {}

    def serve(self, datagram, path):
        if self.is_dead:
            return
        if is_relayed(path):
            message = self.boxes.open_untrusted(datagram)
            if isinstance(message, disco.AllocateRequest):
                self.clients = message.client_discos
                self.lamport += 1
                endpoint = disco.RelayEndpoint(
                    self.gate.public, self.clients, self.lamport, self.vni, 30 * 10**9, 300 * 10**9, (self.address,)
                )
                answer = disco.AllocateResponse(message.generation, endpoint)
                self.world.carry(self, path, self.boxes.seal(disco.sender_untrusted(datagram), answer))
            return
        if not geneve.is_geneve(datagram):
            return
        _, vni, control = geneve.decode_header_untrusted(datagram)
        inner = datagram[geneve.HEADER_LENGTH :]
        if control:
            self.shake_hands(inner, path, vni)
            return
        others = [place for place in self.bound.values() if place != path]
        if path in self.bound.values() and others:
            self.world.carry(self, others[0], datagram)

    def shake_hands(self, inner, path, vni):
        client = disco.sender_untrusted(inner)
        message = self.gate.open_untrusted(inner)
        assert self.clients is not None
        assert message.vni == vni == self.vni
        assert message.generation
        assert {client, message.remote_disco} == set(self.clients)
        if message.kind == disco.BIND:
            secret = self.challenges[client, path] = self.world.rng.randbytes(32)
            answer = disco.Bind(disco.CHALLENGE, vni, message.generation, message.remote_disco, secret)
            header = geneve.encode_header(geneve.DISCO, vni, control=True)
            self.world.carry(self, path, header + self.gate.seal(client, answer))
        elif message.kind == disco.ANSWER and message.challenge == self.challenges.get((client, path)):
            self.bound[client] = path


def paths_of(host: Host, peer: Host) -> PeerState:
    """What the finder of one knows of the ways to the other."""
    return host.finder._states[peer.number]


def changes(host: Host, peer: Host) -> list:
    return [m.path for _, m in host.messages if isinstance(m, BestPathChanged) and m.peer == peer.number]


def lan(count=2, **options) -> tuple:
    """A world and hosts on one network without routers, met."""
    world = World(**options)
    hosts = [world.host((f"192.0.2.{n}", 41641)) for n in range(1, count + 1)]
    world.meet()
    return world, *hosts


def settled(**options) -> tuple:
    """A world and two hosts that send to each other directly."""
    world, a, b = lan(**options)
    assert world.time_to_direct(a, b) < 1.0
    world.talk(a, b, 1.0)
    return world, a, b


def seal(host: Host, peer: Host, message) -> bytes:
    return disco.Boxes(host.disco, host.world.rng.randbytes).seal(peer.disco.public.raw, message)


def udp_pings(host: Host, since: float = 0.0) -> list:
    return [(t, path) for t, path, datagram in host.sent if datagram != DATA and not is_relayed(path) and t >= since]
