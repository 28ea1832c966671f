"""Forwards for others in user space: what peers say to subnets behind us is said again by the machine's own network.

Owns the dials outward, their bounds, and what becomes of a knock. A caller is answered only after its destination has
answered us, and is told what the destination said. Refuses to know how bytes are carried between two streams, which is
handed in, and which peers exist.
"""

# Theory of operation
#
# The stack holds the SYNs and gathers the datagrams for addresses that `ForwardedRoutes` covers: prefixes that the user
# advertises *and* control has approved, so that neither can open this machine's network alone. A destination is judged
# once more before anything is sent there: no route however wide leads to this machine itself, to its links or back
# into a tailnet. Whoever knocks while every place is taken is passed over, as a full listener does: it says its SYN
# again. A route that is withdrawn ends what is carried by it.

from __future__ import annotations

import errno
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from typing import NamedTuple, Protocol, TypeVar

import trio

from tailscale._causes import sole_cause
from tailscale.runtime.bus import Bus
from tailscale.runtime.health import Health
from tailscale.runtime.messages import PreferencesChanged, TablesChanged
from tailscale.runtime.network import DatagramSocket, Network
from tailscale.runtime.supervision import Supervision
from tailscale.runtime.translate_tables import served_routes
from ts_base.errors import BadPacket
from ts_base.ip import (
    MAXIMUM_DATAGRAM,
    Prefix,
    format_address,
    format_prefix,
    is_link_local,
    is_loopback,
    is_martian_source,
    is_multicast,
    is_tailscale_address,
    parse_prefix,
)
from ts_dataplane.tables import local_table_of
from ts_netstack.forwarder import HELD_SECONDS, ForwardedFlow, Knock, Quota
from ts_netstack.stack import Stack
from ts_netstack.tcp import TcpConnection

DIALS_LIMIT, DIALS_LIMIT_PER_PEER = 128, 64
SOCKETS_LIMIT, SOCKETS_LIMIT_PER_PEER = 512, 256  # of the program's descriptors, which may be no more than 1024
APPROVAL_PATIENCE = 5.0  # control approves some routes by itself: only what is still missing then is worth a warning
NOT_APPROVED = "routes-not-approved"

log = logging.getLogger("tailscale.forward")

N = TypeVar("N", Knock, ForwardedFlow)
Carry = Callable[[TcpConnection, trio.abc.HalfCloseableStream], Awaitable[None]]


class CarriedBytes(Protocol):
    """`sent` into the tailnet, `received` from it."""

    sent: int
    received: int


class ForwardStatistics(NamedTuple):
    """What is open now, and what was carried and refused since the device started."""

    dials: int
    connections: int
    flows: int
    bytes_in: int  # into the tailnet
    bytes_out: int
    drops: dict[str, int]


class ForwardedRoutes:
    """What we forward for. A default route means public addresses only, as it does for those who use it."""

    def __init__(self, prefixes: Collection[Prefix]) -> None:
        self._table = local_table_of((), prefixes)

    def covers(self, address: bytes) -> bool:
        return self._table.lookup(address) is True


class Bell:
    """Wakes one task, once for however many changes."""

    def __init__(self) -> None:
        self._rung = trio.Event()

    def wake(self) -> None:
        self._rung.set()

    def shut(self) -> None:
        self._rung.set()

    async def wait(self) -> None:
        await self._rung.wait()
        self._rung = trio.Event()


