"""Files on their way to another device: what is there already, the rest, and the answer.

Owns the requests of one transfer, and what their answers mean to whoever sends. A connection that breaks is made again
a few times; each time the other side is asked what it has.
"""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import trio

from tailscale.errors import ConnectionReset, ConnectionTimedOut
from tailscale.files.errors import TransferFailed, TransferRefused
from tailscale.files.folders import HAS_OPENAT
from tailscale.files.replies import STALL, Replies, encode_request
from tailscale.files.replies import send as send_on
from tailscale.files.showing import OUT, Showing
from tailscale.files.transfers import Tally, Transfer
from tailscale.foreign_text import for_terminal
from tailscale.taildrop.names import encode_name, objection_to_name
from tailscale.taildrop.outgoing import Changed, FileOut, Outgoing, StreamOut
from tailscale.taildrop.recipients import Target, target_named
from tailscale.taildrop.wire import PATH, Blocks
from ts_base.errors import BadPacket

if TYPE_CHECKING:
    from tailscale.device import Device
    from tailscale.nodes import Node
    from tailscale.sockets.tcp import TcpStream

AGAIN = (0.5, 2.0, 5.0)  # seconds before a connection that broke is made again
HASHES_PATIENCE = 60.0  # for all that the other side has of a file
ANSWER_LIMIT = 64 << 10
TOLD = 300  # characters of what the other side says, in an error
DIAL_TIMEOUT = 30.0
BROKEN = (ConnectionReset, ConnectionTimedOut, trio.BrokenResourceError, trio.ClosedResourceError)
READERS = 2  # threads that read one transfer's files
HOST = "peer"
REFUSALS = {403: "not-allowed", 404: "nobody-takes-files"}
Body = AsyncIterator[bytes]


class Answered(Exception):
    """The other side took no file: its status, and its words."""

    def __init__(self, status: int, text: str) -> None:
        self.status, self.text = status, text
        super().__init__(f"{status} {text}")


class SendingStatistics(NamedTuple):
    """`open`: transfers under way."""

    open: dict[str, int]
    bytes: dict[str, int]


class _Sent:
    """What one device has sent; counted as long as it lives."""

    def __init__(self, device: Device) -> None:
        self.showing = Showing(device.show_transfer)

    def statistics(self) -> SendingStatistics:
        return SendingStatistics({OUT: self.showing.open[OUT]}, {OUT: self.showing.bytes[OUT]})

    async def count(self, device: Device) -> None:
        with device.include("taildrop", self):
            await trio.sleep_forever()


_SENT: WeakKeyDictionary[Device, _Sent] = WeakKeyDictionary()


def send(
    device: Device,
    to: str | Node,
    *files: str | os.PathLike[str] | Body,
    name: str | None = None,
    size: int | None = None,
    resume: bool = True,
) -> Transfer:
    """Send files to another device by Taildrop, to be awaited or watched.

    ```python
    async with taildrop.send(device, "phone", "a.jpg", "b.pdf") as transfer:
        async for progress in transfer:
            print(f"{progress.fraction:.0%} at {progress.name}")
    ```

    `name` is what a single file is called there. Instead of a path, one that yields bytes may be sent under a `name`;
    `size` says how many, where that is known. What an earlier attempt brought there is not sent again, unless
    `resume=False`. Raises `TransferRefused` where the device takes no files from us, `TransferFailed` with a reason
    for each file that did not arrive, and what a dial raises.
    """
    if not files:
        raise ValueError("send takes at least one file")
    if name is not None and len(files) > 1:
        raise ValueError("name= is for a single file")
    for file in files:
        if not isinstance(file, str | os.PathLike) and name is None:
            raise ValueError("what has no path needs a name=")
    who = to if isinstance(to, str) else to.hostname
    what = "a file" if len(files) == 1 else f"{len(files)} files"
    made = Sending(device, to, files, name, size, resume=resume)
    return Transfer(f"sending {what} to {who}", made.run, device.spawn)


