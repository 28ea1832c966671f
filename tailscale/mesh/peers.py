"""A member of the mesh as users hold it, and how one is found by what people call it.

A `MeshPeer` is a name for a line; it owns nothing. When a device leaves and comes back it is another one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tailscale.errors import NoSuchPeer
from tailscale.foreign_text import for_terminal
from tailscale.nodes import Node, clean_name, close_names, counted, listed, no_such_peer

if TYPE_CHECKING:
    from tailscale.mesh.transfers import Transfer
    from ts_mesh.hello import Identity

T = TypeVar("T")
SHORTEST_PREFIX = 4


class FileVerbs(Protocol):
    """What a peer asks of the files of its mesh."""

    def push(self, member: MeshPeer, paths: Sequence[Path], into: str = "", *, resume: bool = True) -> Transfer: ...

    def pull(self, member: MeshPeer, path: str, into: Path, *, resume: bool = True) -> Transfer: ...


class Line(Protocol):
    """What a peer asks of the line to it."""

    @property
    def node(self) -> Node: ...

    @property
    def identity(self) -> Identity | None: ...

    @property
    def is_connected(self) -> bool: ...

    @property
    def features(self) -> frozenset[str]: ...

    @property
    def files(self) -> FileVerbs: ...

    async def send(
        self, peer: MeshPeer, namespace: str, data: object, kind: str, *, wait: bool, timeout: float | None
    ) -> None: ...

    async def request(
        self, peer: MeshPeer, namespace: str, data: object, *, type: Any, timeout: float | None
    ) -> Any: ...


class MeshPeer:
    """One member of the mesh.

    ```python no-run: inside a mesh
    bob = await notes.peer("bob", timeout=5)
    await bob.send("chat", {"text": "hello"})
    print(bob.name, bob.node.ipv4, bob.online, bob.connected, sorted(bob.features))
    ```
    """

    def __init__(self, line: Line, generation: int) -> None:
        self._line = line
        self._number = line.node.stable_id
        self.generation = generation
        """Counts the times this device joined, as far as we saw."""

    @property
    def id(self) -> str:
        """The mesh id it gave in its hello, which it keeps over restarts with `state=`; "" before the first session."""
        identity = self._line.identity
        return identity.device_id if identity is not None else ""

    @property
    def name(self) -> str:
        """What the device calls itself; before the first session its host name."""
        identity = self._line.identity
        return identity.device_name if identity is not None else self.node.hostname

    @property
    def node(self) -> Node:
        """The node it runs on, as the tailnet sees it right now."""
        return self._line.node

    @property
    def online(self) -> bool:
        """Whether it can be expected to answer: a session stands, or control does not say it is offline."""
        return self.connected or self.node.online is not False

    @property
    def connected(self) -> bool:
        """Whether a session stands."""
        return self._line.is_connected

    @property
    def features(self) -> frozenset[str]:
        """What both ends speak: "ack", "bin", "files", "store"; empty before the first session. Without "ack" a
        message is delivered at most once, and `send` returns when it is written.
        """
        return self._line.features

    async def send(
        self, namespace: str, data: object, *, kind: str = "message", wait: bool = True, timeout: float | None = None
    ) -> None:
        """As `Mesh.send`."""
        await self._line.send(self, namespace, data, kind, wait=wait, timeout=timeout)

    async def request(self, namespace: str, data: object, *, type: type[T] = Any, timeout: float = 30.0) -> T:  # type: ignore[assignment]
        """As `Mesh.request`."""
        answer: T = await self._line.request(self, namespace, data, type=type, timeout=timeout)
        return answer

    def push(self, *paths: str | os.PathLike[str], into: str = "", resume: bool = True) -> Transfer:
        """As `Mesh.push`."""
        return self._line.files.push(self, [Path(path) for path in paths], into, resume=resume)

    def pull(self, path: str, into: str | os.PathLike[str], *, resume: bool = True) -> Transfer:
        """As `Mesh.pull`."""
        return self._line.files.pull(self, path, Path(into), resume=resume)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MeshPeer):
            return NotImplemented
        return (self._number, self.generation) == (other._number, other.generation)

    def __hash__(self) -> int:
        return hash((self._number, self.generation))

    def __repr__(self) -> str:
        node, session = self.node, "connected" if self.connected else "not connected"
        return for_terminal(f"<MeshPeer {node.hostname} {node.ipv4 or node.ipv6} {session}>")

    def _repr_html_(self) -> str:
        from tailscale.as_html import page

        session = {"session": "connected" if self.connected else "not connected", "mesh id": self.id}
        return page(self.name, self.node.facts() | session | {"features": ", ".join(sorted(self.features))})


class Members(Mapping[str, MeshPeer]):
    """The members right now: iterate over full names, look up by name, address, mesh id or the beginning of one."""

    def __init__(self, peers: Iterable[MeshPeer]) -> None:
        self._by_name = {peer.node.name: peer for peer in sorted(peers, key=lambda peer: peer.node.name)}

    def meant(self, who: str) -> list[MeshPeer]:
        """Those whom a person may mean, of the most exact kind that anybody fits."""
        name = clean_name(who)
        if name in self._by_name:
            return [self._by_name[name]]
        peers = self._by_name.values()
        for fits in (
            lambda peer: name in (peer.node.hostname.lower(), *peer.node.addresses),
            lambda peer: who in (peer.id, peer.node.stable_id),
            lambda peer: name == peer.name.lower(),
            lambda peer: len(who) >= SHORTEST_PREFIX and peer.id.lower().startswith(name),
        ):
            if found := [peer for peer in peers if fits(peer)]:
                return found
        return []

    def __getitem__(self, who: str) -> MeshPeer:
        found = self.meant(who) if who else []
        if len(found) > 1:
            raise NoSuchPeer(f"{who!r} may be {' or '.join(peer.node.hostname for peer in found)}: say more of it")
        if not found:
            raise no_such_peer("member", who, self._close_to)
        return found[0]

    def _close_to(self, who: str) -> list[str]:
        return close_names(who, (peer.node.hostname for peer in self._by_name.values()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __repr__(self) -> str:
        return for_terminal(f"<Members {listed([peer.node.hostname for peer in self._by_name.values()]) or 'none'}>")

    def _repr_html_(self) -> str:
        from tailscale.as_html import page, table

        rows = [
            (
                peer.name,
                peer.node.ipv4 or peer.node.ipv6 or "",
                peer.node.presence,
                "connected" if peer.connected else "",
                peer.id,
            )
            for peer in self._by_name.values()
        ]
        return page(counted(len(rows), "member"), {}, table(("name", "address", "state", "session", "mesh id"), rows))
