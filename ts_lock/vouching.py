"""Which of many nodes a lock vouches for, followed from change to change.

Owns: the verdict on each node, and which node keys are out of use because a newer one replaced them. A signature is
checked once for as long as it stays the same, whatever becomes of the lock: only whether its signer is trusted can
change. Refuses to know: what a node is beside its key and its signature.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

from ts_base.errors import BadPacket
from ts_lock.remembered import Claim
from ts_lock.signatures import Vouched, examine_text_untrusted

NOT_SIGNED = "its node key is not signed"
NOT_TRUSTED = "its node key is signed by a key that the lock does not trust"
REPLACED = "its node key was replaced by a newer one"


class Verdict(NamedTuple):
    """What holds of a claim whoever is trusted: a chain, or why there is none."""

    claim: Claim
    vouched: Vouched | None
    problem: str


def judge(claim: Claim) -> Verdict:
    """Check one signature: the slow part, some 50 us, most of them in libsodium and without Python's lock."""
    if not claim.signature:
        return Verdict(claim, None, NOT_SIGNED)
    try:
        return Verdict(claim, examine_text_untrusted(claim.key, claim.signature), "")
    except BadPacket as problem:
        return Verdict(claim, None, f"its node key's signature does not hold: {problem}")


class Vouching:
    """The verdicts on all nodes by their number."""

    def __init__(self) -> None:
        self._verdicts: dict[int, Verdict] = {}
        self._rotations: dict[int, Vouched] = {}
        self._replaced: frozenset[bytes] = frozenset()

    def knows(self, node: int, claim: Claim) -> bool:
        """Whether `note` would cost nothing."""
        verdict = self._verdicts.get(node)
        return verdict is not None and verdict.claim == claim

    def claims(self) -> Iterator[Claim]:
        """Those that hold, if their signers are trusted."""
        return (verdict.claim for verdict in self._verdicts.values() if verdict.vouched is not None)

    def note(self, node: int, verdict: Verdict) -> None:
        """A node claims this from now on."""
        self._verdicts[node] = verdict
        if verdict.vouched is not None and verdict.vouched.rotation is not None:
            self._rotations[node] = verdict.vouched
        else:
            self._rotations.pop(node, None)

    def forget(self, nodes: Iterable[int]) -> None:
        for node in nodes:
            self._verdicts.pop(node, None)
            self._rotations.pop(node, None)

    def settle(self, trusted: Container[bytes]) -> set[int]:
        """After `note` and `forget`, and after the lock changed: the nodes that were replaced, or are no more."""
        before, self._replaced = (
            self._replaced,
            frozenset(self._out_of_use(trusted)) if self._rotations else frozenset(),
        )
        if before == self._replaced:
            return set()
        different = before ^ self._replaced
        return {node for node, verdict in self._verdicts.items() if verdict.claim.key in different}

    def problem(self, node: int, trusted: Container[bytes]) -> str:
        """Why the lock does not vouch for this node; empty when it does."""
        verdict = self._verdicts[node]
        if verdict.vouched is None:
            return verdict.problem
        if verdict.vouched.key_id not in trusted:
            return NOT_TRUSTED
        return REPLACED if verdict.claim.key in self._replaced else ""

    def _out_of_use(self, trusted: Container[bytes]) -> set[bytes]:
        """Older keys of chains that hold; and of several chains by one node's key, all but the longest.

        Two that are equally long come from a copied state folder: nobody can say which is the node, so neither is.
        """
        out: set[bytes] = set()
        branches: dict[bytes, list[tuple[int, bytes]]] = {}
        for node, vouched in self._rotations.items():
            rotation = vouched.rotation
            if rotation is None or vouched.key_id not in trusted:
                continue
            out.update(rotation.older)
            if rotation.wrapping is not None:
                branch = len(rotation.older), self._verdicts[node].claim.key
                branches.setdefault(rotation.wrapping, []).append(branch)
        for found in branches.values():
            alive = sorted((branch for branch in found if branch[1] not in out), reverse=True)
            is_tied = len(alive) > 1 and alive[0][0] == alive[1][0]
            out.update(key for _, key in (alive if is_tied else alive[1:]))
        return out
