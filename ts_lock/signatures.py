"""What vouches for one node key: a signature by a key of the lock, or a chain that leads back to one.

Owns: their bytes, whether a chain holds, and the making of new ones: for another node, for our own next key, and by an
auth key that carries its own signature. Refuses to know: who is trusted now (`vouching.py`).
Rules: upstream's tka/sig.go.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

from ts_base.errors import BadPacket
from ts_base.keys import KEY_LENGTH
from ts_lock import cbor
from ts_lock.keys import SIGNATURE_LENGTH, LockPrivate, digest, is_signed_by

NODE_KEY_PREFIX = b"np"  # before the 32 bytes of a node key
MAX_ROTATIONS = 15  # one more nests deeper than anybody decodes
LONGEST = 16 << 10  # bytes of one signature, in base64
# An auth key with a signature behind it: base64 without padding; the private key is 64 bytes, seed and public half.
WRAPPED = re.compile(r"(?P<key>.*)--TL(?P<signature>[A-Za-z0-9+/]+)-(?P<private>[A-Za-z0-9+/]{86})", re.DOTALL)


class SigKind(IntEnum):
    DIRECT = 1  # a key of the lock signed this node key
    ROTATION = 2  # whoever the inner one names signed this node key
    CREDENTIAL = 3  # a key of the lock lets another key sign one node key; worth nothing by itself


class NodeKeySignature(NamedTuple):
    """One layer; `nested` is the one it stands on."""

    kind: int
    pubkey: bytes | None = None  # "np" and the node key
    key_id: bytes | None = None
    signature: bytes | None = None
    nested: NodeKeySignature | None = None
    wrapping: bytes | None = None  # the key that may sign a rotation of this

    def encode(self) -> bytes:
        return cbor.encode(self._to_value())

    def signed_hash(self) -> bytes:
        """What `signature` is over: everything else, the inner layers whole."""
        return digest(cbor.encode(self._replace(signature=None)._to_value()))

    def signed_by(self, private: LockPrivate) -> NodeKeySignature:
        return self._replace(signature=private.sign(self.signed_hash()))

    def layers(self) -> Iterator[NodeKeySignature]:
        """From the outside in."""
        layer: NodeKeySignature | None = self
        while layer is not None:
            yield layer
            layer = layer.nested

    def _to_value(self) -> dict[int, Any]:
        nested = self.nested._to_value() if self.nested is not None else None
        optional = {2: self.pubkey, 3: self.key_id, 4: self.signature, 5: nested, 6: self.wrapping}
        return {1: self.kind} | {number: part for number, part in optional.items() if part is not None}


def decode_signature_untrusted(data: bytes) -> NodeKeySignature:
    """Exactly what `encode` writes; BadPacket otherwise. Whether it holds is another question."""
    return _from_value(cbor.decode_untrusted(data))


def _from_value(value: Any) -> NodeKeySignature:
    fields = cbor.Fields(value, "a node key's signature")
    kind = fields.number(1, 255)
    if kind not in tuple(SigKind):
        raise BadPacket("a node key's signature of unknown kind")
    nested = fields.some_value(5)
    found = NodeKeySignature(
        kind,
        pubkey=fields.some_octets(2, len(NODE_KEY_PREFIX) + KEY_LENGTH),
        key_id=fields.some_octets(3, KEY_LENGTH),
        signature=fields.some_octets(4, SIGNATURE_LENGTH),
        nested=_from_value(nested) if nested is not None else None,
        wrapping=fields.some_octets(6, KEY_LENGTH),
    )
    fields.end()
    return found


def decode_text_untrusted(text: str) -> NodeKeySignature:
    """From base64, as JSON carries it."""
    return decode_signature_untrusted(_as_bytes(text))


def _as_bytes(text: str) -> bytes:
    if len(text) > LONGEST:
        raise BadPacket("a node key's signature that is too long")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise BadPacket("a node key's signature that is not base64") from None


class Rotation(NamedTuple):
    """That a node changed its key: the older ones are worth nothing any more."""

    older: tuple[bytes, ...]  # node keys, newest first
    wrapping: bytes | None
    """The key that signs this node's rotations; None where it came with an auth key, which several nodes may use."""


class Vouched(NamedTuple):
    """A chain that holds, if the key it leads back to is trusted."""

    key_id: bytes
    rotation: Rotation | None = None


def examine(node_key: bytes, outer: NodeKeySignature) -> Vouched:
    """Check every layer of what is said to vouch for `node_key`. BadPacket: it does not, whoever is trusted."""
    layers = list(outer.layers())
    if outer.kind == SigKind.CREDENTIAL:
        raise BadPacket("a credential vouches for no node by itself")
    if outer.pubkey != NODE_KEY_PREFIX + node_key:
        raise BadPacket("a signature for another node key")
    root = layers[-1]
    if root.kind == SigKind.ROTATION or root.key_id is None:
        raise BadPacket("a chain of signatures that leads back to no key of a lock")
    if any(layer.kind != SigKind.ROTATION for layer in layers[:-1]):
        raise BadPacket("a signature that stands on another and may not")
    if not _is_signed(root, root.key_id):
        raise BadPacket("the signature of the lock's key is wrong")
    signer = root.wrapping
    for layer in reversed(layers[:-1]):
        if layer.pubkey is None or signer is None or not _is_signed(layer, signer):
            raise BadPacket("a change of key that nobody who may has signed")
        signer = layer.wrapping or signer
    if root.kind == SigKind.DIRECT and root.pubkey is None:
        raise BadPacket("a signature for no node key")
    if outer.kind != SigKind.ROTATION:
        return Vouched(root.key_id)
    older = tuple(layer.pubkey[len(NODE_KEY_PREFIX) :] for layer in layers[1:] if layer.pubkey)
    return Vouched(root.key_id, Rotation(older, root.wrapping if root.kind == SigKind.DIRECT else None))


