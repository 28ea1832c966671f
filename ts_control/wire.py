"""What control and a device say of the tailnet, in Go's names as snake_case: requests for the map, and the map.

Owns: the shapes of tailcfg (Hostinfo, Node, DERP map, DNS, packet filter, ping, map). Registering is in
`wire_register.py`. Refuses to know: what a delta means (`netmap.py`), framing and compression (`framing.py`).
A default of None means upstream tells null from empty there; everywhere else null is the empty value.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from msgspec import Meta, field

from ts_base.keys import DiscoPublic, MachinePublic, NodePublic
from ts_control.gojson import ZERO_TIME, GoStruct

CAPABILITY_VERSION = 142
"""What we claim; also the Noise protocol version and the `v=` of the key request. What that promises, and the test of
each promise, is a table in `tests/ts_control/test_capability_version.py`.
"""

NO_NODE_KEY = NodePublic.zero()
NO_DISCO_KEY = DiscoPublic.zero()
NO_MACHINE_KEY = MachinePublic.zero()

Port = Annotated[int, Meta(ge=0, le=65535)]
"""Where Go has a uint16: a message with another number is refused whole, as it is there."""

CapMap = dict[str, "list[Any] | None"]


class Service(GoStruct, frozen=True):
    proto: str = ""  # "peerapi4", "peerapi6", "peerapi-dns-proxy", "tcp", "udp"
    port: Port = 0
    description: str = ""


class NetInfo(GoStruct, frozen=True):
    mapping_varies_by_dest_ip: bool | None = None
    working_ipv6: bool | None = None
    os_has_ipv6: bool | None = None
    working_udp: bool | None = None
    working_icmpv4: bool | None = None
    have_port_map: bool = False
    upnp: bool | None = None
    pmp: bool | None = None
    pcp: bool | None = None
    preferred_derp: int = 0
    link_type: str = ""
    derp_latency: dict[str, float] = field(default_factory=dict)
    firewall_mode: str = ""


class Location(GoStruct, frozen=True):
    country: str = ""
    country_code: str = ""
    city: str = ""
    city_code: str = ""
    latitude: float = 0.0
    longitude: float = 0.0
    priority: int = 0


class Hostinfo(GoStruct, frozen=True):
    ipn_version: str = ""
    frontend_log_id: str = ""
    backend_log_id: str = ""
    os: str = ""
    os_version: str = ""
    container: bool | None = None
    env: str = ""
    distro: str = ""
    distro_version: str = ""
    distro_code_name: str = ""
    app: str = ""
    desktop: bool | None = None
    package: str = ""
    device_model: str = ""
    hostname: str = ""
    shields_up: bool = False
    sharee_node: bool = False
    no_logs_no_support: bool = False
    wire_ingress: bool = False
    ingress_enabled: bool = False
    allows_update: bool = False
    machine: str = ""
    go_arch: str = ""
    go_arch_var: str = ""
    go_version: str = ""
    routable_ips: tuple[str, ...] = ()
    request_tags: tuple[str, ...] = ()
    wol_macs: tuple[str, ...] = ()
    services: tuple[Service, ...] = ()
    net_info: NetInfo | None = None
    ssh_host_keys: tuple[str, ...] = field(default=(), name="sshHostKeys")
    cloud: str = ""
    userspace: bool | None = None
    userspace_router: bool | None = None
    app_connector: bool | None = None
    services_hash: str = ""
    peer_relay: bool = False
    exit_node_id: str = ""
    location: Location | None = None
    state_encrypted: bool | None = None


class Resolver(GoStruct, frozen=True):
    addr: str = ""  # an IP, ip:port, or an https:// DoH URL
    bootstrap_resolution: tuple[str, ...] = ()
    use_with_exit_node: bool = False


class DNSRecord(GoStruct, frozen=True):
    name: str = ""
    type: str = ""  # "" is A or AAAA, whichever the value is
    value: str = ""


class DNSConfig(GoStruct, frozen=True):
    resolvers: tuple[Resolver, ...] = ()
    routes: dict[str, tuple[Resolver, ...] | None] = field(default_factory=dict)
    fallback_resolvers: tuple[Resolver, ...] = ()
    domains: tuple[str, ...] = ()
    proxied: bool = False
    nameservers: tuple[str, ...] = ()
    cert_domains: tuple[str, ...] = ()
    extra_records: tuple[DNSRecord, ...] = ()
    exit_node_filtered_set: tuple[str, ...] = ()


class DERPNode(GoStruct, frozen=True):
    name: str = ""
    region_id: int = 0
    host_name: str = ""
    cert_name: str = ""
    ipv4: str = ""  # "" = ask DNS; text that is no address = this family is off
    ipv6: str = ""
    stun_port: int = 0  # 0 = 3478, -1 = none
    stun_only: bool = False
    derp_port: int = 0  # 0 = 443
    insecure_for_tests: bool = False
    stun_test_ip: str = ""
    can_port80: bool = False


class DERPRegion(GoStruct, frozen=True):
    region_id: int = 0
    region_code: str = ""
    region_name: str = ""
    latitude: float = 0.0
    longitude: float = 0.0
    avoid: bool = False
    no_measure_no_home: bool = False
    nodes: tuple[DERPNode, ...] = ()


class DERPHomeParams(GoStruct, frozen=True):
    region_score: dict[int, float] | None = None


class DERPMap(GoStruct, frozen=True):
    """None in any field of a delta keeps the earlier value; a region that is None is dropped."""

    home_params: DERPHomeParams | None = None
    regions: dict[int, DERPRegion | None] | None = None
    omit_default_regions: bool = field(default=False, name="omitDefaultRegions")

    def live_regions(self) -> dict[int, DERPRegion]:
        return {number: region for number, region in (self.regions or {}).items() if region is not None}


class Node(GoStruct, frozen=True):
    """One machine of the tailnet, ourselves included. Prefixes and endpoints stay text, as they came."""

    id: int = 0
    stable_id: str = ""
    name: str = ""  # fully qualified, with the trailing dot
    user: int = 0
    sharer: int = 0
    key: NodePublic = NO_NODE_KEY
    key_expiry: datetime = ZERO_TIME
    key_signature: str = ""
    machine: MachinePublic = NO_MACHINE_KEY
    disco_key: DiscoPublic = NO_DISCO_KEY
    addresses: tuple[str, ...] = ()
    allowed_ips: tuple[str, ...] | None = None  # None = the same as addresses
    endpoints: tuple[str, ...] = ()
    legacy_derp: str = field(default="", name="DERP")
    home_derp: int = 0
    hostinfo: Hostinfo = field(default_factory=Hostinfo)
    created: datetime = ZERO_TIME
    cap: int = 0
    tags: tuple[str, ...] = ()
    primary_routes: tuple[str, ...] = ()
    last_seen: datetime | None = None
    online: bool | None = None
    machine_authorized: bool = False
    capabilities: tuple[str, ...] = ()
    cap_map: CapMap = field(default_factory=dict)
    unsigned_peer_api_only: bool = field(default=False, name="UnsignedPeerAPIOnly")
    computed_name: str = ""
    computed_name_with_host: str = ""
    data_plane_audit_log_id: str = ""
    expired: bool = False
    self_node_v4_masq_addr_for_this_peer: str = ""
    self_node_v6_masq_addr_for_this_peer: str = ""
    is_wireguard_only: bool = False
    is_jailed: bool = False
    exit_node_dns_resolvers: tuple[Resolver, ...] = ()


class PeerChange(GoStruct, frozen=True):
    """A patch to one peer: only what is set applies."""

    node_id: int = 0
    derp_region: int = 0
    cap: int = 0
    cap_map: CapMap | None = None
    endpoints: tuple[str, ...] | None = None
    key: NodePublic | None = None
    key_signature: str | None = None
    disco_key: DiscoPublic | None = None
    online: bool | None = None
    last_seen: datetime | None = None
    key_expiry: datetime | None = None


class PortRange(GoStruct, frozen=True):
    first: Port = 0
    last: Port = 0


class NetPortRange(GoStruct, frozen=True):
    ip: str = ""
    bits: int | None = None
    ports: PortRange = PortRange()


class CapGrant(GoStruct, frozen=True):
    dsts: tuple[str, ...] = ()
    caps: tuple[str, ...] = ()
    cap_map: CapMap = field(default_factory=dict)


class FilterRule(GoStruct, frozen=True):
    src_ips: tuple[str, ...] = ()
    src_bits: tuple[int, ...] = ()
    dst_ports: tuple[NetPortRange, ...] = ()
    ip_proto: tuple[int, ...] = ()
    cap_grant: tuple[CapGrant, ...] = ()


class UserProfile(GoStruct, frozen=True):
    id: int = 0
    login_name: str = ""
    display_name: str = ""
    profile_pic_url: str = ""
    groups: tuple[str, ...] = ()


class DisplayMessageAction(GoStruct, frozen=True):
    url: str = ""
    label: str = ""


class DisplayMessage(GoStruct, frozen=True):
    title: str = ""
    text: str = ""
    severity: str = ""
    impacts_connectivity: bool = False
    primary_action: DisplayMessageAction | None = None


class PingRequest(GoStruct, frozen=True):
    url: str = ""
    url_is_noise: bool = False
    log: bool = False
    types: str = ""  # "" = HEAD the URL; "c2n"; or a comma list of disco, TSMP, ICMP, peerapi
    ip: str = ""
    payload: str = ""  # base64


class PingResponse(GoStruct, frozen=True):
    type: str = ""
    ip: str = ""
    node_ip: str = ""
    node_name: str = ""
    err: str = ""
    latency_seconds: float = 0.0
    endpoint: str = ""
    peer_relay: str = ""
    derp_region_id: int = 0
    derp_region_code: str = ""
    peer_api_port: Port = field(default=0, name="PeerAPIPort")
    is_local_ip: bool = False


class Debug(GoStruct, frozen=True):
    sleep_seconds: float = 0.0
    disable_log_tail: bool = False
    exit: int | None = None


class ClientVersion(GoStruct, frozen=True):
    running_latest: bool = False
    latest_version: str = ""
    urgent_security_update: bool = False
    notify: bool = False
    notify_url: str = ""
    notify_text: str = ""


class ControlIPCandidate(GoStruct, frozen=True):
    ip: str = ""
    ace_host: str = field(default="", name="ACEHost")
    dial_start_delay_sec: float = 0.0
    dial_timeout_sec: float = 0.0
    priority: int = 0


class ControlDialPlan(GoStruct, frozen=True):
    candidates: tuple[ControlIPCandidate, ...] = ()


class TKAInfo(GoStruct, frozen=True):
    head: str = ""
    disabled: bool = False


class MapRequest(GoStruct, frozen=True):
    version: int = 0
    compress: str = ""  # "zstd" or ""
    keep_alive: bool = False
    node_key: NodePublic = NO_NODE_KEY
    disco_key: DiscoPublic = NO_DISCO_KEY
    stream: bool = False
    hostinfo: Hostinfo | None = None
    endpoints: tuple[str, ...] = ()
    endpoint_types: tuple[int, ...] = ()
    read_only: bool = False
    omit_peers: bool = False
    debug_flags: tuple[str, ...] = ()
    tka_head: str = ""  # how far we know the tailnet's lock


class MapResponse(GoStruct, frozen=True):
    map_session_handle: str = ""
    seq: int = 0
    keep_alive: bool = False
    ping_request: PingRequest | None = None
    pop_browser_url: str = ""
    node: Node | None = None
    derp_map: DERPMap | None = None
    peers: tuple[Node | None, ...] = ()
    peers_changed: tuple[Node | None, ...] = ()
    peers_removed: tuple[int, ...] = ()
    peers_changed_patch: tuple[PeerChange | None, ...] = ()
    peer_seen_change: dict[int, bool] = field(default_factory=dict)
    online_change: dict[int, bool] = field(default_factory=dict)
    dns_config: DNSConfig | None = None
    domain: str = ""
    collect_services: bool | None = None
    packet_filter: tuple[FilterRule, ...] | None = None
    packet_filters: dict[str, tuple[FilterRule, ...] | None] | None = None
    user_profiles: tuple[UserProfile, ...] = ()
    health: tuple[str, ...] | None = None
    display_messages: dict[str, DisplayMessage | None] | None = None
    ssh_policy: dict[str, Any] | None = None
    control_time: datetime | None = None
    tka_info: TKAInfo | None = None
    domain_data_plane_audit_log_id: str = ""
    debug: Debug | None = None
    control_dial_plan: ControlDialPlan | None = None
    client_version: ClientVersion | None = None


def legacy_home_region_untrusted(text: str) -> int:
    """The region in `127.3.3.40:N`, the form of `DERP` before `HomeDERP`; 0 when it is none."""
    address, _, region = text.rpartition(":")
    if address != "127.3.3.40" or not region.isascii() or not region.isdigit() or len(region) > 5:
        return 0
    return int(region)
