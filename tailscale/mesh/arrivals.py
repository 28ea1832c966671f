"""Files that peers push: which offers an inbox takes, and the PUTs that bring what is missing.

Owns no sockets and no tickets. https://www.rfc-editor.org/rfc/rfc9110#section-14.5
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import trio

from tailscale.files.parts import Busy, Occupied
from tailscale.files.pieces import WrongLength
from tailscale.http1.asgi import ClientDisconnected
from tailscale.mesh.batch import SmallFile, Stored
from tailscale.mesh.files_client import decode_root
from tailscale.mesh.landing import WHOLE, Landing, read_whole, why
from tailscale.mesh.serving import Answered, Request
from tailscale.mesh.sink import Missing, Unequal
from tailscale.mesh.transfers import Inbox, Offer
from ts_base.errors import BadPacket
from ts_mesh.blocks import BLOCK, Hashes
from ts_mesh.offers import Entry
from ts_mesh.ranges import decode_content_range_untrusted

if TYPE_CHECKING:
    from tailscale.mesh.hash_cache import HashCache
    from tailscale.mesh.peers import MeshPeer

log = logging.getLogger("tailscale.mesh")
MANY_BYTES = 4 << 20  # of one PUT that brings several files
SPARE = 16 << 20  # bytes of a disk that no transfer may take
STATUS = {
    "range": 400,
    "length": 400,
    "not-allowed": 403,
    "exists": 409,
    "busy": 409,
    "root": 409,
    "blocks": 409,
    "disk": 500,
    "no-space": 507,
}
DISK = (Busy, Occupied, Unequal, Missing, WrongLength, OSError)


class Refused(Exception):
    """An offer is not taken; `reason` is a word of the protocol."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Part(NamedTuple):
    """A run of bytes of one file, as a PUT brings it."""

    start: int
    end: int
    is_whole: bool
    """It came without Content-Range: its own end says that the file is complete. A part is completed by a root."""


