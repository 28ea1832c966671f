"""Forwards for others in user space: what peers say to subnets behind us is said again by the machine's own network.

Owns the dials outward, their bounds, and what becomes of a knock. A caller is answered only after its destination has
answered us, and is told what the destination said. Refuses to know how bytes are carried between two streams, which is
handed in, where nothing is ever sent (forward_guard.py), which routes there are (forward_actor.py), and which peers.
"""

# Theory of operation
#
# The stack holds the SYNs and gathers the datagrams for addresses that `Destinations` covers: prefixes that the user
# advertises *and* control has approved, so that neither can open this machine's network alone. A destination is judged
# once more before anything is sent there. Then the program may take the flow itself (`on_flow`). Whoever knocks while
# every place is taken is passed over, as a full listener does: it says its SYN again. A caller that gives up ends the
# dial made for it. A route that is withdrawn ends what is carried by it.

from __future__ import annotations

import errno
import inspect
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from typing import Literal, NamedTuple, Protocol, TypeVar

import trio

from tailscale._causes import sole_cause
from tailscale.forwarding import REFUSE, FlowAnswer, FlowHandler, ForwardLimits, IncomingFlow, OnFlow
from tailscale.nodes import Node
from tailscale.runtime.forward_guard import Destinations
from tailscale.runtime.health import Health
from tailscale.runtime.network import DatagramSocket, Network
from tailscale.runtime.supervision import Supervision
from ts_base.ip import MAXIMUM_DATAGRAM, Prefix, format_address
from ts_base.who import PeerId
from ts_netstack.forwarder import Echo, ForwardedFlow, ForwarderLimits, Knock, Quota
from ts_netstack.stack import Stack
from ts_netstack.tcp import TcpConnection

PING_PATIENCE = 3.0
FAILURES_SHOWN = 10  # of the program's functions, with their tracebacks; a peer may bring about any number
CANNOT_PING = "router-cannot-ping"

log = logging.getLogger("tailscale.forward")

N = TypeVar("N", Knock, ForwardedFlow, Echo)


class CarriedBytes(Protocol):
    """`sent` into the tailnet, `received` from it."""

    sent: int
    received: int


class Carrier(Protocol):
    """Who knows streams. Each of these returns when the flow has ended, and has ended it when it is cancelled."""

    @property
    def carried(self) -> CarriedBytes: ...
    async def join(self, connection: TcpConnection, outward: trio.abc.HalfCloseableStream) -> None: ...
    async def hand_connection(self, connection: TcpConnection, handler: FlowHandler) -> None: ...
    async def hand_flow(self, flow: ForwardedFlow, handler: FlowHandler) -> None: ...


class Asked(NamedTuple):
    """The program's say about flows: `on_flow`, and who a peer is."""

    on_flow: OnFlow | None
    node: Callable[[PeerId], Node | None]


