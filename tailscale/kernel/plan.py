"""Which addresses, routes and rules a machine needs at this moment; a pure function of what is known.

Owns the order of our rules, which routes of peers the kernel is given, and why others are refused. Asks nobody and
makes nothing.
"""

# Theory of operation
#
# The kernel reads rules by number. Ours, from `base`, the first number that nobody uses:
#
#   +0  a datagram from the UDP port of our own tunnel: on at +9      (what is sealed must not be sealed again)
#   +1  to a prefix that is excluded, or to the control server: on at +9
#   +2  from an address of an uplink: on at +9                        (connections of before go on; servers answer)
#   +3  to the tailnet's own addresses: by our table
#   +4  by the main table, unless only its default route would do     (our own networks are never a peer's)
#   +5  by our table: subnets of peers, and the default route of a full tunnel
#   +9  nothing: where the others land, as if the tunnel were not there
#
# No mark is put on packets: who else uses marks, as kube-proxy and wg-quick do, is not in our way nor we in theirs. Our
# own TCP connections are bound to the interface that the kernel names for a datagram of ours: no route of another
# interface can take those (tailscale/kernel/interface.py).
#
# A peer's route is judged by what judges a forwarded packet (tailscale/runtime/forward_guard.py), and may not be so
# wide that it is a default route in pieces.

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from tailscale.kernel.netlink import MAIN, Rule
from tailscale.runtime.forward_guard import LINK_LOCAL, LOOPBACK, METADATA, METADATA_SERVICES, MULTICAST, NO_HOST, never
from tailscale.tun_options import TunOptions, fits_ipv6
from ts_base.ip import CGNAT, TAILSCALE_ULA, Prefix, is_tailscale_address, parse_prefix, prefix_contains

DEFAULTS: tuple[Prefix, ...] = ((bytes(4), 0), (bytes(16), 0))
WIDEST = {4: 8, 16: 12}  # prefix lengths; 2000::/3 in halves would be a default route too
ROUTES_LIMIT = 8192
RULES_STEP = 10
OWN_PORT, EXCLUDED, FROM_UPLINK, TAILNET, OWN_NETWORKS, PEERS, LANDING = 0, 1, 2, 3, 4, 5, 9
SPECIAL = tuple(
    map(
        parse_prefix,
        ("127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32", "::1/128", "fe80::/10", "ff00::/8"),
    )
)
# What no wider route takes along: links, groups, and where clouds answer about the machine that asks.
NEVER_INSIDE = SPECIAL + tuple((one, 8 * len(one)) for one in METADATA_SERVICES if not is_tailscale_address(one))

WHY = {
    LOOPBACK: "this machine's loopback",
    MULTICAST: "multicast",
    LINK_LOCAL: "addresses of a link",
    METADATA: "a cloud's metadata service",
    NO_HOST: "no host has such an address",
}
WIDE, OWN, CONTROL = "so wide that it is a default route in pieces", "a network of this machine", "the control server"
DEFAULT, MANY, LEFT_OUT = "a default route of a peer that is not the exit node", "more routes than fit", "excluded"


