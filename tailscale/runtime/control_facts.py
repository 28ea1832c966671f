"""What control is told of this device when it asks: health, preferences, a few figures, in upstream's names.

Owns: which code of upstream's a warning of ours is. Refuses to know: how it is asked and written (`ts_control/c2n.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tailscale._config import Preferences
from tailscale.faults import upstream_code
from tailscale.runtime.bus import Bus
from tailscale.runtime.messages import (
    CertificatesChanged,
    NetInfoChanged,
    NetMapChanged,
    ServicesOffered,
    WarningsChanged,
)
from ts_control.c2n import Facts, Trouble
from ts_dataplane.path_tally import PathTally
from ts_lock.chain import Chain

LONGEST_LIST = 64
HURTS = {"control-unreachable", "relay-home-unreachable", "key-expired", "login-needed", "approval-needed"}


Traffic = Mapping[str, PathTally]
"""What was received and sent: "inbound" and "outbound"."""


def facts_for_control(
    bus: Bus, preferences: Preferences, now: float, lock: Chain | None = None, traffic: Traffic | None = None
) -> Facts:
    """A snapshot; nothing is measured for it."""
    heard = bus.latest(WarningsChanged)
    warnings = list(heard.warnings.values())[:LONGEST_LIST] if heard is not None else []
    troubles = [
        Trouble(
            upstream_code(warning.code),
            warning.sentence,
            f"{warning.sentence}. {warning.remedy}" if warning.remedy else warning.sentence,
            is_about_connectivity=warning.code in HURTS,
        )
        for warning in warnings
    ]
    held = bus.latest(CertificatesChanged)
    log = lock.log() if lock is not None else None
    offered = bus.latest(ServicesOffered)
    return Facts(
        troubles,
        _preferences(preferences),
        [*_bytes(traffic or {}), *_figures(bus, preferences, len(warnings))],
        certificates=held.held if held is not None else {},
        now=now,
        lock_log=log,
        hosted=offered.hosted if offered is not None else (),
    )


def _preferences(preferences: Preferences) -> dict[str, object]:
    """ipn.Prefs, as far as a library has any."""
    return {
        "WantRunning": True,
        "Hostname": preferences.hostname,
        "RouteAll": preferences.accept_routes,
        "ShieldsUp": preferences.shields_up,
        "AdvertiseTags": list(preferences.tags[:LONGEST_LIST]),
        "AdvertiseRoutes": list(preferences.advertise_routes[:LONGEST_LIST]),
    }


def _figures(bus: Bus, preferences: Preferences, warnings: int) -> list[tuple[str, str, float]]:
    found, shown = bus.latest(NetInfoChanged), bus.latest(NetMapChanged)
    allowed = set(shown.netmap.self_node.allowed_ips or ()) if shown is not None else set()
    approved = allowed & set(preferences.offered_routes)
    return [
        ('tailscaled_health_messages{type="warning"}', "gauge", warnings),
        ("tailscaled_home_derp_region_id", "gauge", found.home_region if found is not None else 0),
        ("tailscaled_advertised_routes", "gauge", len(preferences.offered_routes)),
        ("tailscaled_approved_routes", "gauge", len(approved)),
    ]


def _bytes(traffic: Traffic) -> Iterator[tuple[str, str, float]]:
    """By path, under the names that `tailscale/metrics/table.py` has too."""
    for unit in ("bytes", "packets"):
        for direction, tally in traffic.items():
            for path, count in tally.statistics().items():
                value = count.bytes if unit == "bytes" else count.datagrams
                yield f'tailscaled_{direction}_{unit}_total{{path="{path}"}}', "counter", value
