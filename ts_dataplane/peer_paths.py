"""What is known of the ways to one peer: control's facts, and the state kept while the peer is in use.

Owns the best path, its trust, and when the next thing is due. Sends nothing and knows no disco: `path_keeping.py` asks
what is due and does it. Times and rules are magicsock's, named by cause; idle peers have no state at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from ts_base.budget import Budget
from ts_base.ip import TUNNEL_MTU
from ts_base.who import Direct, Path, PeerId, PeerRelayed, host_of, is_direct, is_peer_relayed, uplink_of
from ts_dataplane.candidates import Candidate, Candidates
from ts_dataplane.path_scoring import PathQuality, is_better
from ts_dataplane.peer_ways import PeerWays

ACTIVE_TIME = 45.0  # without user data sent for this long, heartbeats stop
HEARTBEAT = 3.0
TRUST_TIME = 6.5  # two heartbeats and half a second
DOUBT_TIME = 1.0  # a heartbeat unanswered for this long (and two round trips): the relay gets a copy while we ask again
CANDIDATE_SPACING = 5.0
FIRST_SPACING = 0.25  # a fresh search tries again this soon, then ever slower up to CANDIDATE_SPACING
PING_BACK_SPACING = 1.0
UPGRADE_INTERVAL = 60.0
GOOD_ENOUGH_LATENCY = 0.005
STANDBY_INTERVAL = 3 * HEARTBEAT  # of pings on the best path of each uplink that is not in use
STANDBY_LIFE = 2 * STANDBY_INTERVAL + 0.5  # a standby that answered within this time is believed to work
RETIRE_TIME = 300.0  # then the state of an idle peer is dropped

SIZE_PROBES = 6  # unanswered full-size pings on a path that answers small ones: a black hole, not bad luck
SIZE_PROBE_SPACING = 1.0


@dataclass(frozen=True, slots=True)
class PeerPaths:
    """What control says about reaching a peer. Endpoints stay the netmap's own strings until they are needed."""

    node_key: bytes
    disco_key: bytes | None = None
    endpoints: tuple[str, ...] = ()
    home_region: int = 0
    wireguard_only: bool = False
    expired: bool = False
    serves_relay: bool = False  # may we ask it to carry our packets to other peers


class Standing(Enum):
    """How well a peer is reached. `path_keeping.py` opens with what each means and what leads from one to another."""

    IDLE = "idle"
    SEARCHING = "searching"
    MIRRORED = "mirrored"
    TRUSTED = "trusted"
    DOUBTED = "doubted"


# Doubt needs a path that was found before: it is never the first thing known of one.
FOLLOWS = {
    Standing.IDLE: {Standing.SEARCHING, Standing.MIRRORED, Standing.TRUSTED},
    Standing.SEARCHING: {Standing.IDLE, Standing.MIRRORED, Standing.TRUSTED},
    Standing.MIRRORED: {Standing.TRUSTED, Standing.DOUBTED, Standing.SEARCHING, Standing.IDLE},
    Standing.TRUSTED: {Standing.MIRRORED, Standing.DOUBTED, Standing.SEARCHING, Standing.IDLE},
    Standing.DOUBTED: {Standing.TRUSTED, Standing.MIRRORED, Standing.SEARCHING, Standing.IDLE},
}


