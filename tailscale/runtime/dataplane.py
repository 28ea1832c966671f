"""The loop that carries packets: whoever reads a burst takes it through the engine, then everything ready is sent.

Owns the order of calls, the two tasks around the engine (flush on demand, timers), and who hears of a machine's rare
facts. There is no queue and no lock: nothing here awaits between a burst's arrival and its last consequence. `now` is
read once per burst.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import trio

from tailscale.runtime.awaited_answers import AwaitedAnswers
from tailscale.runtime.bus import Bus
from tailscale.runtime.messages import PeerPathChanged, ProbeRequested, SocketsAsked, SocketsReturned, StunArrived
from tailscale.runtime.underlay import Runs, Underlay
from ts_base.who import PathRun, PeerId
from ts_dataplane.engine import Engine, EngineMessage, RouteMissing
from ts_dataplane.overlay import Overlay
from ts_dataplane.path_messages import (
    BestPathChanged,
    FinderMessage,
    NeedStun,
    PathsMoved,
    PingAnswered,
    PingLost,
    SocketsOver,
    SocketsWanted,
)
from ts_dataplane.paths import PathFinder
from ts_dataplane.spread import EveryPath
from ts_dataplane.tables import Tables
from ts_dataplane.tsmp import DiscoKeyAdvertised, TsmpPong, TsmpReject
from ts_netstack.ledger import Socket
from ts_tunnel.endpoint import Endpoint

MAX_RESENDS = 5  # as many as there are uplinks, and the relay


class Dataplane:
    """Inbound: `deliver`. Outbound: `kick`. Both end in `flush`."""

    def __init__(
        self,
        engine: Engine,
        finder: PathFinder,
        endpoint: Endpoint,
        overlay: Overlay,
        underlay: Underlay,
        answers: AwaitedAnswers,
        bus: Bus,
    ) -> None:
        self.engine = engine
        self.finder = finder
        self.underlay = underlay
        self._endpoint = endpoint
        self._overlay = overlay
        self._answers = answers
        self._bus = bus
        self._kicked = trio.Event()
        self._may_answer = False  # the last burst woke one socket: what that writes need not wait for others
        self._timer_moved = trio.Event()
        self._armed_for = math.inf
        self._services: Sequence[bytes] = ()
        self._after_flush = trio.lowlevel.ParkingLot()
        self._failure: Exception | None = None  # of a flush in an app's own task: none of its business

    def use_tables(self, tables: Tables) -> None:
        """Packets are routed and judged by these from now on; what went through an exit that is none any more ends."""
        self.engine.tables = tables
        self._overlay.follow_routes(tables.peer_for, tables.exits)

    def follow_uplinks(self) -> None:
        """There are other uplinks than before: what the engine does for them is done exactly while there are some."""
        many = self.finder.many
        if many.names:
            self.engine.follow_uplinks(many.spread, many.heard)
        else:
            self.engine.follow_uplinks(EveryPath(self.finder.paths), None)

    def use_overlay(self, overlay: Overlay) -> None:
        """What is for us goes to `overlay` from now on, which knows our addresses as they are told from now on."""
        self._overlay = overlay
        self.engine.use_overlay(overlay)
        overlay.set_addresses(self.engine.tables.own, trio.current_time(), self._services)

    def set_addresses(self, own: Sequence[bytes], services: Sequence[bytes]) -> None:
        """Our own addresses, and those of the services we host, are these from now on."""
        self._services = services
        self._overlay.set_addresses(own, trio.current_time(), services)

    def deliver(self, runs: Sequence[PathRun]) -> None:
        """Take a burst of datagrams off one socket or relay."""
        now = trio.current_time()
        engine = self.engine
        engine.receive(runs, now)
        woken = self._carry(now)
        if engine.has_asides:
            self._hand_over(now)
            self._pursue(now)
        self._may_answer = woken == 1

    def _hand_over(self, now: float) -> None:
        """What a burst held for the finder and the prober."""
        engine = self.engine
        if disco := engine.take_disco():
            self.finder.receive(disco, now)
        if heard := engine.take_heard():
            self.finder.on_data_heard(heard, now)
        if stun := engine.take_stun():
            self._bus.publish(StunArrived(stun))

    @trio.lowlevel.enable_ki_protection
    def flush(self, now: float) -> None:
        """Send all that is ready and wake all that waits for it."""
        self._carry(now)
        self._pursue(now)

    def _carry(self, now: float) -> int:
        """The packets' half of a flush; how many sockets were woken."""
        engine = self.engine
        self._may_answer = False
        if outbound := engine.transmit(now):
            self._send(outbound, now)
        if has_uplinks := bool(self.finder.many.names):
            self._tell_resent()
        if sent := engine.take_sent():
            asking = engine.take_asking() if has_uplinks else ()
            if self.finder.on_data_sent(sent, now, asking):
                self._pursue(now)
        woken = 0
        for message in engine.take_messages():
            if isinstance(message, Socket):
                if message.owner is not None:
                    message.owner.wake()
                    woken += 1
            else:
                self._hear(message, now)
        if engine.next_timer() < self._armed_for:
            self._timer_moved.set()
        if self._after_flush:
            self._after_flush.unpark_all()
        return woken

    def _tell_resent(self) -> None:
        """What TCP sent once more was lost on the path in use, as far as it knows."""
        for address, count in self._overlay.take_resent().items():
            if (peer := self.engine.tables.peer_for(address)) is not None:
                self.finder.on_resent(peer, count)

    def _pursue(self, now: float) -> None:
        """The paths' half: pings, answers and news of the finder."""
        finder = self.finder
        if probes := finder.transmit(now):
            self._send(probes, now)
        for message in finder.take_messages():
            self._hear(message, now)
        if finder.next_timer() < self._armed_for:
            self._timer_moved.set()

    def _hear(self, message: EngineMessage | FinderMessage, now: float) -> None:
        """A rare fact of one machine, for the others."""
        match message:
            case BestPathChanged():
                self._on_path_changed(message, now)
            case PathsMoved():
                self._on_paths_moved(message.peer, now)
            case DiscoKeyAdvertised():
                self.finder.on_disco_key_advertised(message.peer, message.key, now)
                self.kick()
            case PingAnswered() | PingLost() | TsmpPong() | TsmpReject():
                self._answers.hear(message)
            case RouteMissing():
                self._overlay.fail_hop((message.destination, message.via))
                self.kick()
            case NeedStun():
                self._bus.publish(ProbeRequested(message.reason))
            case SocketsWanted():
                self._bus.publish(SocketsAsked(message.number))
            case SocketsOver():
                self._bus.publish(SocketsReturned(message.sockets))

    def use_sockets(self, sockets: Sequence[str], now: float) -> None:
        """What `SocketsAsked` has brought."""
        self.finder.on_sockets(sockets, now)
        self.flush(now)

    def _on_path_changed(self, changed: BestPathChanged, now: float) -> None:
        known = self.engine.tables.peers.get(changed.peer)
        for address in known.addresses if known is not None else ():
            self._overlay.path_changed(address)
        if changed.path is not None:
            self._endpoint.on_path_found(changed.peer, now)
            self.kick()
        news = PeerPathChanged(changed.peer, changed.path, changed.latency, changed.reason, changed.gap)
        self._bus.publish(news)

    def _on_paths_moved(self, peer: PeerId, now: float) -> None:
        """What was sent by the old path is sent again now: else only a timer of TCP's would, much later."""
        known = self.engine.tables.peers.get(peer)
        for address in known.addresses if known is not None else ():
            self._overlay.path_moved(address, now)
        self._endpoint.on_path_found(peer, now)
        self.kick()

    def _send(self, runs: Runs, now: float) -> None:
        """What the host cannot send goes by the next path at once, where there is one."""
        for _ in range(MAX_RESENDS):
            again: list[PathRun] = []
            for path in self.underlay.send(runs):
                instead = self.finder.on_send_failed(path, now)
                again += [(other, datagrams) for one, datagrams in runs if one == path for other in instead]
                self.kick()
            if not again:
                return
            runs = again

    async def flushed(self) -> None:
        """Wait until something was carried through once more."""
        await self._after_flush.park()

    def kick(self) -> None:
        """An app wrote something.

        If the last burst woke this one reader, its answer is sent at once. Otherwise the flusher is woken, and sends
        what everybody wrote in this turn of the loop together.
        """
        if self._may_answer:
            try:
                self.flush(trio.current_time())
            except Exception as failure:
                self._failure = failure
                self._kicked.set()
        else:
            self._kicked.set()

    @trio.lowlevel.enable_ki_protection
    async def run_flusher(self) -> None:
        """Send what apps wrote. What failed in the task of one of them fails here."""
        while True:
            await self._kicked.wait()
            self._kicked = trio.Event()
            if (failure := self._failure) is not None:
                self._failure = None
                self._kicked.set()
                raise failure
            self.flush(trio.current_time())

    @trio.lowlevel.enable_ki_protection
    async def run_timers(self) -> None:
        engine, finder = self.engine, self.finder
        while True:
            self._timer_moved = trio.Event()
            self._armed_for = min(engine.next_timer(), finder.next_timer())
            with trio.move_on_at(self._armed_for):
                await self._timer_moved.wait()
            now = trio.current_time()
            if self._armed_for <= now:
                engine.handle_timer(now)
                finder.handle_timer(now)
                self.flush(now)

    @trio.lowlevel.enable_ki_protection
    async def run_reader(self, read: Callable[[], Awaitable[Sequence[PathRun]]]) -> None:
        """Carry one UDP socket's bursts until it is closed."""
        with suppress(trio.ClosedResourceError):
            while True:
                self.deliver(await read())