@dataclass(frozen=True, slots=True)
class Plan:
    """What the kernel shall have."""

    own: frozenset[bytes] = frozenset()
    routes: frozenset[Prefix] = frozenset()
    rules: frozenset[Rule] = frozenset()
    is_full: bool = False
    refused: Mapping[Prefix, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is known of the tailnet and of this machine."""

    own: Collection[bytes]
    claims: Iterable[Prefix]  # of all peers, as the routing table took them
    services: Collection[bytes]  # where our own resolver answers
    wants_exit: bool = False
    networks: Collection[Prefix] = ()  # of this machine's interfaces, each address of its own among them
    control: Collection[bytes] = ()
    udp_port: int = 0
    machine_has_ipv6: bool = True


def make_plan(options: TunOptions, known: Surroundings, base: int, *, has_ipv6: bool = True) -> Plan:
    """`base` is the number of our first rule and of our table; `has_ipv6` whether the interface may have any."""
    sizes = (4, 16) if has_ipv6 and fits_ipv6(options) else (4,)
    uplinks = [prefix for prefix in known.networks if not any(prefix_contains(one, prefix[0]) for one in SPECIAL)]
    is_full = known.wants_exit and not options.split
    excluded = options.excluded
    refused: dict[Prefix, str] = {}
    routes = {prefix for prefix in (CGNAT, TAILSCALE_ULA) if not _overlaps(prefix, uplinks)}
    claims = {(service, 8 * len(service)) for service in known.services}.union(known.claims)
    for prefix in sorted(claims, key=lambda one: (len(one[0]), one[1], one[0])):
        if prefix in DEFAULTS or any(_holds(wide, prefix) for wide in (CGNAT, TAILSCALE_ULA) if wide in routes):
            continue  # the first are a wish of ours, below; the second are held already
        is_node = prefix[1] == 8 * len(prefix[0]) and is_tailscale_address(prefix[0])
        why = "" if is_node else _refusal(prefix, uplinks, known.control, excluded)
        if not why and len(routes) >= ROUTES_LIMIT:
            why = MANY
        if why:
            refused[prefix] = why
        else:
            routes.add(prefix)
    if is_full:  # of both families, whatever the exit offers: what it does not carry must not leave beside it
        routes |= set(DEFAULTS)
    around = {(address, 8 * len(address)) for address in known.control} | excluded
    around |= {one for one in NEVER_INSIDE if any(_holds(route, one) for route in routes)}
    leaving = {one for one in uplinks if one[1] == 8 * len(one[0]) and not is_tailscale_address(one[0])}
    return Plan(
        own=frozenset(address for address in known.own if len(address) in sizes),
        routes=frozenset(prefix for prefix in routes if len(prefix[0]) in sizes),
        rules=frozenset(_rules(base, sizes, known, around, leaving, is_full=is_full)),
        is_full=is_full,
        refused=refused,
    )


def _rules(
    base: int,
    sizes: Collection[int],
    known: Surroundings,
    around: Iterable[Prefix],
    leaving: Iterable[Prefix],
    *,
    is_full: bool,
) -> Iterable[Rule]:
    landing = base + LANDING
    for size, tailnet in ((4, CGNAT), (16, TAILSCALE_ULA)):
        is_carried, family = size in sizes, family_of(size)
        if not is_carried and not (is_full and known.machine_has_ipv6):
            continue
        yield Rule(family, landing)
        if known.udp_port:
            yield Rule(family, base + OWN_PORT, goto=landing, udp_port=known.udp_port)
        for prefix in around:
            if len(prefix[0]) == size:
                yield Rule(family, base + EXCLUDED, goto=landing, destination=prefix)
        for prefix in leaving:
            if len(prefix[0]) == size:
                yield Rule(family, base + FROM_UPLINK, goto=landing, source=prefix)
        yield Rule(family, base + OWN_NETWORKS, table=MAIN, without_default=True)
        if is_carried:
            yield Rule(family, base + TAILNET, table=base, destination=tailnet)
            yield Rule(family, base + PEERS, table=base)
        else:  # what a full tunnel does not carry must not leave beside it
            yield Rule(family, base + PEERS, is_refusal=True)


def _refusal(
    prefix: Prefix, networks: Iterable[Prefix], control: Collection[bytes], excluded: Collection[Prefix]
) -> str:
    """Why the kernel is not given a peer's route; "" where it is."""
    address, length = prefix
    word = never(address)
    if word in WHY:
        return WHY[word]
    if length < WIDEST[len(address)]:
        return WIDE
    if any(_holds(one, prefix) for one in excluded):
        return LEFT_OUT
    if length == 8 * len(address) and address in control:
        return CONTROL
    if any(_holds(one, prefix) for one in networks):
        return OWN
    return ""


def family_of(size: int) -> int:
    """Of an address of so many bytes."""
    return int(socket.AF_INET if size == 4 else socket.AF_INET6)


def _holds(wide: Prefix, narrow: Prefix) -> bool:
    return len(wide[0]) == len(narrow[0]) and wide[1] <= narrow[1] and prefix_contains(wide, narrow[0])


def _overlaps(prefix: Prefix, others: Iterable[Prefix]) -> bool:
    """Whether a network of others' is in it, or holds it; an address of the tailnet's own is no network."""
    return any((_holds(prefix, one) or _holds(one, prefix)) and one[1] < 8 * len(one[0]) for one in others)
