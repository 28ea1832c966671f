"""Any questions to the control server about its lock, one a line: a path below `/machine/tka/`, and JSON."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path

from ts_base.errors import BadPacket
from ts_base.keys import MachinePublic, NodePublic
from ts_control.directory import Directory
from ts_control.gojson import decode_json_untrusted, encode_json
from ts_control.server_lock import ServedLock
from ts_control.wire_lock import LockRequest, to_text
from ts_lock.keys import LockPrivate
from ts_lock.signatures import sign_node

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "lock.json").read_text())
NODE = NodePublic(bytes([40]) * 32)
MOST_LINES = 8


def fuzz_one(data: bytes) -> None:
    numbers = count(1)
    directory = Directory(lambda length: next(numbers).to_bytes(length, "big"))
    directory.enroll(MachinePublic(bytes([1]) * 32), NODE, "user", "a", 0.0)
    lock = ServedLock(directory)
    for line in data.split(b"\n")[:MOST_LINES]:
        what, _, body = line.partition(b" ")
        try:
            encode_json(lock.answer(what.decode("latin-1"), decode_json_untrusted(LockRequest, body)))
        except BadPacket:
            continue
        lock.take_changed()
        lock.take_news()


def seeds() -> list[bytes]:
    genesis, removal = (to_text(bytes.fromhex(VECTORS["updates"][n]["data"])) for n in (0, 2))
    key = LockPrivate(bytes([1]) * 32)
    signature = to_text(sign_node(key, NODE.raw, None).encode())
    head = VECTORS["updates"][0]["hash"]
    begin = [
        (b"init/begin", LockRequest(genesis_aum=genesis)),
        (b"init/finish", LockRequest(signatures={"1": signature})),
    ]
    rest = [
        (b"bootstrap", LockRequest()),
        (b"sync/offer", LockRequest(head=head, ancestors=(head,))),
        (b"sync/send", LockRequest(head=head, missing_aums=(removal,))),
        (b"sign", LockRequest(signature=signature)),
        (b"affected-sigs", LockRequest(key_id=to_text(key.public))),
    ]
    lines = [what + b" " + encode_json(request) for what, request in begin + rest]
    return [b"\n".join(lines), *(b"\n".join([*lines[:2], line]) for line in lines[2:])]
