"""What a relay says of a connection that it brings, and what the tailnet says of whether it may. Pure.

The two headers of `POST /v0/ingress` are a relay's word: whoever believes them believes that relay. A source address is
read for its form only, and is no identity.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple
from urllib.parse import unquote

from tailscale.errors import FunnelUnavailable
from ts_base.errors import BadPacket
from ts_base.ip import format_address, is_tailscale_address, parse_address
from ts_control.netmap import NetMap

HTTPS = "https"
FUNNEL = "funnel"
PORTS = "https://tailscale.com/cap/funnel-ports"
LONGEST_SOURCE = 64
LONGEST_QUERY = 1024
LONGEST_NAME = 253  # RFC 1035, 2.3.4, without the dot at its end
OWN_RELAY = "or give name= and tls= and run a relay of your own, see docs/funnel.md"


def read_source_untrusted(text: str) -> tuple[str, int]:
    """`203.0.113.9:5555` or `[2001:db8::1]:5555`. An address of the tailnet becomes the unspecified one."""
    host, colon, port = text.rpartition(":")
    if not colon or len(text) > LONGEST_SOURCE or (":" in host) != (host.startswith("[") and host.endswith("]")):
        raise BadPacket("the source is not ip:port")
    address = parse_address(host.removeprefix("[").removesuffix("]"))
    if is_tailscale_address(address):
        address = bytes(len(address))  # it would be taken for the peer that has it, and proves nothing
    return format_address(address), _port_untrusted(port)


def read_target_untrusted(text: str) -> tuple[str, int]:
    """`a.rig.ts.net:443`, in small letters."""
    name, colon, port = text.rpartition(":")
    if not colon or not 0 < len(name) <= LONGEST_NAME or not name.isascii() or not name.isprintable():
        raise BadPacket("the target is not host:port")
    if set(name) & set(' ,:[]/@"') or not name.strip("."):
        raise BadPacket("the target is not host:port")
    return clean(name), _port_untrusted(port)


def _port_untrusted(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 5 or int(text) > 65535:
        raise BadPacket("that is no port")
    return int(text)


def clean(name: str) -> str:
    """One spelling of a name."""
    return name.lower().removesuffix(".")


def public_name(name: str) -> str:
    """One spelling of a name that is to be published. ValueError for what no client asks for."""
    try:
        return read_target_untrusted(f"{name}:443")[0]
    except BadPacket:
        raise ValueError(f"{name!r} is no name that browsers ask for, as web.example.com is") from None


class Place(NamedTuple):
    """What is published, and which nodes may lead there beside those to whom the policy grants it."""

    name: str
    port: int
    relays: tuple[str, ...]


def place_of(netmap: NetMap, port: int, name: str | None, relays: Sequence[str]) -> Place:
    """Where a listener is found. FunnelUnavailable where only relays of the tailnet could lead there, and may not."""
    if not 0 < port < 65536:
        raise ValueError(f"port {port} is not between 1 and 65535")
    ours = [*netmap.dns.cert_domains, netmap.self_node.name]
    wanted = public_name(ours[0] if name is None else name)
    if wanted in map(clean, ours) and not relays:
        check_access({*netmap.self_node.cap_map, *netmap.self_node.capabilities}, port)
    return Place(wanted, port, tuple(relays))


def check_access(attributes: Collection[str], port: int) -> None:
    """FunnelUnavailable, which says what is to be set, where the tailnet's own relays may not lead to this port."""
    if HTTPS not in attributes:
        raise FunnelUnavailable(
            HTTPS, f"Funnel needs HTTPS, which this tailnet has not enabled: do so on its DNS page, {OWN_RELAY}"
        )
    if FUNNEL not in attributes:
        raise FunnelUnavailable(
            FUNNEL,
            'the policy does not let this node use Funnel: give it the attribute "funnel" under nodeAttrs, '
            f"{OWN_RELAY}",
        )
    ranges = allowed_ports(attributes)
    if not any(first <= port <= last for first, last in ranges):
        allowed = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges) or "none"
        raise FunnelUnavailable("funnel-ports", f"port {port} may not be used for Funnel; allowed here: {allowed}")


def allowed_ports(attributes: Collection[str]) -> list[tuple[int, int]]:
    """Which ports the tailnet's relays lead to: `443,8443,10000-10010` behind `?ports=` in the attribute's name."""
    found = []
    for attribute in attributes:
        name, _, query = attribute.partition("?")
        if name != PORTS:
            continue
        fields = (field.partition("=") for field in query[:LONGEST_QUERY].split("&"))
        for part in ",".join(unquote(value) for key, _, value in fields if key == "ports").split(","):
            first, _, last = part.partition("-")
            if all(text.isascii() and text.isdigit() and len(text) < 6 for text in (first, last or first)):
                found.append((int(first), int(last or first)))
    return sorted(found)
