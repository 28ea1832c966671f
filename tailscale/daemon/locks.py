"""`tka/`: what upstream's `tailscale lock` asks a daemon: status, log, sign, add, remove and disable.

Owns: those words. What makes a lock, mends one, or stops believing in it here alone is refused by `localapi.py`.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import trio

from tailscale.daemon.answering import Answer, Question, Refused, Routes, json_answer
from tailscale.daemon.keeper import Keeper
from tailscale.daemon.localapi import ROOT
from tailscale.device import Device
from tailscale.errors import LockError, NoSuchPeer
from tailscale.lock import LockStatus
from ts_base.errors import BadPacket
from ts_base.keys import KEY_LENGTH
from ts_control.netmap import NetMap
from ts_control.wire import Node
from ts_lock.keys import PRIVATE, LockPrivate, parse_public, registered_text
from ts_lock.signatures import NodeKeySignature, decode_text_untrusted
from ts_lock.updates import Key, parse_hash_untrusted

LONGEST_LOG = 500
SEED_LENGTH = len(PRIVATE) + 64  # of the text of a private key: Go writes the public half behind it


class Locks:
    """The lock of the daemon's device."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", f"{ROOT}tka/status", self._status)
        routes.add("GET", f"{ROOT}tka/log", self._log)
        routes.add("POST", f"{ROOT}tka/affected-sigs", self._affected)
        changing = {
            "sign": self._sign,
            "modify": self._modify,
            "disable": self._disable,
            "wrap-preauth-key": self._wrap,
        }
        for name, handler in changing.items():
            routes.add("POST", f"{ROOT}tka/{name}", handler, writers=True)

    async def run(self, _: Device) -> None:
        await trio.sleep_forever()

    async def _status(self, _: Question) -> Answer:
        await trio.lowlevel.checkpoint()
        device = self._keeper.device
        return json_answer(status_json(device.lock, device.netmap))

    async def _log(self, question: Question) -> Answer:
        await trio.lowlevel.checkpoint()
        status = self._keeper.device.lock
        if not status.enabled:
            raise Refused(500, "tailnet-lock is not active")
        limit = min(int(question.query.get("limit", "50")), LONGEST_LOG)
        changes = [
            {"Hash": list(parse_hash_untrusted(c.hash)), "Change": c.kind, "Raw": base64.b64encode(c.data).decode()}
            for c in status.log[:limit]
        ]
        return json_answer(changes)

    def _signer(self) -> Any:
        return self._keeper.usable.lock.signer

    async def _sign(self, question: Question) -> Answer:
        wanted = await question.json()
        key = registered_text(rotation) if (rotation := _octets(wanted.get("RotationPublic"))) else ""
        with _refused("signing failed"):
            await self._signer().sign(str(wanted.get("NodeKey", "")), key)
        return Answer()

    async def _modify(self, question: Question) -> Answer:
        wanted = await question.json()
        with _refused("modify failed"):
            add = [_key_from(key) for key in wanted.get("AddKeys") or ()]
            remove = [_key_from(key).public for key in wanted.get("RemoveKeys") or ()]
            await self._signer().change(add, remove)
        return Answer(b"", 204)

    async def _disable(self, question: Question) -> Answer:
        secret = await question.body()
        with _refused("tailnet-lock disable failed"):
            await self._signer().end(secret)
        return Answer()

    async def _wrap(self, question: Question) -> Answer:
        wanted = await question.json()
        with _refused("wrapping failed"):
            signer = LockPrivate.parse(str(wanted.get("TKAKey", ""))[:SEED_LENGTH])
            wrapped = self._signer().wrap(str(wanted.get("TSKey", "")), signer, LockPrivate(os.urandom(32)))
        return Answer(wrapped.encode())

    async def _affected(self, question: Question) -> Answer:
        key_id = await question.body()
        with _refused("the question failed"):
            found = await self._signer().signed_by(key_id)
        return json_answer([base64.b64encode(data).decode() for data in found])


@contextmanager
def _refused(what: str) -> Iterator[None]:
    try:
        yield
    except (LockError, NoSuchPeer, BadPacket) as problem:
        raise Refused(500, f"{what}: {problem}") from problem


def _octets(text: object) -> bytes:
    """What Go's JSON makes of bytes; null is none."""
    try:
        return base64.b64decode(str(text or ""), validate=True)
    except ValueError:
        raise Refused(400, "not base64") from None


def _key_from(value: Any) -> Key:
    """tka.Key."""
    if not isinstance(value, dict):
        raise BadPacket("not a key of a lock")
    votes, meta = value.get("Votes", 0), value.get("Meta") or {}
    public = _octets(value.get("Public"))
    if len(public) != KEY_LENGTH or type(votes) is not int or not all(isinstance(text, str) for text in meta.values()):
        raise BadPacket("not a key of a lock")
    return Key(public, votes, meta)


def status_json(status: LockStatus, netmap: NetMap | None) -> dict[str, Any]:
    """ipnstate.TailnetLockStatus."""
    found: dict[str, Any] = {
        "Enabled": status.enabled,
        "Head": list(parse_hash_untrusted(status.head)) if status.head else None,
        "PublicKey": _registered(status.our_key),
        "NodeKey": status.node_key if netmap is not None else None,
        "NodeKeySigned": status.enabled and status.our_node_signed,
    }
    if not status.enabled or netmap is None:
        return found
    if status.our_node_signed:
        found["NodeKeySignature"] = _signature(decode_text_untrusted(netmap.self_node.key_signature))
    hidden = {one.node.id: one.node_key for one in status.hidden_peers}
    visible = [_peer(peer, str(peer.key)) for number, peer in netmap.peers.items() if number not in hidden]
    filtered = [_peer(netmap.peers[number], key) for number, key in hidden.items() if number in netmap.peers]
    trusted = [
        {
            "Kind": "25519",
            "Key": registered_text(parse_public(key.key)),
            "Metadata": key.meta or None,
            "Votes": key.votes,
        }
        for key in status.keys
    ]
    return found | {
        "TrustedKeys": trusted,
        "VisiblePeers": visible,
        "FilteredPeers": filtered,
        "StateID": status.state_id,
    }


def _signature(signature: NodeKeySignature) -> dict[str, Any]:
    """tka.NodeKeySignature."""
    parts = {
        "Pubkey": signature.pubkey,
        "KeyID": signature.key_id,
        "Signature": signature.signature,
        "WrappingPubkey": signature.wrapping,
    }
    texts = {name: base64.b64encode(part).decode() for name, part in parts.items() if part is not None}
    nested = _signature(signature.nested) if signature.nested is not None else None
    return {"SigKind": signature.kind, "Nested": nested} | texts


def _peer(node: Node, key: str) -> dict[str, Any]:
    """ipnstate.TKAPeer."""
    addresses = [text.partition("/")[0] for text in node.addresses]
    found = {"Name": node.name, "ID": node.id, "StableID": node.stable_id, "TailscaleIPs": addresses, "NodeKey": key}
    with suppress(BadPacket):  # what cannot be read says nothing
        found["NodeKeySignature"] = _signature(decode_text_untrusted(node.key_signature))
    return found


def _registered(key: str) -> str:
    """`nlpub:`, as Go's types read it."""
    return registered_text(parse_public(key))
