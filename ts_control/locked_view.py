"""Control's netmaps as the tailnet's lock lets them be: the one place where a node becomes a peer or does not.

Owns: which peers are shown as unreachable because nobody vouches for their node key. They look expired to everybody,
their key broken: no handshake, no disco, no path; `NetMap.unvouched` says why. Refuses to know: where locks come from,
and who does the checking of signatures, each of which is asked for once.
A delta costs what changed, as without a lock, and one more dict copy.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import replace

from ts_control.netmap import NetMap, PeerTable, make_unreachable, peers_changed
from ts_control.wire import Node
from ts_lock.chain import Chain
from ts_lock.remembered import Claim, Remembered
from ts_lock.updates import Key
from ts_lock.vouching import Verdict, Vouching, judge

NODES_PER_STEP = 2000
NOT_FETCHED = "this tailnet has a lock, and it could not be fetched"
NOT_TRUSTED = "a key that the lock does not trust signed its node key"

Steps = Generator[Sequence[Claim], Sequence[Verdict], NetMap]
"""Yields the claims to judge, and is sent the verdicts in the same order; no claims are a pause for other work."""


class LockedView:
    """Follows netmaps. Set what is in force by `lock_with`, then ask for `steps`."""

    def __init__(self, remembered: Remembered) -> None:
        self._remembered = remembered
        self.checked = 0  # signatures that were looked at so far
        self._keys: Mapping[bytes, Key] | None = None
        self._is_blind = False
        self._is_fresh = True  # nothing was shown under what is in force
        self._vouching = Vouching()
        self._told = self._shown = NetMap.empty()
        self._own = judge(Claim(b"", ""))

    @property
    def told(self) -> NetMap:
        """What control said last."""
        return self._told

    @property
    def shown(self) -> NetMap:
        return self._shown

    def lock_with(self, chain: Chain | None, *, is_blind: bool = False) -> None:
        """This lock is in force from now on; with `is_blind` there is one that we know nothing of."""
        keys = chain.state.keys if chain is not None else None
        if keys is self._keys and is_blind == self._is_blind:
            return
        self._keys, self._is_blind, self._is_fresh = keys, is_blind, True

    def own_problem(self, told: NetMap) -> str:
        """Why others do not see us; empty when the lock vouches for our own node key, or there is none."""
        node = told.self_node
        if self._keys is None or not node.id:
            return ""
        if self._own.claim != _claim(node):
            self._own = judge(_claim(node))
        verdict = self._own
        if verdict.vouched is None:
            return verdict.problem
        return "" if verdict.vouched.key_id in self._keys else NOT_TRUSTED

    def to_keep(self) -> bytes:
        """What the next run need not check again."""
        return self._remembered.entry(self._vouching.claims())

    def steps(self, told: NetMap) -> Steps:
        """The netmap to show for what control told."""
        if self._keys is None and not self._is_blind:
            self._told = self._shown = told
            if not self._is_fresh:
                self._vouching = Vouching()
            self._is_fresh = True  # a lock that begins looks at everybody
            return told
        changed, removed = peers_changed(self._told, told)
        is_fresh, self._is_fresh = self._is_fresh, True  # until all is done: who is interrupted begins anew
        if is_fresh:
            changed = list(told.peers)
        yield from self._note(told, changed)
        self._vouching.forget(removed)
        keys: Collection[bytes] = self._keys if self._keys is not None else ()
        touched = {*changed, *removed, *self._vouching.settle(keys)}
        self._shown = yield from self._show(told, touched, keys, is_fresh=is_fresh)
        self._told, self._is_fresh = told, False
        return self._shown

    def _note(self, told: NetMap, changed: Iterable[int]) -> Generator[Sequence[Claim], Sequence[Verdict], None]:
        unknown: dict[int, Claim] = {}
        for done, number in enumerate(changed, 1):
            node = told.as_told(number)
            if node.unsigned_peer_api_only:
                self._vouching.forget((number,))
                continue
            claim = _claim(node)
            if not self._vouching.knows(number, claim):
                vouched = self._remembered.recall(claim)
                if vouched is None:
                    unknown[number] = claim
                else:
                    self._vouching.note(number, Verdict(claim, vouched, ""))
            if done % NODES_PER_STEP == 0:
                yield ()
        verdicts = (yield list(unknown.values())) if unknown else ()
        for number, verdict in zip(unknown, verdicts, strict=True):
            self._vouching.note(number, verdict)
            if verdict.vouched is not None:
                self._remembered.note(verdict.claim, verdict.vouched)
        self.checked += len(verdicts)

    def _show(self, told: NetMap, touched: Collection[int], keys: Collection[bytes], *, is_fresh: bool) -> Steps:
        before = self._shown
        if not touched and not is_fresh:
            return replace(told, peers=before.peers, unvouched=before.unvouched)
        peers = PeerTable(before.peers, touched)
        unvouched = dict(before.unvouched)
        for done, number in enumerate(touched):
            unvouched.pop(number, None)
            node = told.peers.get(number)
            if node is None:
                peers.pop(number, None)
                continue
            problem = self._problem(number, node, keys)
            peers[number] = node if not problem else _hidden(node, before.peers.get(number))
            if problem:
                unvouched[number] = problem
            if done % NODES_PER_STEP == NODES_PER_STEP - 1:
                yield ()
        return replace(told, peers=peers, unvouched=unvouched)

    def _problem(self, number: int, node: Node, keys: Collection[bytes]) -> str:
        # What control itself calls unsigned may reach the PeerAPI alone: the packet filter sees to that.
        if node.unsigned_peer_api_only:
            return ""
        return NOT_FETCHED if self._is_blind else self._vouching.problem(number, keys)


def _claim(node: Node) -> Claim:
    return Claim(node.key.raw, node.key_signature)


def _hidden(node: Node, shown: Node | None) -> Node:
    """The node without reach; the same object as before while nothing changed of it."""
    hidden = node if node.expired else make_unreachable(node)
    return shown if shown == hidden else hidden
