"""Transfers begun here: the question, its answer, and the bytes that follow.

Owns the questions that wait for an answer. Who answers, and how words travel, is a mesh's.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import trio

from tailscale.errors import ConnectionTimedOut, TailscaleError
from tailscale.files.folders import HAS_OPENAT
from tailscale.files.transfers import Skipped, Tally
from tailscale.mesh.errors import PeerGone, TransferFailed, TransferRefused
from tailscale.mesh.landing import Landing
from tailscale.mesh.pull import Pull
from tailscale.mesh.push import Push
from tailscale.mesh.transfers import Transfer
from tailscale.mesh.tree import scan
from ts_base.errors import BadPacket
from ts_mesh.blocks import Hashes
from ts_mesh.names import decode_path_untrusted
from ts_mesh.offers import (
    ENTRIES_LIMIT,
    Accept,
    End,
    Entry,
    Found,
    Reject,
    Still,
    Want,
    Word,
    check_tree,
    decode_have_untrusted,
    offers_of,
    word_of,
)

if TYPE_CHECKING:
    from tailscale.files.showing import Showing
    from tailscale.mesh.hash_cache import HashCache
    from tailscale.mesh.peers import MeshPeer
    from tailscale.mesh.ways import Ways

log = logging.getLogger("tailscale.mesh")
ANSWER_PATIENCE = 600.0  # a person may be asked over there
REMIND_EVERY = 15.0
ANSWERS_WAITING = 1024  # messages of one answer that nobody has taken yet
GOODBYE = 5.0
W = TypeVar("W", Accept, Found)
Done = Callable[["MeshPeer", str, Exception | None], None]


@dataclass(eq=False)
class _Asked:
    """A question of ours, and where its answer goes."""

    member: str
    answers: trio.MemorySendChannel[Word]


class Asking:
    """What this device sends and fetches of its own accord."""

    def __init__(
        self,
        ways: Ways,
        cache: HashCache,
        threads: trio.CapacityLimiter,
        drops: Counter[str],
        on_done: Done,
        showing: Showing,
    ) -> None:
        self._ways = ways
        self._showing = showing
        self._cache = cache
        self._threads = threads
        self._drops = drops
        self._on_done = on_done
        self._asked: dict[str, _Asked] = {}

    def push(self, member: MeshPeer, paths: Sequence[Path], into: str = "", *, resume: bool = True) -> Transfer:
        """Files and folders to a member's inbox."""
        prefix = "/".join(decode_path_untrusted(into.strip("/"))) if into.strip("/") else ""
        what = f"the push to {member.name}"
        return self._transfer(member, what, partial(self._push, member, list(paths), prefix, resume), is_outgoing=True)

    def pull(self, member: MeshPeer, path: str, into: Path, *, resume: bool = True) -> Transfer:
        """A file or folder that a member shares, into a folder here."""
        wanted = "/".join(decode_path_untrusted(path.strip("/")))
        what = f"the pull of {wanted} from {member.name}"
        folder = Path(into).expanduser().absolute()
        return self._transfer(member, what, partial(self._pull, member, wanted, folder, resume), is_outgoing=False)

    def _transfer(
        self, member: MeshPeer, what: str, deed: Callable[[Tally], Awaitable[None]], *, is_outgoing: bool
    ) -> Transfer:
        if not HAS_OPENAT:
            raise TransferFailed("this system cannot open files below a folder safely")

        async def work(tally: Tally) -> None:
            problem: Exception | None = None
            try:
                with self._showing.show(member.node.hostname, tally, is_outgoing=is_outgoing):
                    await deed(tally)
                if tally.failed:
                    problem = TransferFailed(f"{what} failed for {len(tally.failed)} files", tally.failed)
            except Exception as error:
                problem = error
                raise
            finally:
                self._on_done(member, what, problem)

        return Transfer(what, work, self._ways.spawn)

    async def _push(self, member: MeshPeer, paths: Sequence[Path], into: str, resume: bool, tally: Tally) -> None:
        tree = await trio.to_thread.run_sync(scan, paths, into, limiter=self._threads)
        tally.skipped += tree.skipped
        if not tree.items:
            return
        token = self._ways.token()
        entries = [item.entry for item in tree.items]
        have: dict[int, list[bytes | None]] = {}
        ticket = ""
        async with _Question(self._asked, member, token, tally, partial(self._tell, member)) as question:
            for offer in offers_of(token, entries):
                await self._tell(member, offer)
            is_more = True
            while is_more:
                answer = await question.next(Accept)
                ticket, is_more = answer.ticket, answer.more
                for number, texts in answer.have.items():
                    have.setdefault(number, []).extend(_have(texts, entries, number))
            tally.begin(tree.total)
            known: Mapping[int, Hashes] = have if resume else {}
            where = f"/f/{ticket}", _host(member)
            push = Push(tree.items, known, *where, self._cache, self._threads, tally, many=answer.many)
            await push.run(partial(self._dial, member))

    async def _pull(self, member: MeshPeer, path: str, into: Path, resume: bool, tally: Tally) -> None:
        token = self._ways.token()
        entries: list[Entry] = []
        ticket = ""
        async with _Question(self._asked, member, token, tally, partial(self._tell, member)) as question:
            await self._tell(member, Want(token, path))
            is_more = True
            while is_more:
                answer = await question.next(Found)
                ticket, is_more = answer.ticket, answer.more
                entries += answer.entries
                tally.skipped += [Skipped(*skipped) for skipped in answer.skipped]
                if len(entries) > ENTRIES_LIMIT:
                    raise TransferFailed(f"more than {ENTRIES_LIMIT} files were found: pull their folders one by one")
            _check_found(entries, path)
            tally.begin(sum(entry.size for entry in entries))
            landing = Landing(into, "replace", self._cache, self._threads)
            try:
                await trio.to_thread.run_sync(landing.prepare, limiter=self._threads)
            except OSError as problem:
                raise TransferFailed(f"cannot write to {into}: {problem.strerror}") from problem
            where = member.node.stable_id, f"/f/{ticket}", _host(member)
            pull = Pull(entries, landing, *where, self._threads, tally, resume=resume)
            await pull.run(partial(self._dial, member))

    async def _dial(self, member: MeshPeer) -> Any:
        return await self._ways.dial(member)

    def hear(self, member: MeshPeer, message: Accept | Found | Reject) -> None:
        """An answer, to a question of ours or to none."""
        asked = self._asked.get(message.token)
        if asked is None or asked.member != member.node.stable_id:
            self._drops["mesh.unasked_answer"] += 1
            return
        try:
            asked.answers.send_nowait(message)
        except (trio.WouldBlock, trio.BrokenResourceError):
            self._drops["mesh.unasked_answer"] += 1

    async def _tell(self, member: MeshPeer, message: Word) -> None:
        await self._ways.tell(member, word_of(message), message)