class Sending:
    """One transfer."""

    def __init__(
        self,
        device: Device,
        to: str | Node,
        files: Sequence[str | os.PathLike[str] | Body],
        name: str | None,
        size: int | None,
        *,
        resume: bool,
    ) -> None:
        self._device, self._to, self._resume = device, to, resume
        self._name, self._size = name, size
        self._files = files
        self._threads = trio.CapacityLimiter(READERS)
        self._counted = 0  # bytes of the present file that the tally has

    async def run(self, tally: Tally) -> None:
        if not HAS_OPENAT:
            raise TransferFailed("this system cannot read a file at any place of it: Taildrop is not for Windows yet")
        target = target_named(self._device, self._to)
        sent = _SENT.get(self._device)
        if sent is None:
            sent = _SENT[self._device] = _Sent(self._device)
            self._device.spawn(sent.count, self._device)
        tally.begin(await trio.to_thread.run_sync(self._total, limiter=self._threads))
        with sent.showing.show(target.node.hostname, tally, is_outgoing=True):
            for file in self._files:
                await self._send(target, file, tally)

    def _total(self) -> int:
        total = self._size or 0
        for file in self._files:
            if isinstance(file, str | os.PathLike):
                try:
                    total += os.stat(file).st_size
                except OSError:
                    continue  # told when its turn comes
        return total

    async def _send(self, target: Target, file: str | os.PathLike[str] | Body, tally: Tally) -> None:
        name = self._name or _own_name(file)
        if objection := objection_to_name(name):
            tally.fail(name, f"its name {objection}; name= sends it under another")
            return
        self._counted = 0
        try:
            if isinstance(file, str | os.PathLike):
                make = partial(FileOut, Path(file), name, self._threads)
                out: Outgoing = await trio.to_thread.run_sync(make, limiter=self._threads)
            else:
                out = StreamOut(file, name, self._size)
            try:
                await self._again_and_again(target, out, tally)
            finally:
                await out.close()
        except Changed as problem:
            tally.fail(name, str(problem))
        except Answered as answered:
            tally.fail(name, _why(answered, target))
        else:
            tally.files += 1

    async def _again_and_again(self, target: Target, out: Outgoing, tally: Tally) -> None:
        pauses = iter(AGAIN if out.can_begin_again else ())
        has_broken = False
        while True:
            try:
                await self._attempt(target, out, tally)
                return
            except Answered as answered:
                if answered.status in REFUSALS:
                    raise TransferRefused(REFUSALS[answered.status], _why(answered, target)) from None
                # Our own broken attempt may still be open over there; and a crowd goes by.
                pause = next(pauses, None)
                if pause is None or not (answered.status == 503 or (answered.status == 409 and has_broken)):
                    raise
            except BROKEN:
                has_broken = True
                if (pause := next(pauses, None)) is None:
                    raise
            await trio.sleep(pause)

    async def _dial(self, target: Target) -> TcpStream:
        return await self._device.tcp_connect(target.address, target.port, timeout=DIAL_TIMEOUT)

    async def _attempt(self, target: Target, out: Outgoing, tally: Tally) -> None:
        offset, stream = 0, await self._dial(target)
        try:
            replies = Replies(stream)
            await out.rewind()
            if self._resume and out.size != 0:
                offset, is_usable = await self._find_offset(stream, replies, out)
                if not is_usable:
                    stream.abort()
                    stream = await self._dial(target)
                    replies = Replies(stream)
            self._account(out.name, offset, tally)
            await self._put(stream, replies, out, offset, tally)
        finally:
            with trio.move_on_after(1.0, shield=True):
                await stream.aclose()

    def _account(self, name: str, offset: int, tally: Tally) -> None:
        """What is there now is what was found there, whatever was sent before."""
        if offset >= self._counted:
            tally.add_there(name, offset - self._counted)
        else:
            tally.add_lost(self._counted - offset)
        self._counted = offset

    async def _find_offset(self, stream: TcpStream, replies: Replies, out: Outgoing) -> tuple[int, bool]:
        """How much of the file is there, and whether the connection can be used again."""
        offset, blocks = 0, Blocks()
        await send_on(stream, encode_request("GET", PATH + encode_name(out.name), HOST, []))
        with trio.move_on_after(HASHES_PATIENCE):
            reply = await replies.next("GET")
            if reply.status == 403:
                raise Answered(403, (await replies.read_all(ANSWER_LIMIT)).decode("utf-8", "replace"))
            if reply.status != 200:  # an old one, or it does not want to say
                return 0, False
            try:
                while data := await replies.read():
                    told = list(blocks.receive_untrusted(data))
                    matched = await out.match(told)
                    offset += matched
                    if matched < sum(block.size for block in told):
                        return offset, False
            except BadPacket:
                return offset, False
            return offset, not reply.is_last
        return offset, False

    async def _put(self, stream: TcpStream, replies: Replies, out: Outgoing, offset: int, tally: Tally) -> None:
        headers = [("Content-Type", "application/octet-stream")]
        is_chunked = out.size is None
        if out.size is None:
            headers.append(("Transfer-Encoding", "chunked"))
        else:
            headers.append(("Content-Length", str(out.size - offset)))
        if offset:
            headers.append(("Range", f"bytes={offset}-"))

        async def write(data: bytes) -> None:
            if is_chunked:  # RFC 9112, 7.1
                await send_on(stream, b"%x\r\n" % len(data))
                if self._size is None:
                    tally.grow(len(data))
            await send_on(stream, data)
            if is_chunked:
                await send_on(stream, b"\r\n")
            self._counted += len(data)
            tally.add_sent(out.name, len(data))

        async def write_all() -> None:
            await send_on(stream, encode_request("PUT", PATH + encode_name(out.name), HOST, headers))
            await out.send_rest(write)
            if is_chunked:
                await send_on(stream, b"0\r\n\r\n")

        status, text = await _exchange(write_all, replies)
        if status != 200:
            raise Answered(status, text)


