"""When a router asks for its own node anew: Headscale 0.29 does not tell it which of its routes are in force.

Owns the two signs of it in messages for others, and how seldom is seldom enough. Refuses to know how it is asked.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from tailscale.forwarding import EXIT_ROUTES
from ts_control.netmap import NetMap
from ts_control.wire import MapResponse

SETTLE, PAUSE = 0.5, 15.0  # seconds until our own node is asked for, and between two such questions
ECHO = 5.0  # asking is itself an event for Headscale, and told to everybody, us included, within this time


class RouteNews:
    """One per device, over all the streams that it has opened. `offered` are the routes that it advertises."""

    def __init__(self) -> None:
        self._asked_at = self._echo_until = -math.inf
        self._kept_elsewhere: set[str] = set()  # subnets of ours that other routers have, where they have all we lack

    def begin(self, netmap: NetMap, offered: Collection[str]) -> None:
        """A stream has begun, with our own node as it is."""
        self._is_vacant(netmap, offered)

    def ask_at(self, response: MapResponse, netmap: NetMap, offered: Collection[str], now: float) -> float | None:
        """When to ask, after this message and with the netmap that it made; None where it hides nothing."""
        if not offered:
            return None
        may_hide, is_vacant = self._may_hide(response, now), self._is_vacant(netmap, offered)
        if not may_hide and not is_vacant:
            return None
        return max(now + SETTLE, self._asked_at + (0.0 if is_vacant else PAUSE))

    def asked(self, now: float) -> None:
        self._asked_at, self._echo_until = now, now + ECHO

    def _may_hide(self, response: MapResponse, now: float) -> bool:
        """Peers are told which of our routes were approved or withdrawn, and we of a new filter only."""
        is_policy = response.packet_filter is not None or response.packet_filters is not None
        if not is_policy or response.node is not None or self._kept_elsewhere:
            return False
        is_echo, self._echo_until = now < self._echo_until, -math.inf
        return not is_echo

    def _is_vacant(self, netmap: NetMap, offered: Collection[str]) -> bool:
        """Whether the router that had a subnet of ours has lost it: whose it is now, we are not told either.

        While another router has all that we lack, a new filter is no news of ours: routers that each open their stream
        anew when the other has would never end.
        """
        before = self._kept_elsewhere
        lacking = set(offered) - set(netmap.self_node.allowed_ips or ()) - {*EXIT_ROUTES}
        kept = {
            route for peer in netmap.peers.values() if lacking for route in lacking.intersection(peer.allowed_ips or ())
        }
        self._kept_elsewhere = kept if kept == lacking else set()
        return bool(before & lacking - kept)
