"""What a Device knows, in upstream's words: the JSON of ipnstate.Status, ipn.Prefs and tailcfg.Node.

Owns the translation, and nothing that waits. Where upstream has a fact that we do not keep, the zero value stands:
clients written in Go read an absent one the same way. docs/daemon.md lists those.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from tailscale import __version__
from tailscale._config import Preferences
from tailscale.faults import upstream_code
from tailscale.nodes import named
from tailscale.status import HealthWarning, PeerStatus, Status
from ts_control.gojson import GoStruct, encode_json
from ts_control.netmap import NetMap
from ts_control.wire import Hostinfo, Node, UserProfile

STATES = ("NoState", "InUseOtherUser", "NeedsLogin", "NeedsMachineAuth", "Stopped", "Starting", "Running")
_STATE_OF = {
    "needs_login": "NeedsLogin",
    "needs_approval": "NeedsMachineAuth",
    "expired": "NeedsLogin",
    "logged_out": "NeedsLogin",
    "stopped": "Stopped",
}
NO_TIME = "0001-01-01T00:00:00Z"
EXITS = ("0.0.0.0/0", "::/0")
NETFILTER_ON = 2  # upstream's default; there is nothing here that it could rule
ACTIVE_FOR = 180.0  # seconds after its handshake that a session is certainly in use: WireGuard's reject-after-time


def go(value: GoStruct) -> dict[str, Any]:
    """One of control's own messages, as it came."""
    found: dict[str, Any] = json.loads(encode_json(value))
    return found


def backend_state(state: str, has_netmap: bool) -> str:
    """Where we stand, in upstream's words: being cut off from control is no reason to say that nothing runs.

    Who hears "Running" asks for our addresses at once, and stock `wait` does so once: without a netmap there are none.
    """
    if state in ("offline", "connecting", "registering", "running"):
        return "Running" if has_netmap else "Starting"
    return _STATE_OF.get(state, "Starting")


def go_time(moment: datetime | None) -> str:
    if moment is None or moment.year <= 1:
        return NO_TIME
    text = moment.astimezone(UTC).isoformat()
    return text.replace("+00:00", "Z")


# Status


def status_json(
    state: str,
    login_url: str,
    status: Status | None,
    netmap: NetMap | None,
    preferences: Preferences,
    *,
    peers: bool,
    now: datetime,
) -> dict[str, Any]:
    """ipnstate.Status."""
    found: dict[str, Any] = {
        "Version": f"{__version__}-pytailscale",
        "TUN": False,
        "BackendState": backend_state(state, netmap is not None),
        "HaveNodeKey": True,
        "AuthURL": login_url,
        "TailscaleIPs": [],
        "Self": _node_json(Node(hostinfo=Hostinfo(hostname=preferences.hostname))),
        "Health": [f"{w.sentence} {w.remedy}".strip() for w in status.health] if status is not None else [],
        "MagicDNSSuffix": "",
        "CurrentTailnet": None,
        "CertDomains": None,
        "Peer": None,
        "User": None,
        "ClientVersion": None,
    }
    if status is None or netmap is None:
        return found
    own = netmap.self_node
    suffix = suffix_of(netmap)
    found["TailscaleIPs"] = _addresses(own)
    found["MagicDNSSuffix"] = suffix
    found["CurrentTailnet"] = {
        "Name": netmap.domain,
        "MagicDNSSuffix": suffix,
        "MagicDNSEnabled": netmap.dns.proxied,
    }
    found["CertDomains"] = list(netmap.dns.cert_domains) or None
    if netmap.dns.extra_records:
        found["ExtraRecords"] = [go(record) for record in netmap.dns.extra_records]
    found["Self"] = _self_json(own, status)
    users = {own.user}
    if peers:
        found |= _peers_json(status, netmap, preferences.exit_node, now)
        users |= {node.user for node in netmap.peers.values()}
    profiles = netmap.user_profiles
    found["User"] = {str(user): _profile(profiles[user]) for user in sorted(users) if user in profiles}
    return found


