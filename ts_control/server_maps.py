"""What each device is shown of the tailnet, as JSON: full maps and deltas, encoded once per distinct view.

Owns the open map streams and what each of them has already been told. Reads the directory and the policy index, and
changes neither. Knows nothing of Noise, HTTP, framing or registration.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ts_base.ip import format_address, format_prefix
from ts_control.directory import TAGGED_DEVICES, Directory, Enrolled
from ts_control.gojson import encode_json, from_unix_time
from ts_control.policy_index import PolicyIndex
from ts_control.server_services import ServedServices, host_capability
from ts_control.services import PREFIX
from ts_control.ssh_policy import ENV_ATTRIBUTE
from ts_control.ssh_rules import policy_for
from ts_control.wire import CapMap, DERPMap, DNSConfig, Node, PeerChange, PingRequest, TKAInfo, UserProfile
from ts_control.wire_lock import CAPABILITY

MAX_QUEUED_BYTES = 64 << 20  # a stream that reads slower than this is closed, and its client starts afresh

WHOLE = "whole"
ONLINE = "online"
# A change of these alone travels as a patch; anything else sends the whole node.
PATCHABLE = frozenset({"endpoints", "home_region", "key", "disco", "expires", ONLINE})
SELF_CAPABILITIES: Mapping[str, None] = {
    "https://tailscale.com/cap/file-sharing": None,
    "https://tailscale.com/cap/is-admin": None,
    "https://tailscale.com/cap/ssh": None,
    CAPABILITY: None,
    ENV_ATTRIBUTE: None,
}
HTTPS: Mapping[str, None] = {"https": None}  # upstream's word for a node that may ask for a certificate
_NOBODY: frozenset[int] = frozenset()
_encode = msgspec.json.Encoder().encode


@dataclass(eq=False, slots=True)
class ServedMap:
    """One long poll. `take()` what is to be sent; when `closed`, end the response."""

    device: int
    compress: bool
    owner: object
    view: frozenset[int] = _NOBODY
    filter_version: object = None
    filter_text: bytes = b""
    ssh_text: bytes = b""
    attributes: list[str] = field(default_factory=list)
    closed: bool = False
    _queue: deque[bytes] = field(default_factory=deque)
    _queued: int = 0

    def put(self, message: bytes) -> bool:
        """False when this stream has fallen too far behind."""
        self._queue.append(message)
        self._queued += len(message)
        return self._queued <= MAX_QUEUED_BYTES

    def take(self) -> list[bytes]:
        taken = list(self._queue)
        self._queue.clear()
        self._queued = 0
        return taken


@dataclass(slots=True)
class Changes:
    """What the streams were not told yet: device id to the names of what changed, and facts for everybody."""

    devices: dict[int, set[str]] = field(default_factory=dict)
    removed: set[int] = field(default_factory=set)
    facts: dict[str, msgspec.Raw] = field(default_factory=dict)  # DNSConfig, DERPMap
    policy: bool = False

    def __bool__(self) -> bool:
        return bool(self.devices or self.removed or self.facts or self.policy)


class MapWriter:
    """Turns directory and policy into map messages."""

    def __init__(self, directory: Directory, domain: str, policy: PolicyIndex) -> None:
        self._directory = directory
        self.domain = domain
        self.url = ""
        self.policy = policy
        self.dns = DNSConfig()
        self.services = ServedServices(directory)
        self.has_certificates = False
        self.derp_map = DERPMap()
        self.lock: TKAInfo | None = None
        self.unauthorized: frozenset[int] = frozenset()
        self._nodes: dict[int, msgspec.Raw] = {}

    # Pieces

    def forget(self, device_id: int) -> None:
        """This device changed: encode it again when it is next needed."""
        self._nodes.pop(device_id, None)

    def view(self, device: Enrolled) -> frozenset[int]:
        if device.expired or not device.is_authorized:
            return _NOBODY
        view = self.policy.view(device.id)
        return view - self.unauthorized if self.unauthorized else view

    def full_name(self, device: Enrolled) -> str:
        return f"{device.label}.{self.domain}."

    def node(self, device: Enrolled) -> Node:
        addresses = tuple(f"{format_address(address)}/{8 * len(address)}" for address in device.addresses)
        primary = self._directory.primary_routes(device)
        carried = [format_prefix(route) for route in device.routes if route in primary or route[1] == 0]
        return Node(
            id=device.id,
            stable_id=f"n{device.id}CNTRL",
            name=self.full_name(device),
            user=TAGGED_DEVICES if device.tags else self._directory.account(device.login).id,
            key=device.key,
            key_expiry=from_unix_time(device.expires),
            key_signature=device.key_signature,
            machine=device.machine,
            disco_key=device.disco,
            addresses=addresses,
            allowed_ips=addresses + tuple(sorted(carried)),
            endpoints=device.endpoints,
            home_derp=device.home_region,
            hostinfo=device.public_hostinfo,
            created=from_unix_time(device.created),
            cap=device.version,
            tags=device.tags,
            primary_routes=tuple(format_prefix(route) for route in primary),
            last_seen=None if device.online or not device.last_seen else from_unix_time(device.last_seen),
            online=device.online,
            machine_authorized=device.is_authorized,
            computed_name=device.label,
            computed_name_with_host=device.label,
            expired=device.expired,
        )

    def dns_of(self, device: Enrolled) -> DNSConfig:
        """With the names that this device may have certificates for."""
        dns = self.shared_dns()
        if not self.has_certificates:
            return dns
        return msgspec.structs.replace(dns, cert_domains=self.names_of(device))

    def names_of(self, device: Enrolled) -> tuple[str, ...]:
        """Its own, and those of the services it hosts."""
        services = (f"{name.removeprefix(PREFIX)}.{self.domain}" for name in sorted(device.hosted))
        return (self.full_name(device).rstrip("."), *services)

    def shared_dns(self) -> DNSConfig:
        """What every device is told, with the names of services."""
        records = self.services.dns_with(self.dns, self.domain)
        return msgspec.structs.replace(self.dns, extra_records=records) if self.services.defined else self.dns

    def peer_text(self, device_id: int) -> msgspec.Raw:
        text = self._nodes.get(device_id)
        if text is None:
            text = self._nodes[device_id] = msgspec.Raw(encode_json(self.node(self._directory.devices[device_id])))
        return text

    def self_text(self, device: Enrolled) -> msgspec.Raw:
        capabilities: CapMap = {**dict.fromkeys(self.capabilities(device)), **host_capability(device)}
        return msgspec.Raw(encode_json(msgspec.structs.replace(self.node(device), cap_map=capabilities)))

    def capabilities(self, device: Enrolled) -> list[str]:
        """What a device may do, by its own account and the policy's."""
        own = [*SELF_CAPABILITIES, *(HTTPS if self.has_certificates else ())]
        return [*own, *self.policy.attributes(device.id)]

    def patch_text(self, device: Enrolled, names: set[str]) -> msgspec.Raw:
        return msgspec.Raw(
            encode_json(
                PeerChange(
                    node_id=device.id,
                    derp_region=device.home_region if "home_region" in names else 0,
                    endpoints=device.endpoints if "endpoints" in names else None,
                    key=device.key if "key" in names else None,
                    disco_key=device.disco if "disco" in names else None,
                    key_expiry=from_unix_time(device.expires) if "expires" in names else None,
                )
            )
        )

    def _profiles(self, device_ids: Iterable[int]) -> list[UserProfile]:
        devices = [self._directory.devices[device_id] for device_id in device_ids]
        profiles = []
        for login in sorted({device.login for device in devices if not device.tags}):
            account = self._directory.account(login)
            profiles.append(UserProfile(account.id, account.login, account.display_name))
        if any(device.tags for device in devices):
            profiles.append(UserProfile(TAGGED_DEVICES, "tagged-devices", "Tagged Devices"))
        return profiles

    def ssh_text(self, device: Enrolled) -> bytes:
        """Said even where there are no rules: silence would leave what was said before."""
        return encode_json(policy_for(self.policy.policy.ssh, device.subject(), self.policy.subjects(), self.url))

    # Messages

    def full(self, device: Enrolled, stream: ServedMap | None, wall: float) -> bytes:
        """Everything: the first message of a stream, or the answer to a one-shot request."""
        view = self.view(device)
        filter_text = _encode(self.policy.filter_for(device.id))
        if stream is not None:
            stream.view, stream.filter_text = view, filter_text
            stream.filter_version = self.policy.filter_version(device.id)
            stream.attributes = self.policy.attributes(device.id)
            stream.ssh_text = self.ssh_text(device)
        peers = sorted(view - {device.id})
        return self._message(
            {
                "Node": self.self_text(device),
                "DERPMap": self.derp_map,
                "DNSConfig": self.dns_of(device),
                "Domain": self.domain,
                "CollectServices": False,
                "PacketFilters": {"base": msgspec.Raw(filter_text)},
                "SSHPolicy": msgspec.Raw(self.ssh_text(device)),
                "UserProfiles": self._profiles([device.id, *peers]),
                "Debug": {"DisableLogTail": True},
                "Peers": [self.peer_text(peer) for peer in peers],
                "ControlTime": from_unix_time(wall),
            }
            | ({} if self.lock is None else {"TKAInfo": self.lock})
        )

    def deltas(self, streams: Iterable[ServedMap], changes: Changes) -> list[tuple[ServedMap, bytes]]:
        """What each stream must hear of `changes`; the same bytes object for all that must hear the same."""
        whole = {i for i, names in changes.devices.items() if not names <= PATCHABLE}
        may_change_ssh = changes.policy or bool(self.policy.policy.ssh and (whole or changes.removed))
        known: dict[tuple[Any, ...], bytes] = {}
        out: list[tuple[ServedMap, bytes]] = []
        for stream in streams:
            device = self._directory.devices[stream.device]
            before, stream.view = stream.view, self.view(device)
            touched = device.id in changes.devices or (changes.policy and self._new_attributes(device, stream))
            new_filter = self._new_filter(device, stream)
            # Nobody is their own peer: only a stream whose own device is part of the change needs words of its own.
            is_personal = touched or (device.id in before) != (device.id in stream.view)
            new_dns = self.has_certificates and (touched or "DNSConfig" in changes.facts)
            is_personal = is_personal or new_dns
            new_ssh = self._new_ssh(device, stream) if may_change_ssh else None
            key = (before, stream.view, device.id if is_personal else None, new_filter, new_ssh)
            message = known.get(key)
            if message is None:
                parts = self._delta_parts(device, before, stream.view, whole, changes)
                if touched:
                    parts["Node"] = self.self_text(device)
                if new_dns:
                    parts["DNSConfig"] = self.dns_of(device)
                if new_filter is not None:
                    parts["PacketFilters"] = {"base": msgspec.Raw(new_filter)}
                if new_ssh is not None:
                    parts["SSHPolicy"] = msgspec.Raw(new_ssh)
                message = known[key] = self._message(parts) if parts else b""
            if message:
                out.append((stream, message))
        return out

    def _new_attributes(self, device: Enrolled, stream: ServedMap) -> bool:
        before, stream.attributes = stream.attributes, self.policy.attributes(device.id)
        return stream.attributes != before

    def _new_filter(self, device: Enrolled, stream: ServedMap) -> bytes | None:
        version = self.policy.filter_version(device.id)
        if version == stream.filter_version:
            return None
        stream.filter_version = version
        text = _encode(self.policy.filter_for(device.id))
        if text == stream.filter_text:
            return None
        stream.filter_text = text
        return text

    def _new_ssh(self, device: Enrolled, stream: ServedMap) -> bytes | None:
        before, stream.ssh_text = stream.ssh_text, self.ssh_text(device)
        return stream.ssh_text if stream.ssh_text != before else None

    def _delta_parts(
        self, device: Enrolled, before: frozenset[int], after: frozenset[int], whole: set[int], changes: Changes
    ) -> dict[str, Any]:
        own = {device.id}
        if before is after:
            fresh, gone = set(whole & after), set[int]()
        else:
            fresh, gone = set((after - before) | (whole & after)), set(before - after)
        fresh -= own
        gone = (gone | (changes.removed & before)) - own
        parts: dict[str, Any] = dict(changes.facts)
        if gone:
            parts["PeersRemoved"] = sorted(gone)
        if fresh:
            parts["PeersChanged"] = [self.peer_text(peer) for peer in sorted(fresh)]
            parts["UserProfiles"] = self._profiles(fresh)
        patched = sorted((changes.devices.keys() & after) - fresh - own)
        patches = [(peer, changes.devices[peer] - {ONLINE}) for peer in patched]
        devices = self._directory.devices
        texts = [self.patch_text(devices[peer], names) for peer, names in patches if names]
        if texts:
            parts["PeersChangedPatch"] = texts
        online = {str(peer): devices[peer].online for peer in patched if ONLINE in changes.devices[peer]}
        if online:
            parts["OnlineChange"] = online
            parts["PeerSeenChange"] = {peer: True for peer, is_online in online.items() if not is_online}
        return parts

    def ping(self, request: PingRequest) -> bytes:
        return self._message({"KeepAlive": True, "PingRequest": request})

    def keep_alive(self) -> bytes:
        return b'{"KeepAlive":true}'

    @staticmethod
    def _message(parts: Mapping[str, Any]) -> bytes:
        return _encode(parts)
