"""Netcheck: which relays answer, how fast, and at which address the world sees us.

A pure machine: owns the probe plan, the transactions and the report. STUN datagrams it wants sent come out of
`transmit` and must leave by the tunnel's own socket. Refuses to know DNS, HTTPS and which region becomes home.
Plan and early finish follow net/netcheck/netcheck.go.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ts_base.errors import BadPacket
from ts_base.who import Direct
from ts_dataplane import stun

STUN_TIMEOUT = 3.0
FULL_SPACING = 0.1
RETRY_SPACING = 0.2  # where no latency is known yet
FULL_TRIES = 3
FULL_INTERVAL = 300.0
FASTEST = 3  # regions an incremental check looks at, besides home
ENOUGH_REGIONS = 3
MIN_PATIENCE = 0.1  # for stragglers, once enough has answered
MAX_PROBES = 1024


class RegionTargets(NamedTuple):
    """Where the STUN servers of one region listen, by address family."""

    region: int
    ipv4: tuple[Direct, ...] = ()
    ipv6: tuple[Direct, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What one check found. Latencies in seconds by region."""

    ipv4: dict[int, float] = field(default_factory=dict)
    ipv6: dict[int, float] = field(default_factory=dict)
    mapped_ipv4: tuple[Direct, ...] = ()  # most often seen first
    mapped_ipv6: tuple[Direct, ...] = ()
    asked: bool = False  # False: there was nobody to ask, so silence says nothing
    is_full: bool = False
    finished_at: float = -math.inf

    @property
    def latencies(self) -> dict[int, float]:
        both = dict(self.ipv4)
        for region, latency in self.ipv6.items():
            both[region] = min(latency, both.get(region, math.inf))
        return both

    @property
    def working_udp(self) -> bool | None:
        return bool(self.ipv4 or self.ipv6) if self.asked else None

    @property
    def working_ipv6(self) -> bool | None:
        return bool(self.ipv6) if self.asked else None

    @property
    def mapping_varies(self) -> bool | None:
        """Another address for every destination: a hard NAT. None while fewer than two regions answered."""
        return len(self.mapped_ipv4) > 1 if len(self.ipv4) > 1 else None

    def wire_latencies(self) -> dict[str, float]:
        named = {f"{region}-v4": latency for region, latency in self.ipv4.items()}
        return named | {f"{region}-v6": latency for region, latency in self.ipv6.items()}


class _Probe(NamedTuple):
    region: int
    is_ipv6: bool
    target: Direct
    sent_at: float


class NetcheckStatistics(NamedTuple):
    is_running: bool
    open_probes: int
    drops: dict[str, int]