class ForwardStatistics(NamedTuple):
    """What is open now, and what was carried and refused since the device started."""

    dials: int
    connections: int
    flows: int
    bytes_in: int  # into the tailnet
    bytes_out: int
    drops: dict[str, int]


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
    """One per device. `carrier` joins an admitted connection and a stream of the machine's, and ends both."""

    def __init__(
        self,
        network: Network,
        stack: Stack,
        kick: Callable[[], None],
        carrier: Carrier,
        asked: Asked,
        limits: ForwardLimits,
        health: Health,
        *,
        supervision: Supervision,
    ) -> None:
        self._network, self._forwarder, self._supervision = network, stack.forwarder, supervision
        self._kick, self._carrier, self._asked, self._health = kick, carrier, asked, health
        self._limits = limits
        self._destinations = Destinations(())
        self.drops: Counter[str] = Counter()
        fitted = fit(limits, network.socket_limit())
        stack.forwarder.set_limits(fitted)
        self._dials = Quota(limits.dials, limits.dials_per_peer, self.drops, "forward.dials")
        self._sockets = Quota(fitted.admitted, fitted.admitted_each, self.drops, "forward.sockets")
        self._dialling: dict[bytes, trio.CancelScope] = {}  # by knock
        self._connections: dict[trio.CancelScope, bytes] = {}  # what ends each, and where it leads

    def statistics(self) -> ForwardStatistics:
        flows = self._forwarder.statistics().flows
        carried = self._carrier.carried
        return ForwardStatistics(
            self._dials.taken, len(self._connections), flows, carried.sent, carried.received, dict(self.drops)
        )

    def set_prefixes(self, prefixes: Collection[Prefix], interfaces: Collection[Prefix] = ()) -> None:
        """Forward for these from now on, and for nothing else, on a machine that is in the networks `interfaces`."""
        destinations = self._destinations = Destinations(prefixes, interfaces)
        forwarder = self._forwarder
        forwarder.set_routes(destinations if prefixes else None)
        for scope, address in self._connections.items():
            if destinations.why_not(address) is not None:
                scope.cancel()
        for flow in list(forwarder.flows.values()):
            if destinations.why_not(flow.local[0]) is not None:
                forwarder.end(flow)
        self._kick()

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Answer whoever knocks, carry every flow, ask for whoever is pinged, until cancelled."""
        bell = self._forwarder.owner = Bell()
        async with trio.open_nursery() as nursery:
            while True:
                for key in self._forwarder.take_gone():
                    if (scope := self._dialling.get(key)) is not None:
                        scope.cancel()
                for news in self._forwarder.take_news():
                    if isinstance(news, Knock):
                        self._hear_knock(news, nursery)
                    elif isinstance(news, ForwardedFlow):
                        self._hear_flow(news, nursery)
                    else:
                        self._hear_echo(news, nursery)
                await bell.wait()

    def _hear_knock(self, knock: Knock, nursery: trio.Nursery) -> None:
        word = self._destinations.why_not(knock.local[0])
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
        word = self._destinations.why_not(flow.local[0])
        if word is not None:
            self._count(word, flow.local[0], flow.local[1])
            self._forwarder.end(flow)
        else:
            nursery.start_soon(self._contained, self._carry_flow, flow)

    def _hear_echo(self, echo: Echo, nursery: trio.Nursery) -> None:
        word = self._destinations.why_not(echo.local)
        if word is not None:
            self._count(word, echo.local, 0)
            self._forwarder.settle_echo(echo, trio.current_time(), is_there=False)
        else:
            nursery.start_soon(self._contained, self._ask_for, echo)

    async def _contained(self, carry: Callable[[N], Awaitable[None]], news: N) -> None:
        """One flow's mistake ends that flow."""
        with self._supervision.contained("forwarding"):
            await carry(news)

    def _count(self, word: str, address: bytes, port: int) -> None:
        if not self.drops[word]:
            place = f"{format_address(address)} port {port}" if port else format_address(address)
            log.warning("not forwarded to %s: %s; more of the kind are only counted", place, word)
        self.drops[word] += 1

    async def _program_says(self, incoming: IncomingFlow) -> FlowAnswer:
        """What the program wants with a flow. What it raises means that it does not want it."""
        on_flow = self._asked.on_flow
        if on_flow is None:
            return None
        try:
            answer = on_flow(incoming)
            if inspect.isawaitable(answer):
                answer = await answer
            if answer is None or answer is REFUSE or callable(answer):
                return answer
            raise TypeError(f"on_flow returns None, REFUSE or an async function, not {answer!r}")
        except Exception:
            self._show_failure("forward.on_flow_failed", incoming.destination)
            return REFUSE

    def _show_failure(self, word: str, destination: tuple[str, int]) -> None:
        """A function of the program's has raised: that is the program's to mend, and ends this flow alone."""
        self.drops[word] += 1
        if self.drops[word] <= FAILURES_SHOWN:
            log.exception("a flow to %s port %s has ended: %s", *destination, word)

    # -- TCP -------------------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def _answer(self, knock: Knock) -> None:
        key = knock.key
        scope = self._dialling[key] = trio.CancelScope()
        outward: trio.abc.HalfCloseableStream | FlowHandler | None = None
        try:
            with scope:
                try:
                    outward = await self._dial(knock)
                finally:
                    self._dials.give_back(knock.peer)
                    if self._dialling.get(key) is scope:
                        del self._dialling[key]
            if scope.cancelled_caught:
                self.drops["forward.caller_gone"] += 1
            if outward is not None:
                await self._admit(knock, outward)
        finally:
            self._sockets.give_back(knock.peer)

    async def _admit(self, knock: Knock, outward: trio.abc.HalfCloseableStream | FlowHandler) -> None:
        """Somebody takes it: the caller hears so, and it is carried to its end."""
        connection = self._forwarder.admit(knock, trio.current_time())
        if connection is None:  # the peer no longer waits, or the route is gone
            self.drops["forward.caller_gone"] += 1
            if isinstance(outward, trio.abc.AsyncResource):
                await trio.aclose_forcefully(outward)
            return
        self._kick()
        with trio.CancelScope() as scope:
            self._connections[scope] = knock.local[0]
            try:
                if isinstance(outward, trio.abc.HalfCloseableStream):
                    await self._carrier.join(connection, outward)
                else:
                    await self._hand(self._carrier.hand_connection(connection, outward), knock.local)
            finally:
                del self._connections[scope]

    async def _hand(self, handing: Awaitable[None], local: tuple[bytes, int]) -> None:
        """The program's handler has it."""
        try:
            await handing
        except Exception:
            self._show_failure("forward.handler_failed", (format_address(local[0]), local[1]))

    async def _dial(self, knock: Knock) -> trio.abc.HalfCloseableStream | FlowHandler | None:
        """Who takes it: the program, or a stream to where it wants to go. None after its caller was told of neither."""
        address, port = knock.local
        target = format_address(self._destinations.target_of(address))
        try:
            with trio.move_on_after(self._limits.dial_timeout):
                answer = await self._program_says(self._incoming("tcp", knock.peer, knock.remote, knock.local))
                if answer is REFUSE:
                    self._refuse(knock, "forward.by_program")
                    return None
                if answer is not None:
                    return answer
                if (word := self._destinations.why_not(address)) is not None:  # the program took its time
                    self._refuse(knock, word)
                    return None
                return await self._network.open_tcp(target, port)
            self._refuse(knock, "forward.timed_out")
        except OSError as problem:
            self._refuse(knock, word_for(problem))
        return None

    def _incoming(
        self, protocol: Literal["tcp", "udp"], peer: PeerId, remote: tuple[bytes, int], local: tuple[bytes, int]
    ) -> IncomingFlow:
        source, destination = (format_address(remote[0]), remote[1]), (format_address(local[0]), local[1])
        return IncomingFlow(protocol, self._asked.node(peer), source, destination)

    def _refuse(self, knock: Knock, word: str) -> None:
        """Tell the caller what its destination said, or that it cannot be reached."""
        self._count(word, *knock.local)
        if word == "forward.no_descriptors":
            self._forwarder.pass_over(knock)
        else:
            is_closed_port = word in ("forward.refused", "forward.by_program")
            self._forwarder.refuse(knock, trio.current_time(), is_reachable=is_closed_port)
            self._kick()

    # -- UDP -------------------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def _carry_flow(self, flow: ForwardedFlow) -> None:
        """Both ways until the stack ends the flow, or either side says that nobody is there."""
        address, port = flow.local
        outward: DatagramSocket | None = None
        bell = flow.owner = Bell()
        try:
            answer: FlowAnswer = REFUSE
            with trio.move_on_after(self._limits.dial_timeout):
                answer = await self._program_says(self._incoming("udp", flow.peer, flow.peer_address, flow.local))
            if flow.is_closed or self._destinations.why_not(address) is not None:
                return
            if answer is REFUSE:
                self._count("forward.by_program", address, port)
                self._forwarder.report_refusal(flow, trio.current_time())
                return
            if answer is not None:
                await self._hand(self._carrier.hand_flow(flow, answer), flow.local)
                return
            target = format_address(self._destinations.target_of(address))
            outward = await self._network.connect_udp(target, port)
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
            self._kick()

    async def _carry_out(self, flow: ForwardedFlow, outward: DatagramSocket, bell: Bell) -> None:
        while not flow.is_closed and flow.error is None:
            while (item := flow.receive()) is not None:
                data = item[0]
                try:
                    await outward.send(data)
                except OSError as problem:  # of this datagram, or of one before it
                    self._hear_error(flow, problem)
                else:
                    self._carrier.carried.received += len(data)
            await bell.wait()

    async def _carry_in(self, flow: ForwardedFlow, outward: DatagramSocket) -> None:
        while True:
            try:
                data = await outward.recv(MAXIMUM_DATAGRAM + 1)
            except OSError as problem:
                if self._hear_error(flow, problem):
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
            self._carrier.carried.sent += len(data)
            self._kick()

    def _hear_error(self, flow: ForwardedFlow, problem: OSError) -> bool:
        """Count what the host says of a flow; whether it means a closed port, of which the peer is told too."""
        self._count(word_for(problem), *flow.local)
        is_closed_port = isinstance(problem, ConnectionRefusedError)
        if is_closed_port and not flow.is_closed:
            self._forwarder.report_refusal(flow, trio.current_time())
            self._kick()
        return is_closed_port

    # -- echo ------------------------------------------------------------------------------------------------------

    async def _ask_for(self, echo: Echo) -> None:
        """Ask the host that a peer pings; it is answered when the host answers us."""
        is_there = False
        try:
            is_there = await self._network.ping(format_address(self._destinations.target_of(echo.local)), PING_PATIENCE)
        except PermissionError as problem:
            self._count("forward.cannot_ping", echo.local, 0)
            self._health.show(
                CANNOT_PING,
                f"hosts behind this router cannot be pinged: {problem.strerror or problem}",
                "let this user send echo requests (sysctl net.ipv4.ping_group_range='0 2147483647'), or install ping; "
                "connections are forwarded all the same",
            )
        except OSError as problem:
            self._count(word_for(problem), echo.local, 0)
        else:
            self._health.clear(CANNOT_PING)
        finally:
            self._forwarder.settle_echo(echo, trio.current_time(), is_there=is_there)
            self._kick()


def fit(limits: ForwardLimits, sockets: int) -> ForwarderLimits:
    """What the stack is told: of `sockets` that the program may have, a quarter for connections and one for flows."""
    quarter = max(sockets // 4, 8)
    connections, flows = min(limits.connections, quarter), min(limits.flows, quarter)
    return ForwarderLimits(
        held=limits.dials,
        held_each=min(limits.dials_per_peer, limits.dials),
        admitted=connections,
        admitted_each=min(limits.connections_per_peer, max(connections // 2, 1)),
        flows=flows,
        flows_each=min(limits.flows_per_peer, max(flows // 2, 1)),
        flow_idle=limits.flow_idle,
        dns_idle=limits.dns_idle,
        echoes=limits.pings,
        echoes_per_second=limits.pings_per_second,
    )


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
