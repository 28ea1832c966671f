"""State shared between devices: each writes its own slice, and reads everybody's.

Owns one store's slices and who has been told what. A slice belongs to whoever the tailnet says sent it. What is set
often is told at most twenty times a second to each peer, the last value always; a slow peer costs the others nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, TypeVar

import msgspec
import trio

from tailscale.errors import TailscaleError
from tailscale.events import Lagged
from tailscale.mesh.errors import MessageTooLarge, WrongShape
from tailscale.mesh.events import PeerConnected, PeerDisconnected, PeerLeft
from tailscale.mesh.subscriptions import Message, Subscription
from ts_mesh.slices import CLEAR, FULL, PREFIX, REQUEST, UPDATE, Own, SliceMessage, Slices

if TYPE_CHECKING:
    from tailscale.events import EventStream
    from tailscale.mesh.peers import MeshPeer
    from tailscale.mesh.roster import Roster
    from tailscale.mesh.saved import Saved
    from tailscale.mesh.shared import Shared

T = TypeVar("T")
PAUSE = 0.05  # between two updates to one peer
TELL_PATIENCE = 30.0
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Slice(Generic[T]):
    """One device's value in a store."""

    value: T
    version: int
    at: datetime
    """When it was set, by its owner's clock."""
    stale: bool
    """Its owner is offline: this is what it said last."""


class Change(NamedTuple):
    """A peer's slice is another now; None: it has none any more."""

    peer: MeshPeer
    slice: Slice[Any] | None


