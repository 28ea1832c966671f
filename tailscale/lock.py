"""What a device knows of its tailnet's lock, as plain values: `device.lock`.

Owns: their shapes and their words. Refuses to know: how a lock is followed (`tailscale/runtime/lock_keeper.py`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tailscale.foreign_text import for_terminal
from tailscale.nodes import Node


@dataclass(frozen=True, slots=True)
class LockKey:
    """A key that may sign for the tailnet."""

    key: str
    """`tlpub:` and 64 digits."""
    votes: int
    """Its weight where two changes of the lock compete."""
    meta: Mapping[str, str]
    """What whoever added it wrote beside it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"key": self.key, "votes": self.votes, "meta": dict(self.meta)}


@dataclass(frozen=True, slots=True)
class LockedOut:
    """A node that is no peer, because nobody whom the lock trusts has signed its node key."""

    node: Node
    node_key: str
    """What `lock sign` takes: `nodekey:` and 64 digits."""
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"node": self.node.hostname, "node_key": self.node_key, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class LockChange:
    """One change of the lock."""

    hash: str
    kind: str
    """`add-key`, `remove-key`, `update-key`, `checkpoint` or `no-op`; a number for one of the future."""
    detail: str
    signed_by: tuple[str, ...]
    data: bytes = field(repr=False)
    """The change itself, as it is stored and passed on."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"hash": self.hash, "kind": self.kind, "detail": self.detail, "signed_by": list(self.signed_by)}


@dataclass(frozen=True, slots=True)
class LockStatus:
    """The tailnet's lock, as this device knows it right now."""

    enabled: bool
    head: str
    """The newest change that is in force; "" without a lock."""
    our_key: str
    """This device's own lock key: `lock add` makes it one of `keys`."""
    our_node_signed: bool
    """Whether peers believe our node key; true as well where there is no lock."""
    problem: str
    """Why they do not."""
    keys: tuple[LockKey, ...]
    hidden_peers: tuple[LockedOut, ...]
    """Nodes of the tailnet for which nobody vouches: they cannot reach us, nor we them."""
    log: tuple[LockChange, ...] = field(repr=False)
    """What is in force, newest first."""
    state_id: int = 0
    node_key: str = ""
    """Our node key, for whoever signs it."""
    _signer: Any = field(default=None, repr=False, compare=False)
    _wait: Callable[[Callable[[], Awaitable[Any]]], Any] = field(default=lambda work: work(), repr=False, compare=False)

    def sign(self, node: Node | str, rotation_key: str = "") -> Any:
        """Vouch for a node: one of `hidden_peers`, its name or its `nodekey:`. Our key must be one of `keys`.

        `rotation_key`, the node's own `tlpub:`, lets it change its node key later without being signed again. To be
        awaited, but for the blocking face. Raises `LockError`.

        ```python
        for locked_out in device.lock.hidden_peers:
            await device.lock.sign(locked_out.node)
        ```
        """
        return self._wait(lambda: self._signer.sign(node, rotation_key))

    def add(self, *keys: str) -> Any:
        """Let these keys, each a `tlpub:`, sign from now on. Our key must be one of `keys`. Raises `LockError`."""
        return self._wait(lambda: self._signer.change(add=[self._signer.key(text) for text in keys]))

    def remove(self, *keys: str) -> Any:
        """Trust these keys no more: nodes that they signed are no peers from then on, until others sign them."""
        return self._wait(lambda: self._signer.change(remove=[self._signer.key(text).public for text in keys]))

    def disable(self, secret: bytes) -> Any:
        """Turn the lock off for the whole tailnet, with one of its disablement secrets. There is no way back."""
        return self._wait(lambda: self._signer.end(secret))

    @property
    def signer(self) -> Any:
        """What stands behind these verbs, for the daemon."""
        return self._signer

    def waiting_by(self, wait: Callable[[Callable[[], Awaitable[Any]]], Any]) -> LockStatus:
        """The same for a program of another kind, which waits in its own way."""
        return replace(self, _wait=wait)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "enabled": self.enabled,
            "head": self.head,
            "our_key": self.our_key,
            "our_node_signed": self.our_node_signed,
            "problem": self.problem,
            "keys": [key.to_dict() for key in self.keys],
            "hidden_peers": [one.to_dict() for one in self.hidden_peers],
            "log": [change.to_dict() for change in self.log],
        }

    def __str__(self) -> str:
        """A page for people, as `pytailscale lock status` prints it."""
        if not self.enabled:
            return f"This tailnet has no lock.\nThis device's lock key: {self.our_key}"
        lines = [f"This tailnet is locked, at {self.head}."]
        if self.our_node_signed:
            lines.append("This device is signed.")
        else:
            lines.append(f"This device is LOCKED OUT: {self.problem}. On a machine that the lock trusts, run")
            lines.append(f"  tailscale lock sign {self.node_key} {self.our_key}")
        lines.append(f"This device's lock key: {self.our_key}" + self._trust())
        lines.append("Trusted keys:")
        lines += [f"  {key.key}  {key.votes} vote{'s' if key.votes > 1 else ''}" for key in self.keys]
        if self.hidden_peers:
            lines.append("Locked out, and no peers of ours:")
            lines += [f"  {one.node.hostname}  {one.node_key}  ({one.reason})" for one in self.hidden_peers]
        return "\n".join(for_terminal(line) for line in lines)

    def _trust(self) -> str:
        return " (trusted)" if any(key.key == self.our_key for key in self.keys) else " (not trusted: it cannot sign)"
