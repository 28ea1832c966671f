"""Which of two answered paths is better.

Owns the comparison and its one-percent stickiness; knows no peers and no time. The rules are magicsock's
`betterAddr`, integer arithmetic included, so that both ends of a pair judge alike.
"""

from __future__ import annotations

from typing import NamedTuple

from ts_base.errors import BadPacket
from ts_base.ip import is_link_local, is_loopback, is_private, parse_address
from ts_base.who import Direct, PeerRelayed, host_of, is_direct

LOOPBACK_POINTS, LINK_LOCAL_POINTS, PRIVATE_POINTS, IPV6_POINTS = 50, 30, 20, 10


class PathQuality(NamedTuple):
    """A path that answered, how fast, and the largest tunnel packet it is known to carry."""

    path: Direct | PeerRelayed
    latency: float
    mtu: int = 0


def address_points(host: str) -> int:
    try:
        address = parse_address(host)
    except BadPacket:
        return 0
    points = IPV6_POINTS if len(address) == 16 else 0
    if is_loopback(address):
        return points + LOOPBACK_POINTS
    if is_link_local(address):
        return points + LINK_LOCAL_POINTS
    return points + (PRIVATE_POINTS if is_private(address) else 0)


def speed_points(ours: float, theirs: float) -> tuple[int, int]:
    """The slower gets nothing, the faster as many points as it is per cent faster."""
    a, b = round(ours * 1e9), round(theirs * 1e9)
    if a > b and a > 0:
        return 0, 100 - b * 100 // a
    if b > 0:
        return 100 - a * 100 // b, 0
    return 0, 0


def is_better(a: PathQuality | None, b: PathQuality | None) -> bool:
    """Should a path `b` that is in use give way to `a`?"""
    if a is None or b is None:
        return a is not None
    if a.path == b.path:
        return a.mtu > b.mtu
    if is_direct(a.path) != is_direct(b.path):
        return is_direct(a.path)  # a direct path beats one through a peer relay
    a_speed, b_speed = speed_points(a.latency, b.latency)
    a_points = a_speed + address_points(host_of(a.path))
    b_points = b_speed + address_points(host_of(b.path))
    if a_points <= 1 and b_points == 0:
        return False
    return a_points > b_points
