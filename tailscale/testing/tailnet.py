"""A whole tailnet in one process: control server, relay and devices, with faults on demand.

Owns the lifetime of everything in it: what is inside `async with Tailnet()` is gone after it. Runs under real time and
under trio's MockClock. Refuses to know protocols; the servers are real ones, from `ts_control` and `ts_derp`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import trio

from tailscale.testing.acquaintance import knows, may_use, routes_of
from tailscale.testing.certificates import DEFAULT_LIFETIME, Certificates
from tailscale.testing.exits import EVERYWHERE, PlayedExit
from tailscale.testing.lans import VirtualLan
from tailscale.testing.network import VirtualHost
from tailscale.testing.routers import Kind, VirtualRouter
from tailscale.testing.servers import Control, Relay
from tailscale.testing.worlds import LoopbackPlace, Place, VirtualPlace
from ts_base.ip import format_address
from ts_base.keys import NodePublic
from ts_control.policy import Policy
from ts_control.server import DEFAULT_USER
from ts_control.server_funnel import USUAL_PORTS, FunnelRules
from ts_control.wire import Location, Service

if TYPE_CHECKING:
    from tailscale.device import Device
    from tailscale.testing.locking import TailnetLock

INTRODUCTION = 5.0  # seconds a new device and its peers get to learn of each other


class Joining:
    """`await` it for a device that lives as long as the tailnet, or `async with` it for one that leaves earlier."""

    def __init__(self, net: Tailnet, hostname: str, options: Mapping[str, Any]) -> None:
        self._net, self._hostname, self._options = net, hostname, options
        self._leave: Callable[[], Awaitable[None]] | None = None

    def __await__(self) -> Generator[Any, Any, Device]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Device:
        device, self._leave = await self._net.join(self._hostname, **self._options)
        return device

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._leave is not None:
            await self._leave()


class Tailnet:
    """A tailnet of one's own.

    ```python
    async with Tailnet() as net:
        a, b = await net.device("a"), await net.device("b")
        listener = await b.listen(80)
        stream = await a.tcp_connect("b", 80)
    ```

    Without `real` nothing leaves the process and no socket is opened; `latency` (seconds) and `loss` (0..1) then apply
    to every link. With `real=True` control and relay listen on loopback, where other programs can join too. With
    `certificates` an authority gives devices certificates for their names; a number is for how many seconds.
    """

    control: Control
    relay: Relay

    def __init__(
        self,
        *,
        real: bool = False,
        seed: int = 0,
        latency: float = 0.0,
        loss: float = 0.0,
        policy: Policy | str | Mapping[str, Any] | None = None,
        domain: str = "tailnet.test",
        key_lifetime: float = 0.0,
        certificates: bool | float = False,
    ) -> None:
        self._real = real
        self._lifetime = DEFAULT_LIFETIME if certificates is True else float(certificates)
        self._authority: Certificates | None = None
        self._world = (seed, latency, loss)
        self._control_options = (domain, policy, key_lifetime)
        self._hosts: dict[Device, str] = {}
        self._joined = 0

    # Lifetime

    async def __aenter__(self) -> Self:
        self._running = self._run()
        await self._running.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._running.__aexit__(kind, error, traceback)

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[None]:
        seed, latency, loss = self._world
        self._place: Place = LoopbackPlace() if self._real else VirtualPlace(seed=seed, latency=latency, loss=loss)
        async with trio.open_nursery() as servers:
            domain, policy, key_lifetime = self._control_options
            self.control = Control(self._place, servers, domain, policy, key_lifetime)
            self.relay = Relay(self._place, servers, self._is_enrolled)
            await self.relay.start()
            self.control.set_derp_map(self.relay.derp_map())
            await self.control.start()
            if self._lifetime:
                self._authority = Certificates(self._place, servers, self._lifetime)
                await self._authority.start()
                self.control.serve_certificates(self._authority.publish)
            async with trio.open_nursery() as self._devices:
                self._closing = trio.Event()
                try:
                    yield
                finally:
                    self._closing.set()
            servers.cancel_scope.cancel()

    def _is_enrolled(self, key: bytes) -> bool:
        return self.control.server.directory.by_key(NodePublic(key)) is not None

    @property
    def has_certificates(self) -> bool:
        """Whether there is an authority."""
        return self._authority is not None

    @property
    def certificates(self) -> Certificates:
        """The authority of a `Tailnet(certificates=True)`."""
        if self._authority is None:
            raise RuntimeError("this Tailnet has no certificates: make it with Tailnet(certificates=True)")
        return self._authority

    # Devices

    def device(self, hostname: str, **options: Any) -> Joining:
        """Let a `tailscale.Device` join; `options` are Device's own. `await` the result, or enter it."""
        return Joining(self, hostname, options)

    async def join(self, hostname: str, **options: Any) -> tuple[Device, Callable[[], Awaitable[None]]]:
        """The device, usable, and what makes it leave."""
        from tailscale.device import Device

        self._joined += 1
        host = hostname if hostname not in self._hosts.values() else f"{hostname}#{self._joined}"
        options.setdefault("control_url", self.control.url)
        options.setdefault("auth_key", None)
        if self._authority is not None:
            options.setdefault("certificates", self._authority.source)
        if options["auth_key"] is None:
            options["auth_key"] = self.auth_key()
        device = Device.on(self._place.network(host), hostname, **options)
        self._hosts[device] = host
        leaving, left = trio.Event(), trio.Event()

        async def live(*, task_status: trio.TaskStatus[None]) -> None:
            try:
                async with device:
                    task_status.started()
                    async with trio.open_nursery() as waiting:
                        for event in (leaving, self._closing):
                            waiting.start_soon(_cancel_when, event, waiting.cancel_scope)
            finally:
                del self._hosts[device]
                left.set()

        async def leave() -> None:
            leaving.set()
            await left.wait()

        await self._devices.start(live)
        with trio.move_on_after(INTRODUCTION):
            await self.until_introduced(device)
        return device, leave

    async def until_introduced(self, device: Device) -> None:
        """Wait until the devices that may know of each other do, so that tests need not."""
        server = self.control.server
        visible = server.visible_to(self.id_of(device))
        if not self._is_signed(device):
            return
        for other in self._hosts:
            if other is not device and self._is_signed(other) and self._is_known(other, visible):
                while not (knows(device, other) and knows(other, device)):  # noqa: ASYNC110 - two facts
                    await trio.sleep(0.002)

    def _is_signed(self, device: Device) -> bool:
        """Whether the tailnet's lock, if there is one, lets the device be a peer."""
        server = self.control.server
        try:
            return server.lock.vouches_for(server.directory.find(self.id_of(device)))
        except LookupError:
            return False

    def _is_known(self, device: Device, visible: frozenset[int]) -> bool:
        try:
            return self.id_of(device) in visible
        except LookupError:
            return False  # control has forgotten it: it must come back first

    async def exit_node(
        self,
        hostname: str,
        *,
        country: str = "",
        city: str = "",
        country_code: str = "",
        city_code: str = "",
        priority: int = 0,
        records: Mapping[str, Sequence[str]] | None = None,
        **options: Any,
    ) -> PlayedExit:
        """A device that is an exit node, approved and at its place, with a resolver that knows `records`.

        It forwards to the hosts of this tailnet's internet that have an address of their own: `net.host("web",
        "198.51.100.7")`. `options` are Device's.
        """
        options.setdefault("peerapi", False)  # its own resolver is played
        device = await self.device(hostname, advertise_routes=EVERYWHERE, **options)
        played = PlayedExit(device, {name.lower(): list(found) for name, found in (records or {}).items()})
        port = await self._devices.start(played.serve_dns)
        place = Location(country=country, country_code=country_code, city=city, city_code=city_code, priority=priority)
        services = (Service("peerapi4", port), Service("peerapi6", port))
        number = self.id_of(device)
        while not self.control.server.directory.find(number).advertised:  # noqa: ASYNC110 - control's own fact
            await trio.sleep(0.002)
        self.control.do(self.control.server.describe, number, location=place, services=services)
        self.approve_routes(device, *EVERYWHERE)
        with trio.move_on_after(INTRODUCTION):
            await self._until_offered(device)
        return played

    async def _until_offered(self, exit_device: Device) -> None:
        """Wait until the devices that may use an exit know that they may."""
        visible = self.control.server.visible_to(self.id_of(exit_device))
        for other in self._hosts:
            if other is not exit_device and self._is_known(other, visible):
                while not may_use(other, exit_device):  # noqa: ASYNC110 - another device's fact
                    await trio.sleep(0.002)

    def host(self, name: str, *addresses: str, uplinks: Sequence[str] = ()) -> VirtualHost:
        """A machine of the virtual internet: what lies behind a subnet router, or what a device of that name runs on.

        With addresses of its own, as `"198.51.100.7"`, it is one of those that exit nodes lead to. With `uplinks` it
        has several interfaces: `"van%wwan0"` names one where `link` and `block` ask for an end, and
        `host.set_up("wwan0", False)` switches one off.

        ```python
        async with Tailnet() as net:
            net.host("van", uplinks=["wlan0", "wwan0"])
            van, nas = await net.device("van", uplinks="all"), await net.device("nas")
            net.link("van%wwan0", nas, latency=0.04, jitter=0.02, rate=2_000_000, queue=200_000)
            net.block_udp("van%wlan0", nas)
        ```
        """
        host = self._place.network(name, *addresses, uplinks=uplinks)
        if not isinstance(host, VirtualHost):
            raise TypeError("on real sockets every host is this machine: use Tailnet() without real=True")
        return host

    def lan(self, prefix: str) -> VirtualLan:
        """A private network behind routers: `lan.host("printer")` is a machine in it that only they can reach."""
        if not isinstance(self._place, VirtualPlace):
            raise TypeError("on real sockets every host is this machine: use Tailnet() without real=True")
        return VirtualLan(self._place.internet, prefix, self.host)

    async def nat(self, hostname: str, kind: Kind = "easy") -> VirtualRouter:
        """Put the machine `hostname` behind a router of its own, before a device joins there: `easy`, or `hard`.

        Both let in only answers; a hard one uses another port for every destination, as those of clouds and CI do.
        """
        if not isinstance(self._place, VirtualPlace):
            raise TypeError("on real sockets every host is this machine: use Tailnet() without real=True")
        if not self.relay.second_stun:
            await self.relay.add_stun()
            self.control.set_derp_map(self.relay.derp_map())
        return self._place.internet.put_behind(hostname, kind)

    async def router(self, hostname: str, lan: VirtualLan, *, approve: bool = True, **options: Any) -> Device:
        """A device with a leg in `lan` that carries for others what goes there; approved, unless that is the subject.

        ```python
        async with Tailnet() as net:
            lan = net.lan("192.168.7.0/24")
            printer = lan.host("printer")
            laptop, router = await net.device("laptop"), await net.router("pi", lan)
        ```
        """
        routes = [lan.prefix, *options.pop("advertise_routes", ())]
        device = await self.device(hostname, advertise_routes=routes, **options)
        lan.admit(self.host(self._host_of(device)))
        number = self.id_of(device)
        while not self.control.server.directory.find(number).advertised:  # noqa: ASYNC110 - control's own fact
            await trio.sleep(0.002)
        if approve:
            self.approve_routes(device, *routes)
            with trio.move_on_after(INTRODUCTION):
                await self._until_routed(device)
        return device

    async def _until_routed(self, router: Device) -> None:
        """Wait until the router knows that it is one, and the others where to send what it carries."""
        while router.forwarding.missing and not self._is_standby(router):  # noqa: ASYNC110 - control's fact
            await trio.sleep(0.002)
        visible = self.control.server.visible_to(self.id_of(router))
        for other in self._hosts:
            if other is not router and self._is_known(other, visible):
                while not set(router.forwarding.approved) <= set(routes_of(other, router)):  # noqa: ASYNC110 - as above
                    await trio.sleep(0.002)

    def _is_standby(self, router: Device) -> bool:
        """Whether another router has its subnets now."""
        enrolled = self.control.server.directory.find(self.id_of(router))
        return not self.control.server.directory.primary_routes(enrolled)

    # What an administrator does

    def auth_key(
        self,
        user: str = DEFAULT_USER,
        *,
        reusable: bool = False,
        ephemeral: bool = False,
        tags: Sequence[str] = (),
        lifetime: float = 86_400.0,
    ) -> str:
        """A new auth key."""
        return self.control.server.create_auth_key(
            user, reusable=reusable, ephemeral=ephemeral, tags=tags, lifetime=lifetime
        )

    def policy(self, policy: Policy | str | Mapping[str, Any] | None) -> None:
        """Replace the policy, as HuJSON text or a mapping; None allows everything."""
        self.control.set_policy(policy)

    def lock(self) -> TailnetLock:
        """Lock the tailnet: those who are here are signed, those who come later are not until `sign`."""
        from tailscale.testing.locking import TailnetLock

        return TailnetLock(self.control, self._place.entropy, self.id_of)

    def funnel(self, *relays: Device | str, ports: str = USUAL_PORTS) -> None:
        """Let devices be published on the internet, at these ports, and `relays` bring what comes for them.

        ```python
        async with Tailnet() as net:
            net.funnel(await net.device("gate"))
        ```
        """
        nodes = [self.control.server.directory.find(self.id_of(relay)) for relay in relays]
        places = [format_address(address) for node in nodes for address in node.addresses]
        self.control.do(self.control.server.allow_funnel, FunnelRules(tuple(places), ports))

    def service(self, name: str, *, tags: Iterable[str] = ()) -> tuple[str, str]:
        """Let devices with one of these tags, or with any, host a service. Its IPv4 and IPv6 address.

        ```python
        async with Tailnet() as net:
            net.service("svc:web")
            host = await net.device("host", auth_key=net.auth_key(tags=["tag:web"]))
            listener = await host.listen_service("svc:web", 80)
        ```
        """
        ipv4, ipv6 = self.control.do(self.control.server.define_service, name, tags=tags)
        return format_address(ipv4), format_address(ipv6)

    def dns(self, /, **settings: Any) -> None:
        """Replace the DNS settings: `records`, `nameservers`, `split`, `search`, `magic_dns`, `filtered`."""
        self.control.do(self.control.server.set_dns, **settings)

    def approve_login(self, url: str, user: str = DEFAULT_USER) -> None:
        """What the person behind a login URL would do."""
        self.control.do(self.control.server.approve_login, url, user=user)

    @property
    def ssh_checks(self) -> tuple[str, ...]:
        """The pages of logins over SSH that wait for somebody to approve them."""
        return tuple(check.url for check in self.control.server.ssh_checks)

    def approve_ssh(self, page: str) -> None:
        """What the person behind the page of a login over SSH would do."""
        self.control.do(self.control.server.decide_ssh, page)

    def reject_ssh(self, page: str) -> None:
        """What that person does about a login that nobody wanted."""
        self.control.do(self.control.server.decide_ssh, page, approved=False)

    def expire(self, device: Device | str) -> None:
        """The device's key expires now."""
        self.control.do(self.control.server.expire, self.id_of(device))

    def remove(self, device: Device | str) -> None:
        """The device is deleted from the tailnet."""
        self.control.do(self.control.server.remove, self.id_of(device))

    def rename(self, device: Device | str, name: str) -> None:
        """The device has another name from now on."""
        self.control.do(self.control.server.rename, self.id_of(device), name)

    def readdress(self, device: Device | str, ipv4: str | None = None) -> None:
        """The device has another address from now on: this one, which nobody else has, or the next that is free."""
        self.control.do(self.control.server.readdress, self.id_of(device), ipv4=ipv4)

    def set_tags(self, device: Device | str, tags: Iterable[str]) -> None:
        """The device has exactly these tags."""
        self.control.do(self.control.server.set_tags, self.id_of(device), tags)

    def approve_routes(self, device: Device | str, *routes: str) -> None:
        """Exactly these of the advertised routes are in force."""
        self.control.do(self.control.server.approve_routes, self.id_of(device), routes)

    def id_of(self, device: Device | str) -> int:
        """Control's number for a device, given it or its name."""
        directory = self.control.server.directory
        if isinstance(device, str):
            found = next((enrolled.id for enrolled in directory if enrolled.label == device), None)
        else:
            found = device.node.id if device.node.id in directory.devices else None
        if found is not None:
            return found
        raise LookupError(f"no device {device!r} in this tailnet")

    # Faults

    def block_udp(self, first: Device | str, second: Device | str) -> None:
        """Nothing goes directly between these two any more: only the relay is left."""
        self._change(first, second, udp_blocked=True)

    def unblock_udp(self, first: Device | str, second: Device | str) -> None:
        """Direct paths are possible again."""
        self._change(first, second, udp_blocked=False)

    def block(self, first: Device | str, second: Device | str) -> None:
        """A cable pulled between two hosts ("control" and "relay" are hosts too): bytes go nowhere, nobody is told."""
        self._change(first, second, udp_blocked=True, tcp_blocked=True)

    def unblock(self, first: Device | str, second: Device | str) -> None:
        """The cable is back."""
        self._change(first, second, udp_blocked=False, tcp_blocked=False)

    def link(
        self,
        first: Device | str,
        second: Device | str,
        *,
        latency: float | None = None,
        loss: float | None = None,
        largest: int | None = None,
        jitter: float | None = None,
        rate: float | None = None,
        queue: int | None = None,
        udp_blocked: bool | None = None,
        one_way: bool = False,
    ) -> None:
        """Change latency (seconds, one way), loss (0..1) or the largest datagram (bytes) between two hosts.

        And for datagrams: `jitter` (seconds more, evenly drawn), `rate` (bytes a second, 0 for no limit) with the
        `queue` before it (bytes), and whether any pass. With `one_way` only those from the first to the second.
        """
        changes: dict[str, Any] = {"latency": latency, "loss": loss, "largest": largest, "jitter": jitter}
        changes |= {"rate": rate, "queue": queue, "udp_blocked": udp_blocked, "one_way": one_way or None}
        self._change(first, second, **{name: value for name, value in changes.items() if value is not None})

    def set_clock(self, host: Device | str, *, ahead: float) -> None:
        """The clock of that machine is wrong from now on, by so many seconds; negative for one that is behind."""
        self.host(self._host_of(host)).clock_ahead = ahead

    def _change(self, first: Device | str, second: Device | str, **changes: float | bool) -> None:
        self._place.change(self._host_of(first), self._host_of(second), **changes)

    def _host_of(self, device: Device | str) -> str:
        return device if isinstance(device, str) else self._hosts[device]


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
