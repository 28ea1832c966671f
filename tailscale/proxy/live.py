"""One policy at work on one device: what the device sees goes into the choice, what the choice says is told and done.

Owns the task that follows the device, the questions to lost exits, the streams that a dead tunnel takes with it, and
whoever waits. Refuses to know how a dial goes (`exit_dial.py`) and which exit is best (`ts_proxy.choice`).
"""

# Theory of operation
#
# Nothing here needs a nursery of the user's: the task that follows the device lives beside it, begins with the first
# verb, and ends when for some minutes nobody used these exits and nothing waits for news of them. While it runs, what
# the device says of its peers is read when it says so; without it, at every verb.
#
# Each verb of the choice is followed by `_tell`: messages become events, a dead tunnel breaks its streams, and
# everybody who waits looks again.

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakSet

import trio

from tailscale.errors import DeviceClosed, NameNotFound, TailscaleError
from tailscale.event_readers import Readers
from tailscale.events import EventStream, PathChanged, PeerChanged, PeerDown, PeerUp
from tailscale.proxy.errors import NoExit
from tailscale.proxy.events import ExitBroken, ExitChosen, ExitLost, ExitRecovered
from ts_proxy.choice import (
    FELL_SILENT,
    RECORDS,
    Broken,
    Choice,
    Chosen,
    Dial,
    Lost,
    News,
    Outcome,
    Pick,
    Recovered,
    TunnelDead,
)
from ts_proxy.filters import Candidate, suggestions
from ts_proxy.policy import nearest

if TYPE_CHECKING:
    from tailscale.device import Device
    from tailscale.events import Event
    from tailscale.nodes import Node
    from tailscale.proxy.pool_file import PoolFile
    from tailscale.sockets.tcp import TcpStream
    from tailscale.sockets.udp import UdpSocket
    from tailscale.status import ExitNode, PeerStatus, PingKind

IDLE = 300.0  # seconds without use after which nobody follows the device any more
FRESH = 1.0  # how old a latency may be that a choice is made by
ASK_PATIENCE = 0.95  # for the answer to one question; the pinger would ask a second time after a second
DEATH_PATIENCE = 10.0  # how long a silent exit's tunnel is asked before what goes through it is broken
LAST_QUESTION = 5.0  # the same for one that has owed us a word for OWED seconds already
WATCH_EVERY = 5.0  # seconds between looks at the tunnels that something is open through
OWED = 15.0  # a peer that gets data says something within 10 s, if only that it got it (WireGuard, section 6.5)
PATHS_SOUGHT = 4  # relayed exits at once that are asked for a direct path
DEFAULT_ROUTES = frozenset(("0.0.0.0/0", "::/0"))
WAIT = 10.0  # how long a client without any exit waits for one

log = logging.getLogger("tailscale.proxy")


class _Watched(NamedTuple):
    """What WireGuard had counted of a tunnel when it was last not owed anything."""

    sent: int
    received: int
    since: float


