"""One connection by the exits of a policy: dialled through the best, and through the next beside a silent one.

Owns the race and what each failure says of the exit. Refuses to know how exits are ranked.
"""

# Theory of operation
#
# A dial through an exit can fail for reasons of two kinds, and only one is the exit's. So the tunnel is watched, not
# the connection: WireGuard counts what was authenticated, and whatever is, a handshake, a keepalive, another
# connection's segment, shows that the exit is there. A target that says nothing through an idle tunnel looks like a
# dead exit for ten seconds, so after a moment of silence the exit itself is asked, inside the tunnel.
#
# When nothing at all has come for `hedge` seconds, the exit counts as lost and the next one is dialled beside it. The
# first connection wins. A target's own answer, a refusal or no such name, ends the race: no other exit would change it.

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import trio

from tailscale._causes import sole_cause
from tailscale.errors import (
    ConnectionRefused,
    ConnectionReset,
    ConnectionTimedOut,
    DeviceClosed,
    NameNotFound,
    NoRoute,
    PeerKeyExpired,
    PeerOffline,
    TailscaleError,
)
from tailscale.proxy.live import WAIT
from ts_proxy.choice import Dial, Outcome, Pick

if TYPE_CHECKING:
    from tailscale.proxy.live import LiveChoice
    from tailscale.sockets.tcp import TcpStream
    from tailscale.sockets.udp import UdpSocket
    from tailscale.status import ExitNode

DIAL_TIMEOUT = 30.0
LOOK_EVERY = 0.05  # seconds between looks at a tunnel that has not spoken yet, and at one that has
LOOK_SELDOM = 0.25
ASKED_AFTER = 0.25  # of silence, or a quarter of `hedge`: then the exit is asked inside the tunnel
UNHEDGED_PATIENCE = 3.0  # with a silent exit where no second one may be dialled beside it before
RETRIES = 3  # through the same exit, with `reconnect="backoff"`: after 1, 2 and 4 s
LONGEST_PAUSE = 8.0

Dns = Literal["exit", "tailnet"]


@dataclass(eq=False)
class _Attempt:
    """One dial through one exit."""

    dial: Dial
    began: float
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    received: int = 0  # by WireGuard, when it was looked at last
    quiet_since: float = 0.0
    has_spoken: bool = False
    is_lost: bool = False  # it said nothing for `hedge` seconds, though it was asked
    is_being_asked: bool = False

    @property
    def key(self) -> str:
        return self.dial.key

    @property
    def is_speaking(self) -> bool:
        return self.has_spoken and not self.is_lost


