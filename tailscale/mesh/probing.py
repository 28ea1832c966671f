"""Finding members where the control server does not pass on what they announce: by saying hello to chosen nodes.

Only where the program says whom to ask; never a node that is offline, never more than 256, and none again within the
hour, across restarts too. Owns who is being asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from tailscale.errors import TailscaleError
from tailscale.mesh.dialling import open_link
from tailscale.mesh.parting import LinkLost

if TYPE_CHECKING:
    from tailscale.mesh.roster import Roster
    from tailscale.mesh.saved import Saved
    from tailscale.mesh.shared import Shared
    from tailscale.nodes import Node

AT_ONCE = 4
MOST = 256
JITTER = 0.25


class Prober:
    """Asks nodes that pass a test of the program's whether they are members."""

    def __init__(self, shared: Shared, roster: Roster, saved: Saved, discover: Callable[[Node], bool]) -> None:
        self._shared = shared
        self._roster = roster
        self._saved = saved
        self._discover = discover
        self._asking: set[str] = set()
        self._at_once = trio.CapacityLimiter(AT_ONCE)

    def look(self) -> None:
        """Nodes appeared or changed: ask those that have not been asked."""
        for node in self._shared.device.peers.values():
            if self._is_to_be_asked(node):
                self._asking.add(node.stable_id)
                self._shared.start(self._ask, node)

    def _is_to_be_asked(self, node: Node) -> bool:
        number = node.stable_id
        if not node.online or number in self._asking or number in self._roster.lines:
            return False
        if self._shared.word in node.announced or not self._discover(node):
            return False
        asked = self._saved.recently_asked()
        if asked.get(number):
            self._roster.admit(self._roster.line_to(node))
        return number not in asked and len(asked) + len(self._asking) < MOST

    async def _ask(self, node: Node) -> None:
        try:
            async with self._at_once:
                await trio.sleep(random.random() * JITTER)  # noqa: S311 - not all at once; no secret
                line = self._roster.line_to(node)
                try:
                    link, hello = await open_link(line)
                except (LinkLost, TailscaleError, OSError, trio.TooSlowError, trio.BrokenResourceError):
                    is_member = False
                    self._roster.drop_hidden(line)
                else:
                    is_member = True
                    self._roster.admit(line)
                    line.join(link, hello, is_ours=True)
            self._saved.remember(node.stable_id, is_member=is_member)
            await self._saved.save()
        finally:
            self._asking.discard(node.stable_id)
