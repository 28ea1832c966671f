"""The protocol's own words, of the namespace `_`: what arrived, what is refused, what is no longer wanted."""

from __future__ import annotations

import msgspec

from ts_mesh.hello import Number

ACK, NACK, CANCEL = "ack", "nack", "cancel"


class Ack(msgspec.Struct, omit_defaults=True):
    """`n` and everything before it has come, but for what is `held`: that is in nobody's queue yet.

    `took` gives credit back by namespace. The first ack of a connection says instead what is `waiting` in all.
    """

    n: Number
    took: dict[str, Number] = {}
    held: tuple[Number, ...] = ()
    waiting: dict[str, Number] | None = None


class Nack(msgspec.Struct):
    """Message `n` cannot be had there: `nobody` listens, its `shape` is wrong, or it is `too-large`."""

    n: Number
    why: str


class Cancel(msgspec.Struct):
    """Nobody waits for the answer to message `n` any more."""

    n: Number


decode_ack = msgspec.json.Decoder(Ack).decode
decode_nack = msgspec.json.Decoder(Nack).decode
decode_cancel = msgspec.json.Decoder(Cancel).decode
