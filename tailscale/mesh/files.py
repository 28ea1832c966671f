"""The files of one mesh: offers and wishes of its members, the tickets they are given, and the transfers begun here.

Owns the tables and their bounds: what a member says can fill its own share of them and nothing else. Refuses to know
sessions and listeners; `ways.py` says what it needs of them.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

from tailscale.errors import TailscaleError
from tailscale.files.folders import HAS_OPENAT
from tailscale.files.showing import IN, OUT, Showing
from tailscale.files.transfers import Tally
from tailscale.mesh.arrivals import Arrivals, Refused
from tailscale.mesh.asking import Asking, Done
from tailscale.mesh.batch import TOGETHER
from tailscale.mesh.departures import Departures
from tailscale.mesh.errors import TransferFailed
from tailscale.mesh.hash_cache import HashCache
from tailscale.mesh.serving import Answered, Request
from tailscale.mesh.transfers import Transfer
from tailscale.mesh.tree import Item
from ts_base.errors import BadPacket
from ts_mesh.offers import (
    ENTRIES_LIMIT,
    Accept,
    End,
    Entry,
    Found,
    Offer,
    Reject,
    Still,
    Want,
    Word,
    accepts_of,
    check_tree,
    decode_word_untrusted,
    founds_of,
    word_of,
)

if TYPE_CHECKING:
    from tailscale.mesh.file_seam import FileRequest
    from tailscale.mesh.peers import MeshPeer
    from tailscale.mesh.transfers import Inbox
    from tailscale.mesh.ways import Ways
    from ts_mesh.limits import MeshLimits

log = logging.getLogger("tailscale.mesh")
THREADS = 8  # that read, hash and write at once, of one mesh
TICKET_IDLE = 600.0
OFFER_IDLE = 60.0  # between the messages of one offer
REPLIES = 32  # tasks that answer one member
WAYS = (OUT, IN)
REQUESTS = 2 * 4  # of one ticket at once
_NUMBERS = re.compile(rf"[0-9]{{1,7}}(,[0-9]{{1,7}}){{0,{TOGETHER - 1}}}")


@dataclass(eq=False)
class Ticket:
    """What one member may send or fetch for a while."""

    member: MeshPeer
    token: str
    entries: Sequence[Entry]
    items: Sequence[Item] | None
    """To be fetched; None for what is pushed."""
    used_at: float
    tally: Tally
    running: int = 0
    shown: ExitStack = field(default_factory=ExitStack)
    """Holds it up to those who watch the device, while a request of it runs."""

    def __post_init__(self) -> None:
        self._folders = {entry.path for entry in self.entries if entry.dir}

    @property
    def owner(self) -> str:
        return self.member.node.stable_id

    def is_inside(self, entry: Entry) -> bool:
        """Whether the folder that it is in was offered as well."""
        return entry.path.rpartition("/")[0] in self._folders


@dataclass(eq=False)
class _Offered:
    """An offer that is not answered yet."""

    entries: list[Entry] = field(default_factory=list)
    heard_at: float = 0.0
    is_whole: bool = False


class FilesStatistics(NamedTuple):
    """What became of files so far."""

    tickets: int
    """Given out now."""
    offered: int
    """Waiting for an answer now."""
    taken: int
    """Files of others that are whole."""
    bytes_hashed: int
    """Read from files of ours, or written into files of others."""
    refused: dict[str, int]
    """Offers and wishes, by reason."""
    open: dict[str, int]
    """Transfers under way, those that members began included: "out" and "in"."""
    bytes: dict[str, int]
    """Of files, over the wire."""


class Files:
    """One mesh's. `hear` is given the words of members, `answer` their requests."""

    def __init__(
        self,
        ways: Ways,
        *,
        inbox: Inbox | None,
        share: Mapping[str, Path] | None,
        cache: Path | None,
        limits: MeshLimits,
        drops: Counter[str],
        on_done: Done = lambda member, name, problem: None,
    ) -> None:
        if not HAS_OPENAT and (inbox is not None or share):
            raise TransferFailed("this system cannot open files below a folder safely: leave out receive= and share=")
        self._ways = ways
        self._limits = limits
        self._drops = drops
        self._on_done = on_done
        self._threads = trio.CapacityLimiter(THREADS)
        self._cache = HashCache(cache)
        self._arrivals = Arrivals(inbox, self._cache, self._threads)
        self._departures = Departures(share or {}, self._cache, self._threads)
        self._tickets: dict[str, Ticket] = {}
        self._offers: dict[tuple[str, str], _Offered] = {}
        self._finding: set[tuple[str, str]] = set()
        self._showing = Showing(ways.show)
        self._asking = Asking(ways, self._cache, self._threads, drops, on_done, self._showing)
        self._replying: Counter[str] = Counter()
        self._taken = 0
        self._refused: Counter[str] = Counter()

    def close(self) -> None:
        self._cache.close()

    def statistics(self) -> FilesStatistics:
        """Counts so far."""
        hashed = self._cache.bytes_hashed
        open_now, carried = ({way: each[way] for way in WAYS} for each in (self._showing.open, self._showing.bytes))
        refused = dict(self._refused)
        return FilesStatistics(len(self._tickets), len(self._offers), self._taken, hashed, refused, open_now, carried)

    # Words of members

    def hear(self, member: MeshPeer, word: str, payload: Any) -> None:
        """What a member says. Returns at once; what it says wrongly is dropped and counted."""
        try:
            message = decode_word_untrusted(word, payload)
        except BadPacket as problem:
            self._drops["mesh.malformed_word"] += 1
            log.info("%s: %s", member.name, problem)
            return
        match message:
            case Offer():
                self._hear_offer(member, message)
            case Want():
                self._reply(member, partial(self._find, member, message))
            case End():
                self._end(member, message)
            case Still():
                self._hear_still(member, message)
            case Accept() | Found() | Reject():
                self._asking.hear(member, message)

    def _hear_still(self, member: MeshPeer, message: Still) -> None:
        """Whoever asks has no answer yet. One that was started anew does not know the question."""
        key = member.node.stable_id, message.token
        if key not in self._offers and key not in self._finding:
            if not any((held.owner, held.token) == key for held in self._tickets.values()):
                self._reject(member, message.token, "gone")

    def _hear_offer(self, member: MeshPeer, message: Offer) -> None:
        who, now = member.node.stable_id, trio.current_time()
        offered = self._offers.get((who, message.token))
        if offered is None:
            self._forget_idle(now)
            if sum(key[0] == who for key in self._offers) >= self._limits.offers:
                self._reject(member, message.token, "busy")
                return
            offered = self._offers[who, message.token] = _Offered()
        if offered.is_whole:
            self._drops["mesh.offer_repeated"] += 1
            return
        offered.heard_at = now
        offered.entries += message.entries
        if len(offered.entries) > ENTRIES_LIMIT:
            del self._offers[who, message.token]
            self._reject(member, message.token, "too-large")
        elif not message.more:
            offered.is_whole = True
            self._reply(member, partial(self._decide, member, message.token, offered))

    def _forget_idle(self, now: float) -> None:
        for key, offered in list(self._offers.items()):
            if not offered.is_whole and offered.heard_at + OFFER_IDLE < now:
                del self._offers[key]

    async def _decide(self, member: MeshPeer, token: str, offered: _Offered) -> None:
        key = member.node.stable_id, token
        try:
            check_tree(offered.entries)
            have = await self._arrivals.judge(member, offered.entries)
            if self._offers.get(key) is not offered:
                return  # it left meanwhile
            ticket = self.give_ticket(member, token, offered.entries, None)
        except BadPacket as problem:
            log.info("an offer of %s is none: %s", member.name, problem)
            self._drops["mesh.malformed_word"] += 1
            await self._tell_rejected(member, token, "unsupported")
        except Refused as refusal:
            await self._tell_rejected(member, token, refusal.reason)
        else:
            for accept in accepts_of(token, ticket, have):
                await self._tell(member, accept)
        finally:
            if self._offers.get(key) is offered:
                del self._offers[key]

    async def _find(self, member: MeshPeer, message: Want) -> None:
        key = member.node.stable_id, message.token
        self._finding.add(key)
        try:
            tree = await self._departures.find(message.path)
            entries = [item.entry for item in tree.items]
            ticket = self.give_ticket(member, message.token, entries, tree.items)
        except Refused as refusal:
            await self._tell_rejected(member, message.token, refusal.reason)
            return
        finally:
            self._finding.discard(key)
        for found in founds_of(message.token, ticket, entries, tree.skipped):
            await self._tell(member, found)

    def _reject(self, member: MeshPeer, token: str, reason: str) -> None:
        self._reply(member, partial(self._tell_rejected, member, token, reason))

    async def _tell_rejected(self, member: MeshPeer, token: str, reason: str) -> None:
        self._refused[reason] += 1
        await self._tell(member, Reject(token, reason))

    async def _tell(self, member: MeshPeer, message: Word) -> None:
        await self._ways.tell(member, word_of(message), message)

    def _reply(self, member: MeshPeer, work: Callable[[], Any]) -> None:
        """A task that answers a member, unless so many answer it already."""
        who = member.node.stable_id
        if self._replying[who] >= REPLIES:
            self._drops["mesh.word_flood"] += 1
            return
        self._replying[who] += 1

        async def run() -> None:
            try:
                await work()
            except (TailscaleError, OSError, trio.BrokenResourceError) as problem:
                log.info("%s could not be answered: %s", member.name, problem)
            except Exception:
                log.exception("an answer to %s failed", member.name)
            finally:
                self._replying[who] -= 1
                if not self._replying[who]:
                    del self._replying[who]

        self._ways.spawn(run)

    # Tickets

    def give_ticket(self, member: MeshPeer, token: str, entries: Sequence[Entry], items: Sequence[Item] | None) -> str:
        """Raises Refused when as many transfers as may be are under way."""
        now, who = trio.current_time(), member.node.stable_id
        for ticket, held in list(self._tickets.items()):
            if not held.running and held.used_at + TICKET_IDLE < now:
                del self._tickets[ticket]
        if len(self._tickets) >= self._limits.transfers:
            # Who comes once more makes room by what it left lying; nobody makes room for another.
            idle = [ticket for ticket, held in self._tickets.items() if held.owner == who and not held.running]
            if not idle:
                raise Refused("busy")
            del self._tickets[min(idle, key=lambda ticket: self._tickets[ticket].used_at)]
        ticket = self._ways.token()
        tally = Tally(total=sum(entry.size for entry in entries), began=now)
        self._tickets[ticket] = Ticket(member, token, entries, items, now, tally)
        return ticket

    def _end(self, member: MeshPeer, message: End) -> None:
        who = member.node.stable_id
        for ticket, held in list(self._tickets.items()):
            if (held.owner, held.token) != (who, message.token):
                continue
            del self._tickets[ticket]
            if held.items is None and held.entries:
                problem = TransferFailed(f"{message.failed} files did not arrive") if message.failed else None
                self._on_done(member, held.entries[0].path, problem)

    def knows(self, ticket: str) -> bool:
        """Whether it was given out here."""
        return ticket in self._tickets

    async def answer(self, request: FileRequest) -> None:
        """A request on `/f/{ticket}/{number}` of a verified node."""
        held = self._tickets.get(request.ticket)
        numbers = [int(text) for text in request.number.split(",")] if _NUMBERS.fullmatch(request.number) else [-1]
        moved = partial(self._moved, held, numbers[0]) if held is not None else lambda size: None
        asked = Request(request.wire, request.method, request.headers, moved)
        # Whoever guessed it, or was told it by another, hears what he would hear of any number.
        if (
            held is None
            or held.owner != request.caller.stable_id
            or not 0 <= min(numbers) <= max(numbers) < len(held.entries)
        ):
            self._drops["mesh.unknown_ticket"] += 1
            await asked.answer(Answered(404, why="not-found"))
            return
        if held.running >= REQUESTS:
            await asked.answer(Answered(503, why="busy"))
            return
        if not held.running:
            is_outgoing = held.items is not None
            held.shown.enter_context(self._showing.show(held.member.node.hostname, held.tally, is_outgoing=is_outgoing))
        held.running += 1
        try:
            await self._serve(held, numbers, asked)
        finally:
            held.running -= 1
            held.used_at = trio.current_time()
            if not held.running:
                held.shown.close()

    def _moved(self, held: Ticket, number: int, size: int) -> None:
        held.tally.add_sent(held.entries[number].path, size)

    async def _serve(self, held: Ticket, numbers: Sequence[int], request: Request) -> None:
        if request.method not in (("PUT",) if held.items is None else ("GET", "HEAD")):
            await request.answer(Answered(405, text="PUT what is pushed, GET what is pulled"))
            return
        if held.items is not None:
            await self._departures.get(request, held.items[numbers[0]])
            return
        entries = [held.entries[number] for number in numbers]
        inside = [held.is_inside(entry) for entry in entries]
        if len(entries) > 1:
            answered = await self._arrivals.put_many(request, held.owner, entries, inside)
            self._taken += sum(each.status == 200 for each in answered.files)
        else:
            answered = await self._arrivals.put(request, held.owner, entries[0], is_inside=inside[0])
            self._taken += answered.status == 200 and not entries[0].dir
        await request.answer(answered)

    # Transfers begun here

    def push(self, member: MeshPeer, paths: Sequence[Path], into: str = "", *, resume: bool = True) -> Transfer:
        """Files and folders to a member's inbox."""
        return self._asking.push(member, paths, into, resume=resume)

    def pull(self, member: MeshPeer, path: str, into: Path, *, resume: bool = True) -> Transfer:
        """A file or folder that a member shares, into a folder here."""
        return self._asking.pull(member, path, into, resume=resume)