class _Question:
    """A question of ours while it and what comes of it last. At the end the member is told that we are done."""

    def __init__(
        self,
        table: dict[str, _Asked],
        member: MeshPeer,
        token: str,
        tally: Tally,
        tell: Callable[[Word], Awaitable[None]],
    ) -> None:
        self._table = table
        self._member = member
        self._token = token
        self._tally = tally
        self._tell = tell
        send, self._answers = trio.open_memory_channel[Word](ANSWERS_WAITING)
        self._asked = _Asked(member.node.stable_id, send)

    async def __aenter__(self) -> Self:
        self._table[self._token] = self._asked
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        del self._table[self._token]
        self._answers.close()
        failed = max(len(self._tally.failed), int(kind is not None))
        with trio.move_on_after(GOODBYE, shield=True):
            try:
                await self._tell(End(self._token, min(failed, ENTRIES_LIMIT)))
            except (TailscaleError, OSError, trio.BrokenResourceError):
                log.debug("%s was not told of an end", self._member.name)

    async def next(self, kind: type[W]) -> W:
        """The next message of the answer. Raises TransferRefused, PeerGone, ConnectionTimedOut, or what a dial does."""
        name = self._member.name
        message = None
        until = trio.current_time() + ANSWER_PATIENCE
        while message is None:
            with trio.move_on_at(min(until, trio.current_time() + REMIND_EVERY)):
                message = await self._answers.receive()
            if message is None:
                if trio.current_time() >= until:
                    raise ConnectionTimedOut(f"{name} did not decide about the files within {ANSWER_PATIENCE:g} s")
                await self._tell(Still(self._token))  # also finds out whether it still exists
        if isinstance(message, Reject) and message.why == "gone":
            raise PeerGone(f"{name} was started anew and knows nothing of these files: try again")
        if isinstance(message, Reject):
            raise TransferRefused(message.why, name)
        if not isinstance(message, kind):
            raise TransferFailed(f"{name} answers with something else than was asked")
        return message


def _host(member: MeshPeer) -> str:
    """For the Host header: an address, since a name may be any text."""
    return member.node.ipv4 or f"[{member.node.ipv6}]"


def _have(texts: Sequence[str], entries: Sequence[Entry], number: int) -> list[bytes | None]:
    try:
        if number >= len(entries):
            raise BadPacket("it is of an entry that was not offered")
        return decode_have_untrusted(texts, entries[number].size)
    except BadPacket as problem:
        raise TransferFailed(f"what the other side says it has makes no sense: {problem}") from problem


def _check_found(entries: Sequence[Entry], path: str) -> None:
    """It may only be what was asked for: who shares must not choose other names in our folder."""
    name = path.rpartition("/")[2]
    try:
        check_tree(entries)
        if any(entry.path.partition("/")[0] != name for entry in entries):
            raise BadPacket("it is of another name than was asked for")
    except BadPacket as problem:
        raise TransferFailed(f"what the other side found makes no sense: {problem}") from problem