class Forwarding:
    """One per device. `carry` joins an admitted connection and a stream of the machine's, and ends both."""

    def __init__(
        self,
        network: Network,
        stack: Stack,
        kick: Callable[[], None],
        carry: Carry,
        carried: CarriedBytes,
        *,
        supervision: Supervision,
    ) -> None:
        self._network, self._forwarder, self._supervision = network, stack.forwarder, supervision
        self._kick, self._carry, self._carried = kick, carry, carried
        self.drops: Counter[str] = Counter()
        self._dials = Quota(DIALS_LIMIT, DIALS_LIMIT_PER_PEER, self.drops, "forward.dials")
        self._sockets = Quota(SOCKETS_LIMIT, SOCKETS_LIMIT_PER_PEER, self.drops, "forward.sockets")
        self._connections: dict[trio.CancelScope, bytes] = {}  # what ends each, and where it leads

    def statistics(self) -> ForwardStatistics:
        flows = self._forwarder.statistics().flows
        carried = self._carried
        return ForwardStatistics(
            self._dials.taken, len(self._connections), flows, carried.sent, carried.received, dict(self.drops)
        )

    def set_prefixes(self, prefixes: Collection[Prefix]) -> None:
        """Forward for these from now on, and for nothing else."""
        forwarder = self._forwarder
        forwarder.set_routes(ForwardedRoutes(prefixes) if prefixes else None)
        for scope, address in self._connections.items():
            if not forwarder.covers(address):
                scope.cancel()
        self._kick()

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Answer whoever knocks, and carry every flow, until cancelled."""
        bell = self._forwarder.owner = Bell()
        async with trio.open_nursery() as nursery:
            while True:
                for news in self._forwarder.take_news():
                    if isinstance(news, Knock):
                        self._hear_knock(news, nursery)
                    else:
                        self._hear_flow(news, nursery)
                await bell.wait()

    def _hear_knock(self, knock: Knock, nursery: trio.Nursery) -> None:
        word = self._why_not(knock.local[0])
        if word is not None:
            self._refuse(knock, word)
        elif not self._sockets.take(knock.peer):
            self._forwarder.pass_over(knock)
        elif not self._dials.take(knock.peer):
            self._sockets.give_back(knock.peer)
            self._forwarder.pass_over(knock)
        else:
            nursery.start_soon(self._contained, self._answer, knock)

    def _hear_flow(self, flow: ForwardedFlow, nursery: trio.Nursery) -> None:
        word = self._why_not(flow.local[0])
        if word is not None:
            self._count(word, flow.local[0], flow.local[1])
            self._forwarder.end(flow)
        elif not self._sockets.take(flow.peer):
            self._forwarder.end(flow)
        else:
            nursery.start_soon(self._contained, self._carry_flow, flow)

    async def _contained(self, carry: Callable[[N], Awaitable[None]], news: N) -> None:
        """One flow's mistake ends that flow."""
        with self._supervision.contained("forwarding"):
            await carry(news)

    def _why_not(self, address: bytes) -> str | None:
        return forbidden(address) or (None if self._forwarder.covers(address) else "forward.no_route")

    # -- TCP -------------------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def _answer(self, knock: Knock) -> None:
        try:
            outward = await self._dial(knock)
            if outward is None:
                return
            connection = self._forwarder.admit(knock, trio.current_time())
            if connection is None:  # the peer no longer waits, or the route is gone
                self.drops["forward.caller_gone"] += 1
                await trio.aclose_forcefully(outward)
                return
            self._kick()
            with trio.CancelScope() as scope:
                self._connections[scope] = knock.local[0]
                try:
                    await self._carry(connection, outward)
                finally:
                    del self._connections[scope]
        finally:
            self._sockets.give_back(knock.peer)

    async def _dial(self, knock: Knock) -> trio.abc.HalfCloseableStream | None:
        """A stream to where `knock` wants to go; None after its caller was told why there is none."""
        address, port = knock.local
        try:
            with trio.move_on_after(HELD_SECONDS):
                return await self._network.open_tcp(format_address(address), port)
        except OSError as problem:
            self._refuse(knock, word_for(problem))
        else:
            self._count("forward.timed_out", address, port)
        finally:
            self._dials.give_back(knock.peer)
        return None

    def _refuse(self, knock: Knock, word: str) -> None:
        """Tell the caller what its destination said, or that it cannot be reached."""
        self._count(word, *knock.local)
        if word == "forward.no_descriptors":
            self._forwarder.pass_over(knock)
        else:
            self._forwarder.refuse(knock, trio.current_time(), reset=word == "forward.refused")
            self._kick()

    def _count(self, word: str, address: bytes, port: int) -> None:
        if not self.drops[word]:
            place = f"{format_address(address)} port {port}"
            log.warning("not forwarded to %s: %s; more of the kind are only counted", place, word)
        self.drops[word] += 1

    # -- UDP -------------------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def _carry_flow(self, flow: ForwardedFlow) -> None:
        """Both ways until the stack ends the flow, or either side says that nobody is there."""
        address, port = flow.local
        outward: DatagramSocket | None = None
        try:
            outward = await self._network.connect_udp(format_address(address), port)
            bell = flow.owner = Bell()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._carry_in, flow, outward)
                await self._carry_out(flow, outward, bell)
                nursery.cancel_scope.cancel()
        except OSError as problem:
            self._count(word_for(problem), address, port)
        finally:
            if outward is not None:
                outward.close()
            self._forwarder.end(flow)
            self._sockets.give_back(flow.peer)

    async def _carry_out(self, flow: ForwardedFlow, outward: DatagramSocket, bell: Bell) -> None:
        while not flow.is_closed and flow.error is None:
            while (item := flow.receive()) is not None:
                data = item[0]
                try:
                    await outward.send(data)
                except OSError as problem:  # of this datagram, or of one before it
                    self._count(word_for(problem), *flow.local)
                else:
                    self._carried.received += len(data)
            await bell.wait()

    async def _carry_in(self, flow: ForwardedFlow, outward: DatagramSocket) -> None:
        while True:
            try:
                data = await outward.recv(MAXIMUM_DATAGRAM + 1)
            except OSError as problem:
                self._count(word_for(problem), *flow.local)
                if isinstance(problem, ConnectionRefusedError):
                    continue  # what was sent last met a closed port; the next may meet an open one
                self._forwarder.end(flow)
                self._kick()
                return
            if flow.is_closed:
                return
            if len(data) > MAXIMUM_DATAGRAM:  # IPv6 carries a little more than the largest packet of ours
                self.drops["forward.datagram_too_large"] += 1
                continue
            flow.reply(data, trio.current_time())
            self._carried.sent += len(data)
            self._kick()


