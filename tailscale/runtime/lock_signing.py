"""What a device whose own key the tailnet's lock trusts may do: sign nodes and auth keys, say who else may, and end it.

Owns: the changes it writes and how control is told. What comes of them is heard with the next netmap, as everybody
hears it (`lock_keeper.py`). Refuses to know: who asks (`tailscale/lock.py`, the daemon).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tailscale.errors import LockError, NoSuchPeer
from tailscale.nodes import Node, named
from tailscale.runtime.lock_keeper import Failure, LockKeeper
from ts_base.errors import BadPacket
from ts_base.keys import NodePublic
from ts_control.wire_lock import LockAnswer, LockRequest, from_text_untrusted, to_text, updates_to_text
from ts_lock.chain import Chain
from ts_lock.disablement import turns_off
from ts_lock.keys import LockPrivate, parse_public, public_text
from ts_lock.signatures import decode_signature_untrusted, examine, sign_node, wrap_auth_key
from ts_lock.updates import Key, Kind, Update, hash_text

NO_LOCK = "this tailnet has no lock: every node that control lets in is a peer already"


class LockSigner:
    """Over one keeper. Everything raises LockError, NoSuchPeer, and what a question to control raises."""

    def __init__(self, keeper: LockKeeper) -> None:
        self._keeper = keeper

    async def sign(self, node: Node | str, rotation_key: str = "") -> None:
        """Vouch for a node of this tailnet; with `rotation_key`, its own, it may change its node key by itself."""
        keeper = self._keeper
        try:
            rotation = parse_public(rotation_key) if rotation_key else None
            if isinstance(node, str) and node.startswith(NodePublic.prefix):
                key = NodePublic.parse(node)
            else:
                key = self._key_of(node)
        except BadPacket as problem:
            raise LockError(f"that cannot be signed: {problem}") from None
        self._trusting()
        signature = sign_node(keeper.key, key.raw, rotation).encode()
        await self._ask("sign", "the signature", signature=to_text(signature))

    async def change(self, add: Sequence[Key] = (), remove: Sequence[bytes] = ()) -> None:
        """Trust these keys from now on, and these no more."""
        chain, ours = self._trusting(), self._keeper.key
        orders: list[tuple[Kind, dict[str, Any]]] = [(Kind.ADD_KEY, {"key": key}) for key in add]
        orders += [(Kind.REMOVE_KEY, {"key_id": key_id}) for key_id in remove]
        state, updates = chain.state, []
        try:
            for kind, parts in orders:
                update = Update(kind, state.head, **parts).signed_by(ours)
                update.check()
                state = state.follow(update)
                updates.append(update)
        except BadPacket as problem:
            raise LockError(f"the lock cannot be changed so: {problem}") from None
        if not updates:
            return
        head = hash_text(state.head)
        texts = updates_to_text(updates)
        answer = await self._ask("sync/send", "the change", head=head, missing_aums=texts, interactive=True)
        if answer.head != head:
            raise LockError("somebody else changed the lock meanwhile: try again")

    @staticmethod
    def key(text: str) -> Key:
        """A `tlpub:` as a key to trust."""
        try:
            return Key(parse_public(text))
        except BadPacket as problem:
            raise LockError(f"that is no key of a lock: {problem}") from None

    async def end(self, secret: bytes) -> None:
        """Turn the lock off for everybody, with one of its secrets."""
        chain = self._in_force()
        if not turns_off(chain.state, secret):
            raise LockError("that is no disablement secret of this lock")
        await self._ask("disable", "the end of the lock", head=self._keeper.head, disablement_secret=to_text(secret))

    def wrap(self, auth_key: str, signer: LockPrivate, fresh: LockPrivate) -> str:
        """An auth key whose node is vouched for when it joins, as soon as `signer` is trusted."""
        self._in_force()
        return wrap_auth_key(auth_key, signer, fresh)

    async def signed_by(self, key_id: bytes) -> list[bytes]:
        """The signatures that are worth nothing once this key is trusted no more; each is looked at here."""
        chain = self._in_force()
        answer = await self._ask("affected-sigs", "the question", key_id=to_text(key_id))
        found = []
        try:
            for text in answer.signatures:
                data = from_text_untrusted(text)
                signature = decode_signature_untrusted(data)
                vouched = examine((signature.pubkey or b"")[-32:], signature)
                if vouched.key_id != key_id or key_id not in chain.state.keys:
                    raise BadPacket("a signature of another key")
                found.append(data)
        except BadPacket as problem:
            raise LockError(f"control named what does not hold: {problem}") from None
        return found

    async def _ask(self, what: str, which: str, **fields: Any) -> LockAnswer:
        own = self._keeper.view.told.self_node.key
        try:
            return await self._keeper.question(what, LockRequest(node_key=own, **fields))
        except Failure as problem:
            raise LockError(f"control did not take {which}: {problem}") from problem

    def _in_force(self) -> Chain:
        if self._keeper.chain is None:
            raise LockError(NO_LOCK)
        return self._keeper.chain

    def _trusting(self) -> Chain:
        chain = self._in_force()
        if self._keeper.key.public not in chain.state.keys:
            ours = public_text(self._keeper.key.public)
            raise LockError(f"the lock does not trust this device's key: let a signer run `tailscale lock add {ours}`")
        return chain

    def _key_of(self, node: Node | str) -> NodePublic:
        told = self._keeper.view.told
        if isinstance(node, Node):
            found = told.peers.get(node.id) or (told.self_node if node.id == told.self_node.id else None)
        else:
            found = named(node, (told.self_node, *told.peers.values()))
        if found is None:
            raise NoSuchPeer(f"no node {node if isinstance(node, str) else node.hostname!r} is in this tailnet")
        return told.self_node.key if found is told.self_node else told.as_told(found.id).key
