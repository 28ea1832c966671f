"""When a subnet router asks control anew for its own node: Headscale 0.29 does not tell it what became of its routes.

Owns: the signs that something did, and how often is asked. Refuses to know: how a map stream is held.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import trio

from tailscale.forwarding import EXIT_ROUTES
from ts_control.netmap import NetMap
from ts_control.wire import MapResponse

SELF_SETTLE, SELF_PAUSE = 0.5, 15.0  # until a router asks for its own node anew, and between two such questions
SELF_ECHO = 5.0  # asking is itself an event for Headscale, and told to everybody, us included, within this time


class OwnRoutes:
    """Follows what control tells of others' routes and of filters."""

    def __init__(self) -> None:
        self._self_asked_at = self._echo_until = -math.inf
        self._kept_elsewhere: set[str] = set()  # subnets of ours that other routers have, where they have all we lack

    def begin(self, netmap: NetMap, ours: Collection[str]) -> None:
        """A stream began, with our own node in it."""
        self._is_vacant(netmap, ours)

    def hear(self, response: MapResponse, netmap: NetMap, ours: Collection[str]) -> float | None:
        """The pause since the last question after which to ask, where this message is a reason; None where not."""
        if not ours:
            return None
        may_hide, is_vacant = self._may_hide(response), self._is_vacant(netmap, ours)
        return 0.0 if is_vacant else SELF_PAUSE if may_hide else None

    async def end_stream_soon(self, stream: trio.CancelScope, pause: float) -> None:
        """The next one begins with our own node; however often the policy changes, that is asked now and then."""
        await trio.sleep_until(max(trio.current_time() + SELF_SETTLE, self._self_asked_at + pause))
        self._self_asked_at = trio.current_time()
        self._echo_until = self._self_asked_at + SELF_ECHO
        stream.cancel()

    def _may_hide(self, response: MapResponse) -> bool:
        """Headscale 0.29 tells peers which of our routes were approved or withdrawn, and us only of a new filter."""
        is_policy = response.packet_filter is not None or response.packet_filters is not None
        if not is_policy or response.node is not None or self._kept_elsewhere:
            return False
        is_echo, self._echo_until = trio.current_time() < self._echo_until, -math.inf
        return not is_echo

    def _is_vacant(self, netmap: NetMap, ours: Collection[str]) -> bool:
        """Whether the router that had a subnet of ours has lost it: whose it is now, Headscale does not tell us either.

        While another router has all that we lack, a new filter is no news of ours: routers that each open their stream
        anew when the other has would never end.
        """
        before = self._kept_elsewhere
        lacking = set(ours) - set(netmap.self_node.allowed_ips or ()) - {*EXIT_ROUTES}
        kept = {
            route for peer in netmap.peers.values() if lacking for route in lacking.intersection(peer.allowed_ips or ())
        }
        self._kept_elsewhere = kept if kept == lacking else set()
        return bool(before & lacking - kept)