class LiveChoice:
    """One `Exits`, as long as its device lives."""

    def __init__(
        self, device: Device, choice: Choice, where: Callable[[ExitNode], bool] | None, pool_file: PoolFile | None
    ) -> None:
        self.device = device
        self.choice = choice
        self.drops: Counter[str] = Counter()
        self.waiting = 0  # connections that are not made yet
        self._where = where
        self._pool_file = pool_file
        self._exits: dict[str, ExitNode] = {}
        self._nodes: dict[str, Node] = {}  # also of exits that have gone: events name them
        self._readers = Readers(self.drops)
        self._open: dict[str, WeakSet[TcpStream | UdpSocket]] = {}  # what goes through each exit
        self._watched: dict[str, _Watched] = {}
        self._bells: set[trio.Event] = set()
        self._bell = trio.Event()
        self._loaded = trio.Event()
        self._is_loading = False
        self._saved: tuple[str, ...] = ()
        self._is_following = False
        self._used_at = self._seen_at = -math.inf
        self._is_stale = True
        self._asked: set[str] = set()
        self._has_blamed_predicate = False

    # What the device sees

    @contextmanager
    def turn(self, *, looks: bool = True) -> Iterator[float]:
        """One verb of the choice: with what the device sees now, and told afterwards."""
        now = trio.current_time()
        if not looks:
            pass
        elif self._is_stale or not self._is_following or now - self._seen_at >= FRESH:
            self._look(now)
        yield now
        self._tell()

    def _look(self, now: float) -> None:
        self._is_stale, self._seen_at = False, now
        found = [(exit_node, self._as_candidate(exit_node)) for exit_node in self.device.exit_nodes]
        self._exits = {candidate.key: exit_node for exit_node, candidate in found}
        self._nodes |= {key: exit_node.node for key, exit_node in self._exits.items()}
        if len(self._nodes) > RECORDS:
            self._nodes = {key: self._nodes[key] for key in self._exits}
        self.choice.observe([candidate for _, candidate in found], now)

    def _as_candidate(self, exit_node: ExitNode) -> Candidate:
        node = exit_node.node
        return Candidate(
            key=node.stable_id,
            names=tuple(name.lower() for name in (node.hostname, node.name, *node.addresses, node.stable_id)),
            country=exit_node.country.lower(),
            country_code=exit_node.country_code.lower(),
            city=exit_node.city.lower(),
            city_code=exit_node.city_code.lower(),
            tags=tuple(tag.lower() for tag in node.tags),
            priority=exit_node.priority,
            is_online=exit_node.online is not False,
            is_direct=exit_node.path.kind == "direct",
            latency=exit_node.latency,
            is_welcome=self._is_welcome(exit_node),
        )

    def _is_welcome(self, exit_node: ExitNode) -> bool:
        """What the user's function says. One that raises wants nobody, and the log says so once."""
        if self._where is None:
            return True
        try:
            return bool(self._where(exit_node))
        except Exception:
            if not self._has_blamed_predicate:
                log.exception("where= failed: an exit that it cannot judge is not used")
            self._has_blamed_predicate = True
            return False

    def exit_of(self, key: str) -> ExitNode | None:
        """The exit with this key, while it is one."""
        return self._exits.get(key)

    def is_gone(self, key: str) -> bool:
        """Whether it is no exit any more, asked of the device itself."""
        self._is_stale = True
        with self.turn():
            return key not in self._exits

    def exits_in_order(self) -> tuple[ExitNode, ...]:
        """Those that the policy lets in, the best first."""
        with self.turn() as now:
            selection = self.choice.selection(now)
        return tuple(self._exits[key] for key in (*selection.order, *selection.relayed) if key in self._exits)

    def key_named(self, name: str) -> str:
        """The exit that a person means, as the choice knows it; the error that says who is there."""
        with self.turn():
            pass
        wanted = name.strip().rstrip(".").lower()
        candidates = [self._as_candidate(exit_node) for exit_node in self._exits.values()]
        if any(wanted in candidate.names for candidate in candidates):
            return wanted
        close = nearest(wanted, [candidate.name for candidate in candidates])
        raise NameNotFound(name, close, "only an exit node of this tailnet can be pinned")

    # What is told and done

    def _tell(self) -> None:
        news = self.choice.take_messages()
        for message in news:
            self._do(message)
        for event in filter(None, map(self._as_event, news)):
            self._readers.put(event)
        if news:
            self.look_again()
            self._bell.set()

    def look_again(self) -> None:
        """Whoever waits has a reason to see whether there is something for it now."""
        for bell in self._bells:
            bell.set()

    def _do(self, message: News) -> None:
        match message:
            case TunnelDead(key):
                for one in self._open.pop(key, ()):
                    one.give_up()
            case Lost(key, reason):
                if reason == FELL_SILENT and self._open.get(key):
                    self._start(f"dead {key}", self._find_out_whether_dead, key)

    def _as_event(self, message: News) -> Event | None:
        node = self._nodes.get(message.key)
        match message:
            case Chosen(_, reason):
                return ExitChosen(node, reason or "no exit that the policy allows is there")
            case Lost(_, reason) if node is not None:
                return ExitLost(node, reason)
            case Broken(_, reason, seconds) if node is not None:
                return ExitBroken(node, reason, seconds)
            case Recovered(_) if node is not None:
                return ExitRecovered(node)
        return None

    def open_stream(self) -> EventStream:
        """One more reader of what happens from now on."""
        stream = self._readers.open_stream()
        self.use()
        return stream

    def keep(self, key: str, one: TcpStream | UdpSocket) -> None:
        """It goes with its exit's tunnel."""
        self._open.setdefault(key, WeakSet()).add(one)
        if key not in self._watched:
            self._bell.set()

    def open_through(self, key: str) -> int:
        """Streams and sockets."""
        return len(self._open.get(key, ()))

    # Who waits

    async def wait(self, bell: trio.Event, until: float, *, for_news: bool) -> None:
        """Until somebody rings, which news do too if wanted, or the time is there."""
        if for_news:
            self._bells.add(bell)
        try:
            with trio.move_on_at(until):
                await bell.wait()
        finally:
            self._bells.discard(bell)

    def seek_paths(self, now: float) -> None:
        """Nobody may be used but over a direct path, and nobody has one: a ping makes the path finder look for it."""
        for key in self.choice.selection(now).relayed[:PATHS_SOUGHT]:
            self._start(f"path {key}", self._ping, key, "disco", WAIT)

    def no_exit(self) -> NoExit:
        """Why there is none, exit by exit."""
        with self.turn() as now:
            states = self.choice.states(now)
        reasons: dict[str, str] = {}
        pinned = self.choice.pinned
        for state in states:
            name = self._nodes[state.key].hostname
            if pinned and not self._is_called(state.key, pinned):
                continue
            again = f", tried again in {state.again_at - now:.0f} s" if state.again_at > now else ""
            if not state.fits:
                reasons[name] = state.why_not
            elif state.breaker != "closed":
                reasons[name] = f"it is left alone because {state.reason}{again}"
            else:
                reasons[name] = f"{state.reason or 'its tunnel did not answer'}{again}"
        named = (pinned,) if pinned else self.choice.policy.nodes
        missing = [name for name in named if not any(self._is_called(key, name) for key in self._exits)]
        reasons |= dict.fromkeys(missing, "no exit node has that name")
        candidates = [self._as_candidate(exit_node) for exit_node in self._exits.values()]
        close = suggestions(self.choice.policy, candidates)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        wanted = f"the pinned exit {pinned}" if pinned else f"an exit ({self.choice.policy})"
        if not states and not missing:
            return NoExit(f"there is no way out by {wanted}: this tailnet has no exit node that we may use")
        told = "; ".join(f"{name}: {why}" for name, why in list(reasons.items())[:8])
        more = f"; and {len(reasons) - 8} more" if len(reasons) > 8 else ""
        return NoExit(f"there is no way out by {wanted}: {told}{more}{hint}", reasons)

    def _is_called(self, key: str, name: str) -> bool:
        node = self._nodes[key]
        return name in [known.lower() for known in (node.hostname, node.name, *node.addresses, node.stable_id)]

    # Dials

    def next_exit(self, session: str, without: set[str]) -> Pick:
        with self.turn() as now:
            return self.choice.next_exit(now, session, without)

    def may_dial(self, key: str) -> bool:
        """Whether its breaker lets somebody pass, wherever it ranks."""
        with self.turn() as now:
            return key in self._exits and self.choice.may_dial(key, now)

    def begin(self, key: str) -> Dial:
        with self.turn() as now:
            return self.choice.begin(key, now)

    def end(self, dial: Dial, outcome: Outcome, target: str, session: str) -> None:
        before = self.choice.pool.keys
        with self.turn(looks=False) as now:
            self.choice.end(dial, outcome, now, target, session)
        self.look_again()
        if self._pool_file is not None and self.choice.pool.keys != before:
            self._start("pool", self._save)

    def spoke(self, key: str) -> None:
        with self.turn() as now:
            self.choice.spoke(key, now)
        self.look_again()

    def fell_silent(self, key: str) -> None:
        with self.turn() as now:
            self.choice.fell_silent(key, now)

    # Beside the device

    async def ready(self) -> None:
        """What an earlier run kept is known."""
        self.use()
        if self._pool_file is None or self._loaded.is_set():
            return
        if not self._is_loading:
            self._is_loading = True
            try:
                keys = self._saved = await self._pool_file.load()
                with self.turn() as now:
                    self.choice.use_pool(keys, now)
            finally:
                self._loaded.set()
        await self._loaded.wait()

    def use(self) -> None:
        """Somebody uses these exits: follow the device, if nobody does."""
        self._used_at = trio.current_time()
        if not self._is_following:
            self.device.spawn(self._beside, self._follow)
            self._is_following = self._is_stale = True

    async def _beside(self, function: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """Beside the device: what it cannot be asked while it closes, nobody needs to know."""
        with suppress(DeviceClosed):
            await function(*arguments)

    async def _follow(self) -> None:
        events = self.device.events()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hear, events)
                await self._beside(self._follow_while_needed, nursery)
                nursery.cancel_scope.cancel()
        finally:
            self._is_following = False
            if self._pool_file is not None and self._saved != self.choice.pool.keys:
                self._pool_file.save_now(self.choice.pool.keys)
            self._readers.close()  # the device ends

    async def _follow_while_needed(self, nursery: trio.Nursery) -> None:
        while self._is_needed():
            self._bell = trio.Event()
            with self.turn() as now:
                self.choice.handle_timer(now)
                asks = self.choice.asks(now)
            for key in asks:
                nursery.start_soon(self._beside, self._ask, key)
            self._look_at_tunnels(now)
            with trio.move_on_at(min(self.choice.next_timer(now), now + (WATCH_EVERY if self._open else IDLE))):
                await self._bell.wait()

    def _is_needed(self) -> bool:
        is_in_use = trio.current_time() - self._used_at < IDLE
        return is_in_use or bool(self._readers) or bool(self.waiting) or any(self._open.values())

    async def _hear(self, events: EventStream) -> None:
        async for event in events:
            if isinstance(event, PeerUp | PeerDown | PeerChanged | PathChanged) and self._may_matter(event):
                self._is_stale = True
                self._bell.set()
                self.look_again()

    def _may_matter(self, event: PeerUp | PeerDown | PeerChanged | PathChanged) -> bool:
        """Of a large tailnet's news, those of exit nodes, and of nodes that may be one from now on."""
        node = event.node
        return node.stable_id in self._exits or not DEFAULT_ROUTES.isdisjoint(node.routes)

    async def _ask(self, key: str) -> None:
        has_answered = await self._ping(key, "disco", ASK_PATIENCE)
        with self.turn() as now:
            self.choice.answered(key, has_answered, now)

    async def _find_out_whether_dead(self, key: str) -> None:
        if await self.ask_inside(key, DEATH_PATIENCE):
            self.spoke(key)
            return
        with self.turn() as now:
            self.choice.tunnel_stayed_silent(key, now)

    async def ask_inside(self, key: str, patience: float) -> bool:
        """Whether an exit answers inside the tunnel."""
        return await self._ping(key, "tsmp", patience)

    def _look_at_tunnels(self, now: float) -> None:
        """Something is open, data went in, and for long nothing came out: nobody has to dial for that to be noticed."""
        self._open = {key: through for key, through in self._open.items() if through}
        self._watched = {key: watched for key, watched in self._watched.items() if key in self._open}
        for key in self._open:
            status, watched = self.traffic(key), self._watched.get(key)
            if status is None:
                continue
            owes_data = watched is not None and status.bytes_sent > watched.sent
            if watched is None or status.bytes_received != watched.received:
                self._watched[key] = _Watched(status.bytes_sent, status.bytes_received, now)
            elif (status.unanswered_for or 0) >= OWED or (owes_data and now - watched.since >= OWED):
                self._start(f"dead {key}", self._find_out_whether_silent, key)
            elif not owes_data:
                self._watched[key] = watched._replace(since=now)

    def traffic(self, key: str) -> PeerStatus | None:
        """What WireGuard counts of an exit; None once it has left."""
        exit_node = self._exits.get(key)
        try:
            return self.device.peer_status(exit_node.node) if exit_node is not None else None
        except KeyError:
            return None

    async def _find_out_whether_silent(self, key: str) -> None:
        before = self.traffic(key)
        if await self.ask_inside(key, LAST_QUESTION):
            return
        after = self.traffic(key)
        if before is not None and after is not None and before.bytes_received == after.bytes_received:
            with self.turn() as now:
                self.choice.fell_silent(key, now)
                self.choice.tunnel_stayed_silent(key, now)

    async def _ping(self, key: str, kind: PingKind, patience: float) -> bool:
        node = self._nodes.get(key)
        if node is None or not node.addresses:
            return False
        try:
            await self.device.ping(node.addresses[0], kind, timeout=patience)
        except (TailscaleError, OSError):
            return False
        return True

    async def _save(self) -> None:
        assert self._pool_file is not None
        while self._saved != self.choice.pool.keys:
            newest = self.choice.pool.keys
            await self._pool_file.save(newest)
            self._saved = newest

    def _start(self, what: str, function: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """One task of a kind at a time, beside the device."""
        if what in self._asked:
            return
        self._asked.add(what)

        async def run() -> None:
            try:
                await self._beside(function, *arguments)
            finally:
                self._asked.discard(what)

        self.device.spawn(run)
