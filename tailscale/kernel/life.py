"""The life of a TUN device: made, given to the kernel's routing, kept as the tailnet says, and all of it taken back.

Owns the order in which that is done and undone, and who is told. Hears what changes the plan: tables, wishes, this
machine's network, and the kernel itself. What a packet meets is `tailscale/runtime/tun.py`.
"""

# Theory of operation
#
# What is made, in this order: the record, the device, the way around it for our own sockets, the overlay, addresses,
# routes, rules. It is taken back in the opposite order, whatever ended it: a failure at any step, a cancellation, the
# end of the device. The kernel helps: addresses and routes go with the interface, and the interface with the
# descriptor, even after kill -9; only the rules stay then, and they lead into an empty table. The record says whose
# they are.

from __future__ import annotations

import errno
import logging
import socket
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import trio

from tailscale._causes import sole_cause
from tailscale.errors import TunFailed
from tailscale.kernel.interface import Interface, InterfaceLost, machine_has_ipv6, sentence_of, what_is_missing
from tailscale.kernel.names import Domains, by_hand, domains_of, has_resolved, tell_resolved
from tailscale.kernel.netlink import Netlink, open_news
from tailscale.kernel.plan import Plan, Surroundings, make_plan
from tailscale.kernel.record import claim, records_folder
from tailscale.runtime.messages import NetworkChanged, PreferencesChanged, TablesChanged
from tailscale.runtime.network import HostNetwork
from tailscale.runtime.tun import SERVICES, StackBesideTun, TunDevice
from tailscale.tun_options import TunStatus
from ts_base.ip import format_address, format_prefix

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tailscale.runtime.bus import Bus
    from tailscale.runtime.dataplane import Dataplane
    from tailscale.runtime.health import Health
    from tailscale.runtime.network import Network, UdpUnderlay
    from tailscale.runtime.tun_switch import TunSwitch
    from tailscale.tun_options import TunOptions
    from ts_netstack.stack import Stack

log = logging.getLogger("tailscale.tun")
NO_INTERFACE = getattr(errno, "EBADFD", 0)  # what a TUN descriptor says whose interface is not there
SETTLE = 0.25  # seconds: changes come in flurries
RESTORES_LIMIT, RESTORES_WITHIN = 20, 60.0  # then whoever takes our routes away wins
ROUTES_REFUSED = "tun-routes-refused"
NAMES_BY_HAND = "tun-names"
NAMED = 5  # refused routes in a sentence