def examine_text_untrusted(node_key: bytes, text: str) -> Vouched:
    """What the base64 of a signature is worth for `node_key`. BadPacket: nothing, whoever is trusted."""
    data = _as_bytes(text)
    return _examine_direct(node_key, data) or examine(node_key, decode_signature_untrusted(data))


# The bytes of nearly every signature, field by field: kind 1, "np" and the node key, the signer, the signature, and
# perhaps the node's own lock key. What is signed is all of it but the fourth field.
_UNTIL_KEY, _UNTIL_SIGNER, _UNTIL_SIGNATURE, _UNTIL_WRAPPING = (
    b"\1\1\2\x58\x22np",
    b"\3\x58\x20",
    b"\4\x58\x40",
    b"\6\x58\x20",
)
_SIGNER, _CUT = slice(43, 75), slice(75, 142)
_LENGTHS = {142: (b"\xa4", b"\xa3"), 177: (b"\xa5", b"\xa4")}  # and the heads of the whole map, and of what is signed


def _examine_direct(node_key: bytes, data: bytes) -> Vouched | None:
    """The same as decoding and examining, where the layout is the usual one and the signature holds; else None."""
    heads = _LENGTHS.get(len(data))
    if heads is None or not data.startswith(heads[0] + _UNTIL_KEY + node_key + _UNTIL_SIGNER):
        return None
    behind = data[_CUT.stop :]
    if data[75:78] != _UNTIL_SIGNATURE or (behind and not behind.startswith(_UNTIL_WRAPPING)):
        return None
    signer = data[_SIGNER]
    signed = digest(heads[1] + data[1 : _CUT.start] + behind)
    return Vouched(signer) if is_signed_by(signer, data[78 : _CUT.stop], signed) else None


def _is_signed(layer: NodeKeySignature, public: bytes) -> bool:
    return layer.signature is not None and is_signed_by(public, layer.signature, layer.signed_hash())


# --- making them ------------------------------------------------------------------------------------


def sign_node(private: LockPrivate, node_key: bytes, wrapping: bytes | None) -> NodeKeySignature:
    """Vouch for a node. With `wrapping`, its own lock key, it may change its node key later by itself."""
    unsigned = NodeKeySignature(SigKind.DIRECT, NODE_KEY_PREFIX + node_key, key_id=private.public, wrapping=wrapping)
    return unsigned.signed_by(private)


def rotate(private: LockPrivate, node_key: bytes, old: NodeKeySignature) -> NodeKeySignature:
    """What vouches for our next node key, on top of what vouched for the one before.

    A chain as long as it may be is written anew without its oldest keys; what the lock's key signed stays below.
    """
    pubkey = NODE_KEY_PREFIX + node_key
    if old.pubkey == pubkey:
        return old  # it was signed for this very key already
    layers = list(old.layers())
    if next((layer.wrapping for layer in layers if layer.wrapping is not None), None) != private.public:
        raise BadPacket("the signature of the node key before does not let our key change it")
    pubkeys = [layer.pubkey for layer in layers if layer.pubkey is not None]
    if len(pubkeys) > MAX_ROTATIONS:
        old = layers[-1]
        for each in reversed(pubkeys[: MAX_ROTATIONS - 1]):
            old = NodeKeySignature(SigKind.ROTATION, each, nested=old).signed_by(private)
    return NodeKeySignature(SigKind.ROTATION, pubkey, nested=old).signed_by(private)


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """An auth key, and what came behind it: a credential and the key that it lets sign. Shows nothing of either."""

    auth_key: str
    credential: NodeKeySignature | None = None
    private: LockPrivate | None = None

    def vouch(self, node_key: bytes) -> NodeKeySignature | None:
        """The signature that a register request with this key carries."""
        if self.credential is None or self.private is None:
            return None
        unsigned = NodeKeySignature(SigKind.ROTATION, NODE_KEY_PREFIX + node_key, nested=self.credential)
        return unsigned.signed_by(self.private)

    def __repr__(self) -> str:
        return "WrappedKey([redacted])"


def unwrap_auth_key(text: str) -> WrappedKey:
    """An auth key without what is behind it, which is not for the server's eyes.

    A key of random letters may hold "--TL" too: behind a real one stand a signature and an Ed25519 private key.
    """
    match = WRAPPED.fullmatch(text)
    if match is None:
        return WrappedKey(text)
    try:
        credential = decode_signature_untrusted(_from_base64(match["signature"]))
        private = LockPrivate(_from_base64(match["private"])[:KEY_LENGTH])
    except BadPacket:
        return WrappedKey(match["key"])
    if credential.kind != SigKind.CREDENTIAL or credential.wrapping != private.public:
        return WrappedKey(match["key"])
    return WrappedKey(match["key"], credential, private)


def wrap_auth_key(auth_key: str, signer: LockPrivate, fresh: LockPrivate) -> str:
    """An auth key whose node is vouched for as soon as it joins. `fresh` is a key made for this alone."""
    unsigned = NodeKeySignature(SigKind.CREDENTIAL, key_id=signer.public, wrapping=fresh.public)
    credential = unsigned.signed_by(signer).encode()
    return f"{auth_key}--TL{_to_base64(credential)}-{_to_base64(fresh.seed + fresh.public)}"


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise BadPacket("not base64") from None


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")
