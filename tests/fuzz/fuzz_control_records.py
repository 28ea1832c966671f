"""The bytes after the 101: handshake answer, records, early payload. Any bytes, any split: plaintext or BadPacket."""

from __future__ import annotations

import random

from ts_base.errors import BadPacket
from ts_base.keys import MachinePrivate
from ts_control.handshake import Initiator, accept_untrusted, encode_refusal
from ts_control.record import ClientTransport, RecordReader, RecordWriter, encode_early_payload
from ts_control.wire_register import EarlyNoise

CLIENT = MachinePrivate.generate(random.Random(1).randbytes(32))
SERVER = MachinePrivate.generate(random.Random(2).randbytes(32))


def _initiator() -> Initiator:
    return Initiator(CLIENT, SERVER.public, 131, entropy=random.Random(3).randbytes)


ACCEPTED = accept_untrusted(_initiator().initiation, SERVER, entropy=random.Random(4).randbytes)


def _carry(pieces: list[bytes]) -> tuple[bytes, bool]:
    transport, plain = ClientTransport(_initiator()), b""
    for piece in pieces:
        try:
            plain += transport.receive_untrusted(piece)
        except BadPacket:
            return plain, True
    return plain, False


def fuzz_one(data: bytes) -> None:
    step = data[0] % 32 + 1 if data else 1
    for wire in (data, ACCEPTED.response + data, ACCEPTED.response + RecordWriter(ACCEPTED.keys.send).write(data)):
        whole, whole_bad = _carry([wire])
        pieces, pieces_bad = _carry([wire[i : i + step] for i in range(0, len(wire), step)])
        assert whole_bad == pieces_bad
        assert pieces.startswith(whole)
        assert whole_bad or whole == pieces
    try:
        accept_untrusted(data, SERVER, entropy=random.Random(4).randbytes)
        RecordReader(bytes(32)).receive_untrusted(data)
    except BadPacket:
        return


def seeds() -> list[bytes]:
    writer = RecordWriter(ACCEPTED.keys.send)
    return [
        ACCEPTED.response,
        ACCEPTED.response + writer.write(encode_early_payload(EarlyNoise()) + b"hello"),
        encode_refusal("no"),
        encode_early_payload(EarlyNoise()),
        _initiator().initiation,
    ]
