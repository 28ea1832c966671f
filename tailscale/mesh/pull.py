"""One pull: what was found over there is fetched, as far as it is not here already.

A file that is here and looks the same is asked for by its root, and not sent if that is still right. One of which a
part is here is asked for by the runs that are missing. RFC 9110, sections 13 and 14.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from tailscale.errors import TailscaleError
from tailscale.files.parts import Busy, Occupied
from tailscale.files.pieces import WrongLength
from tailscale.files.replies import Replies, Reply, encode_request
from tailscale.mesh.batch import TOGETHER, SmallFile
from tailscale.mesh.carriers import CONNECTIONS, WINDOW, Connection, Dial, Spoiled, Waiting, carry
from tailscale.mesh.errors import TransferFailed
from tailscale.mesh.files_client import ERROR_LIMIT, decode_answer, root_in
from tailscale.mesh.landing import WHOLE, Landing, why
from tailscale.mesh.push import FAILURES, MANY, ROUNDS
from tailscale.mesh.sink import Missing, Sink, Unequal
from tailscale.mesh.source import CHANGED
from ts_mesh.blocks import Hashes, block_length, complete, count_blocks, root_of, runs
from ts_mesh.ranges import encode_range

if TYPE_CHECKING:
    from tailscale.files.transfers import Tally
    from ts_mesh.offers import Entry

BATCH = WINDOW // 2
ARRIVED_BYTES = 4 << 20  # of small files that wait for each other
NOT_MODIFIED = 304
DISK = (Busy, Occupied, Unequal, Missing, WrongLength, OSError)
HERE = {
    "exists": "there is something else of that name here",
    "busy": "it is being received already",
    "root": "it arrived damaged, and was thrown away",
    "no-space": "the disk here is full",
    "not-allowed": "it may not be written here",
}


@dataclass
class Job:
    """One file to be fetched."""

    number: int
    entry: Entry
    here: Hashes = ()
    is_in_place: bool = False
    """What is here has the file's name already."""
    method: str = "GET"
    root: bytes | None = None
    """Of what is here and may be the same."""
    sink: Sink | None = None
    """Where a part of a large file goes, from `start` to `end`."""
    start: int = 0
    end: int = 0
    is_last: bool = True
    # What came of it
    status: int = 0
    is_taken: bool = False
    missing: Sequence[int] = ()


