"""Truffle's own words about files, which come in the namespace `ft`: understood as far as it takes to refuse them.

Whoever offers a file so waits a minute for an answer. Facts: its signalling messages are JSON objects whose `type` says
which one it is; an `offer` and a `pull_request` have a `token`, and a `reject` says it again with a `reason`.
"""

from __future__ import annotations

import msgspec

from ts_base.errors import BadPacket
from ts_mesh.envelope import FOREIGN_FILES, Envelope, decode_payload

REJECT = "reject"
ASKS = ("offer", "pull_request")
LONGEST_TOKEN = 256


class _Asked(msgspec.Struct):
    type: str
    token: str = ""


class _Reject(msgspec.Struct):
    type: str
    token: str
    reason: str


_asked = msgspec.json.Decoder(_Asked)


def decode_asker_untrusted(envelope: Envelope) -> str:
    """The token of what asks for an answer; "" for Truffle's other words. Raises BadPacket for what is none of them."""
    asked: _Asked = decode_payload(envelope, _asked)
    if asked.type not in ASKS:
        return ""
    if not 0 < len(asked.token.encode("utf-8", "replace")) <= LONGEST_TOKEN:
        raise BadPacket(f"an offer of Truffle's has a token of 1 to {LONGEST_TOKEN} bytes")
    return asked.token


def refusal(token: str, reason: str, timestamp: int) -> Envelope:
    """What answers it."""
    payload = msgspec.Raw(msgspec.json.encode(_Reject(REJECT, token, reason)))
    return Envelope(FOREIGN_FILES, REJECT, payload, timestamp)
