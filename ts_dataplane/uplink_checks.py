"""Where others see us through each uplink: a STUN check for every one but the first, which the netcheck itself takes.

Owns which answer is whose: it names its uplink as a zone. Refuses to know relays' latencies and homes, which are of the
machine and not of an uplink.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from ts_base.who import Direct, host_of, uplink_of
from ts_dataplane.netcheck import Netcheck, RegionTargets, Report

REGIONS = 2  # asked through each: enough to see whether an address varies


class UplinkChecks:
    """One machine for each further uplink."""

    def __init__(self, entropy: Callable[[int], bytes]) -> None:
        self.first = ""
        self._entropy = entropy
        self._checks: dict[str, Netcheck] = {}

    def begin(self, uplinks: Sequence[str], regions: Sequence[RegionTargets], now: float) -> None:
        """Ask through all of them but the first."""
        self.first = uplinks[0] if uplinks else ""
        self._checks = {name: self._checks.get(name) or Netcheck(self._entropy) for name in uplinks[1:]}
        for check in self._checks.values():
            check.begin(regions[:REGIONS], now)

    def receive(self, batch: Iterable[tuple[bytes, Direct]], now: float) -> list[tuple[bytes, Direct]]:
        """Answers that came by these uplinks; returns the rest, without zones."""
        rest: list[tuple[bytes, Direct]] = []
        for datagram, source in batch:
            plain = host_of(source), source[1]
            check = self._checks.get(uplink_of(source))
            if check is None:
                rest.append((datagram, plain))
            else:
                check.receive([(datagram, plain)], now)
        return rest

    def transmit(self, now: float) -> list[tuple[Direct, list[bytes]]]:
        return [
            ((f"{host}%{name}", port), datagrams)
            for name, check in self._checks.items()
            for (host, port), datagrams in check.transmit(now)
        ]

    def handle_timer(self, now: float) -> None:
        for check in self._checks.values():
            check.handle_timer(now)

    def next_timer(self) -> float:
        return min((check.next_timer() for check in self._checks.values()), default=math.inf)

    def take_mapped(self) -> list[tuple[str, Direct]]:
        """Where we were seen through which uplink, of the checks that ended since last asked."""
        found: list[tuple[str, Direct]] = []
        for name, check in self._checks.items():
            report = check.take_report()
            if report is not None:
                found += [(name, seen) for seen in (report.mapped_ipv4 or report.mapped_ipv6)[:1]]
        return found

    def reports(self) -> list[Report]:
        """The last of each."""
        return [check.last for check in self._checks.values() if check.last is not None]
