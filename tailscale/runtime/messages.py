"""Every message on the bus, in one place. Facts in the past tense; how each is delivered is its base class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tailscale._config import Preferences
from tailscale.runtime.bus import Lossy, Rate, Reliable, Retained
from tailscale.status import HealthWarning
from ts_base.ip import Prefix
from ts_base.keys import NodePrivate
from ts_base.who import Direct, Path, PeerId
from ts_control.netmap import NetMap
from ts_control.services import VIPService, services_of
from ts_control.session import Phase
from ts_control.wire import DERPMap, Service


@dataclass(frozen=True, slots=True)
class NetMapChanged(Retained):
    """Control told us something new about ourselves or our peers. Said by control, heard by nearly everybody."""

    rate: ClassVar[Rate] = Rate.THEIRS

    netmap: NetMap
    is_remembered: bool = False
    """Whether it is that of the last run: control has said nothing yet."""


@dataclass(frozen=True, slots=True)
class RelaysRemembered(Retained):
    """The relay map and home region of the last run, until control has spoken. Said by control, heard by relays."""

    rate: ClassVar[Rate] = Rate.OURS

    derp_map: DERPMap
    home_region: int


@dataclass(frozen=True, slots=True)
class CertificatesChanged(Retained):
    """Which certificates are held, and from when to when each is good. Said by their keeper."""

    rate: ClassVar[Rate] = Rate.OURS

    held: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class TablesChanged(Retained):
    """Packets are routed and judged by this netmap from now on: what users see and dial. Said by netmap."""

    rate: ClassVar[Rate] = Rate.THEIRS

    netmap: NetMap


@dataclass(frozen=True, slots=True)
class NodeKeyChanged(Retained):
    """Control accepted a new node key of ours: the old one opens nothing any more. Said by control."""

    rate: ClassVar[Rate] = Rate.THEIRS

    key: NodePrivate


@dataclass(frozen=True, slots=True)
class PreferencesChanged(Retained):
    """The user changed what may change while running. Said by the Device."""

    rate: ClassVar[Rate] = Rate.OURS

    preferences: Preferences


@dataclass(frozen=True, slots=True)
class InterfacesChanged(Retained):
    """The networks that this machine is in, into which no default route of ours leads. Said by forwarding while one is
    in force, heard by netmap.
    """

    rate: ClassVar[Rate] = Rate.OURS

    prefixes: frozenset[Prefix]


@dataclass(frozen=True, slots=True)
class ControlStateChanged(Retained):
    """Where the control session stands. Said by control, heard by whoever waits for it."""

    rate: ClassVar[Rate] = Rate.THEIRS

    state: Phase
    detail: str = ""
    url: str = field(default="", repr=False)  # whoever opens it owns the device
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class ControlInformed(Retained):
    """Control has acknowledged where we are to be found: peers that ask from now on can reach us. Said by control."""

    rate: ClassVar[Rate] = Rate.THEIRS

    home_region: int
    endpoints: frozenset[str]


@dataclass(frozen=True, slots=True)
class Offer:
    """What one part of the program offers."""

    services: tuple[Service, ...] = ()
    ssh_host_keys: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    ingress: bool | None = None
    """True: names of ours lead here from the internet. False: they may soon."""
    hosted: tuple[tuple[str, int], ...] = ()
    """Services, `svc:web`, and their TCP ports."""


@dataclass(frozen=True, slots=True)
class ServicesOffered(Retained):
    """Everything this device offers by itself, by who offers it. Said through `offers.offer`, heard by control and by
    the packet path.
    """

    rate: ClassVar[Rate] = Rate.OURS

    offers: Mapping[str, Offer]

    @property
    def services(self) -> tuple[Service, ...]:
        return tuple(service for offer in self.offers.values() for service in offer.services)

    @property
    def hosted(self) -> tuple[VIPService, ...]:
        """The services this device is a host of, as control is told."""
        return services_of(each for offer in self.offers.values() for each in offer.hosted)

    @property
    def is_published(self) -> bool:
        """Whether names of ours lead here from the internet."""
        return any(offer.ingress for offer in self.offers.values())

    @property
    def peerapi_port(self) -> int:
        """Where peers find our own little HTTP server; 0 when there is none."""
        return next((service.port for service in self.services if service.proto == "peerapi4"), 0)


@dataclass(frozen=True, slots=True)
class EndpointsChanged(Retained):
    """Where we can be reached directly: ("host:port", endpoint type 1..5). Said by probes."""

    rate: ClassVar[Rate] = Rate.THEIRS

    endpoints: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class EndpointsConfirmed(Lossy):
    """A check just found these endpoints, changed or not: fresh enough to tell peers. Said by probes."""

    rate: ClassVar[Rate] = Rate.THEIRS

    endpoints: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class ProbeRequested(Lossy):
    """Somebody needs our addresses to be fresh. Said by paths and the Device, heard by probes."""

    rate: ClassVar[Rate] = Rate.THEIRS

    reason: str
    full: bool = False


@dataclass(frozen=True, slots=True)
class NetInfoChanged(Retained):
    """What the last network check found, home region included. Said by probes, heard by control and relays."""

    rate: ClassVar[Rate] = Rate.THEIRS

    home_region: int
    latencies: Mapping[str, float]  # "<region>-v4" -> seconds
    working_udp: bool | None = None
    working_ipv6: bool | None = None
    mapping_varies_by_destination: bool | None = None
    port_mapping: str = ""  # "", "pmp", "pcp", "upnp"


@dataclass(frozen=True, slots=True)
class RelaysChanged(Retained):
    """Which relay regions are connected right now. Said by relays."""

    rate: ClassVar[Rate] = Rate.THEIRS

    connected: tuple[int, ...]
    home_connected: bool


@dataclass(frozen=True, slots=True)
class WarningsChanged(Retained):
    """Everything that is wrong right now, by code. Said through `health.Health`, heard by the user's event readers."""

    rate: ClassVar[Rate] = Rate.THEIRS

    warnings: Mapping[str, HealthWarning]