def _peers_json(status: Status, netmap: NetMap, exit_node: str | None, now: datetime) -> dict[str, Any]:
    chosen = named(exit_node, netmap.peers.values()) if exit_node else None
    by_id = {peer.node.id: peer for peer in status.peers}
    found: dict[str, Any] = {"Peer": {}}
    for node in netmap.peers.values():
        is_exit = chosen is not None and chosen.id == node.id
        found["Peer"][str(node.key)] = _peer_json(node, by_id.get(node.id), is_exit, netmap, now)
    if chosen is not None:
        addresses = list(chosen.addresses)
        found["ExitNodeStatus"] = {
            "ID": chosen.stable_id,
            "Online": bool(chosen.online),
            "TailscaleIPs": addresses,
        }
    return found


def _profile(profile: GoStruct) -> dict[str, Any]:
    return {"ID": 0, "LoginName": "", "DisplayName": ""} | go(profile)


def _addresses(node: Node) -> list[str]:
    return [prefix.partition("/")[0] for prefix in node.addresses]


def _node_json(node: Node) -> dict[str, Any]:
    """What a node is, ours or a peer."""
    hostinfo = node.hostinfo or Hostinfo()
    routes = list(node.allowed_ips if node.allowed_ips is not None else node.addresses)
    found: dict[str, Any] = {
        "ID": node.stable_id,
        "NodeID": node.id,
        "PublicKey": str(node.key),
        "HostName": hostinfo.hostname or node.name.partition(".")[0],
        "DNSName": node.name,
        "OS": hostinfo.os,
        "UserID": node.user,
        "TailscaleIPs": _addresses(node),
        "AllowedIPs": routes,
        "Addrs": [],
        "CurAddr": "",
        "Relay": "",
        "PeerRelay": "",
        "RxBytes": 0,
        "TxBytes": 0,
        "Created": go_time(node.created),
        "LastWrite": NO_TIME,
        "LastSeen": go_time(node.last_seen) if node.online is False else NO_TIME,
        "LastHandshake": NO_TIME,
        "Online": bool(node.online),
        "ExitNode": False,
        "ExitNodeOption": set(EXITS) <= set(routes),
        "Active": False,
        "PeerAPIURL": peerapi_urls(node),
        "TaildropTarget": 0,
        "NoFileSharingReason": "",
        "InNetworkMap": True,
        "InMagicSock": True,
        "InEngine": False,
    }
    optional = {
        "AltSharerUserID": node.sharer,
        "Tags": list(node.tags),
        "PrimaryRoutes": list(node.primary_routes),
        "Capabilities": list(node.capabilities),
        "CapMap": dict(node.cap_map),
        "sshHostKeys": list(hostinfo.ssh_host_keys),
        "ShareeNode": hostinfo.sharee_node,
        "Expired": node.expired,
        "KeyExpiry": go_time(node.key_expiry) if node.key_expiry.year > 1 else None,
        "Location": go(hostinfo.location) if hostinfo.location is not None else None,
    }
    return found | {name: value for name, value in optional.items() if value}


def _self_json(node: Node, status: Status) -> dict[str, Any]:
    found = _node_json(node)
    found |= {"Addrs": list(status.endpoints), "Relay": status.relay, "Online": status.state == "running"}
    found["RxBytes"] = sum(peer.bytes_received for peer in status.peers)
    found["TxBytes"] = sum(peer.bytes_sent for peer in status.peers)
    found.setdefault("Capabilities", sorted(node.cap_map))  # the older form of the same
    return found


def _peer_json(node: Node, peer: PeerStatus | None, is_exit: bool, netmap: NetMap, now: datetime) -> dict[str, Any]:
    found = _node_json(node)
    region = netmap.derp_map.live_regions().get(node.home_derp)
    found["Relay"] = region.region_code if region is not None else ""
    found["ExitNode"] = is_exit
    found["InMagicSock"] = not node.expired
    if peer is None:
        return found
    found["CurAddr"] = peer.path.where if peer.path.kind == "direct" else ""
    found["PeerRelay"] = peer.path.where if peer.path.kind == "peer relay" else ""
    found["RxBytes"], found["TxBytes"] = peer.bytes_received, peer.bytes_sent
    if peer.handshake_age is not None:
        shaken = go_time(now - timedelta(seconds=peer.handshake_age))
        found["LastHandshake"] = found["LastWrite"] = shaken
        found["Active"] = peer.handshake_age < ACTIVE_FOR
        found["InEngine"] = True
    return found


def suffix_of(netmap: NetMap) -> str:
    """The domain of this tailnet's names."""
    return netmap.self_node.name.rstrip(".").partition(".")[2]


