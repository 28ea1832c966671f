"""Any bytes as an update of a lock, as what vouches for a node key, and as a text that stands for either."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from pathlib import Path

from ts_base.errors import BadPacket
from ts_control.wire_lock import from_text_untrusted, updates_from_text_untrusted
from ts_lock import cbor
from ts_lock.chain import Chain
from ts_lock.remembered import Remembered
from ts_lock.signatures import (
    decode_signature_untrusted,
    decode_text_untrusted,
    examine,
    examine_text_untrusted,
    unwrap_auth_key,
)
from ts_lock.updates import decode_update_untrusted, hash_text, parse_hash_untrusted

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "lock.json").read_text())
GENESIS = bytes.fromhex(VECTORS["updates"][0]["data"])
NODE_KEY = bytes([40]) * 32


def fuzz_one(data: bytes) -> None:
    _read(data)
    text = data.decode("latin-1")
    for parse in (parse_hash_untrusted, decode_text_untrusted, from_text_untrusted, _examine):
        try:
            parse(text)
        except BadPacket:
            continue
    with suppress(BadPacket):
        Remembered(NODE_KEY).read_untrusted(data)
    unwrap_auth_key(text)
    try:
        updates_from_text_untrusted(text.split(","))
    except BadPacket:
        return


def _examine(text: str) -> None:
    vouched = examine_text_untrusted(NODE_KEY, text)
    assert vouched == examine(NODE_KEY, decode_text_untrusted(text))


def _read(data: bytes) -> None:
    try:
        assert cbor.encode(cbor.decode_untrusted(data)) == data
    except BadPacket:
        return  # then it is neither of the two
    chain = Chain(decode_update_untrusted(GENESIS))
    try:
        update = decode_update_untrusted(data)
        assert update.data == data
        assert parse_hash_untrusted(hash_text(update.hash)) == update.hash
        chain.add([update])
    except BadPacket:
        assert len(chain.updates()) == 1
    try:
        signature = decode_signature_untrusted(data)
        assert signature.encode() == data
        examine(NODE_KEY, signature)
    except BadPacket:
        return


def seeds() -> list[bytes]:
    updates = [bytes.fromhex(case["data"]) for case in VECTORS["updates"] if "large" not in case["name"]]
    signatures = [bytes.fromhex(case["data"]) for case in VECTORS["signatures"]["cases"][:14]]
    texts = [VECTORS["updates"][0]["hash"].encode(), VECTORS["wrapped"]["text"].encode()]
    texts += [base64.b64encode(signature) for signature in signatures]
    return [*updates, *signatures, *texts, Remembered(NODE_KEY).entry([])]
