"""Anything as frames of a light client, in any pieces, and as the call it begins with."""

from __future__ import annotations

import json
from contextlib import suppress

from tailscale.daemon.calls import read_call_untrusted
from tailscale.daemon.frames import CALL, INPUT, KINDS, LONGEST_FRAME, SIGNAL, Frames, frame
from ts_base.errors import BadPacket


async def _nowhere(data: bytes) -> None:
    raise AssertionError(data)


def fuzz_one(data: bytes) -> None:
    cut = data[0] if data else 0
    whole, pieces = Frames(), Frames()
    try:
        at_once = whole.take_untrusted(data)
    except BadPacket:
        return
    assert pieces.take_untrusted(data[:cut]) + pieces.take_untrusted(data[cut:]) == at_once
    for kind, payload in at_once:
        assert kind[0] in KINDS
        assert len(payload) <= LONGEST_FRAME
        if kind == CALL:
            try:
                call = read_call_untrusted(payload, _nowhere)
            except BadPacket:
                continue
            assert all(isinstance(word, str) for word in call.argv)
            assert isinstance(call.columns, int)
            with suppress(BadPacket):
                call.hear_filed_untrusted(payload)


def seeds() -> list[bytes]:
    told = {
        "argv": ["status", "--json"],
        "cwd": "/tmp",
        "columns": 80,
        "is_input_terminal": True,
        "out": {"wants_style": True, "encoding": "utf-8"},
    }
    call = frame(CALL, json.dumps(told).encode())
    return [call, call + frame(INPUT, b"hello") + frame(INPUT), frame(SIGNAL, b"\x02"), frame(CALL, b"[]")]
