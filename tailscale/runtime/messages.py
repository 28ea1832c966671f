"""Every message on the bus, in one place. Facts in the past tense; how each is delivered is its base class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tailscale._config import Preferences
from tailscale.runtime.bus import Event, Lossy, Retained
from ts_base.keys import NodePrivate
from ts_base.who import Path, PeerId
from ts_control.netmap import NetMap
from ts_control.session import Phase


@dataclass(frozen=True, slots=True)
class NetMapChanged(Retained):
    """Control told us something new about ourselves or our peers. Said by control, heard by nearly everybody."""

    netmap: NetMap


@dataclass(frozen=True, slots=True)
class TablesChanged(Retained):
    """Packets are routed and judged by this netmap from now on: what users see and dial. Said by netmap."""

    netmap: NetMap


@dataclass(frozen=True, slots=True)
class NodeKeyChanged(Retained):
    """Control accepted a new node key of ours: the old one opens nothing any more. Said by control."""

    key: NodePrivate


@dataclass(frozen=True, slots=True)
class PreferencesChanged(Retained):
    """The user changed what may change while running. Said by the Device."""

    preferences: Preferences


@dataclass(frozen=True, slots=True)
class ControlStateChanged(Retained):
    """Where the control session stands."""

    state: Phase
    detail: str = ""
    url: str = field(default="", repr=False)  # whoever opens it owns the device
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class ControlInformed(Retained):
    """Control has acknowledged where we are to be found: peers that ask from now on can reach us. Said by control."""

    home_region: int
    endpoints: frozenset[str]


@dataclass(frozen=True, slots=True)
class EndpointsChanged(Retained):
    """Where we can be reached directly: ("host:port", endpoint type 1..5). Said by probes."""

    endpoints: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class EndpointsConfirmed(Lossy):
    """A check just found these endpoints, changed or not: fresh enough to tell peers. Said by probes."""

    endpoints: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class ProbeRequested(Lossy):
    """Somebody needs our addresses to be fresh. Said by paths and the Device, heard by probes."""

    reason: str
    full: bool = False


@dataclass(frozen=True, slots=True)
class NetInfoChanged(Retained):
    """What the last network check found, home region included. Said by probes, heard by control and relays."""

    home_region: int
    latencies: Mapping[str, float]  # "<region>-v4" -> seconds
    working_udp: bool | None = None
    working_ipv6: bool | None = None
    mapping_varies_by_destination: bool | None = None
    port_mapping: str = ""  # "", "pmp", "pcp", "upnp"


@dataclass(frozen=True, slots=True)
class RelaysChanged(Retained):
    """Which relay regions are connected right now. Said by relays."""

    connected: tuple[int, ...]
    home_connected: bool


@dataclass(frozen=True, slots=True)
class HealthRaised(Event):
    """Something is wrong and the user can read about it; `code` names it until HealthCleared."""

    code: str
    sentence: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class HealthCleared(Event):
    code: str


@dataclass(frozen=True, slots=True)
class PeerPathChanged(Event):
    """The best path to a peer changed; None when there is no direct path (relay, if any, is used)."""

    peer: PeerId
    path: Path | None
    latency: float


@dataclass(frozen=True, slots=True)
class NetworkChanged(Event):
    """Interfaces, addresses or time jumped: sockets may be stale and mappings gone."""

    rebound: bool


@dataclass(frozen=True, slots=True)
class StunArrived(Lossy):
    """STUN datagrams off the tunnel's own socket: [(datagram, (host, port)), ...]."""

    batch: list[tuple[bytes, tuple[Any, ...]]]


@dataclass(frozen=True, slots=True)
class RelayFrameArrived(Lossy):
    """A rare fact from a relay: peer gone, health text, restarting."""

    region: int
    fact: Any