def _own_name(file: str | os.PathLike[str] | Body) -> str:
    return Path(os.path.abspath(file)).name if isinstance(file, str | os.PathLike) else ""


async def _exchange(write_all: Callable[[], Awaitable[None]], replies: Replies) -> tuple[int, str]:
    """Send a request and hear its answer, which may come before all is sent: a refusal does."""
    answer: list[tuple[int, str]] = []
    problems: list[Exception] = []
    waiting_scope = trio.CancelScope()

    async def write(scope: trio.CancelScope) -> None:
        try:
            await write_all()
        except Exception as problem:  # whatever the disk or the connection says
            problems.append(problem)
            if not isinstance(problem, BROKEN):
                scope.cancel()
        waiting_scope.deadline = trio.current_time() + STALL

    async def hear(scope: trio.CancelScope) -> None:
        try:
            with waiting_scope:
                reply = await replies.next("PUT", math.inf)
                text = await replies.read_all(ANSWER_LIMIT)
                answer.append((reply.status, text.decode("utf-8", "replace").strip()))
            if waiting_scope.cancelled_caught:
                problems.append(ConnectionTimedOut(f"the peer gave no answer for {STALL:g} s after a whole file"))
        except BROKEN as problem:
            problems.append(problem)
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, nursery.cancel_scope)
        nursery.start_soon(hear, nursery.cancel_scope)
    if answer:
        return answer[0]
    raise problems[0] if problems else ConnectionReset("the peer closed the connection in the middle of a transfer")


def _why(answered: Answered, target: Target) -> str:
    told = for_terminal(answered.text[:TOLD].strip())
    match answered.status:
        case 403:
            return (
                f"{target.node.hostname} takes no files from this device: {told or 'not allowed'}. Both must be of one "
                "user and without tags, or the policy there grants https://tailscale.com/cap/file-send; and somebody "
                "must take files there"
            )
        case 404:
            return f"{target.node.hostname} takes no files: no program there does (a taildrop.Inbox, or a daemon)"
        case 400:
            return f"the other side does not take that name: {told}"
        case 409:
            return f"the other side has one of that name, or receives it right now: {told}"
        case 507:
            return f"there is no room for it on the other side: {told}"
    return f"the other side answers {answered.status}: {told}"
