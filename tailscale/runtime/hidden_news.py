"""When a node asks for itself anew: Headscale 0.29 does not tell it which of its routes are in force, nor that no SSH
rule is left.

Owns the signs of it in messages for others, and how seldom is seldom enough. Refuses to know how it is asked.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from tailscale.forwarding import EXIT_ROUTES
from ts_control.netmap import NetMap
from ts_control.wire import Hostinfo, MapResponse

SETTLE, PAUSE = 0.5, 15.0  # seconds until our own node is asked for, and between two such questions
ECHO = 5.0  # asking is itself an event for Headscale, and told to everybody, us included, within this time


class HiddenNews:
    """One per device, over all the streams that it has opened."""

    def __init__(self) -> None:
        self._asked_at = self._echo_until = -math.inf
        self._kept_elsewhere: set[str] = set()  # subnets of ours that other routers have, where they have all we lack

    def begin(self, netmap: NetMap, ours: Hostinfo) -> None:
        """A stream has begun, with our own node as it is."""
        self._is_vacant(netmap, ours.routable_ips)

    def ask_at(self, response: MapResponse, netmap: NetMap, ours: Hostinfo, now: float) -> float | None:
        """When to ask, after this message and with the netmap that it made; None where it hides nothing."""
        is_vacant = self._is_vacant(netmap, ours.routable_ips)
        has_routes = bool(ours.routable_ips) and not self._kept_elsewhere
        if not is_vacant and not ((has_routes or _keeps_ssh(response, netmap, ours)) and self._may_hide(response, now)):
            return None
        return max(now + SETTLE, self._asked_at + (0.0 if is_vacant else PAUSE))

    def asked(self, now: float) -> None:
        self._asked_at, self._echo_until = now, now + ECHO

    def _may_hide(self, response: MapResponse, now: float) -> bool:
        """Peers are told which of our routes were approved or withdrawn, and we of a new filter only."""
        is_policy = response.packet_filter is not None or response.packet_filters is not None
        if not is_policy or response.node is not None:
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


def _keeps_ssh(response: MapResponse, netmap: NetMap, ours: Hostinfo) -> bool:
    """Whether we would let people log in by rules that may be gone: null means unchanged, within one stream."""
    told = netmap.ssh_policy
    return bool(ours.ssh_host_keys and response.ssh_policy is None and told and told.get("rules"))