@dataclass(frozen=True, slots=True)
class PeerPathChanged(Lossy):
    """The best path to a peer changed; None when there is no direct path (relay, if any, is used)."""

    rate: ClassVar[Rate] = Rate.THEIRS
    limit: ClassVar[int] = 1024  # every peer of a large tailnet may move at once

    peer: PeerId
    path: Path | None
    latency: float
    reason: str = ""
    gap: float | None = None


@dataclass(frozen=True, slots=True)
class UplinksWished(Lossy):
    """The user wishes datagrams laid on paths otherwise. Said and heard by uplinks."""

    rate: ClassVar[Rate] = Rate.OURS


@dataclass(frozen=True, slots=True)
class UplinkMoved(Lossy):
    """An uplink came, went, or has other addresses. Said by uplinks, heard by the user's event readers."""

    rate: ClassVar[Rate] = Rate.OURS

    uplink: str
    up: bool
    why: str


@dataclass(frozen=True, slots=True)
class NetworkChanged(Reliable):
    """Interfaces, addresses or time jumped: sockets may be stale and mappings gone."""

    rate: ClassVar[Rate] = Rate.OURS

    rebound: bool


@dataclass(frozen=True, slots=True)
class SocketsAsked(Reliable):
    """The path finder is about to use so many UDP sockets. Said by the packet path, heard by sockets."""

    rate: ClassVar[Rate] = Rate.OURS

    count: int


@dataclass(frozen=True, slots=True)
class SocketsReturned(Reliable):
    """Nobody uses these of them any more. Said by the packet path, heard by sockets."""

    rate: ClassVar[Rate] = Rate.OURS

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StunArrived(Lossy):
    """STUN datagrams off the tunnel's own socket: [(datagram, (host, port)), ...]."""

    rate: ClassVar[Rate] = Rate.THEIRS

    batch: list[tuple[bytes, Direct]]


@dataclass(frozen=True, slots=True)
class RelayFrameArrived(Lossy):
    """A rare fact from a relay: peer gone, health text, restarting."""

    rate: ClassVar[Rate] = Rate.THEIRS

    region: int
    fact: Any