class TunLife:
    """One TUN device of one Device."""

    def __init__(
        self,
        options: TunOptions,
        control_url: str,
        network: Network,
        stack: Stack,
        dataplane: Dataplane,
        switch: TunSwitch,
        udp: UdpUnderlay | None,
        bus: Bus,
        health: Health,
    ) -> None:
        if not isinstance(network, HostNetwork):
            raise TunFailed("a TUN device is one of this machine's: a Device in another world has no kernel")
        if sys.platform != "linux":
            raise TunFailed(f"a TUN device is made on Linux only; this is {sys.platform}", "pytailscale proxy")
        self.options = options
        self._control_host = urlsplit(control_url).hostname or ""
        self._network = network
        self._stack, self._dataplane, self._switch, self._udp = stack, dataplane, switch, udp
        self._bus, self._health = bus, health
        self._interface: Interface | None = None
        self._dns = "off"
        self._known_domains: Domains | None = None
        self._stirred = trio.Event()

    def status(self) -> TunStatus:
        """As it is now."""
        plan = self._interface.plan if self._interface is not None else Plan()
        return TunStatus(
            name=self.options.name,
            mode="full" if plan.is_full else "split",
            mtu=self.options.mtu,
            addresses=tuple(map(format_address, sorted(plan.own, key=lambda one: (len(one), one)))),
            routes=tuple(map(format_prefix, sorted(plan.routes, key=lambda one: (len(one[0]), one)))),
            exclude=self.options.exclude,
            refused={format_prefix(prefix): why for prefix, why in plan.refused.items()},
            dns=self._dns,
            restored=self._interface.restored if self._interface is not None else 0,
        )

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Until cancelled, or something ends it: then TunFailed says what. Everything is taken back before."""
        try:
            with ExitStack() as undo:
                tun, interface = self._make(undo)
                await self._tell_names()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(tun.run_writer)
                    nursery.start_soon(tun.run_reader, self._dataplane.kick)
                    nursery.start_soon(self._hear_kernel)
                    nursery.start_soon(self._hear_device)
                    task_status.started()
                    await self._keep(interface)
        except BaseException as error:
            cause = sole_cause(error)
            if isinstance(cause, TunFailed) or not isinstance(cause, OSError):
                raise cause from cause.__cause__
            if cause.errno == NO_INTERFACE:
                raise InterfaceLost(f"somebody removed the interface {self.options.name}") from cause
            raise TunFailed(f"the TUN device {self.options.name} failed: {cause}", sentence_of(cause)) from cause
        finally:
            self._health.clear(ROUTES_REFUSED, NAMES_BY_HAND)
            self._interface = None

    def _make(self, undo: ExitStack) -> tuple[TunDevice, Interface]:
        """All of it, at once: nothing here waits."""
        name = self.options.name
        if missing := what_is_missing():
            raise TunFailed(f"the TUN device {name} cannot be made: this process needs {missing}")
        netlink = Netlink()
        undo.callback(netlink.close)
        held = claim(netlink, name, records_folder())
        undo.callback(held.release)
        tun = self._open_device(name)
        undo.callback(tun.close)
        interface = self._interface = Interface(netlink, name, self.options.mtu, held.base)
        undo.callback(interface.undo)
        undo.enter_context(self._around(interface))
        undo.enter_context(self._switch.turned(StackBesideTun(self._stack, tun)))
        self._follow(interface)
        return tun, interface

    def _open_device(self, name: str) -> TunDevice:
        try:
            return TunDevice(name, lambda: self._udp_port)
        except OSError as error:
            taken = " there is an interface of that name" if name in (one for _, one in socket.if_nameindex()) else ""
            sentence = f"the TUN device {name} cannot be made:{taken or f' {error.strerror or error}'}"
            raise TunFailed(sentence, sentence_of(error)) from error

    @contextmanager
    def _around(self, interface: Interface) -> Iterator[None]:
        """Our own sockets pass the tunnel by while the block runs."""
        self._network.go_around(lambda address: interface.uplink_to(address, self._udp_port))
        try:
            yield
        finally:
            self._network.go_around(None)

    @property
    def _udp_port(self) -> int:
        return self._udp.local_port if self._udp is not None else 0

    # Following

    def _follow(self, interface: Interface) -> bool:
        """Make the kernel have what it should have now. Whether somebody else had taken something away."""
        tables, preferences = self._dataplane.engine.tables, self._bus.latest(PreferencesChanged)
        wanted = preferences.preferences if preferences is not None else None
        known = Surroundings(
            own=tables.own,
            claims=(claim for peer in tables.peers.values() for claim in peer.claims),
            services=SERVICES,
            wants_exit=wanted is not None and bool(wanted.exit_node),
            networks=self._network.interface_prefixes() - {(own, 8 * len(own)) for own in tables.own},
            control=self._network.last_addresses(self._control_host),
            udp_port=self._udp_port,
            machine_has_ipv6=machine_has_ipv6(),
        )
        was_robbed = interface.follow(make_plan(self.options, known, interface.base, has_ipv6=interface.has_ipv6))
        self._show_refused(interface.plan)
        return was_robbed

    async def _keep(self, interface: Interface) -> None:
        since, restores = trio.current_time(), 0
        while True:
            await self._stirred.wait()
            await trio.sleep(SETTLE)
            self._stirred = trio.Event()
            if trio.current_time() - since > RESTORES_WITHIN:
                since, restores = trio.current_time(), 0
            restores += self._follow(interface)
            await self._tell_names()
            if restores > RESTORES_LIMIT:
                raise TunFailed(
                    f"another program takes the routes or rules of {self.options.name} away again and again",
                    "find it with `ip monitor route rule`; two VPNs that both want all traffic do not go together",
                )

    async def _hear_kernel(self) -> None:
        """Whatever changes in its tables. What is lost of it does not matter: everything is looked at again."""
        with open_news() as news:
            while True:
                await trio.lowlevel.wait_readable(news)
                try:
                    while news.recv(1 << 16):
                        pass
                except OSError:  # all is read, or more came than fitted
                    pass
                self._stirred.set()

    async def _hear_device(self) -> None:
        with self._bus.subscribe(TablesChanged, PreferencesChanged, NetworkChanged, name="tun") as inbox:
            while True:
                await inbox.receive()
                self._stirred.set()

    # Telling

    async def _tell_names(self) -> None:
        """Of the resolver at 100.100.100.100, whoever decides which resolver programs ask."""
        heard = self._bus.latest(TablesChanged)
        if self.options.dns is False or heard is None:
            return
        domains = domains_of(heard.netmap)
        if domains == self._known_domains:
            return
        self._known_domains = domains
        problem = ""
        if has_resolved():
            problem = await tell_resolved(self.options.name, domains)
            if not problem:
                self._dns = "resolved"
                self._health.clear(NAMES_BY_HAND)
                return
        if self.options.dns is True:
            raise TunFailed(f"dns=True, but {problem or 'systemd-resolved does not run here'}", by_hand(domains))
        self._dns = "by hand"
        sentence = problem or "this machine has no systemd-resolved, and nobody else is told which resolver to ask"
        self._health.show(NAMES_BY_HAND, f"programs do not know the tailnet's names: {sentence}", by_hand(domains))

    def _show_refused(self, plan: Plan) -> None:
        if not plan.refused:
            self._health.clear(ROUTES_REFUSED)
            return
        some = [f"{format_prefix(prefix)} ({why})" for prefix, why in list(plan.refused.items())[:NAMED]]
        more = f" and {len(plan.refused) - NAMED} more" if len(plan.refused) > NAMED else ""
        self._health.show(
            ROUTES_REFUSED,
            f"the kernel is not given these routes of peers: {', '.join(some)}{more}",
            "sockets of the device itself may still use them; accept_routes=False refuses all subnets",
        )