def forbidden(address: bytes) -> str | None:
    """Why nothing is ever forwarded there, whatever is advertised and approved; None where it may be."""
    if is_loopback(address):
        return "forward.loopback"
    if is_multicast(address):
        return "forward.multicast"
    if is_link_local(address):
        return "forward.link_local"
    if is_tailscale_address(address):
        return "forward.tailnet_address"
    return "forward.no_host" if is_martian_source(address) else None


def word_for(problem: OSError) -> str:
    """What came of a dial. trio says that all attempts failed; there was one, and it knows why."""
    cause = sole_cause(problem.__cause__) if problem.__cause__ is not None else problem
    if not isinstance(cause, OSError):
        cause = problem
    if isinstance(cause, ConnectionRefusedError):
        return "forward.refused"
    if isinstance(cause, TimeoutError):
        return "forward.timed_out"
    if cause.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EADDRNOTAVAIL):
        return "forward.no_descriptors"
    return "forward.unreachable"


# -- which routes ------------------------------------------------------------------------------------------------------


def read_routes(texts: Collection[str]) -> set[Prefix]:
    """Those that are prefixes: control's are checked where they are used, the user's where they were given."""
    found = set()
    for text in texts:
        try:
            found.add(parse_prefix(text))
        except BadPacket:
            continue
    return found


@trio.lowlevel.enable_ki_protection
async def run_forward(
    bus: Bus, forwarding: Forwarding, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Forward for what we advertise and control has approved. Owns: `Forwarding`'s sockets and tasks. Hears: tables,
    preferences. Says: health.
    """
    with bus.subscribe(TablesChanged, PreferencesChanged, name="forward") as inbox:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forwarding.run)
            task_status.started()
            in_force: set[Prefix] = set()
            forwarding.set_prefixes(in_force)
            missing: set[Prefix] = set()
            warn_at = math.inf
            while True:
                with trio.move_on_at(warn_at) as waiting:
                    await inbox.receive()
                if waiting.cancelled_caught:
                    warn_at = math.inf
                    show_missing(Health(bus), missing)
                    continue
                tables, wanted = bus.latest(TablesChanged), bus.latest(PreferencesChanged)
                if tables is None or wanted is None:
                    continue
                advertised = read_routes(wanted.preferences.advertise_routes)
                approved = read_routes(served_routes(tables.netmap.self_node))
                if advertised & approved != in_force:
                    in_force = advertised & approved
                    forwarding.set_prefixes(in_force)
                if advertised - approved != missing:
                    missing = advertised - approved
                    if missing:
                        warn_at = trio.current_time() + APPROVAL_PATIENCE
                    else:
                        warn_at = math.inf
                        Health(bus).clear(NOT_APPROVED)


def show_missing(health: Health, missing: Collection[Prefix]) -> None:
    names = ", ".join(sorted(map(format_prefix, missing)))
    health.show(
        NOT_APPROVED,
        f"advertised, but not approved by the control server, so that nothing is forwarded there: {names}",
        "approve them where the tailnet is administered (Headscale: headscale nodes approve-routes), or let its policy "
        "do so (autoApprovers)",
    )
