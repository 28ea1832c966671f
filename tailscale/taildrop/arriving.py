"""What the inbox answers: who may send, which file, how much of it, and what became of it.

Owns the requests below `/v0/put/` and the files that arrive by them. Knows no user of the inbox: it is told what is
wanted, and tells what has arrived.
"""

from __future__ import annotations

import errno
import inspect
import json
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import trio

from tailscale.files.parts import Busy, Exists, Occupied
from tailscale.files.pieces import WrongLength, to_disk
from tailscale.files.transfers import Tally
from tailscale.taildrop.claims import Claims, Crowded
from tailscale.taildrop.names import decode_name_untrusted, key_of
from tailscale.taildrop.partial import BeyondEnd, Partial, TooLong, Whole, hash_lines, partials, sweep, waiting_files
from tailscale.taildrop.wire import (
    PATH,
    SENDING_GRANTED,
    SHARING_ENABLED,
    decode_length_untrusted,
    decode_offset_untrusted,
)
from ts_base.errors import BadPacket

if TYPE_CHECKING:
    from tailscale.device import Device
    from tailscale.files.showing import Showing
    from tailscale.nodes import Node
    from tailscale.peerapi.request import PeerRequest
    from tailscale.taildrop.claims import Claim

T = TypeVar("T")
log = logging.getLogger("tailscale.taildrop")
THREADS = 4  # that write and hash; each waits for the disk
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
JSON = "application/json"
NOT_YOURS = (
    "Taildrop goes between devices of one user, untagged; a grant of the capability "
    f"{SENDING_GRANTED} to you lets others in\n"
)


@dataclass(frozen=True)
class Offer:
    """A file that a peer wants to send: what `Inbox(accept=...)` is asked about."""

    sender: Node
    name: str
    size: int | None
    """None where the sender does not know."""


@dataclass(frozen=True)
class ReceivedFile:
    """A file that is here: whole, checked against its length, and on the disk."""

    name: str
    path: Path
    size: int
    sender: Node


Judge = Callable[[Offer], "bool | Awaitable[bool]"]


class Wishes(NamedTuple):
    """What an inbox takes."""

    folder: Path
    accept: bool | Judge
    largest: int | None
    exists: Exists
    quota: int | None


class No(Exception):
    """The answer is a refusal: its status, what it is counted as, and a sentence for the sender."""

    def __init__(self, status: int, counted: str, sentence: str) -> None:
        self.status, self.counted, self.sentence = status, counted, sentence
        super().__init__(sentence)