class Store(Generic[T]):
    """A value of each device of the mesh, under one name: `async with`, then `mine`, `of(peer)`, `items()`.

    ```python no-run: inside a mesh
    async with notes.store("presence") as presence:
        presence.mine = {"status": "writing"}
        for peer, slice in presence.items():
            print(peer.name, slice.value, slice.stale)
        async for change in presence.changes():
            print(change.peer.name, change.slice)
    ```
    """

    def __init__(self, shared: Shared, roster: Roster, saved: Saved, name: str, type: type[T]) -> None:
        self.name = name
        self._shared = shared
        self._roster = roster
        self._saved = saved
        self._type = type
        self._slices = Slices(shared.limits.slice)
        self._values: dict[str, tuple[MeshPeer, T]] = {}
        self._own: Own | None = None
        self._value: T | None = None
        self._epoch = 0
        self._kept_version = 0  # of our slice: what others may be told of
        self._is_dirty = trio.Event()
        self._tellers: dict[MeshPeer, _Teller] = {}
        self._readers: set[Changes] = set()
        self._scope: trio.CancelScope | None = None
        self._ended = trio.Event()

    # Lifetime

    async def __aenter__(self) -> Self:
        if self._scope is not None:
            raise RuntimeError("a Store can be entered once: make a new one")
        own = await self._saved.load_slice(self.name)
        self._begin_epoch(own.epoch if own is not None else int(time.time() * 1000))
        if own is not None:
            self._own, self._kept_version = own, own.version
            try:
                self._value = msgspec.json.decode(own.data, type=self._type)
            except msgspec.MsgspecError as problem:
                raise WrongShape(
                    "", f"what store {self.name!r} kept is no {self._type!r} any more: {problem}"
                ) from None
        self._scope = trio.CancelScope()
        self._shared.keep_open(PREFIX + self.name, is_kept=True)
        self._shared.start(self._run)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._scope is not None
        self._scope.cancel()
        self._shared.keep_open(PREFIX + self.name, is_kept=False)
        for reader in tuple(self._readers):
            reader.close()
        with trio.CancelScope(shield=True):
            await self._ended.wait()

    async def _run(self) -> None:
        assert self._scope is not None
        inbox = self._shared.subscribe(PREFIX + self.name, SliceMessage)
        events = self._shared.readers.open_stream()
        try:
            with self._scope:
                async with inbox, trio.open_nursery() as nursery:
                    nursery.start_soon(self._listen, inbox)
                    nursery.start_soon(self._keep)
                    nursery.start_soon(self._follow, events, nursery)
                    for peer in self._roster.members.values():
                        if peer.connected:
                            self._meet(peer, nursery)
        finally:
            await self._keep_last()
            self._ended.set()

    def _begin_epoch(self, epoch: int) -> None:
        """What is set from now on is newer than what was: also than what this program had set before a clock stepped
        back.
        """
        before = self._shared.store_epochs.get(self.name, -1)
        self._epoch = self._shared.store_epochs[self.name] = max(epoch, before)

    # Ours

    @property
    def mine(self) -> T:
        """Our own value; before it is first set, an empty one of its type."""
        return self._value if self._value is not None else self._type()

    @mine.setter
    def mine(self, value: T) -> None:
        self.set(value)

    def set(self, value: T) -> None:
        """Replace our value: kept first where there is `state=`, then told to everybody."""
        try:
            data = msgspec.Raw(_encode(value))
        except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as problem:
            raise WrongShape("", f"this cannot be kept as JSON: {problem}") from None
        if len(bytes(data)) > self._shared.limits.slice:
            raise MessageTooLarge(f"a slice has at most {self._shared.limits.slice} bytes (MeshLimits.slice)")
        version = self._own.version + 1 if self._own is not None else 1
        self._own = Own(self._epoch, version, int(time.time() * 1000), data)
        self._value = value
        self._is_dirty.set()

    async def clear(self) -> None:
        """Take our value back, everywhere."""
        self._own = self._value = None
        self._begin_epoch(max(self._epoch + 1, int(time.time() * 1000)))
        await self._saved.forget_slice(self.name)
        for teller in self._tellers.values():
            teller.tell(CLEAR)

    async def _keep(self) -> None:
        """Write what was set, then let it be told."""
        while True:
            await self._is_dirty.wait()
            self._is_dirty = trio.Event()
            await self._keep_last()
            for teller in self._tellers.values():
                teller.tell(UPDATE)
            await trio.sleep(PAUSE)

    async def _keep_last(self) -> None:
        own = self._own
        if own is not None and (own.version != self._kept_version):
            with trio.CancelScope(shield=True):
                await self._saved.save_slice(self.name, own)
            self._kept_version = own.version

    def message(self, kind: str) -> SliceMessage | None:
        """What a peer is told; None: there is nothing to tell."""
        own, device_id = self._own, self._shared.identity().device_id
        if kind == REQUEST:
            return SliceMessage(kind)
        if kind == CLEAR:
            return SliceMessage(kind, device_id)
        if own is None:
            return None
        return SliceMessage(kind, device_id, own.data, own.version, own.updated_at, own.epoch)

    # Theirs

    def of(self, peer: MeshPeer) -> Slice[T] | None:
        """A peer's slice, if it has told one."""
        number = peer.node.stable_id
        kept, known = self._slices.get(number), self._values.get(number)
        if kept is None or known is None or known[0] != peer:
            return None
        at = datetime.fromtimestamp(min(kept.updated_at / 1000, LATEST), UTC)
        return Slice(known[1], kept.version, at, not peer.online)

    def items(self) -> Iterator[tuple[MeshPeer, Slice[T]]]:
        """Every peer that has told one, with its slice."""
        for peer, _ in tuple(self._values.values()):
            found = self.of(peer)
            if found is not None:
                yield peer, found

    def changes(self) -> Changes:
        """What changes from now on: `async for change in store.changes()`. Of a peer that changes faster than it is
        read, the latest is told. Ends when the store is left.
        """
        return Changes(self.of, self._readers)

    async def _listen(self, inbox: Subscription[SliceMessage]) -> None:
        async for message in inbox:
            if not isinstance(message, Lagged):
                self._hear(message)

    def _hear(self, message: Message[SliceMessage]) -> None:
        peer = message.sender
        if message.kind == REQUEST:
            if (teller := self._tellers.get(peer)) is not None:
                teller.tell(FULL)
            return
        process = self._roster.process_of(peer)
        verdict = self._slices.receive(peer.node.stable_id, peer.id, message.kind, message.data, process)
        self._shared.drops.update(self._slices.drops)
        self._slices.drops.clear()
        if not verdict.is_changed:
            return
        if verdict.kept is not None:
            try:
                value = msgspec.json.decode(verdict.kept.data, type=self._type)
            except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError):
                self._shared.drops["mesh.wrong_shape"] += 1
                return
            self._values[peer.node.stable_id] = peer, value
        else:
            self._values.pop(peer.node.stable_id, None)
        self._tell_readers(peer)

    async def _follow(self, events: EventStream, nursery: trio.Nursery) -> None:
        """Full state both ways whenever a session begins; whoever leaves takes its slice along."""
        async for event in events:
            match event:
                case PeerConnected(peer=peer):
                    self._meet(peer, nursery)
                case PeerDisconnected(peer=peer):
                    if (teller := self._tellers.pop(peer, None)) is not None:
                        teller.scope.cancel()
                    self._tell_readers(peer)
                case PeerLeft(peer=peer):
                    self._forget(peer)
                case Lagged():
                    for peer in self._roster.members.values():
                        if peer.connected:
                            self._meet(peer, nursery)

    def _forget(self, peer: MeshPeer) -> None:
        """What it told goes with it, but nothing of who came to the same node after it."""
        number = peer.node.stable_id
        if number in self._values and self._values[number][0] == peer:
            del self._values[number]
            self._slices.forget(number)
            self._tell_readers(peer)

    def _meet(self, peer: MeshPeer, nursery: trio.Nursery) -> None:
        if peer not in self._tellers:
            teller = self._tellers[peer] = _Teller(self, peer)
            nursery.start_soon(teller.run)
            teller.tell(REQUEST)
            teller.tell(FULL)

    def _tell_readers(self, peer: MeshPeer) -> None:
        for reader in tuple(self._readers):
            reader.put(peer)