class Netcheck:
    """One check at a time; `begin` while one runs only widens it to full."""

    def __init__(self, entropy: Callable[[int], bytes]) -> None:
        self.drops: Counter[str] = Counter()
        self.last: Report | None = None
        self._entropy = entropy
        self._planned: list[tuple[float, int, bool, Direct]] = []
        self._probes: dict[bytes, _Probe] = {}
        self._out: list[tuple[Direct, list[bytes]]] = []
        self._regions: set[int] = set()
        self._latencies: tuple[dict[int, float], dict[int, float]] = ({}, {})
        self._mapped: tuple[Counter[Direct], Counter[Direct]] = (Counter(), Counter())
        self._deadline = math.inf
        self._full_at = -math.inf
        self._is_full = False
        self._finished: Report | None = None

    def statistics(self) -> NetcheckStatistics:
        return NetcheckStatistics(self.is_running, len(self._probes), dict(self.drops))

    @property
    def is_running(self) -> bool:
        return self._deadline < math.inf

    def begin(self, regions: Sequence[RegionTargets], now: float, *, home: int = 0, full: bool = False) -> None:
        """Start a check. It is a full one when asked for, the first time, and every five minutes."""
        if self.is_running and (self._is_full or not full):
            return
        self._is_full = full or self.last is None or now - self._full_at >= FULL_INTERVAL
        self._planned, self._probes, self._out = [], {}, []
        self._latencies, self._mapped = ({}, {}), (Counter(), Counter())
        self._deadline = now + STUN_TIMEOUT
        if self._is_full:
            self._full_at = now
            self._plan_full(regions, now)
        else:
            self._plan_incremental(regions, now, home)
        self._planned = sorted(self._planned)[:MAX_PROBES]
        self._regions = {region for _, region, _, _ in self._planned}
        self.handle_timer(now)

    def _plan_full(self, regions: Iterable[RegionTargets], now: float) -> None:
        for region in regions:
            for family in (region.ipv4, region.ipv6):
                for attempt in range(FULL_TRIES if family else 0):
                    target = family[attempt % len(family)]
                    self._planned.append((now + attempt * FULL_SPACING, region.region, family is region.ipv6, target))

    def _plan_incremental(self, regions: Sequence[RegionTargets], now: float, home: int) -> None:
        assert self.last is not None
        known = self.last.latencies
        fastest = sorted((r for r in regions if r.region in known), key=lambda r: known[r.region])[:FASTEST]
        chosen = fastest or list(regions)[:FASTEST]
        chosen += [region for region in regions if region.region == home and region not in chosen]
        for rank, region in enumerate(chosen):
            tries = 4 if region.region == home else 2 if rank < 2 else 1
            latency = known.get(region.region)
            step = RETRY_SPACING if latency is None else 1.2 * latency
            families = [family for family in (region.ipv4, region.ipv6) if family]
            for attempt in range(tries if families else 0):
                delay = attempt * step + (attempt * 0.05 if attempt > 1 else 0.0)
                for family in families if attempt == 0 else (families[attempt % len(families)],):
                    target = family[attempt % len(family)]
                    self._planned.append((now + delay, region.region, family is region.ipv6, target))

    def receive(self, batch: Iterable[tuple[bytes, Direct]], now: float) -> None:
        """STUN datagrams off the tunnel's socket. Only an answer to a question, from whom it was put to, counts."""
        for datagram, source in batch:
            try:
                transaction, seen = stun.decode_response_untrusted(datagram)
            except BadPacket:
                self.drops["netcheck.bad_stun"] += 1
                continue
            probe = self._probes.get(transaction)
            if probe is None or probe.target != source:
                self.drops["netcheck.unasked_stun"] += 1
            elif (":" in seen[0]) != probe.is_ipv6 or not seen[1]:
                self.drops["netcheck.wrong_family"] += 1
            else:
                del self._probes[transaction]
                latencies = self._latencies[probe.is_ipv6]
                latency = max(0.0, now - probe.sent_at)
                latencies[probe.region] = min(latency, latencies.get(probe.region, math.inf))
                self._mapped[probe.is_ipv6][seen] += 1
                self._hurry(now)

    def _hurry(self, now: float) -> None:
        """Enough has answered: give the rest about as long as the slowest so far took."""
        answered = self._latencies[0].keys() | self._latencies[1].keys()
        families = {(region, is_ipv6) for _, region, is_ipv6, _ in self._planned}
        families |= {(probe.region, probe.is_ipv6) for probe in self._probes.values()}
        if all(region in self._latencies[is_ipv6] for region, is_ipv6 in families):
            self._deadline = now
        elif answered >= self._regions or len(answered) >= ENOUGH_REGIONS:
            slowest = max(max(latencies.values(), default=0.0) for latencies in self._latencies)
            self._deadline = min(self._deadline, now + max(MIN_PATIENCE, slowest * (2 if self._is_full else 1)))
        if self._deadline <= now:
            self._finish(now)

    def handle_timer(self, now: float) -> None:
        if not self.is_running:
            return
        while self._planned and self._planned[0][0] <= now:
            _, region, is_ipv6, target = self._planned.pop(0)
            if region in self._latencies[is_ipv6] and self._is_full:
                continue
            transaction = self._entropy(stun.TRANSACTION_LENGTH)
            self._probes[transaction] = _Probe(region, is_ipv6, target, now)
            self._out.append((target, [stun.encode_request(transaction)]))
        if now >= self._deadline or not (self._planned or self._probes):
            self._finish(now)

    def _finish(self, now: float) -> None:
        by_count = [tuple(seen for seen, _ in mapped.most_common()) for mapped in self._mapped]
        asked = bool(self._regions)
        report = Report(*self._latencies, by_count[0], by_count[1], asked, self._is_full, now)
        self.last = self._finished = report
        self._planned, self._probes = [], {}
        self._deadline = math.inf

    def partial(self) -> dict[int, float]:
        """Latencies by region as far as the running check knows them."""
        return Report(*self._latencies).latencies

    def transmit(self, now: float) -> list[tuple[Direct, list[bytes]]]:
        out, self._out = self._out, []
        return out

    def next_timer(self) -> float:
        if not self.is_running:
            return math.inf
        return min(self._deadline, self._planned[0][0] if self._planned else math.inf)

    def take_report(self) -> Report | None:
        report, self._finished = self._finished, None
        return report
