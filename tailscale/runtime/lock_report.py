"""The lock as users see it, made from what the keeper knows; and signing, for whoever asks for it by a node's name.

Refuses to know: how a lock is followed (`lock_keeper.py`) and how it is shown (`tailscale/lock.py`).
"""

from __future__ import annotations

from functools import partial

from tailscale.errors import LockError, NoSuchPeer
from tailscale.lock import LockChange, LockedOut, LockKey, LockStatus
from tailscale.nodes import Node, named, node_from_wire
from tailscale.runtime.lock_keeper import LockKeeper
from ts_base.errors import BadPacket
from ts_base.keys import NodePublic
from ts_lock.keys import parse_public, public_text
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
        _sign=partial(sign, keeper),
    )


async def sign(keeper: LockKeeper, node: Node | str, rotation_key: str = "") -> None:
    """Vouch for a node of this tailnet."""
    told = keeper.view.told
    try:
        rotation = parse_public(rotation_key) if rotation_key else None
        if isinstance(node, str) and node.startswith(NodePublic.prefix):
            key = NodePublic.parse(node)
        else:
            key = _key_of(keeper, node)
    except BadPacket as problem:
        raise LockError(f"that cannot be signed: {problem}") from None
    await keeper.sign(told.self_node.key, key.raw, rotation)


def _key_of(keeper: LockKeeper, node: Node | str) -> NodePublic:
    told = keeper.view.told
    if isinstance(node, Node):
        found = told.peers.get(node.id) or (told.self_node if node.id == told.self_node.id else None)
    else:
        found = named(node, (told.self_node, *told.peers.values()))
    if found is None:
        raise NoSuchPeer(f"no node {node if isinstance(node, str) else node.hostname!r} is in this tailnet")
    return told.self_node.key if found is told.self_node else told.as_told(found.id).key


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
