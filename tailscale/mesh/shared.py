"""What all lines of one mesh have in common: whose mesh it is, what it allows, and whom to tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from tailscale.mesh.subscriptions import Router, Subscription
from ts_mesh.hello import Identity
from ts_mesh.limits import MeshLimits

if TYPE_CHECKING:
    from tailscale.device import Device
    from tailscale.event_readers import Readers
    from tailscale.mesh.file_seam import FileService
    from tailscale.nodes import Node

T = TypeVar("T")
STORE_QUEUE = 256


@dataclass(eq=False, slots=True)
class Shared:
    """What all lines of one mesh have in common."""

    device: Device
    app: str
    port: int
    identity: Callable[[], Identity]
    epoch: str
    limits: MeshLimits
    router: Router
    readers: Readers
    drops: Counter[str]
    start: Callable[..., None]
    """Run a task that lives no longer than the mesh, and ends nothing but itself."""
    files: FileService | None = None
    keeps_open: set[str] = field(default_factory=set)
    """Namespaces of stores: while there is one, members are connected to whether anything is sent or not."""

    sessions: int = 0
    """Members connected to."""
    dials: int = 0
    """That may become sessions."""
    store_epochs: dict[str, int] = field(default_factory=dict)
    """The latest that a store of this name had in this program."""

    def subscribe(self, namespace: str, type: type[T]) -> Subscription[T]:
        """For what the mesh itself reads; what is not read makes its sender wait."""
        return Subscription(self.router, namespace, type, STORE_QUEUE, "wait")

    def keep_open(self, namespace: str, *, is_kept: bool) -> None:
        """Connect to every member, from now on or no more."""
        if is_kept:
            self.keeps_open.add(namespace)
        else:
            self.keeps_open.discard(namespace)
        for line in tuple(self.router.lines):
            line.kick()

    @property
    def is_full(self) -> bool:
        """As many sessions as are allowed stand."""
        return self.sessions >= self.limits.sessions

    @property
    def features(self) -> tuple[str, ...]:
        """What our hellos say we speak."""
        return ("ack", "bin", "files", "store") if self.files is not None else ("ack", "bin", "store")

    @property
    def word(self) -> str:
        """By which the app is announced."""
        return f"mesh:{self.app}"

    def port_of(self, node: Node) -> int:
        return node.announced.get(self.word, self.port)
