"""Services: names with addresses of their own that several nodes may host, as a host and control tell each other.

Owns the shapes, the hash by which control learns that there is news, and how control names a service's addresses.
Refuses to know who listens at them. tailcfg.VIPService, ipn/ipnlocal/serve.go.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from ts_base.errors import BadPacket
from ts_base.ip import CGNAT, TAILSCALE_ULA, parse_address, prefix_contains
from ts_control.gojson import GoStruct
from ts_control.wire import CapMap

SERVICE_HOST = "service-host"  # the self capability that says which addresses a host answers at
PREFIX = "svc:"
PATH = "/vip-services"
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1123 section 2.1
MOST_SERVICES = 1024  # of one host

ServiceAddresses = Mapping[str, tuple[bytes, ...]]


class VIPService(GoStruct, frozen=True, omit_defaults=False):
    """One service, as its host tells of it."""

    name: str = ""
    ports: tuple[str, ...] = ()
    active: bool = False


class VIPServices(GoStruct, frozen=True, omit_defaults=False):
    """The answer to `GET /vip-services`."""

    vip_services: tuple[VIPService, ...] = msgspec.field(default=(), name="VIPServices")
    services_hash: str = ""


def label_of(service: str) -> str:
    """What stands behind `svc:`, which is the service's name in DNS. ValueError where it is no name."""
    label = service.removeprefix(PREFIX)
    if label == service or not LABEL.fullmatch(label):
        raise ValueError(f"{service!a} is no service: its name is svc: and a DNS label, as in svc:web")
    return label


def services_of(hosted: Iterable[tuple[str, int]], draining: Collection[str] = ()) -> tuple[VIPService, ...]:
    """Of services and TCP ports, in the order in which control is told; those that drain want nobody new."""
    ports: dict[str, set[int]] = {}
    for name, port in hosted:
        ports.setdefault(name, set()).add(port)
    return tuple(VIPService(name, _merged(sorted(ports[name])), name not in draining) for name in sorted(ports))


def _merged(ports: Sequence[int]) -> tuple[str, ...]:
    """Neighbours are told together: `tcp:80-82`."""
    runs: list[list[int]] = []
    for port in ports:
        if runs and runs[-1][1] == port - 1:
            runs[-1][1] = port
        else:
            runs.append([port, port])
    return tuple(f"tcp:{first}" if first == last else f"tcp:{first}-{last}" for first, last in runs)


def services_hash(services: Sequence[VIPService]) -> str:
    """Hostinfo's word for all that is hosted; nothing hosted is ""."""
    if not services:
        return ""
    return hashlib.sha256(msgspec.json.encode(services) + b"\n").hexdigest()


def services_json(services: Sequence[VIPService]) -> bytes:
    return msgspec.json.encode(VIPServices(tuple(services), services_hash(services)))


def addresses_in(capabilities: CapMap) -> dict[str, tuple[bytes, ...]]:
    """Which addresses control gives the services we host. What is none of the tailnet's range is nobody's here."""
    found: dict[str, tuple[bytes, ...]] = {}
    for told in capabilities.get(SERVICE_HOST) or ():
        if not isinstance(told, dict):
            continue
        for name, texts in told.items():
            addresses = [_service_address_untrusted(text) for text in texts] if isinstance(texts, list) else []
            known = found.get(name, ())
            if len(found) < MOST_SERVICES or known:
                found[name] = tuple(dict.fromkeys((*known, *(address for address in addresses if address))))
    return found


def _service_address_untrusted(text: object) -> bytes:
    """Empty where it is none that a service may have."""
    if not isinstance(text, str):
        return b""
    try:
        address = parse_address(text)
    except BadPacket:
        return b""
    return address if prefix_contains(CGNAT, address) or prefix_contains(TAILSCALE_ULA, address) else b""


def hosted_untrusted(answer: bytes) -> tuple[str, ...]:
    """The active services of a host's whole HTTP answer. BadPacket where it is none."""
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found or b" 200 " not in head.split(b"\r\n", 1)[0] + b" ":
        raise BadPacket("a host did not say what it hosts")
    try:
        told = msgspec.json.decode(body, type=VIPServices)
    except (msgspec.DecodeError, msgspec.ValidationError):
        raise BadPacket("a host said in no known words what it hosts") from None
    return tuple(one.name for one in told.vip_services[:MOST_SERVICES] if one.active)
