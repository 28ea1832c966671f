"""The composition root: builds every machine, starts every actor, and knows in which order to stop them.

The one file that names them all: each is made from those above it, and nothing is filled in later. Owns the nursery
and shutdown.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from tailscale._causes import causes
from tailscale._config import DEFAULT_CLOSE_TIMEOUT, Config, Preferences
from tailscale._process import TERMINATION
from tailscale.carry import ForwardCarrier
from tailscale.dial.by_address import AddressDialer
from tailscale.dial.control_pings import ping_for_control
from tailscale.dial.dialing import Dialer
from tailscale.dial.name_service import run_name_service
from tailscale.dial.pinging import Pinger
from tailscale.dial.resolver_access import ResolverAccess
from tailscale.dns.local import SERVICE_ADDRESSES
from tailscale.dns.resolvers import NameResolver
from tailscale.dns.responder import Responder
from tailscale.event_readers import Readers
from tailscale.funnel.arrivals import PATH as INGRESS_PATH
from tailscale.funnel.arrivals import Arrivals
from tailscale.kernel.owner import TunOwner
from tailscale.measuring.answering import PATH as MEASURE_PATH
from tailscale.measuring.answering import Measured
from tailscale.peerapi.actor import PeerApi, run_peerapi
from tailscale.peerapi.dns_query import PATH as NAMES_PATH
from tailscale.peerapi.dns_query import NamesForPeers
from tailscale.runtime.awaited_answers import AwaitedAnswers
from tailscale.runtime.bus import Bus
from tailscale.runtime.control_actor import ControlActor, run_control
from tailscale.runtime.counters import Counted, CountersTaker
from tailscale.runtime.dataplane import Dataplane
from tailscale.runtime.directory import Directory
from tailscale.runtime.event_feed import Watch, run_watch
from tailscale.runtime.flows import Flows
from tailscale.runtime.forward_actor import run_forward
from tailscale.runtime.forward_flows import Asked, Forwarding
from tailscale.runtime.health import Health
from tailscale.runtime.link_actor import LinkWatch, run_link
from tailscale.runtime.messages import (
    CertificatesChanged,
    NetMapChanged,
    NodeKeyChanged,
    Offer,
    PreferencesChanged,
)
from tailscale.runtime.netmap_actor import run_netmap
from tailscale.runtime.network import Network, UdpUnderlay
from tailscale.runtime.offers import offer
from tailscale.runtime.packet_watch import PacketWatch
from tailscale.runtime.path_actor import run_paths
from tailscale.runtime.probe_actor import Probes, run_probes
from tailscale.runtime.reach import Reach
from tailscale.runtime.readiness import Readiness
from tailscale.runtime.relay_actor import Relays, run_relays
from tailscale.runtime.socket_actor import run_sockets
from tailscale.runtime.supervision import CallbackFailed, Start, Supervision
from tailscale.runtime.traffic import Traffic
from tailscale.runtime.tun_switch import TunSwitch
from tailscale.runtime.underlay import Underlay
from tailscale.runtime.uplink_actor import Uplinks, names_of, run_readers, run_uplinks
from tailscale.state_file import State, read_state
from ts_base.keys import DiscoPrivate
from ts_control.session import Phase
from ts_control.wire import Service
from ts_dataplane.engine import Engine
from ts_dataplane.paths import PathFinder
from ts_netstack.stack import Stack
from ts_tunnel.endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tailscale._process import Goodbye
    from tailscale.certificates.keeper import CertificateKeeper
    from tailscale.kernel.life import TunLife
    from tailscale.lock import LockStatus
    from tailscale.state_file import NamedStore
    from tailscale.status import NetcheckReport
    from tailscale.tun_options import TunOptions

log = logging.getLogger("tailscale")
LONGEST_ANNOUNCEMENT = 64  # bytes; every peer is told
FLUSH_TIMEOUT = 0.5  # how long closing connections may take to say goodbye


class Runtime:
    """Everything one Device runs on."""

    def __init__(self, config: Config, network: Network, store: NamedStore, readers: Readers) -> None:
        self.config = config
        self.network = network
        self.store = store
        self.bus = Bus()
        self.readers = readers
        self.health = Health(self.bus)
        self.supervision = Supervision(self.bus)
        self._held = ExitStack()
        self._udp: UdpUnderlay | None = None
        self._certificates: CertificateKeeper | None = None
        self._manager: Any = None
        self._guard: trio.Nursery | None = None
        self._nursery: trio.Nursery | None = None
        self.is_built = False

    # Building

    async def start(self) -> None:
        """Build, start and wait until usable. On any failure everything is taken down again before it is raised."""
        self._manager = trio.open_nursery()
        self._guard = await self._manager.__aenter__()
        try:
            await self._take_shelter(self._guard)
            await self._build()
            if self.config.handle_sigterm:
                TERMINATION.hear()
                self._held.callback(TERMINATION.let_go)
                self._held.callback(TERMINATION.register(self._on_sigterm()))
            log.info("joining %s as %s", self.config.control_url, self.config.preferences.hostname)
            await self._start_actors()
            await Readiness(self.config, self.bus, self.dataplane.engine).wait()
            self._log_joined()
            if self.config.overlay is not None:
                await self.tun_up(self.config.overlay)
        except BaseException as error:
            await self.stop(error, 1.0)
            raise

    def _log_joined(self) -> None:
        ourselves, peers = self.directory.self_node(), self.bus.latest(NetMapChanged)
        addresses = ", ".join(ourselves.addresses)
        log.info("joined as %s (%s), peers: %s", ourselves.name, addresses, len(peers.netmap.peers) if peers else 0)

    async def _take_shelter(self, guard: trio.Nursery) -> None:
        """Open the nursery where actors live, even for a Device entered in a scope that is cancelled already.

        `Nursery.start` cannot: cancelled, it waits for the end of a task that nobody can end.
        """
        opened = trio.Event()
        guard.start_soon(self._shelter, opened)
        with trio.CancelScope(shield=True):
            await opened.wait()
        await trio.lowlevel.checkpoint_if_cancelled()

    @trio.lowlevel.enable_ki_protection
    async def _shelter(self, opened: trio.Event) -> None:
        """A cancellation around the Device ends its block at once, but its actors only after goodbye."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(trio.sleep_forever)
                opened.set()

    async def _build(self) -> None:
        config, network = self.config, self.network
        self._held.enter_context(self.store.lock())
        state = read_state(self.store) or State.generate(network.entropy, config.control_url)
        disco = DiscoPrivate.generate(network.entropy(32))
        names = names_of(config.uplinks, network.interfaces()) if config.uplinks is not None else ()
        self._udp = await self._open_udp(config.udp_port or state.udp_port, names)
        private, bus = state.node_key, self.bus
        # The packet path, from the bottom up.
        self.relays = Relays(
            network,
            private,
            bus,
            tls=config.tls,
            over_http=config.relay_over_http,
            supervision=self.supervision,
        )
        self.underlay = Underlay(self._udp, self.relays)
        self.endpoint = Endpoint(private, entropy=network.entropy, wall_clock=network.wall_clock)
        self.stack = Stack(entropy=network.entropy, apart=SERVICE_ADDRESSES)
        finder = PathFinder(
            disco,
            private.public,
            entropy=network.entropy,
            never_direct=config.never_direct or self._udp is None,
            uplinks=() if self._udp is None else self._udp.uplinks,
            hard_nats=config.hard_nats,
        )
        finder.many.set_strategies(config.paths.default, {})
        engine = Engine(self.endpoint, self.stack, paths=finder.paths, mtus=finder.mtus, disco_key=disco.public.raw)
        self.answers = AwaitedAnswers()
        self.dataplane = Dataplane(engine, finder, self.endpoint, self.stack, self.underlay, self.answers, bus)
        self.uplinks = Uplinks(network, self._udp, self.dataplane, bus, config.uplinks, config.paths)
        self.tun_switch = TunSwitch(self.stack, self.dataplane)
        self.tun = TunOwner(self._tun_life, self.health)
        self._build_answers(engine)
        # The world around.
        self.probes = Probes(
            network,
            self.underlay,
            bus,
            seed=private.public.raw,
            supervision=self.supervision,
            on_external=self.uplinks.heard_external,
        )
        ping_peer = partial(ping_for_control, self.dialer)
        self.control = ControlActor(
            config,
            network,
            self.store,
            state,
            disco.public,
            bus,
            ping_peer,
            supervision=self.supervision,
            traffic={"inbound": engine.received, "outbound": engine.sent},
        )
        self.counters = self._list_counters(engine)
        self.is_built = True

    def _build_answers(self, engine: Engine) -> None:
        """What the packet path is asked, and what is opened on it: by the user, and for others."""
        config, network, bus = self.config, self.network, self.bus
        self.directory = Directory(config, bus, engine, network.wall_clock)
        self.reach = Reach(self.directory, self.dataplane, self.endpoint)
        self.traffic = Traffic(self.dataplane, self.endpoint)
        self.packets = PacketWatch(self.dataplane, self.directory, self.reach)
        self.flows = Flows(self.stack, self.directory, SERVICE_ADDRESSES)
        self.watching = Watch(self.directory, self.reach, self.readers)
        # Dialling, by address and then by name: names are resolved over the tailnet too.
        ends = self.directory, self.reach, self.answers, self.stack, self.dataplane.kick
        self.dialer = Dialer(
            *ends,
            resolver=NameResolver(ResolverAccess(AddressDialer(*ends), network, self.health)),
            pinger=Pinger(self.dataplane, self.stack, self.answers, self.reach, network.entropy),
        )
        self.responder = Responder(self.dialer.resolver, network.wall_clock)
        # What is done for others.
        self.arrivals = Arrivals(bus, self.directory)
        self.peerapi = PeerApi(self.directory, self.stack, self.dialer, self.arrivals.may_bring)
        names = NamesForPeers(self.directory, self.reach, self.dialer.resolver, network, self.peerapi.drops)
        self.peerapi.paths.add(NAMES_PATH, names)
        self.peerapi.paths.add(INGRESS_PATH, self.arrivals)
        self.peerapi.paths.add(MEASURE_PATH, Measured(self.peerapi.drops))
        self.forwarding = Forwarding(
            network,
            self.stack,
            self.dataplane.kick,
            ForwardCarrier(self.dialer, config.forward),
            Asked(config.on_flow, self.directory.node),
            config.forward,
            self.health,
            supervision=self.supervision,
        )

    def _list_counters(self, engine: Engine) -> CountersTaker:
        """What each part counts. One that is missing here fails tests/tailscale/test_drops_complete.py."""
        counted: dict[str, Counted] = {
            "engine": engine,
            "tunnel": self.endpoint,
            "stack": self.stack,
            "forward": self.forwarding,
            "paths": self.dataplane.finder,
            "uplinks": self.uplinks,
            "answers": self.answers,
            "underlay": self.underlay,
            "relays": self.relays,
            "netcheck": self.probes.check,
            "portmap": self.probes.mapper.machine,
            "control": self.control,
            "supervision": self.supervision,
            "bus": self.bus,
            "events": self.readers,
            "captures": self.packets,
            "peerapi": self.peerapi,
            "dns": self.responder,
            "tun": self.tun_switch,
            "funnel": self.arrivals,
        }
        return CountersTaker(engine.received, engine.sent, counted)

    async def _open_udp(self, port: int, uplinks: tuple[str, ...]) -> UdpUnderlay | None:
        try:
            return await (self.network.open_udp(port, uplinks) if uplinks else self.network.open_udp(port))
        except OSError as error:
            log.warning("no UDP socket can be opened (%s): everything goes through relays", error)
            return None

    async def _start_actors(self) -> None:
        bus, dataplane = self.bus, self.dataplane
        bus.publish(PreferencesChanged(self.config.preferences))
        self._keep_running("warnings", self.supervision.run_forgiver)
        await self._keep("events", partial(run_watch, bus, self.watching))
        await self._keep("netmap", partial(run_netmap, bus, dataplane, self.endpoint))
        await self._keep("names", partial(run_name_service, self.stack, self.dialer, self.responder))
        await self._keep("relays", partial(run_relays, bus, self.relays, dataplane.deliver))
        silence_of = self.endpoint.silence_of
        await self._keep("paths", partial(run_paths, bus, dataplane.finder, dataplane.flush, silence_of=silence_of))
        await self._keep("forwarding", partial(run_forward, bus, self.network, self.forwarding))
        if self.config.peerapi:
            await self._keep("peerapi", partial(run_peerapi, bus, self.peerapi))
        await self._keep("probes", partial(run_probes, bus, self.probes))
        await self._keep("identity", self._follow_key)
        watch = LinkWatch(self.network.interface_addresses(), self.network.wall_clock(), trio.current_time())
        await self._keep("link", partial(run_link, bus, self.network, self._udp, self._wake, watch=watch))
        named = self.directory.peer_named
        await self._keep("uplinks", partial(run_uplinks, bus, self.uplinks, self.network, named))
        if self._udp is not None:
            self._keep_running("udp-writers", self._udp.run_writers)
            carry = dataplane.deliver, dataplane.use_sockets
            await self._keep("sockets", partial(run_sockets, bus, self._udp, self.network.socket_limit(), *carry))
            start = partial(self._keep_running, "udp-readers")
            self._keep_running("udp-sockets", partial(run_readers, self._udp, dataplane.run_reader, start))
        self._keep_running("flusher", dataplane.run_flusher)
        self._keep_running("timers", dataplane.run_timers)
        await self._keep("control", partial(run_control, self.control))

    async def _keep(self, name: str, start: Start) -> None:
        """An actor, once it is ready; its task bears its name."""
        assert self._nursery is not None
        await self._nursery.start(self.supervision.keep, name, start, name=name)

    def _keep_running(self, name: str, run: Callable[[], Awaitable[object]]) -> None:
        """A task of the packet path."""
        assert self._nursery is not None
        self._nursery.start_soon(self.supervision.keep_running, name, run, name=name)

    @trio.lowlevel.enable_ki_protection
    async def _follow_key(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Hand a new node key of ours to everything that speaks under it. Hears: NodeKeyChanged. Says: nothing."""
        with self.bus.subscribe(NodeKeyChanged, name="identity") as inbox:
            task_status.started()
            while True:
                message = await inbox.receive()
                assert isinstance(message, NodeKeyChanged)
                now = trio.current_time()
                self.relays.set_private(message.key)
                self.dataplane.finder.set_node(message.key.public)
                self.endpoint.set_private(message.key, now)
                self.dataplane.flush(now)

    def _wake(self, now: float) -> None:
        """We slept: peers have forgotten sessions that still look young here."""
        netmap = self.directory.netmap
        for peer in netmap.peers if netmap is not None else ():
            self.endpoint.expect_restart(peer)
        self.dataplane.flush(now)

    def lock_status(self) -> LockStatus:
        from tailscale.runtime.lock_report import lock_status  # few ask

        return lock_status(self.control.lock)

    # Shutdown

    async def stop(self, error: BaseException | None, patience: float) -> None:
        """Say goodbye within `patience` seconds, then stop everything. `error` is what ends the block, if anything."""
        assert self._guard is not None
        crashed = self._guard.cancel_scope.cancel_called  # an actor failed and took the nurseries with it
        if self.is_built and not crashed:
            deadline = trio.current_time() + patience
            with trio.CancelScope(shield=True, deadline=deadline), self.supervision.contained("goodbye"):
                self._shut_sockets()
                await self._say_goodbye()
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
        try:
            await self._manager.__aexit__(*_exception_triple(error if crashed else None))
        except BaseExceptionGroup as group:
            if error is not None and group.split(trio.Cancelled)[1] is None:
                return  # whoever cancels us hears of it anyway; what the block raised must not be lost
            cause = _unwrapped(group)
            raise cause from cause.__cause__
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self.is_built:
            self._shut_sockets()
        self.readers.close()
        if self._udp is not None:
            self._udp.close()
        self._held.close()

    def _shut_sockets(self) -> None:
        """Let whoever waits on a socket hear that the device ends."""
        for socket in self.stack.sockets():
            if socket.owner is not None:
                socket.owner.shut()

    def _on_sigterm(self) -> Goodbye:
        """What the process does for this Device before it dies: it is still running when it does."""
        token = trio.lowlevel.current_trio_token()

        async def say(said: Callable[[], None]) -> None:
            with trio.move_on_after(DEFAULT_CLOSE_TIMEOUT), self.supervision.contained("goodbye"):
                await self._say_goodbye()
            said()

        def begin(said: Callable[[], None]) -> None:
            assert self._nursery is not None  # it was there before we were registered
            self._nursery.start_soon(say, said)

        return lambda said: token.run_sync_soon(begin, said)

    async def _say_goodbye(self) -> None:
        """The kernel's routes back, FIN or RST for every connection, then give ephemeral keys back."""
        await self.tun.down()
        self.stack.close_all(trio.current_time())  # those that nobody has accepted yet
        self.dataplane.kick()
        with trio.move_on_after(FLUSH_TIMEOUT):
            while not self.stack.is_quiet:
                await self.dataplane.flushed()
        self.stack.abort_all(trio.current_time())
        self.dataplane.flush(trio.current_time())
        await self.control.leave()
        log.info("left the tailnet")

    # What the Device asks

    @property
    def state(self) -> str:
        return self.directory.state.value if self.is_built else Phase.STARTING.value

    def announcing(self, word: str) -> Callable[[int], Callable[[], None]]:
        """Tells peers of a TCP port under a word, and how to take that back."""
        if not word.isprintable() or len(word.encode()) > LONGEST_ANNOUNCEMENT:
            raise ValueError(f"{word!a} announces nothing: 1 to {LONGEST_ANNOUNCEMENT} printable bytes do")

        def announce(port: int) -> Callable[[], None]:
            who = f"tcp {port} {word}"
            offer(self.bus, who, Offer(services=(Service(proto="tcp", port=port, description=word),)))
            return partial(offer, self.bus, who, None)

        return announce

    def spawn(self, function: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """A task that ends by itself or with the device."""
        assert self._nursery is not None
        self._nursery.start_soon(self._run_contained, function, *arguments)

    @trio.lowlevel.enable_ki_protection
    async def _run_contained(self, function: Callable[..., Awaitable[object]], *arguments: object) -> None:
        with self.supervision.contained("ports"):
            await function(*arguments)

    async def tun_up(self, options: TunOptions) -> None:
        assert self._nursery is not None
        await self.tun.up(options, self._nursery)

    def _tun_life(self, options: TunOptions) -> TunLife:
        from tailscale.kernel.life import TunLife  # few want one

        ends = self.stack, self.dataplane, self.tun_switch, self._udp
        return TunLife(options, self.config.control_url, self.network, *ends, self.bus, self.health)

    def certificate_keeper(self) -> CertificateKeeper:
        """Made when it is first asked for: few want a certificate."""
        if self._certificates is None:
            from tailscale.certificates.challenges import Challenges
            from tailscale.certificates.control import ControlCertificates
            from tailscale.certificates.ground import DeviceGround
            from tailscale.certificates.keeper import CertificateKeeper

            challenges = Challenges()
            ground = DeviceGround(self.directory, self.control, self.network, self.store, challenges)
            source = self.config.certificates or ControlCertificates()
            tell = lambda held: self.bus.publish(CertificatesChanged(held))  # noqa: E731
            self._certificates = CertificateKeeper(source, ground, self.health, challenges, tell)
            self._held.enter_context(self.counters.include("certificates", self._certificates))
            self._keep_running("certificates", self._certificates.run)
        return self._certificates

    def set_preferences(self, preferences: Preferences) -> None:
        self.bus.publish(PreferencesChanged(preferences))

    async def login(self) -> None:
        await self.control.login()

    async def logout(self) -> None:
        await self.control.logout()

    async def netcheck(self) -> NetcheckReport:
        return await self.probes.report(self.directory.region_code)


def _exception_triple(error: BaseException | None) -> tuple[Any, Any, Any]:
    return (type(error), error, error.__traceback__) if error is not None else (None, None, None)


def _unwrapped(group: BaseExceptionGroup[Any]) -> BaseException:
    """What one actor raised, without the wrapping; several failures stay a group."""
    found = causes(group)
    cause = found[0] if len(found) == 1 else group
    if isinstance(cause, CallbackFailed) and cause.__cause__ is not None:
        return cause.__cause__
    return cause