class Arriving:
    """The requests of one inbox."""

    def __init__(self, device: Device, wishes: Wishes, showing: Showing, tell: Callable[[ReceivedFile], None]) -> None:
        self._device, self._wishes, self._showing, self._tell = device, wishes, showing, tell
        self._claims = Claims()
        self._running: dict[Claim, tuple[trio.CancelScope, trio.Event]] = {}
        self._threads = trio.CapacityLimiter(THREADS)
        self._is_closed = False
        self.files = 0
        self.drops: Counter[str] = Counter()

    def __len__(self) -> int:
        """Files on their way."""
        return len(self._claims)

    async def close(self) -> None:
        """Break off what is arriving: what came of it is kept."""
        self._is_closed = True
        for scope, _ in list(self._running.values()):
            scope.cancel()
        for _, ended in list(self._running.values()):
            await ended.wait()

    async def sweep(self) -> None:
        """Remove what nobody came back for."""
        try:
            await self._in_thread(sweep, self._wishes.folder, time.time())
        except OSError as error:
            log.warning("unfinished files in %s cannot be looked at: %s", self._wishes.folder, error)

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await trio.to_thread.run_sync(partial(function, *arguments), limiter=self._threads)

    async def answer(self, request: PeerRequest) -> None:
        """One request of a peer."""
        try:
            await self._answer(request)
        except No as no:
            self.drops[no.counted] += 1
            await request.answer(no.status, no.sentence + "\n")

    async def _answer(self, request: PeerRequest) -> None:
        self._authorise(request)
        encoded = request.path.removeprefix(PATH)
        key = key_of(request.caller.node.stable_id)
        if not encoded and request.method == "GET":
            names = await self._in_thread(partials, self._wishes.folder, key)
            await request.answer(200, json.dumps(names or None) + "\n", JSON)
            return
        try:
            name = decode_name_untrusted(encoded)
        except BadPacket as problem:
            raise No(400, "taildrop.bad_name", f"bad filename: {problem}") from None
        if request.method == "GET":
            await self._tell_hashes(request, name, key)
        elif request.method == "PUT":
            await self._put(request, name)
        else:
            raise No(405, "taildrop.bad_method", "expected method GET or PUT")

    def _authorise(self, request: PeerRequest) -> None:
        """By what control says of the peer and of us, and by nothing in the request."""
        caller = request.caller
        own = self._device.node
        if self._is_closed or self._wishes.accept is False:
            raise No(403, "taildrop.not_allowed", "Taildrop disabled: no program takes files here")
        if SHARING_ENABLED not in own.capabilities:
            raise No(403, "taildrop.not_allowed", "Taildrop disabled: this tailnet's admin has not enabled it")
        if caller.is_unsigned or not (caller.is_same_user or SENDING_GRANTED in caller.capabilities):
            raise No(403, "taildrop.not_allowed", NOT_YOURS.strip())

    async def _tell_hashes(self, request: PeerRequest, name: str, key: str) -> None:
        claim = self._claims.find(request.caller.node.stable_id, name)
        if claim is not None and self._claims.is_silent(claim, trio.current_time()):
            await self._end(claim)
            claim = None
        await request.begin(200, [("content-type", JSON)])
        if claim is not None:  # it is being written
            await request.send(b"", more=False)
            return
        lines = hash_lines(self._wishes.folder, name, key)
        try:
            while some := await self._in_thread(next, lines, b""):
                await request.send(some)
        finally:
            with trio.CancelScope(shield=True):
                await self._in_thread(lines.close)
        await request.send(b"", more=False)

    async def _end(self, claim: Claim) -> None:
        """An attempt whose sender begins anew."""
        scope, ended = self._running[claim]
        scope.cancel()
        await ended.wait()

    # A file that comes

    async def _put(self, request: PeerRequest, name: str) -> None:
        try:
            offset = decode_offset_untrusted(request.header("range"))
            length = decode_length_untrusted(request.header("content-length"))
        except BadPacket as problem:
            raise No(400, "taildrop.bad_range", f"invalid request: {problem}") from None
        if request.header("content-range"):  # RFC 9110, 14.5: what is not meant as a part must not be taken for one
            raise No(400, "taildrop.bad_range", "invalid request: it is Range that says where a part begins")
        size = None if length is None else offset + length
        sender = request.caller.node
        claim = self._claim(sender.stable_id, name)
        claim.left = length or 0
        scope, ended = self._running[claim] = trio.CancelScope(), trio.Event()
        try:
            with scope:
                await self._judge(Offer(sender, name, size))
                whole = await self._take(request, claim, offset, length)
            if scope.cancelled_caught:
                raise No(503, "taildrop.broken_off", "broken off here: send it again, and it goes on from there")
        finally:
            self._claims.give_back(claim)
            del self._running[claim]
            ended.set()
        self.files += 1
        if whole.is_new:
            self._tell(ReceivedFile(whole.name, self._wishes.folder / whole.name, whole.size, sender))
        await request.answer(200, "{}\n", JSON)

    def _claim(self, sender: str, name: str) -> Claim:
        try:
            return self._claims.take(sender, name, trio.current_time())
        except Crowded as problem:
            if problem.is_name:
                raise No(409, "taildrop.in_flight", "the same file is arriving already") from None
            raise No(503, "taildrop.too_many", "too many files are arriving: try again later") from None

    async def _judge(self, offer: Offer) -> None:
        """A program that fails to decide has not agreed."""
        accept, largest = self._wishes.accept, self._wishes.largest
        if largest is not None and offer.size is not None and offer.size > largest:
            raise No(413, "taildrop.too_large", f"too large: this device takes files of at most {largest} bytes")
        verdict: object = accept
        if callable(accept):
            try:
                verdict = accept(offer)
                verdict = await verdict if inspect.isawaitable(verdict) else verdict
            except Exception:
                log.exception("Inbox(accept=...) failed, so %s's file is declined", offer.sender.hostname)
                verdict = False
        if not verdict:
            raise No(403, "taildrop.declined", "declined: this device does not want that file")

    async def _room(self, claim: Claim) -> int | None:
        """Bytes that the file may grow by: None for what the disk has. Refuses what there is no room for."""
        wishes = self._wishes
        needed = self._claims.expected()
        free = await self._in_thread(sweep, wishes.folder, time.time(), needed)
        if needed > free:
            raise No(507, "taildrop.no_space", "the disk is full: free some space there")
        if wishes.quota is None:
            return None
        waiting = sum(size for _, size in await self._in_thread(waiting_files, wishes.folder))
        left = wishes.quota - waiting - (needed - claim.left)
        if claim.left > left or left <= 0:
            raise No(507, "taildrop.no_space", "files wait there to be fetched, and no more may")
        return left

    async def _take(self, request: PeerRequest, claim: Claim, offset: int, length: int | None) -> Whole:
        try:
            left = await self._room(claim)
            most = min((each for each in (self._wishes.largest, left and offset + left) if each), default=None)
            make = partial(Partial, self._wishes.folder, claim.name, key_of(claim.sender), most=most)
            part = await self._in_thread(make)
            try:
                await self._in_thread(part.begin, offset)
                await self._receive(request, claim, part, length)
                return await self._in_thread(part.finish, self._wishes.exists)
            finally:
                with trio.CancelScope(shield=True):
                    await self._in_thread(part.close)
        except (Busy, Occupied):
            raise No(409, "taildrop.exists", "file exists: there is one of that name already") from None
        except BeyondEnd:
            raise No(416, "taildrop.bad_range", "invalid request: there is less of this file here than that") from None
        except TooLong:
            raise No(413, "taildrop.too_large", "too large: more came than this device takes") from None
        except (WrongLength, trio.BrokenResourceError):
            self.drops["taildrop.broken_off"] += 1
            raise trio.BrokenResourceError("the peer hung up in the middle of a file") from None
        except OSError as error:
            if error.errno in FULL:
                raise No(507, "taildrop.no_space", "the disk is full: free some space there") from None
            log.warning("a file from %s cannot be written: %s", request.caller.node.hostname, error)
            raise No(500, "taildrop.disk", "the disk failed") from None

    async def _receive(self, request: PeerRequest, claim: Claim, part: Partial, length: int | None) -> None:
        tally = Tally(name=claim.name)
        tally.begin(part.size + (length or 0))
        tally.add_there(claim.name, part.size)

        async def read() -> bytes:
            data = await request.receive_some()
            claim.move(len(data), trio.current_time())
            tally.add_sent(claim.name, len(data))
            if length is None:
                tally.grow(len(data))
            return data

        with self._showing.show(request.caller.node.hostname, tally, is_outgoing=False):
            await to_disk(read, part.write, length, self._threads)
