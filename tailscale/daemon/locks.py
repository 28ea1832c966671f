"""`tka/`: what upstream's `tailscale lock status`, `log` and `sign` ask a daemon about the tailnet's lock.

Owns: those words. What makes a lock or changes who may sign is done on another machine, and refused by `localapi.py`.
"""

from __future__ import annotations

import base64
from typing import Any

import trio

from tailscale.daemon.answering import Answer, Question, Refused, Routes, json_answer
from tailscale.daemon.keeper import Keeper
from tailscale.daemon.localapi import ROOT
from tailscale.device import Device
from tailscale.errors import LockError, NoSuchPeer
from tailscale.lock import LockStatus
from ts_control.netmap import NetMap
from ts_control.wire import Node
from ts_lock.keys import parse_public, registered_text
from ts_lock.signatures import NodeKeySignature, decode_text_untrusted
from ts_lock.updates import parse_hash_untrusted

LONGEST_LOG = 500


class Locks:
    """The lock of the daemon's device."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", f"{ROOT}tka/status", self._status)
        routes.add("GET", f"{ROOT}tka/log", self._log)
        routes.add("POST", f"{ROOT}tka/sign", self._sign, writers=True)

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

    async def _sign(self, question: Question) -> Answer:
        wanted = await question.json()
        rotation = base64.b64decode(wanted.get("RotationPublic") or "")
        key = registered_text(rotation) if rotation else ""
        try:
            await self._keeper.usable.lock.sign(str(wanted.get("NodeKey", "")), key)
        except (LockError, NoSuchPeer) as problem:
            raise Refused(500, f"signing failed: {problem}") from problem
        return Answer()


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
    return {"Name": node.name, "ID": node.id, "StableID": node.stable_id, "TailscaleIPs": addresses, "NodeKey": key}


def _registered(key: str) -> str:
    """`nlpub:`, as Go's types read it."""
    return registered_text(parse_public(key))
