"""Who is enrolled in an embedded tailnet: users, auth keys, devices, their addresses, names and routes.

Owns the facts and the rules that need no session: allocation, name de-duplication, which of several routers is primary.
Knows no wire request, no stream and no clock; times are Unix seconds, 0.0 meaning never.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from ts_base.errors import BadPacket, TailscaleError
from ts_base.ip import CGNAT, SERVICE_IP4, SERVICE_IP6, TAILSCALE_ULA, VIA, Prefix, parse_prefix, prefix_contains
from ts_base.keys import DiscoPublic, MachinePublic, NodePublic
from ts_control.policy import EXIT_ROUTES
from ts_control.policy_index import Subject
from ts_control.wire import NO_DISCO_KEY, Hostinfo, Location, Service

TAGGED_DEVICES = 2147455555  # the pseudo user that owns what has tags
MAX_ROUTES = 1024  # per device
MAX_ENDPOINTS = 64
MAX_LABEL = 63

# Addresses of ours that other systems already took: Chrome OS's own network, and the service address.
_RESERVED: tuple[Prefix, ...] = ((bytes([100, 115, 92, 0]), 23), (SERVICE_IP4, 32), (SERVICE_IP6, 128))


class DirectoryError(TailscaleError, LookupError):
    """An administrator asked for something that is not there, or not possible."""


@dataclass(frozen=True, slots=True)
class Account:
    id: int
    login: str
    display_name: str


@dataclass(slots=True)
class AuthKeyRecord:
    """A pre-authentication key. The secret itself never shows in a repr."""

    secret: str = field(repr=False)
    login: str
    reusable: bool
    ephemeral: bool
    tags: tuple[str, ...]
    expires: float
    used: bool = False
    revoked: bool = False

    def refusal(self, wall: float) -> str:
        """Why this key is of no use now, or an empty text."""
        if self.revoked:
            return "authkey revoked"
        if self.expires and wall >= self.expires:
            return "authkey expired"
        if self.used and not self.reusable:
            return "authkey already used"
        return ""


@dataclass(slots=True)
class Enrolled:
    """One device of the tailnet, as the server knows it."""

    id: int
    machine: MachinePublic
    key: NodePublic
    login: str
    label: str
    addresses: tuple[bytes, bytes]
    created: float
    tags: tuple[str, ...] = ()
    ephemeral: bool = False
    expires: float = 0.0
    expired: bool = False
    disco: DiscoPublic = NO_DISCO_KEY
    version: int = 0
    hostinfo: Hostinfo = field(default_factory=Hostinfo)
    endpoints: tuple[str, ...] = ()
    advertised: tuple[Prefix, ...] = ()
    approved: frozenset[Prefix] = frozenset()
    renamed: bool = False  # by an administrator: the device's own hostname no longer counts
    location: Location | None = None  # where an administrator says it is
    services: tuple[Service, ...] = ()  # what an administrator says that it serves, beside what it says itself
    hosted: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)  # services, with their addresses
    is_authorized: bool = True  # False until an administrator approves the machine, where that is asked for
    lock_key: str = ""  # its own, for the tailnet's lock
    key_signature: str = ""  # base64: what vouches for `key`, where the tailnet has a lock
    online: bool = False
    last_seen: float = 0.0

    @property
    def routes(self) -> tuple[Prefix, ...]:
        """What it may really route: advertised and approved, and the addresses of the services it hosts."""
        return tuple(route for route in self.advertised if route in self.approved) + self.hosted_routes

    @property
    def hosted_routes(self) -> tuple[Prefix, ...]:
        return tuple((address, 8 * len(address)) for at in self.hosted.values() for address in at)

    @property
    def home_region(self) -> int:
        return self.hostinfo.net_info.preferred_derp if self.hostinfo.net_info else 0

    @property
    def public_hostinfo(self) -> Hostinfo:
        """What others hear of it: with what administrators say, and without what it found out about its network,
        which is nobody else's business, and changes without its patch.
        """
        own = self.hostinfo
        place = self.location if self.location is not None else own.location
        return msgspec.structs.replace(own, net_info=None, location=place, services=own.services + self.services)

    def subject(self) -> Subject:
        login = "" if self.tags else self.login
        return Subject(self.id, login, frozenset(self.tags), self.addresses, self.routes)


def clean_label(text: str) -> str:
    """A hostname as one DNS label."""
    label = re.sub(r"[^a-z0-9-]+", "-", text.split(".")[0].lower()).strip("-")[:MAX_LABEL].strip("-")
    return label or "device"


def _pair(number: int) -> tuple[bytes, bytes]:
    """Both halves carry the same number, which makes captures easy to read."""
    v4 = (int.from_bytes(CGNAT[0], "big") + number).to_bytes(4, "big")
    return v4, (int.from_bytes(TAILSCALE_ULA[0], "big") + number).to_bytes(16, "big")


def parse_routes_untrusted(texts: Iterable[str]) -> tuple[Prefix, ...]:
    """The usable ones among what a device advertises, in its order; the rest is ignored as upstream does."""
    routes: dict[Prefix, None] = {}
    for text in texts:
        try:
            route = parse_prefix(text)
        except BadPacket:
            continue
        own_range = prefix_contains(CGNAT, route[0]) or prefix_contains(TAILSCALE_ULA, route[0])
        own_range &= not (prefix_contains(VIA, route[0]) and route[1] >= 96)  # a site, or some of it
        if len(routes) < MAX_ROUTES and not own_range:
            routes[route] = None
    return tuple(routes)


class Directory:
    """All tables of one tailnet, each with the indexes its lookups need."""

    def __init__(self, entropy: Callable[[int], bytes]) -> None:
        self._entropy = entropy
        self.accounts: dict[str, Account] = {}
        self.auth_keys: dict[str, AuthKeyRecord] = {}
        self.devices: dict[int, Enrolled] = {}
        self._by_key: dict[bytes, Enrolled] = {}
        self._by_machine: dict[bytes, Enrolled] = {}
        self._labels: dict[str, int] = {}
        self._primaries: dict[Prefix, int] = {}
        self._next_id = 1
        self._next_host = 1
        self._chosen: set[bytes] = set()  # addresses that an administrator gave out of turn

    # Users and keys

    def account(self, login: str, display_name: str = "") -> Account:
        """The user `login`, made when new."""
        known = self.accounts.get(login)
        if known is None:
            name = display_name or login.partition("@")[0]
            known = self.accounts[login] = Account(len(self.accounts) + 1, login, name)
        return known

    def create_auth_key(
        self, login: str, *, reusable: bool, ephemeral: bool, tags: tuple[str, ...], expires: float
    ) -> AuthKeyRecord:
        self.account(login)
        name = self._entropy(6).hex()
        secret = f"tskey-auth-{name}-{self._entropy(16).hex()}"
        record = self.auth_keys[name] = AuthKeyRecord(secret, login, reusable, ephemeral, tags, expires)
        return record

    def adopt_auth_keys(self, other: Directory) -> None:
        """Let those in that `other` would let in."""
        self.auth_keys = other.auth_keys

    def find_auth_key(self, secret: str) -> AuthKeyRecord | None:
        parts = secret.split("-")
        record = self.auth_keys.get(parts[2]) if len(parts) == 4 else None
        if record is None or not hmac.compare_digest(record.secret.encode(), secret.encode()):
            return None
        return record

    # Devices

    def find(self, device_id: int) -> Enrolled:
        try:
            return self.devices[device_id]
        except KeyError:
            raise DirectoryError(f"no device with id {device_id}") from None

    def by_key(self, key: NodePublic) -> Enrolled | None:
        return self._by_key.get(key.raw)

    def by_machine(self, machine: MachinePublic) -> Enrolled | None:
        return self._by_machine.get(machine.raw)

    def by_label(self, label: str) -> Enrolled | None:
        return self.devices.get(self._labels.get(label, 0))

    def enroll(self, machine: MachinePublic, key: NodePublic, login: str, hostname: str, created: float) -> Enrolled:
        device = Enrolled(
            id=self._next_id,
            machine=machine,
            key=key,
            login=login,
            label=self._free_label(clean_label(hostname), 0),
            addresses=self._allocate(),
            created=created,
        )
        self._next_id += 1
        self.devices[device.id] = device
        self._by_key[key.raw] = device
        self._by_machine[machine.raw] = device
        self._labels[device.label] = device.id
        return device

    def remove(self, device: Enrolled) -> None:
        del self.devices[device.id]
        self._labels.pop(device.label, None)
        if self._by_key.get(device.key.raw) is device:
            del self._by_key[device.key.raw]
        if self._by_machine.get(device.machine.raw) is device:  # it may have come back as somebody else's already
            del self._by_machine[device.machine.raw]

    def rekey(self, device: Enrolled, key: NodePublic) -> None:
        self._by_key.pop(device.key.raw, None)
        device.key = key
        self._by_key[key.raw] = device

    def relabel(self, device: Enrolled, wanted: str) -> bool:
        """Give `device` the name it wants, or the next free one; True when that changed it."""
        base = clean_label(wanted)
        if device.label == base or re.fullmatch(re.escape(base) + r"-[0-9]+", device.label):
            if base in self._labels:
                return False
        self._labels.pop(device.label, None)
        label = self._free_label(base, device.id)
        changed, device.label = label != device.label, label
        self._labels[label] = device.id
        return changed

    def _free_label(self, base: str, own_id: int) -> str:
        label, number = base, 0
        while self._labels.get(label, own_id) != own_id:
            number += 1
            suffix = f"-{number}"
            label = base[: MAX_LABEL - len(suffix)] + suffix
        return label

    def readdress(self, device: Enrolled, ipv4: bytes | None = None) -> None:
        """Give `device` this IPv4 address and the IPv6 one of the same number, or the next free pair."""
        if ipv4 is None:
            device.addresses = self._allocate()
            return
        if not prefix_contains(CGNAT, ipv4) or any(ipv4 in other.addresses for other in self):
            raise DirectoryError("the address is not of the tailnet's range, or somebody has it")
        self._chosen.add(ipv4)
        device.addresses = _pair(int.from_bytes(ipv4, "big") - int.from_bytes(CGNAT[0], "big"))

    def new_addresses(self) -> tuple[bytes, bytes]:
        """The next free pair, for a service."""
        return self._allocate()

    def _allocate(self) -> tuple[bytes, bytes]:
        """The next free pair."""
        while True:
            number = self._next_host
            self._next_host += 1
            if number >= 1 << 22:
                raise DirectoryError("the tailnet's address range is used up")
            v4, v6 = _pair(number)
            if any(prefix_contains(taken, v4) or prefix_contains(taken, v6) for taken in _RESERVED):
                continue
            if v4 not in self._chosen:
                return v4, v6

    # Routes

    def elect_routers(self, routes: Iterable[Prefix]) -> set[int]:
        """Choose who carries each of `routes` now; returns the devices for which that changed.

        The present router keeps a route while it is online and may carry it, so that a flapping rival moves nothing.
        """
        changed: set[int] = set()
        for route in routes:
            if route in EXIT_ROUTES:
                continue  # every exit node carries them; the client chooses
            approved = [d for d in self.devices.values() if route in d.approved or d.hosted]
            candidates = [device for device in approved if route in device.routes and not device.expired]
            present = self._primaries.get(route)
            ready = [device.id for device in candidates if device.online] or [device.id for device in candidates]
            if present in ready:
                continue
            chosen = min(ready, default=None)
            if present is not None:
                changed.add(present)
                del self._primaries[route]
            if chosen is not None:
                changed.add(chosen)
                self._primaries[route] = chosen
        return changed

    def primary_routes(self, device: Enrolled) -> tuple[Prefix, ...]:
        return tuple(route for route in device.routes if self._primaries.get(route) == device.id)

    def __iter__(self) -> Iterator[Enrolled]:
        return iter(self.devices.values())
