"""Routes of ours that control has approved or withdrawn without telling us: when to ask for our own node anew.

Headscale 0.29 tells peers which of a router's routes were approved or withdrawn, and the router only of a new filter.
"""

from __future__ import annotations

import math

import trio

from tailscale.forwarding import EXIT_ROUTES
from ts_control.netmap import NetMap
from ts_control.wire import Hostinfo, MapResponse

SELF_SETTLE, SELF_PAUSE = 0.5, 15.0  # until a router asks for its own node anew, and between two such questions
SELF_ECHO = 5.0  # asking is itself an event for Headscale, and told to everybody, us included, within this time


class HiddenRoutes:
    """One device's."""

    def __init__(self) -> None:
        self._asked_at = self._echo_until = -math.inf
        self._kept_elsewhere: set[str] = set()

    def may_be(self, response: MapResponse) -> bool:
        """Whether this message may stand for news of our routes."""
        is_policy = response.packet_filter is not None or response.packet_filters is not None
        if not is_policy or response.node is not None or self._kept_elsewhere:
            return False
        is_echo, self._echo_until = trio.current_time() < self._echo_until, -math.inf
        return not is_echo

    def are_vacant(self, netmap: NetMap, hostinfo: Hostinfo) -> bool:
        """Whether the router that had a subnet of ours has lost it: whose it is now, Headscale does not tell us either.

        While another router has all that we lack, a new filter is no news of ours: routers that each open their stream
        anew when the other has would never end.
        """
        before = self._kept_elsewhere
        lacking = set(hostinfo.routable_ips) - set(netmap.self_node.allowed_ips or ()) - {*EXIT_ROUTES}
        kept = {
            route for peer in netmap.peers.values() if lacking for route in lacking.intersection(peer.allowed_ips or ())
        }
        self._kept_elsewhere = kept if kept == lacking else set()
        return bool(before & lacking - kept)

    async def end_soon(self, stream: trio.CancelScope, pause: float) -> None:
        """The next one begins with our own node; however often the policy changes, that is asked now and then."""
        await trio.sleep_until(max(trio.current_time() + SELF_SETTLE, self._asked_at + pause))
        self._asked_at = trio.current_time()
        self._echo_until = self._asked_at + SELF_ECHO
        stream.cancel()