def resolvers_for(name: str, netmap: NetMap) -> list[dict[str, Any]]:
    """Who would be asked for a name: nobody for the tailnet's own, else the longest route's, else the tailnet's."""
    if f".{name}".endswith(f".{suffix_of(netmap)}"):
        return []
    routes = [route for route in netmap.dns.routes if f".{name}".endswith(f".{route.strip('.')}")]
    chosen = netmap.dns.routes[max(routes, key=len)] if routes else netmap.dns.resolvers
    return [go(resolver) for resolver in chosen or ()]


def peerapi_urls(node: Node) -> list[str]:
    """Where its PeerAPI is, one URL a family."""
    ports = {service.proto: service.port for service in (node.hostinfo or Hostinfo()).services}
    found = []
    for address in _addresses(node):
        port = ports.get("peerapi6" if ":" in address else "peerapi4")
        if port:
            found.append(f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}")
    return found


# Prefs


def prefs_json(
    control_url: str,
    preferences: Preferences,
    netmap: NetMap | None,
    kept: dict[str, Any],
    *,
    is_wanted: bool,
    is_logged_out: bool,
    runs_ssh: bool,
) -> dict[str, Any]:
    """ipn.Prefs. `kept` is what clients set that means nothing to a node in user space."""
    exit_node = preferences.exit_node
    chosen = named(exit_node, netmap.peers.values()) if exit_node and netmap is not None else None
    return {
        "ControlURL": control_url,
        "RouteAll": preferences.accept_routes,
        "ExitNodeID": chosen.stable_id if chosen is not None else exit_node or "",
        "ExitNodeIP": "",
        "InternalExitNodePrior": "",
        "ExitNodeAllowLANAccess": False,
        "CorpDNS": True,
        "RunSSH": runs_ssh,
        "RunWebClient": False,
        "WantRunning": is_wanted,
        "LoggedOut": is_logged_out,
        "ShieldsUp": preferences.shields_up,
        "AdvertiseTags": list(preferences.tags) or None,
        "Hostname": preferences.hostname,
        "NotepadURLs": False,
        "AdvertiseRoutes": list(preferences.offered_routes) or None,
        "AdvertiseServices": None,
        "Sync": None,
        "NoSNAT": False,
        "NetfilterMode": NETFILTER_ON,
        "AutoUpdate": {"Check": False, "Apply": None},
        "AppConnector": {"Advertise": False},
        "PostureChecking": False,
        "NetfilterKind": "",
        "RemoteConfig": False,
        "DriveShares": None,
        "Config": None,
        **kept,
    }


def whois_json(node: Node, netmap: NetMap, capabilities: dict[str, Any]) -> dict[str, Any]:
    """apitype.WhoIsResponse."""
    profile = netmap.user_profiles.get(node.user)
    return {
        "Node": node_json(node, netmap),
        "UserProfile": _profile(profile if profile is not None else UserProfile(id=node.user)),
        "CapMap": capabilities or None,
    }


def node_json(node: Node, netmap: NetMap) -> dict[str, Any]:
    """tailcfg.Node with the names that upstream computes for people: without the tailnet's own domain."""
    name = node.name.rstrip(".").removesuffix(f".{suffix_of(netmap)}")
    hostname = (node.hostinfo or Hostinfo()).hostname
    with_host = name if hostname in ("", name) else f"{name} ({hostname})"
    return go(node) | {"ComputedName": name, "ComputedNameWithHost": with_host}


# Notices


def netmap_json(netmap: NetMap) -> dict[str, Any]:
    """netmap.NetworkMap, as far as clients read it."""
    return {
        "SelfNode": node_json(netmap.self_node, netmap),
        "Peers": [node_json(peer, netmap) for peer in netmap.peers.values()],
        "DNS": go(netmap.dns),
        "Domain": netmap.domain,
        "UserProfiles": {str(user): go(profile) for user, profile in netmap.user_profiles.items()},
    }


def health_json(warnings: tuple[HealthWarning, ...]) -> dict[str, Any]:
    """health.State; a warning that upstream knows has upstream's code."""
    return {
        "Warnings": {
            upstream_code(warning.code): {
                "WarnableCode": upstream_code(warning.code),
                "Severity": "medium",
                "Title": warning.sentence,
                "Text": f"{warning.sentence} {warning.remedy}".strip(),
            }
            for warning in warnings
        }
    }
