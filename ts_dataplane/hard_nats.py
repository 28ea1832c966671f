"""Opening a direct path between a peer behind an easy NAT and one behind a hard NAT, within a budget.

Owns the attempts, what they may cost, and what is remembered of those that failed. A found path is the business of
`path_keeping.py`, as any other. Sockets are asked for and named; refuses to know how they are made.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ts_base.budget import Budget
from ts_base.ip import is_loopback, is_private, maybe_address
from ts_base.who import Direct, PeerId, host_of, is_direct, through_socket
from ts_dataplane.candidates import MAX_CALLED, Candidate
from ts_dataplane.disco import CallMeMaybe
from ts_dataplane.disco_outbox import DiscoOutbox
from ts_dataplane.path_keeping import PathKeeper
from ts_dataplane.path_messages import HardNatOutlook, SocketsOver, SocketsWanted
from ts_dataplane.peer_paths import CANDIDATE_SPACING, RETIRE_TIME, PeerState
from ts_dataplane.ping_ledger import Outstanding

# Theory of operation
#
# A NAT is *easy* where all that one socket sends leaves by one port of the router, and *hard* where every destination
# gets another port, drawn at random (RFC 4787, 4.1: address- and port-dependent mapping). Both let in only what answers
# something sent to exactly there. Between two easy ones each learns its own port from STUN and tells it. A hard one's
# port towards the peer is known to nobody, so each waits for a datagram of the other that its router drops.
#
# The hard side opens s sockets and sends from each to the peer's one known port. Its router now has s ports open for
# just that. The easy side sends from its one socket to p of the N = 64,512 ports that routers draw from. The first that
# meets an open one passes both routers. No port is tried twice, so that all miss with probability about
# exp(-s * p / N). With s = 256 one half is met after 175 tries, 19 of 20 after 755, all but one in 100,000 after 2,900.
#
# Two cases are left alone, because no sum of sockets helps:
#
#   a hard side not ours   has one socket, so one open port, and 3,000 tries meet it once in twenty times. More sockets
#                          on the easy side do not multiply: each is let in by another port of the hard router
#   both hard              each datagram opens a port that only the datagram it waits for may use: both ports must be
#                          guessed at once, with a chance of 1 / (N * N) for each pair of tries
#
# So the hard side leads. It knows that it is hard (STUN), and needs of the peer only what every Tailscale node does:
# ping the addresses of a CallMeMaybe. It sends lists of ports of its own public address; a stock peer pings each list
# in one burst, ours at its own pace. The list is also what tells a peer of ours that we are hard: one that is hard
# itself answers with a list of its own, and both give up.
#
# What the cap proves. A list is believed only from a peer we send data to by relay right now, for one address, and only
# if control lists that address as the peer's or the peer has answered there. Both may lie, so the worst they can do is
# counted: one attempt at a time, `rate` datagrams a second over all attempts and peers, `probes` to one address, and
# then none to it for `rest`, whoever names it. An attempt that was cut short counts as failed. A list that was seen
# before gains nothing.

START_AFTER = 1.4  # seconds of searching in which the ordinary ways have failed
TICK = 0.05
LIST = 50  # ports told at once; more than an ordinary list holds, less than disco's reader takes
LISTS_BEGIN = 0.3  # after the first sockets: a port tried before it is open is wasted
FIRST_PORT, PORTS = 1024, 64_512
MAX_TARGETS = 2  # addresses of the peer that every socket sends to
KEEPALIVE = 20.0  # below the 30 seconds after which routers forget a mapping
ABANDON = 65.0  # without an answer on the path that was opened
ECHO = 2.0  # a peer that heard our keepalive asks back within this
AGAIN = 60.0  # between an attempt that succeeded, or was overtaken by events, and the next one
MAX_REST_FACTOR = 8  # a pair that fails again and again is tried ever less often
MAX_RESTING = 1024
MAX_LISTS_SEEN = 1024
LISTS_RATE, LISTS_BURST = 8.0, 16.0  # of all peers together


class HardNatLimits(NamedTuple):
    """What one attempt may cost. No sockets at all: none are made."""

    sockets: int = 256
    seconds: float = 15.0
    probes: int = 3000
    rate: float = 200.0
    rest: float = 600.0


class HardNatStatistics(NamedTuple):
    """Counts since the start, by outcome, and what is there now."""

    sockets: int
    attempts: int
    opened: int
    failed: int
    probes: int


@dataclass(slots=True)
class _Spreading:
    """We are hard: our sockets, and the ports the peer was told to try."""

    peer: PeerId
    public: str
    targets: tuple[Direct, ...]
    began_at: float
    sockets: tuple[str, ...] = ()
    waiting: deque[Direct] = field(default_factory=deque)
    told: set[int] = field(default_factory=set)
    list_at: float = math.inf
    spent: int = 0


@dataclass(slots=True)
class _Probing:
    """The peer is hard: which of its ports are still to be tried."""

    peer: PeerId
    host: str
    began_at: float
    waiting: deque[int] = field(default_factory=deque)
    known: set[int] = field(default_factory=set)
    spent: int = 0


@dataclass(slots=True)
class _Kept:
    """A socket that met: whose path it is, and until when it is worth a keepalive."""

    peer: PeerId
    path: Direct
    due_at: float
    used_at: float
    asked_at: float = -math.inf

    def is_used(self, state: PeerState) -> bool:
        """By us, or by a peer that asks by itself: one that only asks back because we asked is no reason to go on."""
        return state.is_awake or state.heard_at > self.asked_at + ECHO


class HardNats:
    """One per device: at most one attempt of each kind at a time."""

    def __init__(
        self,
        keeper: PathKeeper,
        outbox: DiscoOutbox,
        drops: Counter[str],
        limits: HardNatLimits,
        entropy: Callable[[int], bytes],
    ) -> None:
        self._keeper = keeper
        self._outbox = outbox
        self._drops = drops
        self._limits = limits
        self._entropy = entropy
        self._public = ""  # our router's address, if it is a hard one
        self._pace = Budget(limits.rate, max(1.0, limits.rate * TICK))
        self._lists = Budget(LISTS_RATE, LISTS_BURST)
        self._spreading: _Spreading | None = None
        self._probing: _Probing | None = None
        self._searching: dict[PeerId, tuple[float, float]] = {}  # since when, and when last seen to
        self._resting: OrderedDict[PeerId | str, float] = OrderedDict()  # a peer or an address, until when
        self._failures: Counter[PeerId] = Counter()
        self._seen: OrderedDict[int, None] = OrderedDict()  # lists, by hash
        self._kept: dict[str, _Kept] = {}  # by socket
        self._tick_at = math.inf
        self._attempts = self._opened = self._failed = self._probes = 0

    @property
    def is_allowed(self) -> bool:
        """With several uplinks nothing is opened: any of them may cost money by the byte."""
        return self._limits.sockets > 0 and not self._keeper.never_direct and not self._keeper.uplinks

    def statistics(self) -> HardNatStatistics:
        sockets = len(self._kept) + (len(self._spreading.sockets) if self._spreading is not None else 0)
        return HardNatStatistics(sockets, self._attempts, self._opened, self._failed, self._probes)

    def outlook(self, peer: PeerId, now: float) -> HardNatOutlook:
        """What is known, done and waited for on the way to a peer that only a relay reaches."""
        is_trying = any(one is not None and one.peer == peer for one in (self._spreading, self._probing))
        rest = max(0.0, self._resting.get(peer, now) - now)
        return HardNatOutlook(bool(self._public), self.is_allowed, is_trying, rest)

    # ---- facts

    @property
    def router(self) -> str:
        """The public address of our hard NAT; empty for any other."""
        return self._public

    def set_router(self, public: str) -> None:
        """Our router gives every destination another port of `public`; empty: it does not, or nobody knows."""
        self._public = public

    def on_network_changed(self, now: float) -> None:
        """Every socket is on the wrong network."""
        self._public = ""
        sockets = tuple(self._kept)
        self._kept.clear()
        if sockets:
            self._keeper.messages.append(SocketsOver(sockets))
        if self._spreading is not None:
            self._end_spreading(self._spreading, now, rests=False)
        if self._probing is not None:
            self._end_probing(self._probing, now, rests=True)

    # ---- we are hard

    def consider(self, state: PeerState, now: float) -> None:
        """A search has found nothing so far. Is it time to spread?"""
        peer = state.peer
        since, seen = self._searching.get(peer, (now, now))
        if now - seen > 2 * CANDIDATE_SPACING:
            since = now
        self._searching[peer] = since, now
        if now - since < START_AFTER or not self._public or self._spreading is not None or not self.is_allowed:
            return
        if state.best is not None or state.facts.disco_key is None or self._keeper.roster.relay(peer) is None:
            return
        targets = self._targets(state, now)
        if not targets or self._is_resting(now, peer) or len(self._resting) >= MAX_RESTING:
            return
        self._attempts += 1
        self._spreading = _Spreading(peer, self._public, targets, now)
        self._keeper.messages.append(SocketsWanted(self._limits.sockets))
        self._tick_at = min(self._tick_at, now + TICK)

    def forget(self, peer: PeerId) -> None:
        """The peer is idle, or gone."""
        self._searching.pop(peer, None)

    def _targets(self, state: PeerState, now: float) -> tuple[Direct, ...]:
        """The peer's own addresses that it surely has, public ones before those of its own network."""
        known = [place for place, candidate in state.candidates.items() if _is_confirmed(candidate)]
        known = [place for place in known if "%" not in place[0] and not self._is_resting(now, place[0])]
        public = [place for place in known if _is_public(place[0])]
        return tuple((public or [place for place in known if ":" not in place[0]])[:MAX_TARGETS])

    def on_sockets(self, sockets: Sequence[str], now: float) -> None:
        """The sockets that were wanted; fewer, or none, where the system gives no more."""
        spreading = self._spreading
        if spreading is None or spreading.sockets or not sockets:
            if sockets:
                self._keeper.messages.append(SocketsOver(tuple(sockets)))
            elif spreading is not None:
                self._end_spreading(spreading, now, rests=True)
            return
        spreading.sockets = tuple(sockets)
        spreading.began_at = now
        spreading.list_at = now + LISTS_BEGIN
        for target in spreading.targets:
            spreading.waiting += [through_socket(target, name) for name in sockets]
        self._tick_at = now

    def _spread(self, spreading: _Spreading, now: float) -> None:
        state = self._keeper.states.get(spreading.peer)
        limits = self._limits
        if state is None or state.is_direct(now):
            self._end_spreading(spreading, now, rests=state is None)
            return
        if now - spreading.began_at >= limits.seconds:
            self._end_spreading(spreading, now, rests=True)
            return
        while spreading.waiting and spreading.spent < limits.probes and self._pace.take(now):
            spreading.spent += 1
            self._probes += 1
            self._keeper.ping(state, spreading.waiting.popleft(), now)
        if now >= spreading.list_at and limits.probes - spreading.spent >= LIST:
            spreading.list_at = now + LIST / limits.rate
            spreading.spent += LIST
            self._tell(state, spreading.public, spreading.told)

    def _tell(self, state: PeerState, public: str, told: set[int]) -> None:
        """Ask the peer to ping so many ports of our router that it was not told before."""
        relay, key = self._keeper.roster.relay(state.peer), state.facts.disco_key
        if relay is None or key is None:
            return
        ports = []
        for _ in range(LIST):
            port = int.from_bytes(self._entropy(4)) % PORTS
            while port in told:
                port = (port + 1) % PORTS
            told.add(port)
            ports.append(FIRST_PORT + port)
        self._outbox.send(key, relay, CallMeMaybe(tuple((public, port) for port in ports)))

    def _end_spreading(self, spreading: _Spreading, now: float, *, rests: bool) -> None:
        self._spreading = None
        state = self._keeper.states.get(spreading.peer)
        best = state.best.path if state is not None and state.best is not None else None
        kept = next((name for name in spreading.sockets if best is not None and best[0].endswith(f"%{name}")), "")
        if kept and best is not None and is_direct(best):
            self._kept[kept] = _Kept(spreading.peer, best, now + KEEPALIVE, now)
            self._succeed(spreading.peer, now)
        elif rests:
            self._fail(spreading.peer, [host for host, _ in spreading.targets], now)
        else:
            self._rest(spreading.peer, now + AGAIN)
        if over := tuple(name for name in spreading.sockets if name != kept):
            self._close(over)

    def _close(self, sockets: tuple[str, ...]) -> None:
        self._keeper.messages.append(SocketsOver(sockets))
        marks = {f"%{name}" for name in sockets}
        for state in self._keeper.states.values():
            for place in [place for place in state.candidates if place[0][place[0].find("%") :] in marks]:
                if state.best is None or state.best.path != place:
                    del state.candidates[place]

    def _keep_alive(self, now: float) -> None:
        """The mapping lives by what passes it, also while nobody says anything."""
        for name, kept in [item for item in self._kept.items() if item[1].due_at <= now]:
            state = self._keeper.states.get(kept.peer)
            candidate = None if state is None else state.candidates.get(kept.path)
            if state is not None and kept.is_used(state):
                kept.used_at = now
            is_dead = candidate is None or now - candidate.ponged_at > ABANDON
            if state is None or is_dead or now - kept.used_at > RETIRE_TIME:
                self._leave(name, kept, state, now)
                continue
            kept.due_at = now + KEEPALIVE
            if not state.is_awake:
                kept.asked_at = now
                self._keeper.ping(state, kept.path, now)

    def _leave(self, name: str, kept: _Kept, state: PeerState | None, now: float) -> None:
        del self._kept[name]
        is_in_use = state is not None and state.best is not None and state.best.path == kept.path
        if state is not None and is_in_use:
            self._keeper.drop_best(state)
        self._close((name,))
        if state is not None and is_in_use:
            self._keeper.attend(state, now)

    # ---- the peer is hard

    def is_list(self, call: CallMeMaybe) -> bool:
        """Whether a CallMeMaybe tells ports to try, and not where a peer is to be found: many, all of one address."""
        return len(call.endpoints) > MAX_CALLED and len({host for host, _ in call.endpoints}) == 1

    def on_list(self, state: PeerState, call: CallMeMaybe, now: float) -> None:
        """A hard peer of ours, which its relay vouches for, asks us to try these ports."""
        reason = self._objection(state, call, now)
        if reason:
            self._drops[reason] += 1
            return
        probing = self._probing
        if probing is None:
            self._attempts += 1
            probing = self._probing = _Probing(state.peer, call.endpoints[0][0], now)
            self._tick_at = now
        ports = [port for _, port in call.endpoints if port >= FIRST_PORT and port not in probing.known]
        room = self._limits.probes - len(probing.known)
        fresh = list(dict.fromkeys(ports))[:room]
        probing.known.update(fresh)
        probing.waiting += fresh

    def _objection(self, state: PeerState, call: CallMeMaybe, now: float) -> str:
        """Why these ports are not tried; empty where they are."""
        host = call.endpoints[0][0]
        if not self.is_allowed:
            return "paths.ports_not_allowed"
        if not self._lists.take(now) or self._is_repeated(call):
            return "paths.ports_repeated"
        if self._public:
            self._tell_hard(state, now)
            return "paths.ports_between_hard_nats"
        if not state.is_awake or state.best is not None:
            return "paths.ports_not_needed"
        confirmed = any(host_of(place) == host and _is_confirmed(known) for place, known in state.candidates.items())
        if not confirmed or ":" in host:
            return "paths.ports_of_unconfirmed_host"
        probing = self._probing
        if probing is not None:
            return "" if (probing.peer, probing.host) == (state.peer, host) else "paths.ports_while_busy"
        if self._is_resting(now, state.peer) or self._is_resting(now, host):
            return "paths.ports_too_soon"
        return "paths.ports_while_busy" if len(self._resting) >= MAX_RESTING else ""

    def _is_repeated(self, call: CallMeMaybe) -> bool:
        """Whoever carries lists may keep them and say them again: that must gain nothing."""
        mark = hash(frozenset(call.endpoints))
        if mark in self._seen:
            return True
        self._seen[mark] = None
        if len(self._seen) > MAX_LISTS_SEEN:
            self._seen.popitem(last=False)
        return False

    def _tell_hard(self, state: PeerState, now: float) -> None:
        """Both are: end our own attempt, and have the peer end its."""
        if self._is_resting(now, state.peer):
            return
        self._tell(state, self._public, set())
        spreading = self._spreading
        if spreading is not None and spreading.peer == state.peer:
            self._end_spreading(spreading, now, rests=True)
        self._rest(state.peer, now + MAX_REST_FACTOR * self._limits.rest)

    def _probe(self, probing: _Probing, now: float) -> None:
        state = self._keeper.states.get(probing.peer)
        if state is None or state.is_direct(now) or now - probing.began_at >= self._limits.seconds:
            self._end_probing(probing, now, rests=True)
            return
        while probing.waiting and self._pace.take(now):
            probing.spent += 1
            self._probes += 1
            self._keeper.ping(state, (probing.host, probing.waiting.popleft()), now)

    def _end_probing(self, probing: _Probing, now: float, *, rests: bool) -> None:
        self._probing = None
        state = self._keeper.states.get(probing.peer)
        best = state.best.path if state is not None and state.best is not None else None
        if best is not None and is_direct(best) and host_of(best) == probing.host and best[1] in probing.known:
            self._succeed(probing.peer, now)
            self._rest(probing.host, now + AGAIN)
        elif rests:
            self._fail(probing.peer, [probing.host], now)

    # ---- both

    def was_probe(self, ping: Outstanding) -> bool:
        """Whether this was a guess of ours, so that an answer makes its address one of the peer's."""
        probing, spreading = self._probing, self._spreading
        if not is_direct(ping.path):
            return False
        if probing is not None and probing.peer == ping.peer and ping.path[0] == probing.host:
            return True
        zone = ping.path[0].partition("%")[2]
        return spreading is not None and spreading.peer == ping.peer and zone in spreading.sockets

    def _succeed(self, peer: PeerId, now: float) -> None:
        self._opened += 1
        self._failures.pop(peer, None)
        self._rest(peer, now + AGAIN)

    def _fail(self, peer: PeerId, hosts: list[str], now: float) -> None:
        self._failed += 1
        factor = min(1 << self._failures[peer], MAX_REST_FACTOR)
        self._failures[peer] += 1
        self._rest(peer, now + factor * self._limits.rest)
        for host in hosts:
            self._rest(host, now + self._limits.rest)

    def _rest(self, whom: PeerId | str, until: float) -> None:
        self._resting[whom] = max(until, self._resting.get(whom, -math.inf))
        self._resting.move_to_end(whom)

    def _is_resting(self, now: float, whom: PeerId | str) -> bool:
        return self._resting.get(whom, -math.inf) > now

    def next_timer(self) -> float:
        return self._tick_at

    def handle_timer(self, now: float) -> None:
        if now < self._tick_at:
            return
        if self._spreading is not None and self._spreading.sockets:
            self._spread(self._spreading, now)
        elif self._spreading is not None and now - self._spreading.began_at >= self._limits.seconds:
            self._end_spreading(self._spreading, now, rests=True)
        if self._probing is not None:
            self._probe(self._probing, now)
        self._keep_alive(now)
        for whom in [whom for whom, until in self._resting.items() if until <= now]:
            del self._resting[whom]
        for peer in self._failures.keys() - self._keeper.roster.keys():
            del self._failures[peer]
        if self._spreading is not None or self._probing is not None:
            self._tick_at = now + TICK
        else:
            self._tick_at = min((kept.due_at for kept in self._kept.values()), default=math.inf)


def _is_confirmed(candidate: Candidate) -> bool:
    """Control says it is the peer's, or the peer has answered there."""
    return candidate.listed or candidate.has_answered


def _is_public(host: str) -> bool:
    address = maybe_address(host)
    return address is not None and len(address) == 4 and not is_private(address) and not is_loopback(address)
