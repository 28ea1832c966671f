"""The lock of an embedded tailnet, as a control server keeps one: it stores and passes on, and can sign nothing itself.

Owns: the chain, the disablement secret once it was shown, and the answers under `/machine/tka/`. Node keys' signatures
are in the directory. Refuses to know: streams and HTTP; what changed is fetched with `take_changed`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from ts_base.errors import BadPacket
from ts_control.directory import Directory, Enrolled
from ts_control.wire import TKAInfo
from ts_control.wire_lock import (
    LockAnswer,
    LockRequest,
    SignInfo,
    from_text_untrusted,
    to_text,
    updates_from_text_untrusted,
    updates_to_text,
)
from ts_lock.chain import Chain
from ts_lock.disablement import turns_off
from ts_lock.keys import parse_public
from ts_lock.signatures import NODE_KEY_PREFIX, decode_signature_untrusted, decode_text_untrusted, examine
from ts_lock.updates import Update, decode_update_untrusted, hash_text, parse_hash_untrusted


class LockRefused(BadPacket):
    """What was asked of the lock cannot be."""


class ServedLock:
    """The eight questions, and what an administrator may do."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._proposed: Update | None = None  # by `init/begin`, until all nodes are signed
        self.chain: Chain | None = None
        self._secret = b""  # that ended the last lock, for nodes that still believe in it
        self._was_locked = False
        self._changed: set[int] = set()
        self._is_told = True
        self.withholds_secret = False  # a lying server, for tests of clients

    # What everybody is told

    @property
    def info(self) -> TKAInfo | None:
        """For a map; None where there never was a lock."""
        if self.chain is not None:
            return TKAInfo(head=hash_text(self.chain.head))
        return TKAInfo(disabled=True) if self._was_locked else None

    def take_news(self) -> TKAInfo | None:
        """`info`, if it changed since last asked."""
        is_told, self._is_told = self._is_told, True
        return None if is_told else self.info

    def take_changed(self) -> set[int]:
        """The devices that have another signature since last asked."""
        changed, self._changed = self._changed, set()
        return changed

    def touch(self) -> None:
        """Everybody is told `info` once more."""
        self._is_told = False

    # Signatures of devices

    def old_signature(self, device: Enrolled | None) -> str:
        """What a device that comes with a new node key and no signature may sign it on top of; empty if it cannot."""
        if self.chain is None or device is None or not device.key_signature:
            return ""
        with contextlib.suppress(BadPacket):
            layers = decode_text_untrusted(device.key_signature).layers()
            if any(layer.wrapping is not None for layer in layers):
                return device.key_signature
        return ""

    def accept(self, device: Enrolled, signature: str) -> None:
        """A device registered with what vouches for its node key. What does not hold is not kept."""
        device.key_signature = ""
        with contextlib.suppress(BadPacket):
            if self.chain is not None and signature:
                self._check(device.key.raw, from_text_untrusted(signature))
                device.key_signature = signature

    def vouches_for(self, device: Enrolled) -> bool:
        """Whether other nodes believe in this one; without a lock they believe in everybody."""
        if self.chain is None:
            return True
        try:
            self._check(device.key.raw, from_text_untrusted(device.key_signature))
        except BadPacket:
            return False
        return True

    def _check(self, node_key: bytes, data: bytes) -> None:
        if self.chain is None:
            raise LockRefused("this tailnet has no lock")
        vouched = examine(node_key, decode_signature_untrusted(data))
        if vouched.key_id not in self.chain.state.keys:
            raise LockRefused("the signature is by a key that the lock does not trust")

    # What devices ask

    def answer(self, what: str, request: LockRequest) -> LockAnswer:
        """One question. BadPacket says why it cannot be answered."""
        handler = self._handlers().get(what)
        if handler is None:
            raise LockRefused(f"nobody asks a control server for {what}")
        return handler(request)

    def _handlers(self) -> dict[str, Callable[[LockRequest], LockAnswer]]:
        return {
            "init/begin": self._begin,
            "init/finish": self._finish,
            "bootstrap": self._bootstrap,
            "sync/offer": self._offer,
            "sync/send": self._take,
            "sign": self._sign,
            "disable": self._disable,
            "affected-sigs": self._affected,
        }

    def _begin(self, request: LockRequest) -> LockAnswer:
        if self.chain is not None:
            raise LockRefused("this tailnet has a lock already")
        genesis = decode_update_untrusted(from_text_untrusted(request.genesis_aum))
        Chain(genesis)
        self._proposed = genesis
        return LockAnswer(need_signatures=tuple(_sign_info(device) for device in self._directory))

    def _finish(self, request: LockRequest) -> LockAnswer:
        if self._proposed is None or self.chain is not None:
            raise LockRefused("no lock was begun")
        signed = {_number_of_node(node): from_text_untrusted(s) for node, s in request.signatures.items()}
        self.begin(self._proposed, signed)
        return LockAnswer()

    def begin(self, genesis: Update, signatures: dict[int, bytes]) -> None:
        """The tailnet has this lock from now on. BadPacket leaves it without."""
        chain = Chain(genesis)
        for device_id, data in signatures.items():
            device = self._directory.devices.get(device_id)
            if device is None or examine(device.key.raw, decode_signature_untrusted(data)).key_id not in (
                chain.state.keys
            ):
                raise LockRefused("a signature that does not hold")
        self.chain, self._proposed, self._was_locked, self._secret = chain, None, True, b""
        for device_id, data in signatures.items():
            self._directory.devices[device_id].key_signature = to_text(data)
        self._changed.update(self._directory.devices)
        self._is_told = False

    def _bootstrap(self, request: LockRequest) -> LockAnswer:
        if request.head and self.chain is None:
            return LockAnswer(disablement_secret="" if self.withholds_secret else to_text(self._secret))
        return LockAnswer(genesis_aum=to_text(self._in_force().genesis.data))

    def _offer(self, request: LockRequest) -> LockAnswer:
        chain = self._in_force()
        theirs = [parse_hash_untrusted(one) for one in (request.head, *request.ancestors)]
        missing = chain.missing(theirs[0], theirs[1:])
        return LockAnswer(
            head=hash_text(chain.head),
            ancestors=tuple(hash_text(one) for one in chain.ancestors()),
            missing_aums=updates_to_text(missing),
        )

    def _take(self, request: LockRequest) -> LockAnswer:
        chain = self._in_force()
        self.update(updates_from_text_untrusted(request.missing_aums))
        return LockAnswer(head=hash_text(chain.head))

    def update(self, updates: list[Update]) -> None:
        """Take over what signers changed; signatures by keys that are trusted no more are worth nothing now."""
        chain = self._in_force()
        head = chain.head
        chain.add(updates)
        if chain.head != head:
            self._is_told = False

    def _sign(self, request: LockRequest) -> LockAnswer:
        self.sign(from_text_untrusted(request.signature))
        return LockAnswer()

    def sign(self, data: bytes) -> None:
        """Take over what vouches for the device that it names."""
        pubkey = decode_signature_untrusted(data).pubkey or b""
        node_key = pubkey.removeprefix(NODE_KEY_PREFIX)
        device = next((device for device in self._directory if device.key.raw == node_key), None)
        if device is None:
            raise LockRefused("no node has the key that was signed")
        self._check(node_key, data)
        device.key_signature = to_text(data)
        self._changed.add(device.id)

    def forget_signature(self, device_id: int) -> None:
        """As if nobody had signed the device."""
        self._directory.find(device_id).key_signature = ""
        self._changed.add(device_id)

    def _disable(self, request: LockRequest) -> LockAnswer:
        self.disable(from_text_untrusted(request.disablement_secret))
        return LockAnswer()

    def disable(self, secret: bytes) -> None:
        """The lock ends, for whoever has the secret."""
        if not turns_off(self._in_force().state, secret):
            raise LockRefused("that is no disablement secret of this lock")
        self.chain, self._secret, self._is_told = None, secret, False
        for device in self._directory:
            if device.key_signature:
                device.key_signature = ""
                self._changed.add(device.id)

    def _affected(self, request: LockRequest) -> LockAnswer:
        key_id = from_text_untrusted(request.key_id)
        found = []
        for device in self._directory:
            with contextlib.suppress(BadPacket):
                signature = decode_text_untrusted(device.key_signature)
                if examine(device.key.raw, signature).key_id == key_id:
                    found.append(device.key_signature)
        return LockAnswer(signatures=tuple(found))

    def _in_force(self) -> Chain:
        if self.chain is None:
            raise LockRefused("this tailnet has no lock")
        return self.chain


def _number_of_node(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 19:
        raise LockRefused("a signature of a node whose number is none")
    return int(text)


def _sign_info(device: Enrolled) -> SignInfo:
    rotation = b""
    with contextlib.suppress(BadPacket):
        rotation = parse_public(device.lock_key)
    return SignInfo(device.id, device.key, to_text(rotation if any(rotation) else b""))
