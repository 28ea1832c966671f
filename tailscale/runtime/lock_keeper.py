"""The tailnet's lock as this device knows it: fetched once, followed ever after, kept between runs.

Owns: our lock key, the chain of updates, and what control may and may not make of it: it can add what trusted keys
signed, and turn the lock off with its secret. It cannot take the lock away, replace it, or roll it back.
Refuses to know: how a connection comes about (`control_line.py`) and what a netmap is good for.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import trio

from tailscale.runtime.judging import judged
from ts_base.errors import BadPacket
from ts_control.connection import ANSWER_LIMIT
from ts_control.errors import ControlLost, RequestRefused
from ts_control.gojson import decode_json_untrusted, encode_json
from ts_control.locked_view import LockedView
from ts_control.netmap import NetMap
from ts_control.retry import Backoff
from ts_control.wire_lock import (
    CAPABILITY,
    ROOT,
    LockAnswer,
    LockRequest,
    from_text_untrusted,
    updates_from_text_untrusted,
    updates_to_text,
)
from ts_lock.chain import Chain
from ts_lock.disablement import turns_off
from ts_lock.keys import LockPrivate, public_text
from ts_lock.remembered import PURPOSE, Remembered
from ts_lock.updates import decode_update_untrusted, hash_text, parse_hash_untrusted

if TYPE_CHECKING:
    from tailscale.runtime.health import Health
    from tailscale.runtime.saved_state import SavedState
    from ts_base.keys import NodePublic

log = logging.getLogger("tailscale.lock")

LOCK = "tailnet-lock"  # the entry that holds our key and the chain
VERDICTS = "tailnet-lock-verdicts"  # the entry of signatures that need no second look
PATIENCE = 60.0  # for an answer, as upstream
FIRST_PATIENCE = 10.0  # that a netmap waits for the lock to be followed
RECHECK = 60.0  # until control is asked again why it names another head than ours, or the end
END_PAUSE = 30.0  # between two looks at what claims to end the lock: each costs 80 ms
UPDATES_LIMIT = 10 * ANSWER_LIMIT  # bytes of an answer that carries updates
LOCKED_OUT = "tailnet-lock"
BEHIND = "tailnet-lock-behind"
WITHHELD = "tailnet-lock-withheld"
NOT_ENDED = "tailnet-lock-not-ended"
FORGOTTEN = "tailnet-lock-forgotten"

Ask = Callable[..., Awaitable[bytes]]
Failure = (ControlLost, RequestRefused, BadPacket)


class LockStatistics(NamedTuple):
    updates: int  # of the lock, as far as we know it
    hidden_peers: int
    signatures_checked: int
    syncs: int
    refusals: int  # of what control wanted the lock to become


class _Saved(NamedTuple):
    key: LockPrivate
    chain: Chain | None
    is_new: bool = False
    is_lost: bool = False  # there was something that cannot be read


class LockKeeper:
    """One device's knowledge of its tailnet's lock. `follow` each of control's netmaps: it returns what to believe."""

    def __init__(
        self, saved: SavedState, ask: Ask, health: Health, entropy: Callable[[int], bytes], *, known_here: bool
    ) -> None:
        self._saved = saved
        self._ask = ask
        self._health = health
        self._backoff = Backoff(entropy)
        found = _read(saved.read(LOCK), entropy)
        self.key = found.key
        self.chain = found.chain if known_here else None
        self._remembered = Remembered(self.key.secret_for(PURPOSE))
        self.view = LockedView(self._remembered)
        self._is_blind = False
        self._one_at_a_time = trio.Lock()
        self._tried: object = None  # what was asked for last
        self._next_try = -math.inf
        self._failed = trio.Event()
        self._secret_looked_at = -math.inf
        self._syncs = self._refusals = 0
        self._entropy = entropy
        if found.is_lost:
            sentence = "what was known of the tailnet's lock cannot be read any more: it is fetched anew, and believed"
            health.show(FORGOTTEN, sentence, "compare `lock status` with that of another node")
        if found.is_new:
            self._keep()
        if self.chain is not None and (kept := saved.read(VERDICTS)) is not None:
            with suppress(BadPacket):  # what cannot be read is checked anew
                self._remembered.read_untrusted(kept)

    @property
    def head(self) -> str:
        """How far we know the lock, for control; empty without one."""
        return hash_text(self.chain.head) if self.chain is not None else ""

    def statistics(self) -> LockStatistics:
        hidden = len(self.view.shown.unvouched)
        return LockStatistics(self._size(), hidden, self.view.checked, self._syncs, self._refusals)

    def forget(self) -> None:
        """The user gave the identity up: the next tailnet may have another lock, and gets another key of ours."""
        self.chain, self._is_blind, self._tried = None, False, None
        self.key = LockPrivate(self._entropy(32))
        self._keep()
        self._remembered.forget(self.key.secret_for(PURPOSE))
        self._saved.keep(VERDICTS, self.view.to_keep())

    def keep_verdicts(self) -> None:
        """The next run begins with what this one found out."""
        if self._remembered.has_news:
            self._saved.keep_if_small(VERDICTS, self.view.to_keep())

    # Following

    async def follow(self, told: NetMap, node_key: NodePublic, *, is_live: bool = True) -> NetMap:
        """What to believe of a netmap: with the lock brought up to date first, if that can be had soon. One that is not
        live is of the last run, and nobody is asked.
        """
        if self.chain is None and told.tka is None and not self._is_blind:
            return self._settled(told)
        async with self._one_at_a_time:
            if self._wants_sync(told) and is_live:
                await self._sync_soon(told, node_key)
            self.view.lock_with(self.chain, is_blind=self._is_blind)
            shown = await judged(self.view.steps(told))
            if self._remembered.is_worth_writing:
                self.keep_verdicts()
            self._say(told)
            return shown

    def _settled(self, told: NetMap) -> NetMap:
        """Without a lock a netmap is what control says."""
        self.view.lock_with(None)
        for _ in self.view.steps(told):
            pass
        return told

    @trio.lowlevel.enable_ki_protection
    async def retry(self, again: Callable[[], Awaitable[None]]) -> None:
        """As long as a map stream lasts: what failed is tried again after a pause."""
        while True:
            await self._failed.wait()
            self._failed = trio.Event()
            await trio.sleep_until(self._next_try)
            await again()

    def _wants_sync(self, told: NetMap) -> bool:
        info = told.tka
        if self.chain is None:
            # What is not there yet begins where control says so in both ways, as upstream.
            is_wanted = info is not None and not info.disabled and CAPABILITY in told.self_node.cap_map
            self._is_blind = is_wanted
        else:
            # An empty head says nothing, and nothing at all says nothing: only Disabled means the end.
            is_wanted = info is not None and (info.disabled or info.head not in ("", self.head))
        asked = info, self.head
        is_new, self._tried = asked != self._tried, asked
        return is_wanted and (is_new or trio.current_time() >= self._next_try)

    async def _sync_soon(self, told: NetMap, node_key: NodePublic) -> None:
        before, problem = self._size(), ""
        self._backoff.started(trio.current_time())
        with trio.move_on_after(FIRST_PATIENCE) as scope:
            try:
                await self._sync(told, node_key)
            except Failure as error:
                problem = str(error)
        if scope.cancelled_caught:
            problem = f"control did not answer within {FIRST_PATIENCE:.0f} s"
        if self._size() != before:
            self._keep()
        if not problem:
            self._is_blind = False
            self._backoff.succeeded()
            self._next_try = trio.current_time() + RECHECK
            self._health.clear(BEHIND)
            return
        log.info("the tailnet's lock could not be followed: %s", problem)
        self._next_try = self._backoff.failed(trio.current_time())
        self._failed.set()
        known = "what is known of it stays in force" if self.chain is not None else "no peer is believed before"
        self._health.show(BEHIND, f"the tailnet's lock could not be followed ({problem}): {known}")

    async def _sync(self, told: NetMap, node_key: NodePublic) -> None:
        assert told.tka is not None
        self._syncs += 1
        if self.chain is not None and told.tka.disabled:
            await self._end(self.chain, node_key)
            return
        if self.chain is None:
            answer = await self.question("bootstrap", LockRequest(node_key=node_key))
            self.chain = Chain(decode_update_untrusted(from_text_untrusted(answer.genesis_aum)))
            log.info("this tailnet has a lock: %s", self.head)
        await self._exchange(self.chain, node_key)

    async def _exchange(self, chain: Chain, node_key: NodePublic) -> None:
        """Take what control has that trusted keys signed, and give it what it lacks."""
        ancestors = tuple(hash_text(one) for one in chain.ancestors())
        offer = LockRequest(node_key=node_key, head=hash_text(chain.head), ancestors=ancestors)
        answer = await self.question("sync/offer", offer)
        if answer.head == offer.head:
            return
        theirs = [parse_hash_untrusted(one) for one in (answer.head, *answer.ancestors)]
        try:
            lacking = chain.missing(theirs[0], theirs[1:])  # before theirs are ours
            chain.add(updates_from_text_untrusted(answer.missing_aums))
        except BadPacket:
            self._refusals += 1
            raise
        head = hash_text(chain.head)
        given = LockRequest(node_key=node_key, head=head, missing_aums=updates_to_text(lacking))
        answer = await self.question("sync/send", given)
        if answer.head != head:
            log.info("control knows the tailnet's lock at %s, this device at %s", answer.head, head)

    async def _end(self, chain: Chain, node_key: NodePublic) -> None:
        """Control calls the lock off: it has to show the secret."""
        if trio.current_time() < self._secret_looked_at + END_PAUSE:
            raise BadPacket("control calls the lock off again")
        answer = await self.question("bootstrap", LockRequest(node_key=node_key, head=self.head))
        secret = from_text_untrusted(answer.disablement_secret)
        self._secret_looked_at = trio.current_time() if secret else -math.inf
        if turns_off(chain.state, secret):
            log.info("the tailnet's lock was turned off with its secret")
            self.chain = None
            self._health.clear(NOT_ENDED, WITHHELD, LOCKED_OUT)
            return
        self._refusals += 1
        sentence = "control calls the tailnet's lock off and does not show the secret for it: the lock stays in force"
        self._health.show(NOT_ENDED, sentence, "turn it off with a disablement secret: tailscale lock disable")
        log.warning("%s", sentence)

    async def question(self, what: str, request: LockRequest) -> LockAnswer:
        """Ask control about the lock. Raises one of `Failure`."""
        body = encode_json(request)
        answer = await self._ask("GET", ROOT + what, body, timeout=PATIENCE, limit=UPDATES_LIMIT)
        return decode_json_untrusted(LockAnswer, answer)

    def _say(self, told: NetMap) -> None:
        health = self._health
        problem = self.view.own_problem(told)
        if problem:
            command = f"tailscale lock sign {told.self_node.key} {public_text(self.key.public)}"
            sentence = f"this device is locked out of the tailnet, its peers do not see it: {problem}"
            health.show(LOCKED_OUT, sentence, f"on a machine that the lock trusts: {command}")
        else:
            health.clear(LOCKED_OUT)
        if self.chain is not None and told.tka is None:
            sentence = "control says nothing of the tailnet's lock any more: what is known of it stays in force"
            health.show(WITHHELD, sentence, "if this is another tailnet now, log this device out and in again")
        else:
            health.clear(WITHHELD)

    def _size(self) -> int:
        return len(self.chain.updates()) if self.chain is not None else 0

    def _keep(self) -> None:
        updates = updates_to_text(self.chain.updates()) if self.chain is not None else ()
        self._saved.keep(LOCK, json.dumps({"key": self.key.export(), "updates": updates}).encode())


def _read(data: bytes | None, entropy: Callable[[int], bytes]) -> _Saved:
    if data is None:
        return _Saved(LockPrivate(entropy(32)), None, is_new=True)
    try:
        found = json.loads(data)
        key, texts = LockPrivate.parse(found["key"]), tuple(found["updates"])
        return _Saved(key, Chain.of(updates_from_text_untrusted(texts)) if texts else None)
    except (ValueError, KeyError, TypeError, AttributeError):
        return _Saved(LockPrivate(entropy(32)), None, is_new=True, is_lost=True)
