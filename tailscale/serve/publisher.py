"""What a Serve does while it runs: a listener for each port of the plan, opened and closed as the plan changes.

Owns the listeners, the connections of all ports, the lives of apps, and what is counted of each port. Connections that
are open when a port is taken away go on; the next request of theirs is answered by the new plan.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import trio

from tailscale.carry import LOST, Abortable, Carried, Stream, reset
from tailscale.errors import TailscaleError
from tailscale.http.arrival import Arrival
from tailscale.http.caller import describe_caller
from tailscale.http.connections import Connections
from tailscale.http.lifespan import Lifespan
from tailscale.http1.visits import Visits
from tailscale.serve.config import OWN_NAME, Json, kind_of
from tailscale.serve.forwards import forward
from tailscale.serve.funnels import Funnels
from tailscale.serve.plan import Place, Plan
from tailscale.serve.secure import PROVING, Certificates, Given, NoSuchName, OfDevice, hear_hello
from tailscale.serve.site import Site, service_name
from tailscale.serve.targets import App

if TYPE_CHECKING:
    import ssl

    from tailscale.device import Device
    from tailscale.http1.limits import Limits
    from tailscale.http1.visits import Visit
    from tailscale.sockets.tcp import TcpStream

    AnyListener = trio.abc.Listener[TcpStream]

log = logging.getLogger("tailscale.serve")
KEEPALIVE = 60.0  # a silent client is asked this often whether it still exists
CERTIFICATE_PATIENCE = 60.0  # the first connection may have to wait for an order (upstream's minute)
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # until a port that could not be opened is tried again


class PortStatistics(NamedTuple):
    """What one port has done."""

    connections: int
    """Accepted since it was opened."""
    open: int
    refused: int
    """Turned away: too many were open, or they may not come in."""
    bytes_sent: int
    """Into the tailnet, by TCP forwarding."""
    bytes_received: int


class ServeStatistics(NamedTuple):
    """What a Serve has done, by port: `"443"` or, for a service, `"svc:web:443"`."""

    ports: Mapping[str, PortStatistics]


@runtime_checkable
class Drainable(Protocol):
    """The listener of a Service."""

    def drain(self) -> None: ...

    def advertise(self) -> None: ...


@dataclass(slots=True, eq=False)
class Port:
    """One listener, and what came by it."""

    place: Place  # the service, "" for this device's own addresses, and the port
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    listener: Drainable | None = None  # of a service
    problem: str = ""
    accepted: int = 0
    open: int = 0
    refused: int = 0
    carried: Carried = field(default_factory=Carried)

    @property
    def name(self) -> str:
        """`443` or, for a service, `svc:web:443`."""
        service, number = self.place
        return f"{service}:{number}" if service else str(number)

    def statistics(self) -> PortStatistics:
        return PortStatistics(self.accepted, self.open, self.refused, self.carried.received, self.carried.sent)


class Publisher:
    """Lives while a Serve runs."""

    def __init__(
        self,
        device: Device,
        plan: Callable[[], Plan],
        certificates: OfDevice | Given,
        limits: Limits,
        own_socket: str,
    ) -> None:
        self._device = device
        self._plan = plan
        self._certificates = certificates
        self._limits = limits
        self._visits = Visits()
        self._states: dict[App, dict[str, Any]] = {}
        self.site = Site(device, plan, self._states, own_socket)
        self._connections = Connections(device, limits, self._visits, self.site.choose)
        self._ports: dict[Place, Port] = {}
        self._lives: dict[App, Lifespan] = {}
        self._changed = trio.Event()
        self._funnels = Funnels(device, self.take)

    def change(self) -> None:
        """The plan is another one."""
        self._changed.set()

    def statistics(self) -> ServeStatistics:
        return ServeStatistics({port.name: port.statistics() for port in self._ports.values()})

    def problems(self) -> dict[int, str]:
        """Ports of this device that could not be opened, and why."""
        return {number: port.problem for (of, number), port in self._ports.items() if port.problem and not of}

    # How it runs

    async def run(self, started: Callable[[], object]) -> None:
        """Until cancelled, or until the device closes. Raises where a port of the first plan cannot be opened."""
        listeners: dict[Place, AnyListener] = {}
        try:
            for place in self._plan().places:
                listeners[place] = await self._listen(place)
            async with trio.open_nursery() as nursery:
                await self._live(nursery, listeners, started)
        finally:
            with trio.CancelScope(shield=True):
                for listener in listeners.values():
                    await listener.aclose()

    async def _live(
        self, nursery: trio.Nursery, listeners: dict[Place, AnyListener], started: Callable[[], object]
    ) -> None:
        try:
            await self._start_apps(nursery)
            for place, listener in listeners.items():
                self._open(place, nursery, listener)
            started()
            while True:
                self._changed = trio.Event()
                await self._start_apps(nursery)
                self._reconcile(nursery)
                self._funnels.follow(self._plan().funnels)
                await self._changed.wait()
        finally:
            self._funnels.close()
            for life in self._lives.values():
                await life.stop(self._limits.shutdown_timeout)

    async def _start_apps(self, nursery: trio.Nursery) -> None:
        """Apps that are new have their startup before their first request."""
        for mounts in self._plan().web.values():
            for mount in mounts.values():
                app = mount.target
                if not isinstance(app, App) or app in self._lives:
                    continue
                life = self._lives[app] = Lifespan(app.app)
                nursery.start_soon(life.run)
                await life.start(self._limits.startup_timeout)
                if life.failure is not None:
                    raise life.failure
                self._states[app] = life.state

    def _reconcile(self, nursery: trio.Nursery) -> None:
        wanted = self._plan().places
        for place in [place for place in self._ports if place not in wanted]:
            self._ports.pop(place).scope.cancel()
        for place in wanted:
            if place not in self._ports:
                self._open(place, nursery, None)
        for port in self._ports.values():
            self._drain(port)

    def _drain(self, port: Port) -> None:
        """As the plan has it; nothing is told twice."""
        if port.listener is not None:
            (port.listener.drain if port.place[0] in self._plan().draining else port.listener.advertise)()

    async def _listen(self, place: Place) -> AnyListener:
        service, number = place
        return await (self._device.listen_service(service, number) if service else self._device.listen(number))

    def _open(self, place: Place, nursery: trio.Nursery, listener: AnyListener | None) -> None:
        port = self._ports[place] = Port(place)
        nursery.start_soon(self._keep, port, listener, nursery)

    async def _keep(self, port: Port, listener: AnyListener | None, nursery: trio.Nursery) -> None:
        """One port, as long as it is wanted: one that somebody else has is tried again."""
        pause = FIRST_PAUSE
        with port.scope:
            while True:
                try:
                    opened = listener or await self._listen(port.place)
                    async with opened:
                        port.problem, pause = "", FIRST_PAUSE
                        port.listener = opened if isinstance(opened, Drainable) else None
                        self._drain(port)
                        await self._accept(opened, port, nursery)
                except trio.ClosedResourceError:
                    return  # the device is closing: nobody can call any more
                except (TailscaleError, OSError, ValueError) as problem:
                    port.problem = str(problem)
                    log.warning("port %s cannot be served: %s. Again in %g s", port.name, problem, pause)
                listener = None
                await trio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    async def _accept(self, listener: AnyListener, port: Port, nursery: trio.Nursery) -> None:
        while True:
            await self._connections.wait_for_room()
            tcp = await listener.accept()
            self._admit(tcp, port, nursery)

    def _admit(self, tcp: TcpStream, port: Port, nursery: trio.Nursery) -> None:
        peer = tcp.peer
        port.accepted += 1
        visit = self._connections.admit(peer.stable_id if peer else tcp.remote_address[0], tcp.shut)
        if visit is None:
            port.refused += 1
            tcp.abort()
            return
        tcp.set_keepalive(KEEPALIVE)
        arrival = Arrival(tcp.remote_address, tcp.local_address, service=port.place[0])
        nursery.start_soon(self._attend, port, tcp, arrival, visit)

    # Connections

    async def take(self, number: int, stream: Stream, source: tuple[str, int], is_funnel: bool) -> None:
        """One that came another way than by a listener of ours, to its end."""
        port = self._ports.get(("", number))
        hang_up = stream.abort if isinstance(stream, Abortable) else _nothing
        visit = self._connections.admit(f"funnel {source[0]}" if is_funnel else source[0], hang_up)
        if port is None or visit is None:
            await reset(stream)
            if visit is not None:
                self._visits.leave(visit)
            return
        port.accepted += 1
        own = self._device.ipv6 if ":" in source[0] else self._device.ipv4
        arrival = Arrival(source, (own or "", number), is_tailnets=not is_funnel)
        await self._attend(port, stream, arrival, visit)

    async def _attend(self, port: Port, stream: Stream, arrival: Arrival, visit: Visit) -> None:
        port.open += 1
        is_left = False
        try:
            handler = self._plan().handler(port.place)
            kind = kind_of(handler)
            tls: ssl.SSLContext | None = None
            if kind == "https":
                stream, tls, arrival = await self._secured(stream, arrival)
            elif kind == "tls-terminated-tcp":
                tls = await self._certificate(self._certificates.for_bytes, self._named(handler["TerminateTLS"]))
            if kind in ("http", "https"):
                is_left = True  # it gives the place back itself
                await self._connections.attend(stream, tls, arrival, visit)
            elif not self.site.is_own(handler.get("TCPForward") or "") and await self._may_forward(arrival, port):
                self._visits.on_request(visit)
                await forward(self._device, handler, stream, tls, arrival, port.carried)
            else:
                await reset(stream)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await reset(stream)  # so that nobody takes the half of an answer for the whole
            raise
        except NoSuchName as problem:
            log.debug("a connection to port %s: %s", port.name, problem)
            with trio.CancelScope(shield=True):
                await stream.aclose()  # a reset could overtake what was said of it
        except (*LOST, TailscaleError, trio.TooSlowError) as problem:
            log.debug("a connection to port %s: %s", port.name, problem)
            with trio.CancelScope(shield=True):
                await reset(stream)
        except Exception:  # a mistake of ours costs this connection, not the others
            log.exception("a connection to port %s failed", port.name)
            with trio.CancelScope(shield=True):
                await reset(stream)
        finally:
            port.open -= 1
            if not is_left:
                self._visits.leave(visit)

    async def _secured(self, stream: Stream, arrival: Arrival) -> tuple[Stream, ssl.SSLContext, Arrival]:
        with trio.fail_after(self._limits.head_timeout):
            hello, stream = await hear_hello(stream, lambda name: self.site.serves(name, arrival))
        if hello.protocols == PROVING:
            return stream, self._certificates.for_validator(), arrival._replace(is_secure=True, name=hello.name)
        name = hello.name.lower()
        return (
            stream,
            await self._certificate(self._certificates.for_web, name),
            arrival._replace(is_secure=True, name=name),
        )

    def _named(self, name: str) -> str:
        return self.site.own_name if name == OWN_NAME else name

    async def _certificate(self, source: Certificates, name: str) -> ssl.SSLContext:
        try:
            with trio.fail_after(CERTIFICATE_PATIENCE):
                return await source(name)
        except (TailscaleError, OSError, trio.TooSlowError) as problem:
            log.warning("there is no certificate for %s: %s", name, problem)
            raise

    async def _may_forward(self, arrival: Arrival, port: Port) -> bool:
        is_tailnets = arrival.is_tailnets
        caller = await describe_caller(self._device, arrival.remote_address) if is_tailnets else None
        if self._plan().allow.lets_in(caller):
            return True
        port.refused += 1
        return False


def _nothing() -> None:
    """A stream that cannot be reset ends by itself."""


def urls_of(places: Mapping[Place, Json], own_name: str) -> tuple[str, ...]:
    """Where each port is reached."""
    found = []
    for (service, number), handler in sorted(places.items()):
        kind = kind_of(handler)
        scheme = kind if kind in ("http", "https") else "tcp"
        suffix = "" if (scheme, number) in (("http", 80), ("https", 443)) else f":{number}"
        found.append(f"{scheme}://{service_name(service, own_name) if service else own_name}{suffix}")
    return tuple(found)
