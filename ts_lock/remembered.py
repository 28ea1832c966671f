"""What signatures were found to be worth, kept between runs: a check is dear, and its outcome never changes.

Owns: the entry that holds it, and its bound. It can be written by nobody without a secret of ours, and holds no list of
whom to trust: a signer that the lock does not trust any more counts for nothing, whatever is remembered of it.
Refuses to know: where the entry is kept, and when it is written.
"""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Iterable
from hashlib import blake2s
from typing import Any, NamedTuple

from ts_base.errors import BadPacket
from ts_base.keys import KEY_LENGTH
from ts_lock.signatures import MAX_ROTATIONS, Rotation, Vouched

LARGEST = 512 << 10  # bytes of an entry: 24,000 nodes; what is beyond is checked anew in the next run
TAG_LENGTH, AS_TEXT = 16, 22  # bytes, and in base64
SMALLEST_NEWS = 64  # verdicts before the entry is worth writing again
PURPOSE = b"remembered verdicts of a tailnet lock"
_HEAD, _BODY, _END = b'{"mac":"', b'","verdicts":', b"}"
_BODY_AT = len(_HEAD) + 64 + len(_BODY)


class Claim(NamedTuple):
    """A node key and what is said to vouch for it, in base64."""

    key: bytes
    signature: str


class Remembered:
    """Signatures that hold. `secret` is ours alone: with it each is named, and the whole is sealed."""

    def __init__(self, secret: bytes) -> None:
        self._begin(secret)

    def forget(self, secret: bytes) -> None:
        """Nothing is known any more, and this is the secret from now on."""
        self._begin(secret)

    def _begin(self, secret: bytes) -> None:
        self._secret = secret
        self._vouched: dict[bytes, Vouched] = {}
        self._news = 0

    def recall(self, claim: Claim) -> Vouched | None:
        """What this very signature was worth for this very key."""
        return self._vouched.get(self._tag(claim)) if self._vouched else None

    def note(self, claim: Claim, vouched: Vouched) -> None:
        """It was checked, and holds."""
        self._vouched[self._tag(claim)] = vouched
        self._news += 1

    @property
    def has_news(self) -> bool:
        """Whether anything was noted since the entry was made."""
        return self._news > 0

    @property
    def is_worth_writing(self) -> bool:
        """Whether so much is new that losing it would be felt."""
        return self._news >= max(SMALLEST_NEWS, len(self._vouched) // 8)

    def _tag(self, claim: Claim) -> bytes:
        return blake2s(claim.key + claim.signature.encode(), digest_size=TAG_LENGTH, key=self._secret).digest()

    # The entry

    def entry(self, claims: Iterable[Claim]) -> bytes:
        """What to keep of these; what was known of others is forgotten."""
        kept: dict[bytes, Vouched] = {}
        direct: dict[bytes, bytearray] = {}
        rotated: list[Any] = []
        size = 0
        for claim in claims:
            tag = self._tag(claim)
            vouched = self._vouched.get(tag)
            if vouched is None or tag in kept:
                continue
            if vouched.rotation is None:
                size += AS_TEXT
            else:
                rotated.append(_rotated_to_value(tag, vouched, vouched.rotation))
                size += 4 * KEY_LENGTH * (len(vouched.rotation.older) + 2)
            if size > LARGEST:
                break
            kept[tag] = vouched
            if vouched.rotation is None:
                direct.setdefault(vouched.key_id, bytearray()).extend(tag)
        self._vouched, self._news = kept, 0
        signers = {who.hex(): base64.b64encode(tags).decode() for who, tags in direct.items()}
        body = json.dumps({"direct": signers, "rotated": rotated}).encode()
        return self._sealed(body)

    def read_untrusted(self, entry: bytes) -> None:
        """Take over what the last run kept. BadPacket where that is not an entry of ours; then nothing is known."""
        body = entry[_BODY_AT : -len(_END)]
        if not hmac.compare_digest(entry, self._sealed(body)):
            raise BadPacket("not what this device has kept")
        try:
            self._vouched, self._news = _read(json.loads(body)), 0
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadPacket("not what this version has kept") from None

    def _sealed(self, body: bytes) -> bytes:
        return _HEAD + blake2s(body, key=self._secret).hexdigest().encode() + _BODY + body + _END


def _rotated_to_value(tag: bytes, vouched: Vouched, rotation: Rotation) -> list[Any]:
    wrapping = rotation.wrapping.hex() if rotation.wrapping is not None else None
    return [tag.hex(), vouched.key_id.hex(), [key.hex() for key in rotation.older], wrapping]


def _read(body: Any) -> dict[bytes, Vouched]:
    found: dict[bytes, Vouched] = {}
    for who, text in body["direct"].items():
        tags, vouched = base64.b64decode(text, validate=True), Vouched(_key(who))
        found |= {tags[at : at + TAG_LENGTH]: vouched for at in range(0, len(tags), TAG_LENGTH)}
    for tag, who, older, wrapping in body["rotated"]:
        if len(older) > MAX_ROTATIONS + 1:
            raise ValueError("more keys than one chain has")
        rotation = Rotation(tuple(map(_key, older)), _key(wrapping) if wrapping is not None else None)
        found[bytes.fromhex(tag)] = Vouched(_key(who), rotation)
    return found


def _key(text: str) -> bytes:
    key = bytes.fromhex(text)
    if len(key) != KEY_LENGTH:
        raise ValueError("not a key")
    return key