class Race:
    """One connection that somebody asked for."""

    def __init__(
        self, live: LiveChoice, host: str, port: int, *, timeout: float | None, session: str, dns: Dns
    ) -> None:
        self._live = live
        self._host, self._port, self._session, self._dns = host, port, session, dns
        self._target = f"{host} {port}"
        self._began = trio.current_time()
        self._deadline = self._began + (DIAL_TIMEOUT if timeout is None else timeout)
        self._hedge = live.choice.policy.hedge
        self._running: dict[str, _Attempt] = {}
        self._done: set[str] = set()  # exits that are of no use to this connection
        self._retries: dict[str, int] = {}
        self._again = ""  # the exit that is tried once more before all others
        self._is_patient = False
        self._pause_until = -math.inf
        self._heard_at = self._began  # any exit, last
        self._failure: TailscaleError | None = None
        self._is_over = False
        self._winner: TcpStream | None = None
        self._bell = trio.Event()

    async def run(self) -> TcpStream:
        """The open stream, or the error that says what stood in the way."""
        self._live.waiting += 1
        try:
            async with trio.open_nursery() as nursery:
                await self._watch(nursery)
                nursery.cancel_scope.cancel()
        except BaseException as problem:
            if self._winner is not None:  # cancelled in the very moment of success
                self._winner.abort()
            raise _plain(problem) from None
        finally:
            self._live.waiting -= 1
        if self._winner is not None:
            return self._winner
        raise self._failure or self._live.no_exit()

    async def _watch(self, nursery: trio.Nursery) -> None:
        while not self._is_over:
            now, self._bell = trio.current_time(), trio.Event()
            self._look_at_tunnels(now, nursery)
            again_at = self._next_look(now)
            wants_another = self._wants_another(now)
            if wants_another:
                pick = self._next_pick()
                if pick.key:
                    self._start(pick.key, nursery)
                    continue
                again_at = min(again_at, pick.again_at)
                if not self._running:
                    self._live.seek_paths(now)
                    if self._failure is not None and math.isinf(pick.again_at):
                        return  # everybody who could be tried said why not
            if self._is_hopeless(now):
                return
            until = self._wait_until()
            await self._live.wait(self._bell, min(again_at, until) if until > now else again_at, for_news=wants_another)

    # When another exit is dialled

    def _next_pick(self) -> Pick:
        again, self._again = self._again, ""
        if again and self._live.may_dial(again):
            return Pick(again)
        return self._live.next_exit(self._session, self._done | self._running.keys())

    def _wants_another(self, now: float) -> bool:
        """Nobody is dialled, or nobody who is has said a word for long enough."""
        if now < self._pause_until:
            return False
        return all(now >= self._hedge_at(attempt) for attempt in self._running.values())

    def _hedge_at(self, attempt: _Attempt) -> float:
        """A trial is judged by its connection alone: the tunnel of that exit may speak, and nothing behind it."""
        return (attempt.began if attempt.dial.is_trial else attempt.quiet_since) + self._hedge

    def _next_look(self, now: float) -> float:
        at = self._pause_until if self._pause_until > now else math.inf
        for attempt in self._running.values():
            at = min(at, now + (LOOK_SELDOM if attempt.has_spoken else LOOK_EVERY))
        return at

    def _wait_until(self) -> float:
        """A client that no exit speaks to waits so long; one that tries the same exit again, as long as it wants."""
        return self._deadline if self._is_patient else min(self._deadline, self._heard_at + WAIT)

    def _is_hopeless(self, now: float) -> bool:
        """A dial through an exit that speaks ends by itself, at the deadline, and says why."""
        return now >= self._wait_until() and not any(attempt.is_speaking for attempt in self._running.values())

    # What the tunnels say

    def _look_at_tunnels(self, now: float, nursery: trio.Nursery) -> None:
        for attempt in list(self._running.values()):
            if now == attempt.began:
                continue
            if self._spoke(attempt, now):
                is_news = not attempt.is_speaking
                attempt.quiet_since = self._heard_at = now
                attempt.has_spoken, attempt.is_lost = True, False
                if is_news:
                    self._live.spoke(attempt.key)
            if now - attempt.quiet_since >= min(ASKED_AFTER, self._hedge / 4) and not attempt.is_being_asked:
                nursery.start_soon(self._ask, attempt)
            is_unhedged = math.isinf(self._hedge)
            if now >= attempt.quiet_since + (UNHEDGED_PATIENCE if is_unhedged else self._hedge) and not attempt.is_lost:
                attempt.is_lost = True
                self._live.fell_silent(attempt.key)
                if is_unhedged:
                    attempt.scope.cancel()

    def _spoke(self, attempt: _Attempt, now: float) -> bool:
        """Whether its tunnel gave something authenticated since the last look."""
        status = self._live.traffic(attempt.key)
        if status is None:
            return False
        since = now - max(attempt.began, attempt.quiet_since)
        is_new = status.handshake_age is not None and status.handshake_age < since
        has_more = status.bytes_received > attempt.received
        attempt.received = status.bytes_received
        return is_new or has_more

    async def _ask(self, attempt: _Attempt) -> None:
        """Inside the tunnel. Whatever comes back is seen by what WireGuard counts."""
        attempt.is_being_asked = True
        await self._live.ask_inside(attempt.key, max(0.0, self._deadline - trio.current_time()))
        await trio.sleep(self._pause_between_questions())
        attempt.is_being_asked = False

    def _pause_between_questions(self) -> float:
        return min(2 * LOOK_SELDOM, self._hedge / 2)

    # One attempt

    def _start(self, key: str, nursery: trio.Nursery) -> None:
        exit_node = self._live.exit_of(key)
        if exit_node is None:
            self._done.add(key)
            return
        now = trio.current_time()
        attempt = _Attempt(self._live.begin(key), now, quiet_since=now)
        status = self._live.traffic(key)
        attempt.received = status.bytes_received if status is not None else 0
        self._running[key] = attempt
        nursery.start_soon(self._dial, attempt, exit_node)

    async def _dial(self, attempt: _Attempt, exit_node: ExitNode) -> None:
        outcome = Outcome.CUT
        try:
            with attempt.scope:
                outcome = await self._outcome(attempt, exit_node)
        finally:
            if outcome is Outcome.CUT and attempt.is_lost:
                outcome = Outcome.SILENT
            del self._running[attempt.key]
            self._live.end(attempt.dial, outcome, self._target, self._session)
            if outcome is Outcome.SILENT and not self._is_over:
                self._retry_or_leave(attempt.key)
            self._bell.set()

    def _retry_or_leave(self, key: str) -> None:
        """The same exit again after a pause, or never again for this connection if there is another."""
        tried = self._retries[key] = self._retries.get(key, 0) + 1
        if not self._live.next_exit(self._session, {key, *self._done, *self._running}).key:
            return  # it comes up again when it may be tried
        is_patient = self._live.choice.policy.reconnect == "backoff" and tried <= RETRIES
        if is_patient and self._live.may_dial(key):
            self._again, self._is_patient = key, True
            self._pause_until = trio.current_time() + min(2.0 ** (tried - 1), LONGEST_PAUSE)
        else:
            self._done.add(key)

    async def _outcome(self, attempt: _Attempt, exit_node: ExitNode) -> Outcome:
        remaining = max(0.0, self._deadline - trio.current_time())
        try:
            stream = await self._live.device.tcp_connect(
                self._host, self._port, timeout=remaining, via=exit_node.node, dns=self._dns
            )
        except DeviceClosed:
            raise
        except TailscaleError as failure:
            return self._judge(attempt, failure)
        if self._winner is not None:
            stream.abort()
            return Outcome.CONNECTED
        self._winner = stream
        self._is_over = True
        self._live.keep(attempt.key, stream)
        return Outcome.CONNECTED

    def _judge(self, attempt: _Attempt, failure: TailscaleError) -> Outcome:
        """Whose fault it was, and whether another exit could do better."""
        is_speaking = self._spoke(attempt, trio.current_time()) or attempt.is_speaking
        match failure:
            case ConnectionRefused(by_policy=True):
                self._done.add(attempt.key)  # of that exit: another may be let through
                self._failure = failure
                return Outcome.TARGET
            case NoRoute() | PeerKeyExpired():
                if self._live.is_gone(attempt.key):
                    return Outcome.GONE
                self._done.add(attempt.key)  # it does not go there: it may offer one family only
                self._failure = failure
                return Outcome.CUT
            case NameNotFound(is_temporary=True) | ConnectionTimedOut() | PeerOffline() if not is_speaking:
                return Outcome.SILENT
        self._end(failure)
        match failure:
            case ConnectionTimedOut() | PeerOffline():
                return Outcome.TIMED_OUT
            case NameNotFound() | ConnectionRefused() | ConnectionReset() if is_speaking:
                return Outcome.TARGET
        return Outcome.CUT  # known without asking the exit, as a name that was asked for before

    def _end(self, failure: TailscaleError) -> None:
        self._failure = failure
        self._is_over = True


def _plain(problem: BaseException) -> BaseException:
    """The first failure of a race, without the wrapping; a cancellation stays what it is."""
    if not isinstance(problem, BaseExceptionGroup):
        return problem
    _, failures = problem.split(trio.Cancelled)
    return sole_cause(failures if failures is not None else problem)


async def udp_socket(live: LiveChoice, session: str) -> UdpSocket:
    """A socket through the exit of this moment. Nothing is sent, so nothing is learnt of the exit."""
    until = trio.current_time() + WAIT
    live.waiting += 1
    try:
        while True:
            bell = trio.Event()
            pick = live.next_exit(session, set())
            exit_node = live.exit_of(pick.key)
            if exit_node is not None:
                socket = await live.device.udp(via=exit_node.node)
                live.keep(pick.key, socket)
                return socket
            now = trio.current_time()
            if now >= until:
                raise live.no_exit()
            live.seek_paths(now)
            await live.wait(bell, min(until, pick.again_at), for_news=True)
    finally:
        live.waiting -= 1