class _Teller:
    """Tells one peer, in its own time. Kinds that wait are each told once, with what is true by then."""

    def __init__(self, store: Store[Any], peer: MeshPeer) -> None:
        self._store = store
        self._peer = peer
        self._due: dict[str, None] = {}
        self._lot = trio.lowlevel.ParkingLot()
        self.scope = trio.CancelScope()

    def tell(self, kind: str) -> None:
        if kind == CLEAR:
            self._due.clear()
        self._due[kind] = None
        self._lot.unpark_all()

    async def run(self) -> None:
        with self.scope:
            while True:
                while not self._due:
                    await self._lot.park()
                kind = next(iter(self._due))
                del self._due[kind]
                message = self._store.message(kind)
                if message is not None:
                    await self._send(kind, message)

    async def _send(self, kind: str, message: SliceMessage) -> None:
        try:
            await self._peer.send(PREFIX + self._store.name, message, kind=kind, timeout=TELL_PATIENCE)
        except (TailscaleError, OSError):
            return  # it has not opened this store, or is gone: it asks when it wants to know
        if kind == UPDATE:
            await trio.sleep(PAUSE)


class Changes:
    """What changes in a store, for one reader; bounded by the number of peers."""

    def __init__(self, slice_of: Callable[[MeshPeer], Slice[Any] | None], readers: set[Changes]) -> None:
        self._slice_of = slice_of
        self._readers = readers
        self._due: dict[MeshPeer, None] = {}
        self._lot = trio.lowlevel.ParkingLot()
        self._is_closed = False
        readers.add(self)

    def put(self, peer: MeshPeer) -> None:
        self._due[peer] = None
        self._lot.unpark_all()

    def close(self) -> None:
        """End the iteration once what has changed is read."""
        self._is_closed = True
        self._readers.discard(self)
        self._lot.unpark_all()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        await trio.lowlevel.checkpoint()
        while not self._due:
            if self._is_closed:
                raise StopAsyncIteration
            await self._lot.park()
        peer = next(iter(self._due))
        del self._due[peer]
        return Change(peer, self._slice_of(peer))


LATEST = datetime.max.replace(tzinfo=UTC).timestamp() - 86_400
