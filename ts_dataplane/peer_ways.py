"""All paths to one peer where there are several uplinks: what is thought of each, and what is to be asked.

Owns the rules of suspicion, (a) to (c) of `path_states.py`, which opens with the theory; which path is in use is
`path_selection.py`'s. Sends nothing: what is to be asked is handed out as `Ask`s. Refuses to know disco and sockets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from ts_base.who import Path, PeerId, PeerRelayed, is_relayed
from ts_dataplane.heard_log import HeardOfPeer
from ts_dataplane.path_facts import PathFacts
from ts_dataplane.path_selection import Ask, Reason, Selection, Switch
from ts_dataplane.path_states import DEAD, DEGRADED, GOOD, LOST_PINGS, PINGS_ONLY, SUSPECT, SWALLOWS, UNKNOWN, Way
from ts_dataplane.silence_watch import SilenceWatch
from ts_dataplane.strategies import Strategy
from ts_dataplane.uplink_facts import UplinkFacts

STALE = 6.5  # as long as a path is trusted without uplinks
SETTLED = 1.0  # (c): a peer that has not changed its path for so long has moved when it does
MOVE_PATIENCE = 0.05  # ... others may be sending copies: then it is looked at again
VERDICT_PATIENCE = 0.1  # a suspect has so much longer than whoever answered first
REPEAT = 0.25  # pings on a suspect path
FUTILE_DOUBTS = 3
MUTE = 1.0  # a peer that answers pings and says nothing by any path says nothing of paths
WAYS_LIMIT = 64


class PeerWays:
    """One peer in use."""

    def __init__(
        self, peer: PeerId, heard: HeardOfPeer, uplinks: Mapping[str, UplinkFacts], strategy: Strategy, now: float
    ) -> None:
        self.peer = peer
        self.ways: dict[Path, Way] = {}
        self.selection = Selection(self.ways, heard, uplinks, strategy)
        self.peer_relay: PeerRelayed | None = None  # the one that was proven last
        self._heard = heard
        self._silence = SilenceWatch(heard)
        self._made = 0
        self._peer_uses: Path | None = None
        self._peer_used: Path | None = None  # the last that was no relay: by those come copies of what is in doubt
        self._peer_moved_at = -math.inf
        self._look_again_at = math.inf
        self._futile = 0  # doubts in a row after which the peer was heard, since another path carried copies
        self._is_doubled = False  # there was a doubt, and the peer was not heard since
        self._doubted_for: Reason = "silent"
        self._is_awake = True
        self._silent_lanes: list[int] = []

    # ---- facts

    def keep(self, paths: Iterable[Path], now: float) -> None:
        """These are all the paths there are."""
        wanted = dict.fromkeys(paths)
        for path in wanted:
            if path not in self.ways and len(self.ways) < WAYS_LIMIT:
                self._made += 1
                self.ways[path] = Way(path, self._made, now)
        for path in [path for path in self.ways if path not in wanted]:
            self.selection.let_go(self.ways.pop(path))
        self.selection.apply_uplinks()

    def wake(self, now: float) -> None:
        """The peer is talked to again: what was not heard for long may have been forgotten by routers meanwhile."""
        self._is_awake = True
        way = self.selection.current
        if way is not None and now - max(way.heard_at, way.answered_at) > STALE:
            self._doubt(way, "it was silent for long", self._heard.at, now)

    def sleep(self) -> None:
        """Nobody talks to the peer: nothing is asked, and what is thought of its paths stays."""
        self._is_awake = False
        self._silence.stop()
        self._look_again_at = math.inf

    def on_network_changed(self, now: float, uplink: str | None = None) -> None:
        """Our addresses are others, on one uplink or on all: every path through it has to prove itself again."""
        for way in self.ways.values():
            if not is_relayed(way.path) and uplink in (None, way.uplink):
                self._doubt(way, "our network changed", self._heard.at, now, reason="network")

    def on_uplinks_changed(self, now: float) -> None:
        """One went, came, or is wanted otherwise."""
        self.selection.apply_uplinks()
        self.selection.changed = "network"
        for way in self.ways.values():
            if not self.selection.allows(way):
                self._kill(way, "its uplink is down or switched off", now)

    @property
    def is_doubted(self) -> bool:
        """The path in use may be dead."""
        return self.selection.current is not None and self.selection.current.state is SUSPECT

    # ---- activity

    def on_sent(self, now: float, *, asks: bool) -> float:
        """User data left; `asks` where the peer's system answers it by itself. Returns when to look."""
        way = self.selection.current
        record = None if way is None or way.state is SUSPECT else way.record
        self._note_answered(self._silence.on_sent(record, now, asks=asks))
        if self._silent_lanes:
            return now
        return self._silence.next_timer(record)

    def on_lane_silent(self, number: int) -> None:
        """A stream that is divided got no answer to what it sent by the path of that number."""
        self._silent_lanes.append(number)

    def on_lane_lost(self, number: int, count: int) -> None:
        """As `on_resent`, of a stream that is divided."""
        for way in self.ways.values():
            if way.order == number and way.state is not SUSPECT:
                way.record.on_resent(count)

    def _suspect_lanes(self, now: float) -> None:
        silent, self._silent_lanes = self._silent_lanes, []
        for way in self.ways.values():
            if way.order in silent and way.state in (GOOD, DEGRADED):
                self._doubt(way, "what a stream sent there was not answered", way.heard_at, now)

    def _note_answered(self, asked_at: float | None) -> None:
        """If the path in use was alone and trusted when that was asked, data passes on it."""
        way = self.selection.current
        if asked_at is not None and way is not None and way.state is not SUSPECT and asked_at >= way.since:
            self._futile = 0

    def on_carried(self, path: Path, count: int, now: float) -> str:
        """Bytes of the tunnel were handed to a path; returns its uplink."""
        way = self.ways.get(path)
        if way is None:
            return ""
        way.record.on_sent(count, now)
        return way.uplink

    def on_resent(self, count: int) -> None:
        """TCP takes so many bytes for lost: where there are copies, on the first of them."""
        way = self.selection.current
        if way is not None and way.state is not SUSPECT:
            way.record.on_resent(count)

    def on_asked(self, path: Path, now: float, *, is_full: bool) -> None:
        """A ping of ours left."""
        way = self.ways.get(path)
        if way is not None:
            way.on_asked(now, is_full=is_full)

    def on_pong(self, path: Path, latency: float, mtu: int, now: float) -> None:
        way = self.ways.get(path)
        if way is not None:
            way.on_pong(latency, mtu, now)
            self.selection.on_word(way, now)

    def on_error(self, path: Path, now: float) -> None:
        """The host itself cannot send there."""
        way = self.ways.get(path)
        if way is not None:
            self._doubted_for = "error"
            self._kill(way, "this machine has no way there", now)

    def _kill(self, way: Way, why: str, now: float) -> None:
        if way.die(why, now):
            self.selection.died_at[way.path] = now
            if way is self.selection.current:
                self.selection.changed = self.selection.changed or self._doubted_for
        self._doubted_for = "silent"

    # ---- what was heard

    def look(self, now: float) -> None:
        """Take notice of what the tunnel has accepted since last looked."""
        newest: tuple[float, Path] | None = None
        for path, heard in self._heard.items():
            way = self.ways.get(path)
            if way is not None and heard.at > way.heard_at:
                way.on_data(heard.at, now)
                self.selection.on_word(way, heard.at)
            if newest is None or heard.at > newest[0]:
                newest = heard.at, path
        self._note_answered(self._silence.take_answered())
        current = self.selection.current
        if self._is_doubled and current is not None and self._heard.at > current.since:
            self._is_doubled = False
            self._futile += 1
        if newest is not None and newest[1] != self._peer_uses:
            self._on_peer_moved(newest[1], now)
        if self._look_again_at <= now:
            self._look_again_at = math.inf
            self._judge_move(now)

    def _on_peer_moved(self, path: Path, now: float) -> None:
        """It is heard on another path than the last time."""
        before, self._peer_uses = self._peer_uses, path
        if not is_relayed(path):
            before, self._peer_used = self._peer_used, path
        has_settled, self._peer_moved_at = now - self._peer_moved_at > SETTLED, now
        way = self.selection.current
        if way is None or before != way.path:
            return
        if has_settled:
            self._doubt(
                way,
                "the peer is heard elsewhere now",
                way.heard_at,
                now,
                needs_data=self._peer_used not in (None, way.path),
            )
        else:
            self._look_again_at = now + MOVE_PATIENCE

    def _judge_move(self, now: float) -> None:
        """(c), where the peer has changed its path shortly before: copies may arrive by turns."""
        way = self.selection.current
        if way is not None and self._peer_uses != way.path and now - way.heard_at >= MOVE_PATIENCE - 1e-6:
            self._doubt(
                way,
                "the peer is heard elsewhere now",
                way.heard_at,
                now,
                needs_data=self._peer_used not in (None, way.path),
            )

    # ---- suspicion

    def _doubt(
        self, way: Way, why: str, heard_at: float, now: float, reason: Reason = "silent", *, needs_data: bool = False
    ) -> None:
        if way.suspect(why, now, needs_data=needs_data and not is_relayed(way.path)):
            if way is self.selection.current:
                self.selection.on_doubt(heard_at)
                self._doubted_for = reason
            self.selection.has_moved = True

    def _suspect_silence(self, now: float) -> None:
        """(a)"""
        way = self.selection.current
        if way is None or way.state is SUSPECT or not self._silence.is_silent(way.record, now):
            return
        self._is_doubled = True
        if self._futile >= FUTILE_DOUBTS and any(one.is_usable for one in self.selection.ranked()[1:]):
            self._futile = 0
            self._bar(way, PINGS_ONLY, now)
            return
        for path in self.selection.choice(now=now):
            is_usual = path == self._peer_uses  # else the peer's silence there says nothing
            self._doubt(self.ways[path], "what asks for an answer gets none", self._heard.at, now, needs_data=is_usual)

    def _bar(self, way: Way, why: str, now: float) -> None:
        """It answers pings, so it would be back at once."""
        way.bar(now)
        self._kill(way, why, now)

    # ---- time

    def next_timer(self) -> float:
        if not self._is_awake:
            return math.inf
        if self._wants_first_ping() or self._silent_lanes:
            return -math.inf
        current, allows = self.selection.current, self.selection.allows
        record = None if current is None or current.state is SUSPECT else current.record
        timers = [self._silence.next_timer(record), self._look_again_at, self.selection.next_timer()]
        for way in self.ways.values():
            timers += way.next_timer(), way.retry_at() if allows(way) else math.inf
            if way.state is SUSPECT:
                timers.append(self._verdict_at(way))
            if way.wants_full and self._may_be_used(way):
                timers.append(way.full_due_at())
        return min(timers)

    def handle_timer(self, now: float) -> list[Ask]:
        """Doubt, bury, revive and switch what is due; what to ask."""
        self.look(now)
        selection = self.selection
        if not self._is_awake:
            selection.decide(now)
            return []
        asks: list[Ask] = []
        current = selection.current
        is_quiet = self._silence.wants_ping(None if current is None else current.record, now)
        if current is not None and (is_quiet or self._wants_first_ping()):
            asks.append(Ask(current.path, False))
        self._suspect_silence(now)
        self._suspect_lanes(now)
        for way in list(self.ways.values()):
            if way.handle_timer(now) > way.heard_at and way.state in (GOOD, DEGRADED):
                self._doubt(way, "a ping was not answered", max(self._heard.at, way.heard_at), now)
            if way.swallows_large and any(one.is_usable for one in selection.ranked() if one is not way):
                self._bar(way, SWALLOWS, now)
            if way.state is DEAD:
                selection.died_at.setdefault(way.path, way.since)
        asks += self._settle_suspects(now)
        ways = self.ways.values()
        asks += [Ask(way.path, False) for way in ways if way.retry_at() <= now and selection.allows(way)]
        selection.decide(now)
        asks += selection.rival_asks(now)
        asks += [Ask(way.path, True) for way in ways if way.full_due_at() <= now and self._may_be_used(way)]
        return list(dict.fromkeys(asks))

    def _wants_first_ping(self) -> bool:
        """Nothing is known of how long answers take on the path in use."""
        way = self.selection.current
        return way is not None and way.rtt is None and way.asked_at == -math.inf

    def _settle_suspects(self, now: float) -> list[Ask]:
        """Ask on every path, and bury a suspect once another has answered and it has not."""
        asks: list[Ask] = []
        for way in [way for way in self.ways.values() if way.state is SUSPECT]:
            if way.answered_at > way.since:
                self._settle_answering(way, now)
            elif now >= self._death_at(way) or way.lost_in_row >= LOST_PINGS:
                self._kill(way, f"{way.why}, and nothing answers on it", now)
            elif now - way.asked_at >= REPEAT or way.asked_at < way.since:
                asks.append(Ask(way.path, False))
        current = self.selection.current
        if current is not None and current.state is SUSPECT:
            asks += [Ask(one.path, False) for one in self.ways.values() if self._is_unasked(one, current)]
        return asks

    def _settle_answering(self, way: Way, now: float) -> None:
        """A suspect that pings do not clear answered one: whether data came by another path since decides."""
        if now >= self._death_at(way):
            self._bar(way, PINGS_ONLY, now)
        elif now >= way.since + MUTE:
            way.clear(now)

    def _is_unasked(self, way: Way, current: Way) -> bool:
        """Since the path in use came into doubt."""
        is_asked = way.asked_at >= current.since or way.state not in (GOOD, DEGRADED, UNKNOWN)
        return not is_asked and self.selection.allows(way)

    def _death_at(self, way: Way) -> float:
        """When a suspect has been silent for long enough after another path was not; data counts, if pongs do not."""
        others = [one for one in self.ways.values() if one is not way and one.state is not DEAD]
        if way.answered_at > way.since:
            answers = [heard.at for one in others if (heard := self._heard.get(one.path)) is not None]
            way.missed_at = min([way.missed_at, *[at for at in answers if at > way.since]])
            first = max(way.missed_at, way.since + (way.rtt or 0.0))  # until then what comes may have left before
        else:
            answers = [max(one.answered_at, one.heard_at) for one in others]
            first = min([at for at in answers if at > way.since], default=math.inf)
        return first + max(VERDICT_PATIENCE, way.rtt or 0.0)

    def _verdict_at(self, way: Way) -> float:
        if way.answered_at > way.since:
            return min(self._death_at(way), way.since + MUTE)
        return min(self._death_at(way), max(way.asked_at, way.since) + REPEAT)

    def _may_be_used(self, way: Way) -> bool:
        """Worth a large ping: in use, or the best that its uplink has."""
        if way is self.selection.current:
            return True
        rivals = [one for one in self.ways.values() if one.uplink == way.uplink and one.answered_at > -math.inf]
        return bool(rivals) and min(rivals, key=lambda one: (one.rtt or math.inf, one.order)) is way

    # ---- what is told

    def facts(self, now: float) -> list[PathFacts]:
        """What there is to tell of every path."""
        return [way.facts(self._heard.get(way.path), now) for way in self.ways.values()]

    def take_switches(self) -> list[Switch]:
        taken, self.selection.switches = self.selection.switches, []
        return taken

    def take_move(self) -> bool:
        """Whether datagrams go by other paths since last asked."""
        moved, self.selection.has_moved = self.selection.has_moved, False
        return moved
