"""The lock as users see it, made from what the keeper knows.

Refuses to know: how a lock is followed (`lock_keeper.py`) and how it is shown (`tailscale/lock.py`).
"""

from __future__ import annotations

from tailscale.lock import LockChange, LockedOut, LockKey, LockStatus
from tailscale.nodes import node_from_wire
from tailscale.runtime.lock_keeper import LockKeeper
from tailscale.runtime.lock_signing import LockSigner
from ts_lock.keys import public_text
from ts_lock.updates import Update, hash_text, kind_name


def lock_status(keeper: LockKeeper) -> LockStatus:
    """What is known now."""
    told, shown, chain = keeper.view.told, keeper.view.shown, keeper.chain
    problem = keeper.view.own_problem(told)
    hidden = [
        LockedOut(node_from_wire(shown.peers[number], shown), str(told.as_told(number).key), reason)
        for number, reason in sorted(shown.unvouched.items())
        if number in told.peers and number in shown.peers
    ]
    keys = chain.state.keys.values() if chain is not None else ()
    return LockStatus(
        enabled=chain is not None,
        head=keeper.head,
        our_key=public_text(keeper.key.public),
        our_node_signed=not problem,
        problem=problem,
        keys=tuple(LockKey(public_text(key.public), key.votes, dict(key.meta)) for key in keys),
        hidden_peers=tuple(hidden),
        log=tuple(_change(update) for update in chain.log()) if chain is not None else (),
        state_id=chain.state.state_ids[0] if chain is not None else 0,
        node_key=str(told.self_node.key),
        _signer=LockSigner(keeper),
    )


def _change(update: Update) -> LockChange:
    signed_by = tuple(public_text(who) for who, _ in update.signatures)
    return LockChange(hash_text(update.hash), kind_name(update.kind), _detail(update), signed_by, update.data)


def _detail(update: Update) -> str:
    if update.key is not None:
        return f"{public_text(update.key.public)}, votes {update.key.votes}"
    if update.state is not None:
        return f"{len(update.state.keys)} trusted keys"
    if update.key_id is None:
        return ""
    votes = f", votes {update.votes}" if update.votes is not None else ""
    return public_text(update.key_id) + votes
