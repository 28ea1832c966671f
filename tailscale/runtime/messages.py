"""Every message on the bus, in one place. Facts in the past tense; how each is delivered is its base class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from msgspec import Struct

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


class NetMapChanged(Retained, frozen=True):
    """Control told us something new about ourselves or our peers. Said by control, heard by nearly everybody."""

    rate: ClassVar[Rate] = Rate.THEIRS

    netmap: NetMap
    is_remembered: bool = False
    """Whether it is that of the last run: control has said nothing yet."""


class RelaysRemembered(Retained, frozen=True):
    """The relay map and home region of the last run, until control has spoken. Said by control, heard by relays."""

    rate: ClassVar[Rate] = Rate.OURS

    derp_map: DERPMap
    home_region: int


class CertificatesChanged(Retained, frozen=True):
    """Which certificates are held, and from when to when each is good. Said by their keeper."""

    rate: ClassVar[Rate] = Rate.OURS

    held: Mapping[str, tuple[float, float]]


class TablesChanged(Retained, frozen=True):
    """Packets are routed and judged by this netmap from now on: what users see and dial. Said by netmap."""

    rate: ClassVar[Rate] = Rate.THEIRS

    netmap: NetMap


class NodeKeyChanged(Retained, frozen=True):
    """Control accepted a new node key of ours: the old one opens nothing any more. Said by control."""

    rate: ClassVar[Rate] = Rate.THEIRS

    key: NodePrivate


class PreferencesChanged(Retained, frozen=True):
    """The user changed what may change while running. Said by the Device."""

    rate: ClassVar[Rate] = Rate.OURS

    preferences: Preferences


class InterfacesChanged(Retained, frozen=True):
    """The networks that this machine is in, into which no default route of ours leads. Said by forwarding while one is
    in force, heard by netmap.
    """

    rate: ClassVar[Rate] = Rate.OURS

    prefixes: frozenset[Prefix]


class ControlStateChanged(Retained, frozen=True):
    """Where the control session stands. Said by control, heard by whoever waits for it."""

    rate: ClassVar[Rate] = Rate.THEIRS

    state: Phase
    detail: str = ""
    url: str = ""  # whoever opens it owns the device
    error: BaseException | None = None

    def __repr__(self) -> str:
        return f"ControlStateChanged({self.state}, {self.detail!r}, url=[redacted], error={self.error!r})"


class ControlInformed(Retained, frozen=True):
    """Control has acknowledged where we are to be found: peers that ask from now on can reach us. Said by control."""

    rate: ClassVar[Rate] = Rate.THEIRS

    home_region: int
    endpoints: frozenset[str]


class Offer(Struct, frozen=True):
    """What one part of the program offers."""

    services: tuple[Service, ...] = ()
    ssh_host_keys: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    ingress: bool | None = None
    """True: names of ours lead here from the internet. False: they may soon."""
    hosted: tuple[tuple[str, int], ...] = ()
    """Services, `svc:web`, and their TCP ports."""
    is_draining: bool = False
    """Those are still answered, and control is to send nobody new."""


class ServicesOffered(Retained, frozen=True):
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
        draining = {name for offer in self.offers.values() if offer.is_draining for name, _ in offer.hosted}
        return services_of((each for offer in self.offers.values() for each in offer.hosted), draining)

    @property
    def is_published(self) -> bool:
        """Whether names of ours lead here from the internet."""
        return any(offer.ingress for offer in self.offers.values())

    @property
    def peerapi_port(self) -> int:
        """Where peers find our own little HTTP server; 0 when there is none."""
        return next((service.port for service in self.services if service.proto == "peerapi4"), 0)


class EndpointsChanged(Retained, frozen=True):
    """Where we can be reached directly: ("host:port", endpoint type 1..5). Said by probes."""

    rate: ClassVar[Rate] = Rate.THEIRS

    endpoints: tuple[tuple[str, int], ...]


class EndpointsConfirmed(Lossy, frozen=True):
    """A check just found these endpoints, changed or not: fresh enough to tell peers. Said by probes."""

    rate: ClassVar[Rate] = Rate.THEIRS

    endpoints: tuple[tuple[str, int], ...]


class ProbeRequested(Lossy, frozen=True):
    """Somebody needs our addresses to be fresh. Said by paths and the Device, heard by probes."""

    rate: ClassVar[Rate] = Rate.THEIRS

    reason: str
    full: bool = False


class NetInfoChanged(Retained, frozen=True):
    """What the last network check found, home region included. Said by probes, heard by control and relays."""

    rate: ClassVar[Rate] = Rate.THEIRS

    home_region: int
    latencies: Mapping[str, float]  # "<region>-v4" -> seconds
    working_udp: bool | None = None
    working_ipv6: bool | None = None
    mapping_varies_by_destination: bool | None = None
    port_mapping: str = ""  # "", "pmp", "pcp", "upnp"


class RelaysChanged(Retained, frozen=True):
    """Which relay regions are connected right now. Said by relays."""

    rate: ClassVar[Rate] = Rate.THEIRS

    connected: tuple[int, ...]
    home_connected: bool


class WarningsChanged(Retained, frozen=True):
    """Everything that is wrong right now, by code. Said through `health.Health`, heard by the user's event readers."""

    rate: ClassVar[Rate] = Rate.THEIRS

    warnings: Mapping[str, HealthWarning]


class PeerPathChanged(Lossy, frozen=True):
    """The best path to a peer changed; None when there is no direct path (relay, if any, is used)."""

    rate: ClassVar[Rate] = Rate.THEIRS
    limit: ClassVar[int] = 1024  # every peer of a large tailnet may move at once

    peer: PeerId
    path: Path | None
    latency: float
    reason: str = ""
    gap: float | None = None


class UplinksWished(Lossy, frozen=True):
    """The user wishes datagrams laid on paths otherwise. Said and heard by uplinks."""

    rate: ClassVar[Rate] = Rate.OURS


class UplinkMoved(Lossy, frozen=True):
    """An uplink came, went, or has other addresses. Said by uplinks, heard by the user's event readers."""

    rate: ClassVar[Rate] = Rate.OURS

    uplink: str
    up: bool
    why: str


class NetworkChanged(Reliable, frozen=True):
    """Interfaces, addresses or time jumped: sockets may be stale and mappings gone."""

    rate: ClassVar[Rate] = Rate.OURS

    rebound: bool


class SocketsAsked(Reliable, frozen=True):
    """The path finder is about to use so many UDP sockets. Said by the packet path, heard by sockets."""

    rate: ClassVar[Rate] = Rate.OURS

    count: int


class SocketsReturned(Reliable, frozen=True):
    """Nobody uses these of them any more. Said by the packet path, heard by sockets."""

    rate: ClassVar[Rate] = Rate.OURS

    names: tuple[str, ...]


class StunArrived(Lossy, frozen=True):
    """STUN datagrams off the tunnel's own socket: [(datagram, (host, port)), ...]."""

    rate: ClassVar[Rate] = Rate.THEIRS

    batch: list[tuple[bytes, Direct]]


class RelayFrameArrived(Lossy, frozen=True):
    """A rare fact from a relay: peer gone, health text, restarting."""

    rate: ClassVar[Rate] = Rate.THEIRS

    region: int
    fact: Any