class PeerState:
    """One peer in use."""

    __slots__ = (
        "asked_at",
        "best",
        "best_since",
        "call_tokens",
        "called_at",
        "candidates",
        "confirmed",
        "facts",
        "full_ping_at",
        "has_asked_twice",
        "heard_at",
        "heard_by",
        "heard_by_since",
        "heartbeat_at",
        "is_awake",
        "move_look_at",
        "moved_to",
        "moved_until",
        "packets_in",
        "peer",
        "relay_server",
        "search_at",
        "sent_at",
        "size_probe_at",
        "size_probes",
        "spacing",
        "standing",
        "trusted_until",
        "vouched_at",
        "ways",
    )

    def __init__(
        self, peer: PeerId, facts: PeerPaths, now: float, uplinks: Sequence[str] = (), ways: PeerWays | None = None
    ) -> None:
        self.peer = peer
        self.ways = ways  # where there are several uplinks: what decides then which path is the best one
        self.facts = facts
        self.standing = Standing.IDLE
        self.candidates = Candidates(uplinks)
        self.best: PathQuality | None = None
        self.best_since = -math.inf
        self.vouched_at = -math.inf  # when the tunnel was last seen to hear the peer without a relay
        self.packets_in = 0  # the tunnel's counter, when it was last looked at
        self.confirmed = False  # full-size datagrams are known to pass on the best path
        self.trusted_until = -math.inf
        self.is_awake = False
        self.sent_at = -math.inf
        self.heard_at = now
        self.heard_by: Path | None = None  # the path on which the tunnel heard the peer last, and since when
        self.heard_by_since = -math.inf
        self.moved_to: Path | None = None  # it is heard there now, and the best path was asked (`peer_moves.py`)
        self.moved_until = -math.inf
        self.move_look_at = math.inf
        self.has_asked_twice = False
        self.asked_at = math.inf  # the first ping on the best path that nothing has answered since
        self.full_ping_at = -math.inf
        self.heartbeat_at = self.search_at = self.size_probe_at = math.inf
        self.spacing = FIRST_SPACING
        self.size_probes = 0
        self.called_at = -math.inf
        self.call_tokens: Budget | None = None
        self.relay_server: bytes | None = None  # disco key of the peer relay last bound for this peer

    # ---- standing

    def standing_at(self, now: float) -> Standing:
        if self.best is None:
            return Standing.SEARCHING if self.is_awake else Standing.IDLE
        if self.is_doubted(now) or not self.is_trusted(now):
            return Standing.DOUBTED
        return Standing.TRUSTED if self.confirmed else Standing.MIRRORED

    def settle(self, now: float) -> Standing:
        """The one place where the standing changes; what made it change is over by now."""
        before, self.standing = self.standing, self.standing_at(now)
        follows = self.standing is before or self.standing in FOLLOWS[before] or self.ways is not None
        assert follows, f"{before} became {self.standing}"
        return self.standing

    # ---- trust

    def is_trusted(self, now: float) -> bool:
        return self.best is not None and now < self.trusted_until

    def is_direct(self, now: float) -> bool:
        return self.best is not None and is_direct(self.best.path) and now < self.trusted_until

    def doubt_at(self) -> float:
        """When silence on the best path becomes suspicious; trust lasts longer."""
        if self.ways is not None:
            return -math.inf if self.best is not None and self.ways.is_doubted else math.inf
        return math.inf if self.best is None else self.asked_at + DOUBT_TIME + 2 * self.best.latency

    def is_doubted(self, now: float) -> bool:
        return now >= self.doubt_at()

    def credit(self, quality: PathQuality, now: float, *, insist: bool = False) -> bool:
        """A pong proved this path. True when it became the best one; with `insist` it replaces another peer relay's."""
        best = self.best
        if best is not None and quality.path == best.path:
            self.best = PathQuality(best.path, quality.latency, max(best.mtu, quality.mtu))
            self.trusted_until = now + TRUST_TIME
            self.asked_at, self.has_asked_twice = math.inf, False
            self.moved_to = None
            return False
        insist = insist and best is not None and is_peer_relayed(best.path)
        holds = self.standing_at(now) in (Standing.MIRRORED, Standing.TRUSTED)
        if holds and not insist and not is_better(quality, best):
            return False
        self._install(quality, now)
        return True

    def _install(self, quality: PathQuality, now: float) -> None:
        self.best = quality
        self.best_since = now
        self.moved_to = None
        self.trusted_until = now + TRUST_TIME
        self.asked_at, self.has_asked_twice = math.inf, False
        self.size_probes = 0
        self.confirmed = quality.mtu >= TUNNEL_MTU
        self.size_probe_at = math.inf if self.confirmed else now

    def follow(self, quality: PathQuality, now: float) -> None:
        """The ways have decided: trusted until they decide otherwise."""
        self._install(quality, now)
        self.trusted_until, self.size_probe_at, self.confirmed = math.inf, math.inf, True

    def drop_best(self) -> None:
        self.best = None
        self.moved_to = None
        self.confirmed = False
        self.trusted_until = -math.inf
        self.asked_at = self.size_probe_at = math.inf
        self.has_asked_twice = False

    def has_moved_to(self, source: Direct) -> bool:
        """Another port of the best path's host: its router has probably forgotten the mapping we send to."""
        best = self.best
        if best is None or self.asked_at < math.inf:
            return False
        return host_of(best.path) == host_of(source) and best.path[1] != source[1]

    def adopt(self, path: Direct | PeerRelayed, now: float) -> None:
        """A peer without pongs was heard here: the path is good until the tunnel falls silent."""
        if self.best is None or self.best.path != path:
            self.best_since = now
        self.best, self.confirmed = PathQuality(path, 0.0, TUNNEL_MTU), True
        self.trusted_until = math.inf

    def candidate_of_best(self) -> Candidate | None:
        """What is known of the address in use, if it is a direct one."""
        if self.best is None or not is_direct(self.best.path):
            return None
        return self.candidates.get(self.best.path)

    # ---- searching

    def wake(self, now: float) -> None:
        self.is_awake = True
        self.sent_at = now
        self.heartbeat_at = now + HEARTBEAT
        if self.ways is not None:
            self.ways.wake(now)
        if not self.is_direct(now):
            self.search_soon(now)

    def sleep(self) -> None:
        self.is_awake = False
        if self.ways is not None:
            self.ways.sleep()
        self.heartbeat_at = self.search_at = math.inf

    def search_soon(self, now: float) -> None:
        """A new search begins: quick at first."""
        self.spacing = FIRST_SPACING
        self.search_at = now

    def search_later(self, now: float) -> None:
        self.spacing = min(2 * self.spacing, CANDIDATE_SPACING)
        if not self.is_awake:
            self.search_at = math.inf
            return
        # Pings out of turn shift what is due: look again then, not a whole round later.
        soonest = min((candidate.due_at(self.spacing) for candidate in self.candidates.values()), default=math.inf)
        self.search_at = min(now + self.spacing, max(soonest, now + FIRST_SPACING))

    def is_idle(self, now: float) -> bool:
        return now - self.sent_at >= ACTIVE_TIME

    def wants_full_ping(self, now: float) -> bool:
        """Is it time, at a heartbeat, to look whether another candidate has become better?"""
        if not self.is_direct(now) or self.full_ping_at == -math.inf:
            return True
        assert self.best is not None
        return self.best.latency > GOOD_ENOUGH_LATENCY and now - self.full_ping_at >= UPGRADE_INTERVAL

    def due_candidates(self, now: float, spacing: float) -> list[tuple[Direct, Candidate]]:
        self.candidates.prune(now, None if self.best is None else self.best.path)
        return [item for item in self.candidates.items() if item[1].is_due(now, spacing)]

    def standby(self, uplink: str, now: float) -> Direct | None:
        """Of what answers through an uplink, the fastest."""
        answering = [
            (candidate.latency, place)
            for place, candidate in self.candidates.of_uplink(uplink)
            if now - candidate.ponged_at <= STANDBY_LIFE and now >= candidate.blocked_until
        ]
        return min(answering)[1] if answering else None

    def due_standbys(self, uplinks: Sequence[str], now: float) -> list[Direct]:
        """What to ping so that every uplink keeps a path: its standby, or while it has none, all it might be."""
        due = []
        in_use = "" if self.best is None else uplink_of(self.best.path)
        for uplink in uplinks:
            if uplink != in_use and (self.ways is None or self.ways.selection.allows_uplink(uplink)):
                standby = self.standby(uplink, now)
                places = self.candidates.of_uplink(uplink)
                due += [p for p, c in places if standby in (None, p) and c.is_due(now, STANDBY_INTERVAL)]
        return due

    def retire_at(self) -> float:
        return max(self.sent_at, self.heard_at) + RETIRE_TIME

    def next_timer(self, now: float) -> float:
        """When `path_keeping.py` has to look at this peer again."""
        lapse = self.trusted_until if now < self.trusted_until else math.inf
        doubt = self.doubt_at()
        return min(
            self.heartbeat_at,
            self.search_at,
            self.size_probe_at,
            lapse,
            doubt if now < doubt else math.inf,
            self.retire_at(),
            math.inf if self.moved_to is None else self.moved_until,
            self.move_look_at,
            math.inf if self.ways is None else self.ways.next_timer(),
        )