class Pull:
    """Fetches entries into a folder. `owner` is whose files they are, for what is resumed."""

    def __init__(
        self,
        entries: Sequence[Entry],
        landing: Landing,
        owner: str,
        target: str,
        host: str,
        threads: trio.CapacityLimiter,
        tally: Tally,
        *,
        resume: bool,
    ) -> None:
        self._entries = entries
        self._landing = landing
        self._owner = owner
        self._target = target
        self._host = host
        self._threads = threads
        self._tally = tally
        self._resume = resume
        self._jobs: deque[Job] = deque()
        self._arrived: list[SmallFile] = []  # small files that are not on the disk yet
        self._arrived_bytes = 0

    async def run(self, dial: Dial) -> None:
        self._jobs.extend(await trio.to_thread.run_sync(self._plan, limiter=self._threads))
        small = sum(job.entry.size <= WHOLE for job in self._jobs)
        try:
            await carry(self._jobs, dial, lambda: self, CONNECTIONS if small >= MANY else 1)
        finally:
            with trio.CancelScope(shield=True):  # what has arrived is kept
                await self._store_arrived()
        await trio.to_thread.run_sync(self._finish_folders, limiter=self._threads)

    def _plan(self) -> list[Job]:
        """In a thread: what is here already."""
        jobs = []
        for number, entry in enumerate(self._entries):
            if entry.dir:
                continue
            try:
                here = self._landing.present(self._owner, entry) if self._resume else ()
                is_in_place = bool(here) and self._landing.is_in_place(entry)
            except (Occupied, OSError) as problem:
                self._tally.fail(entry.path, _here(problem))
                continue
            held = complete(here, entry.size) if is_in_place and entry.size <= WHOLE else None
            jobs.append(Job(number, entry, here, is_in_place, root=root_of(held) if held else None))
        return jobs

    def _finish_folders(self) -> None:
        """Deepest first: a folder gets its time when nothing more is put into it."""
        for entry in reversed(self._entries):
            if entry.dir:
                try:
                    self._landing.make_folder(entry)
                except OSError as problem:
                    self._tally.fail(entry.path, _here(problem))

    # One connection: its jobs come from the common list

    async def write(self, connection: Connection[Job]) -> None:
        while self._jobs:
            if self._jobs[0].entry.size > WHOLE:
                await self._fetch_large(connection, self._jobs.popleft())
                continue
            batch: list[Job] = []
            while self._jobs and self._jobs[0].entry.size <= WHOLE and len(batch) < BATCH:
                batch.append(self._jobs.popleft())
            await connection.ask_all([(Waiting(job, job.method), self._request(job)) for job in batch])

    def _request(self, job: Job) -> bytes:
        headers = [("TE", "trailers"), ("Connection", "TE")] if job.is_last else []
        if job.sink is not None and (job.start, job.end) != (0, job.entry.size):
            headers.append(("Range", encode_range(job.start, job.end)))
        if job.root is not None:
            headers.append(("If-None-Match", f'"{job.root.hex()}"'))
        return encode_request(job.method, f"{self._target}/{job.number}", self._host, headers)

    async def hear(self, waiting: Waiting[Job], reply: Reply, replies: Replies) -> None:
        job = waiting.job
        job.status = reply.status
        name = job.entry.path
        if reply.status == NOT_MODIFIED:
            await replies.read()
            self._tally.add_there(name, job.entry.size)
            self._tally.files += 1
        elif reply.status not in (200, 206):
            answer = decode_answer(await replies.read_all(ERROR_LIMIT))
            if reply.status == 404:
                raise TransferFailed("the other side has forgotten this transfer: pull again, it goes on from there")
            self._tally.fail(name, FAILURES.get(answer.why, f"the other side answers {reply.status}"))
        elif job.method == "HEAD":
            await replies.read()
        elif job.sink is not None:
            await self._take_part(job, job.sink, reply, replies)
        else:
            await self._take_whole(job, reply, replies)

    async def _take_whole(self, job: Job, reply: Reply, replies: Replies) -> None:
        """A small file: into memory, then onto the disk with others."""
        entry = job.entry
        data = await self._read(replies, entry.size)
        root = root_in(reply.trailers)
        if data is None or root is None:
            self._tally.fail(entry.path, CHANGED)
            return
        self._tally.add_sent(entry.path, entry.size)
        self._arrived.append(SmallFile(entry, b"".join(data), root))
        self._arrived_bytes += entry.size
        if len(self._arrived) >= TOGETHER or self._arrived_bytes >= ARRIVED_BYTES:
            await self._store_arrived()

    async def _store_arrived(self) -> None:
        """A batch for the disk; other connections begin the next one meanwhile."""
        files, self._arrived, self._arrived_bytes = self._arrived, [], 0
        for file, became in zip(files, await self._landing.store_many(files), strict=True):
            if isinstance(became, Exception):
                self._tally.fail(file.entry.path, _here(became))
            else:
                self._tally.files += 1

    async def _read(self, replies: Replies, size: int) -> list[bytes] | None:
        """A body of that size; None for one that is shorter, or that says to be longer than it may."""
        pieces: list[bytes] = []
        while data := await replies.read():
            size -= len(data)
            if size < 0:
                raise TransferFailed("the other side sends more than it said")
            pieces.append(data)
        return pieces if not size else None

    # A large file, run by run

    async def _fetch_large(self, connection: Connection[Job], job: Job) -> None:
        entry = job.entry
        held = complete(job.here, entry.size) if job.is_in_place else None
        if held is not None and await self._is_same(connection, job, held):
            return
        try:
            sink = await trio.to_thread.run_sync(self._landing.open, self._owner, entry, limiter=self._threads)
        except DISK as problem:
            self._tally.fail(entry.path, _here(problem))
            return
        try:
            await self._fetch_missing(connection, job, sink)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(sink.close, limiter=self._threads)

    async def _is_same(self, connection: Connection[Job], job: Job, held: Sequence[bytes]) -> bool:
        """Whether the file here is the one over there: only its root is asked for."""
        asked = Job(job.number, job.entry, root=root_of(held), method="HEAD")
        waiting = Waiting(asked, asked.method)
        await connection.ask_all([(waiting, self._request(asked))])
        await waiting.answered.wait()
        return asked.status == NOT_MODIFIED or job.entry.path in self._tally.failed

    async def _fetch_missing(self, connection: Connection[Job], job: Job, sink: Sink) -> None:
        size = job.entry.size
        blocks = range(count_blocks(size))
        missing = [b for b in blocks if sink.hashes[b] is None or not self._resume]
        self._tally.add_there(job.entry.path, size - sum(block_length(size, b) for b in missing))
        for _ in range(ROUNDS):
            # The last request also brings the root: when nothing is missing, the last block is fetched for it.
            spans = [run.span(size) for run in runs(iter(missing or blocks[-1:]))]
            for number, (start, end) in enumerate(spans, 1):
                part = Job(job.number, job.entry, sink=sink, start=start, end=end, is_last=number == len(spans))
                waiting = Waiting(part, part.method)
                await connection.ask_all([(waiting, self._request(part))])
                await waiting.answered.wait()
                if not part.is_taken:
                    return
            missing = list(part.missing)
            if not missing:
                return
        self._tally.fail(job.entry.path, FAILURES["blocks"])

    async def _take_part(self, job: Job, sink: Sink, reply: Reply, replies: Replies) -> None:
        name = job.entry.path

        async def read() -> bytes:
            data = await replies.read()
            self._tally.add_sent(name, len(data))
            return data

        try:
            await self._landing.pump(read, sink, job.start, job.end)
            if job.is_last:
                root = root_in(reply.trailers)
                if root is None:
                    raise WrongLength
                finish = partial(self._landing.finish, sink, job.entry, root)
                await trio.to_thread.run_sync(finish, limiter=self._threads)
                self._tally.files += 1
            job.is_taken = True
        except Missing as problem:
            job.is_taken, job.missing = True, problem.blocks
        except WrongLength:
            self._tally.fail(name, CHANGED)
            if not root_in(reply.trailers) and b"mesh-error" not in reply.trailers:
                raise TransferFailed(f"the other side broke off in the middle of {name}") from None
        except DISK as problem:
            if isinstance(problem, TailscaleError):
                raise  # the connection's, not the disk's
            self._tally.fail(name, _here(problem))
            raise Spoiled from problem  # what is left of the answer nobody wants


def _here(problem: Exception) -> str:
    """What went wrong on our own disk."""
    reason = why(problem)
    if reason == "disk" and isinstance(problem, OSError):
        return f"it cannot be written: {problem.strerror}"
    return HERE.get(reason, reason)