class _Running:
    """A PUT under way."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.ended = trio.Event()


class Arrivals:
    """What an inbox does with what comes."""

    def __init__(self, inbox: Inbox | None, cache: HashCache, threads: trio.CapacityLimiter) -> None:
        self._inbox = inbox
        self._landing = Landing(inbox.folder, inbox.exists, cache, threads) if inbox is not None else None
        self._threads = threads
        self._running: dict[tuple[str, str], _Running] = {}

    async def judge(self, sender: MeshPeer, entries: Sequence[Entry]) -> dict[int, Hashes]:
        """What is there already of an offer that is taken. Raises Refused."""
        if self._inbox is None or self._landing is None:
            raise Refused("not-allowed")
        total = sum(entry.size for entry in entries)
        if self._inbox.largest is not None and total > self._inbox.largest:
            raise Refused("too-large")
        if not await self._is_wanted(Offer(sender, tuple(e.path for e in entries if not e.dir), total)):
            raise Refused("declined")
        owner = sender.node.stable_id
        for entry in entries if self._running else ():
            await self._end(owner, entry.path)
        return await trio.to_thread.run_sync(self._look, self._landing, owner, entries, limiter=self._threads)

    async def _end(self, owner: str, path: str) -> None:
        """A PUT of the same file that still runs: its sender was killed or lost the way, for it begins anew."""
        running = self._running.get((owner, path))
        if running is not None:
            running.scope.cancel()
            await running.ended.wait()

    async def _is_wanted(self, offer: Offer) -> bool:
        """A program that fails to decide has not agreed."""
        accept = self._inbox.accept if self._inbox is not None else False
        if not callable(accept):
            return accept
        try:
            verdict = accept(offer)
            return bool(await verdict if inspect.isawaitable(verdict) else verdict)
        except Exception:
            log.exception("Inbox(accept=...) failed, so the files of %s are declined", offer.sender.name)
            return False

    def _look(self, landing: Landing, sender: str, entries: Sequence[Entry]) -> dict[int, Hashes]:
        have: dict[int, Hashes] = {}
        missing = 0
        try:
            free = landing.prepare()
            for number, entry in enumerate(entries):
                if entry.dir:
                    continue
                hashes = landing.present(sender, entry)
                if hashes:
                    have[number] = hashes
                missing += max(0, entry.size - BLOCK * sum(each is not None for each in hashes))
        except (Occupied, OSError) as problem:
            if isinstance(problem, OSError):
                log.warning("cannot take files into %s: %s", landing.top, problem)
            reason = why(problem)
            raise Refused(reason if reason != "disk" else "not-allowed") from problem
        if missing > max(0, free - SPARE):
            raise Refused("no-space")
        return have

    # One PUT

    async def put(self, request: Request, owner: str, entry: Entry, *, is_inside: bool) -> Answered:
        """Take what one PUT of `owner` brings. The answer may come before all of it was read.

        `is_inside`: the folder that the file is in was offered as well, and gets a PUT of its own at the end.
        """
        landing = self._landing
        assert landing is not None, "without an inbox nobody has a ticket to push"
        await self._end(owner, entry.path)
        running = self._running[owner, entry.path] = _Running()
        try:
            with running.scope:
                return await self._put(landing, request, owner, entry, is_inside)
        finally:
            del self._running[owner, entry.path]
            running.ended.set()
        raise ClientDisconnected("the same file is sent anew")

    async def _put(self, landing: Landing, request: Request, owner: str, entry: Entry, is_inside: bool) -> Answered:
        try:
            part = _part(request, entry)
            if entry.dir:
                await read_whole(request.read, 0)
                await trio.to_thread.run_sync(landing.make_folder, entry, limiter=self._threads)
                return Answered(200)
            if part.is_whole and entry.size <= WHOLE:
                data = b"".join(await read_whole(request.read, entry.size))
                small = SmallFile(entry, data, request.root(), is_inside)
                return _stored(await trio.to_thread.run_sync(landing.store, small, limiter=self._threads))
            if part.start == part.end:  # nothing is missing but the name
                await read_whole(request.read, 0)
                return _stored(
                    await trio.to_thread.run_sync(landing.complete, owner, entry, request.root(), limiter=self._threads)
                )
            return await self._put_part(landing, request, owner, entry, part)
        except BadPacket as problem:
            return Answered(STATUS["range"], why="range", text=str(problem))
        except ClientDisconnected:
            raise  # an OSError as well, but not the disk's
        except DISK as problem:
            return _answer_to(problem, entry)

    async def put_many(
        self, request: Request, owner: str, entries: Sequence[Entry], inside: Sequence[bool]
    ) -> Answered:
        """Several small files, one behind the other; their roots are in `Mesh-Roots`, in the same order."""
        landing = self._landing
        assert landing is not None, "without an inbox nobody has a ticket to push"
        roots = [decode_root(text) for text in (request.header(b"mesh-roots") or "").split(",")]
        total = sum(entry.size for entry in entries)
        if len(roots) != len(entries) or None in roots or total > MANY_BYTES or any(entry.dir for entry in entries):
            return Answered(STATUS["range"], why="range", text="each of several files has a root, and none is large")
        for entry in entries if self._running else ():
            await self._end(owner, entry.path)
        try:
            data = memoryview(b"".join(await read_whole(request.read, total)))
        except WrongLength:
            return Answered(STATUS["length"], why="length")
        files, at = [], 0
        for entry, root, is_inside in zip(entries, roots, inside, strict=True):
            files.append(SmallFile(entry, data[at : at + entry.size], root, is_inside))
            at += entry.size
        stored = await landing.store_many(files)
        return Answered(200, files=[_became(each, entry) for each, entry in zip(stored, entries, strict=True)])

    async def _put_part(self, landing: Landing, request: Request, owner: str, entry: Entry, part: Part) -> Answered:
        sink = await trio.to_thread.run_sync(landing.open, owner, entry, limiter=self._threads)
        try:
            await landing.pump(request.read, sink, part.start, part.end)
            root = request.root()
            if root is None and not part.is_whole:
                return Answered(202)  # the part is kept; the one that completes the file brings the root
            return _stored(await trio.to_thread.run_sync(landing.finish, sink, entry, root, limiter=self._threads))
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(sink.close, limiter=self._threads)


def _answer_to(problem: Exception, entry: Entry) -> Answered:
    """What the sender hears of what went wrong with a file here."""
    reason = why(problem)
    if reason == "disk":
        log.warning("cannot keep %s: %s", entry.path, problem)
    return Answered(STATUS[reason], why=reason, blocks=problem.blocks if isinstance(problem, Missing) else ())


def _became(stored: Stored | Exception, entry: Entry) -> Answered:
    return _answer_to(stored, entry) if isinstance(stored, Exception) else _stored(stored)


def _stored(stored: Stored) -> Answered:
    return Answered(200, root=stored.root, name=stored.name)


def _part(request: Request, entry: Entry) -> Part:
    """Where the bytes of a PUT belong. Raises BadPacket."""
    said = request.header(b"content-range")
    if said is None:
        return Part(0, entry.size, is_whole=True)
    start, end = decode_content_range_untrusted(said, entry.size)
    if (start % BLOCK and start != entry.size) or (end % BLOCK and end != entry.size):
        raise BadPacket(f"a part begins and ends where a block of {BLOCK} bytes does, or at the end of the file")
    return Part(start, end, is_whole=False)
