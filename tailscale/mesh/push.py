"""One push: the offer was taken, and what the other side misses is sent.

A file of which it has nothing is sent in one PUT; one of which it has blocks in a PUT for every run that differs. What
nobody has hashed yet is hashed while other bytes are on their way: the first byte never waits for a hash.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import trio

from tailscale.files.folders import Walks
from tailscale.files.pieces import all_of, from_disk
from tailscale.files.replies import Replies, Reply, encode_request
from tailscale.mesh.batch import TOGETHER
from tailscale.mesh.carriers import CONNECTIONS, WINDOW, Connection, Dial, Waiting, carry
from tailscale.mesh.errors import TransferFailed
from tailscale.mesh.files_client import ERROR_LIMIT, Answer, decode_answer, encode_last_chunk
from tailscale.mesh.landing import WHOLE
from tailscale.mesh.source import Source, Unreadable, is_settled, read_small
from ts_mesh.blocks import Hashes, Run, at, block_length, count_blocks, is_same, root_of, runs
from ts_mesh.ranges import encode_content_range

if TYPE_CHECKING:
    from tailscale.files.transfers import Tally
    from tailscale.mesh.hash_cache import FileKey, HashCache
    from tailscale.mesh.tree import Item

BATCH = WINDOW // 2  # small files read in one go, each with a request of its own ...
BATCH_BYTES = 1 << 20  # ... and about so many bytes
MANY = 8  # small files are worth more than one connection
ROUNDS = 3  # blocks that turn out to be damaged over there are sent again so often
FAILURES = {
    "exists": "there is another file of that name",
    "busy": "somebody else sends it",
    "root": "it arrived damaged, and was thrown away",
    "blocks": "it arrived damaged again and again",
    "no-space": "the disk there is full",
    "not-allowed": "it may not be written there",
    "disk": "the disk there failed",
    "length": "it was cut on its way",
    "range": "the other side does not know its size",
    "changed": "it changed over there",
    "not-found": "it is gone over there",
}


@dataclass
class Job:
    """One file or folder to be sent."""

    number: int
    item: Item
    theirs: Hashes = ()
    many: Sequence[Job] = ()
    """Small files that go in one PUT; then this stands for all of them."""
    answer: Answer = field(default_factory=Answer)
    status: int = 0


class _Read(NamedTuple):
    """A small file in memory."""

    job: Job
    data: bytes | None = None
    """None: the other side has it already."""
    root: bytes | None = None
    problem: str = ""


class Push:
    """Sends what an accepted offer still misses. `have` is what the other side said it has, by number.

    `many`: it takes several small files in one PUT, which costs a request and an answer for all of them.
    """

    def __init__(
        self,
        items: Sequence[Item],
        have: Mapping[int, Hashes],
        target: str,
        host: str,
        cache: HashCache,
        threads: trio.CapacityLimiter,
        tally: Tally,
        *,
        many: bool,
    ) -> None:
        self._many = many
        self._target = target
        self._host = host
        self._cache = cache
        self._threads = threads
        self._tally = tally
        jobs = [Job(number, item, have.get(number, ())) for number, item in enumerate(items)]
        self._files = deque(job for job in jobs if not job.item.entry.dir)
        # A folder gets its time when nothing more is put into it: those that lie deepest first.
        self._folders = deque(job for job in reversed(jobs) if job.item.entry.dir)
        self._jobs = self._files

    async def run(self, dial: Dial) -> None:
        small = sum(job.item.entry.size <= WHOLE for job in self._files)
        connections = CONNECTIONS if small >= MANY else 1
        await carry(self._files, dial, lambda: self, connections)
        self._jobs = self._folders
        await carry(self._folders, dial, lambda: self, 1)

    # One connection: its jobs come from the common list

    async def write(self, connection: Connection[Job]) -> None:
        while self._jobs:
            if self._jobs[0].many:  # left unanswered by another connection
                self._jobs.extendleft(reversed(self._jobs.popleft().many))
            elif self._jobs[0].item.entry.dir:
                await self._ask_for_folders(connection)
            elif self._jobs[0].item.entry.size <= WHOLE:
                await self._send_small(connection)
            else:
                await self._send_large(connection, self._jobs.popleft())

    async def hear(self, waiting: Waiting[Job], reply: Reply, replies: Replies) -> None:
        answer = decode_answer(await replies.read_all(ERROR_LIMIT))
        job = waiting.job
        job.status, job.answer = reply.status, answer
        if job.many:
            self._hear_many(job, reply, answer)
            return
        if reply.status == 404:
            raise TransferFailed("the other side has forgotten this transfer: push again, and it goes on from there")
        if reply.status >= 400 and not (job.item.entry.size > WHOLE and answer.why == "blocks"):
            self._tally.fail(job.item.entry.path, _sentence(reply.status, answer))
        elif reply.status == 200 and not job.item.entry.dir:
            self._tally.files += 1

    def _hear_many(self, job: Job, reply: Reply, answer: Answer) -> None:
        told = answer.files if reply.status == 200 else []
        if len(told) != len(job.many):
            raise TransferFailed(f"the other side answers {reply.status} to several files")
        for each, became in zip(job.many, told, strict=True):
            if became.status == 200:
                self._tally.files += 1
            else:
                self._tally.fail(each.item.entry.path, FAILURES.get(became.why, f"it answers {became.status}"))

    async def _ask_for_folders(self, connection: Connection[Job]) -> None:
        jobs = [self._jobs.popleft() for _ in range(min(BATCH, len(self._jobs)))]
        await connection.ask_all([(Waiting(job, "PUT"), self._head(job, [("Content-Length", "0")])) for job in jobs])

    def _head(self, job: Job, headers: Sequence[tuple[str, str]]) -> bytes:
        return encode_request("PUT", f"{self._target}/{job.number}", self._host, headers)

    # Small files, many in one write

    async def _send_small(self, connection: Connection[Job]) -> None:
        jobs: list[Job] = []
        size = 0
        most = TOGETHER if self._many else BATCH
        while self._jobs and len(jobs) < most and size < BATCH_BYTES:
            entry = self._jobs[0].item.entry
            if entry.dir or entry.size > WHOLE:
                break
            size += entry.size
            jobs.append(self._jobs.popleft())
        read = await trio.to_thread.run_sync(self._read_small, jobs, limiter=self._threads)
        sent = []
        for job, data, root, problem in read:
            if problem:
                self._tally.fail(job.item.entry.path, problem)
            elif data is None or root is None:
                self._tally.add_there(job.item.entry.path, job.item.entry.size)
                self._tally.files += 1
            else:
                sent.append((job, data, root))
                self._tally.add_sent(job.item.entry.path, len(data))
        if self._many and len(sent) > 1:
            await connection.ask_all([self._request_for_many(sent)])
        elif sent:
            await connection.ask_all([self._request(*each) for each in sent])

    def _request(self, job: Job, data: bytes, root: bytes) -> tuple[Waiting[Job], bytes]:
        head = self._head(job, [("Transfer-Encoding", "chunked"), ("Trailer", "Mesh-Root")])
        chunk = b"%x\r\n%s\r\n" % (len(data), data) if data else b""
        return Waiting(job, "PUT"), b"".join((head, chunk, encode_last_chunk(root)))

    def _request_for_many(self, sent: Sequence[tuple[Job, bytes, bytes]]) -> tuple[Waiting[Job], bytes]:
        jobs = [job for job, _, _ in sent]
        body = b"".join(data for _, data, _ in sent)
        numbers = ",".join(str(job.number) for job in jobs)
        roots = ",".join(root.hex() for _, _, root in sent)
        headers = [("Content-Length", str(len(body))), ("Mesh-Roots", roots)]
        head = encode_request("PUT", f"{self._target}/{numbers}", self._host, headers)
        return Waiting(Job(jobs[0].number, jobs[0].item, many=jobs), "PUT"), head + body

    def _read_small(self, jobs: Sequence[Job]) -> list[_Read]:
        """In a thread."""
        read: list[_Read] = []
        known: list[tuple[FileKey, Hashes]] = []
        walks = Walks()
        try:
            for job in jobs:
                item = job.item
                try:
                    folder = walks.to(item.top, item.parts[:-1])
                    small = read_small(folder, item.parts[-1], item.key, job.theirs, self._cache)
                except Unreadable as problem:
                    read.append(_Read(job, problem=str(problem)))
                except OSError as problem:
                    read.append(_Read(job, problem=f"it cannot be read: {problem.strerror}"))
                else:
                    read.append(_Read(job, small.data, root_of(small.hashes)))
                    if is_settled(item.key):
                        known.append((item.key, small.hashes))
        finally:
            walks.close()
        self._cache.put_many(known)
        return read

    def _open(self, job: Job) -> Source:
        return Source.open(job.item, self._cache)

    # A large file, run by run

    async def _send_large(self, connection: Connection[Job], job: Job) -> None:
        try:
            source = await trio.to_thread.run_sync(self._open, job, limiter=self._threads)
        except Unreadable as problem:
            self._tally.fail(job.item.entry.path, str(problem))
            return
        try:
            await self._send_differing(connection, job, source)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(source.close, limiter=self._threads)

    async def _send_differing(self, connection: Connection[Job], job: Job, source: Source) -> None:
        """What surely differs at once; what has to be hashed first, to know, meanwhile."""
        blocks = range(count_blocks(source.size))
        unsure = {b for b in blocks if at(job.theirs, b) is not None and source.hashes[b] is None}
        differing = runs(b for b in blocks if b not in unsure and not is_same(source.hashes, job.theirs, b))
        if unsure:
            await all_of(
                partial(self._put_runs, connection, job, source, differing),
                partial(self._hash, job, source, sorted(unsure)),
            )
            differing = runs(b for b in sorted(unsure) if not is_same(source.hashes, job.theirs, b))
        there = sum(block_length(source.size, b) for b in blocks if is_same(source.hashes, job.theirs, b))
        self._tally.add_there(job.item.entry.path, there)
        for _ in range(ROUNDS):
            await self._put_runs(connection, job, source, differing, is_last=True)
            if job.answer.why != "blocks":
                return
            differing = runs(b for b in blocks if b in set(job.answer.blocks))
        self._tally.fail(job.item.entry.path, FAILURES["blocks"])

    async def _put_runs(
        self, connection: Connection[Job], job: Job, source: Source, differing: Sequence[Run], *, is_last: bool = False
    ) -> None:
        """Each run in its PUT. The last of all brings the root, and is empty when there is nothing else to bring."""
        spans = [run.span(source.size) for run in differing]
        if is_last and not spans:
            spans = [(source.size, source.size)]
        for number, (start, end) in enumerate(spans, 1):
            if job.item.entry.path not in self._tally.failed:
                await self._put(connection, job, source, start, end, is_last=is_last and number == len(spans))

    async def _put(
        self, connection: Connection[Job], job: Job, source: Source, start: int, end: int, *, is_last: bool
    ) -> None:
        name = job.item.entry.path

        between = b""  # what ends a chunk leaves with what begins the next. RFC 9112, 7.1

        async def send(data: bytes) -> None:
            nonlocal between
            await connection.send(b"%s%x\r\n" % (between, len(data)))
            await connection.send(data)
            between = b"\r\n"
            self._tally.add_sent(name, len(data))

        headers = [("Content-Range", encode_content_range(start, end, source.size)), ("Transfer-Encoding", "chunked")]
        waiting = Waiting(job, "PUT")
        await connection.begin(waiting)
        with waiting.writing:
            await connection.send(self._head(job, [*headers, ("Trailer", "Mesh-Root")] if is_last else headers))
            root = None
            try:
                await from_disk(source.read_bytes(start, end), send, self._threads)
                root = await trio.to_thread.run_sync(source.root if is_last else source.check, limiter=self._threads)
            except Unreadable as problem:  # without its root, what was sent is no file
                self._tally.fail(name, str(problem))
            waiting.is_written = True
            await connection.send(between + encode_last_chunk(root))
        await waiting.answered.wait()

    async def _hash(self, job: Job, source: Source, blocks: Sequence[int]) -> None:
        def hash_all() -> None:
            for block in blocks:
                source.hash_block(block)

        try:
            await trio.to_thread.run_sync(hash_all, limiter=self._threads)
        except Unreadable as problem:
            self._tally.fail(job.item.entry.path, str(problem))


def _sentence(status: int, answer: Answer) -> str:
    return FAILURES.get(answer.why, f"the other side answers {status}")
