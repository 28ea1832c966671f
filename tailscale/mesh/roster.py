"""Who is a member: found in the netmap, where members announce themselves, or because they said hello.

Owns the lines, one per node, and follows the Device's events. Asks nobody anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from tailscale.events import EventStream, Lagged, PathChanged, PeerChanged, PeerDown, PeerUp
from tailscale.mesh.counting import Former
from tailscale.mesh.errors import AmbiguousPeer, NotInMesh, PeerGone
from tailscale.mesh.events import PeerJoined, PeerLeft, PeerRenamed
from tailscale.mesh.lines import Line
from tailscale.mesh.peers import Members, MeshPeer

if TYPE_CHECKING:
    from tailscale.mesh.shared import Shared
    from tailscale.nodes import Node

GENERATIONS_KEPT = 4096


class Roster:
    """The members of one mesh."""

    def __init__(self, shared: Shared, is_remembered: Callable[[Node], bool]) -> None:
        self._shared = shared
        self._is_remembered = is_remembered
        self.lines: dict[str, Line] = {}
        self.former = Former()
        self._generations: dict[str, int] = {}
        self.changed = trio.Event()  # replaced when it is set
        self._is_closed = False

    # Who is there

    @property
    def members(self) -> Members:
        return Members(line.peer for line in self.lines.values() if not line.is_hidden)

    def find(self, who: str) -> MeshPeer | None:
        """Whom a person means. Raises AmbiguousPeer."""
        found = self.members.meant(who)
        if len(found) > 1:
            raise AmbiguousPeer(who, found)
        return found[0] if found else None

    def named(self, to: str | MeshPeer) -> MeshPeer:
        """A member, now. Raises NotInMesh, AmbiguousPeer."""
        if isinstance(to, MeshPeer):
            return to
        found = self.find(to)
        if found is None:
            raise self.unknown(to)
        return found

    def unknown(self, who: str) -> NotInMesh:
        return NotInMesh(who, self._shared.app, (peer.node.hostname for peer in self.members.values()))

    def line_of(self, peer: MeshPeer) -> Line:
        """The line to a member. Raises PeerGone."""
        line = self.lines.get(peer.node.stable_id)
        if line is None or line.peer != peer:
            raise PeerGone(f"{peer.node.hostname} left the mesh; mesh.peer() finds it when it comes back")
        return line

    def process_of(self, peer: MeshPeer) -> object:
        """Which process of the peer's speaks; None where it is no member any more."""
        line = self.lines.get(peer.node.stable_id)
        return line.process if line is not None else None

    def line_to(self, node: Node) -> Line:
        """The line to a node, which may be no member yet."""
        line = self.lines.get(node.stable_id)
        if line is None:
            generation = self._generations.pop(node.stable_id, 0) + 1
            self._generations[node.stable_id] = generation
            while len(self._generations) > GENERATIONS_KEPT:
                del self._generations[next(iter(self._generations))]
            line = self.lines[node.stable_id] = Line(self._shared, node, generation, self._lost)
        return line

    def admit(self, line: Line) -> None:
        """It is a member: it announces the app, or said hello and is who it says."""
        if line.is_hidden and not line.is_gone:
            line.is_hidden = False
            self._shared.readers.put(PeerJoined(line.peer))
            self._tell_changed()
            if self._shared.keeps_open:
                line.kick()

    # What changes

    async def follow(self, events: EventStream, on_change: Callable[[], None]) -> None:
        """Until the device is closed."""
        self.look_at_all()
        on_change()
        async for event in events:
            match event:
                case PeerUp(node=node):
                    self._look_at(node)
                    if (line := self.lines.get(node.stable_id)) is not None:
                        line.hope()
                case PeerChanged(node=node):
                    self._look_at(node)
                case PeerDown(node=node):
                    self._look_away(node)
                case PathChanged(node=node):
                    if (line := self.lines.get(node.stable_id)) is not None:
                        line.suspect()
                    continue
                case Lagged():
                    self.look_at_all()
                case _:
                    continue
            on_change()

    def look_at_all(self) -> None:
        nodes = {node.stable_id: node for node in self._shared.device.peers.values()}
        for node in nodes.values():
            self._look_at(node)
        for stable_id in [each for each in self.lines if each not in nodes]:
            self._remove(stable_id)

    def close(self) -> None:
        """We leave: nothing changes any more."""
        self._is_closed = True
        self._tell_changed()

    def _look_at(self, node: Node) -> None:
        """A node that appeared or changed."""
        if self._is_closed:
            return
        line, word = self.lines.get(node.stable_id), self._shared.word
        if line is None:
            if word in node.announced:
                self.admit(self.line_to(node))
            return
        before, line.node = line.node, node
        if before.name != node.name and not line.is_hidden:
            self._shared.readers.put(PeerRenamed(line.peer, before.name))
        if before.addresses != node.addresses:
            line.suspect()
        if word in node.announced:
            self.admit(line)
        elif word in before.announced and not line.is_connected:
            self._remove(node.stable_id)

    def _look_away(self, node: Node) -> None:
        """It went offline, or left the tailnet."""
        line = self.lines.get(node.stable_id)
        if line is None or self._is_closed:
            return
        peers = self._shared.device.peers
        if node.stable_id not in peers:
            self._remove(node.stable_id)
        else:
            self._look_at(peers[node.stable_id])
            line.suspect()

    def _lost(self, line: Line) -> None:
        """Its session ended. One that announces nothing was a member for as long as it was there."""
        if self._shared.word not in line.node.announced and not self._is_remembered(line.node):
            if self.lines.get(line.node.stable_id) is line and not self._is_closed:
                self._remove(line.node.stable_id)

    def drop_hidden(self, line: Line) -> None:
        """It turned out to be no member."""
        if line.is_hidden and not line.is_connected and self.lines.get(line.node.stable_id) is line:
            self._remove(line.node.stable_id)

    def _remove(self, stable_id: str) -> None:
        line = self.lines.pop(stable_id)
        line.leave()
        self.former.add(line)
        if not line.is_hidden:
            self._shared.readers.put(PeerLeft(line.peer))
        self._tell_changed()

    def _tell_changed(self) -> None:
        self.changed.set()
        self.changed = trio.Event()
