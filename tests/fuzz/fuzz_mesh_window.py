"""A window under any story a peer may tell: only BadPacket, and never more kept than its limits allow.

Each byte is one event: a message, a word of the protocol, a connection, time, or something its owner does.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from ts_base.errors import BadPacket
from ts_mesh.envelope import Envelope, decode_text_untrusted
from ts_mesh.facts import Arrived, Parcel
from ts_mesh.hello import Seen
from ts_mesh.limits import MeshLimits
from ts_mesh.window import Window

LIMITS = MeshLimits(unacked=8, credit=4, held=3)
OURS = "a" * 16
EPOCHS = ("b" * 16, "c" * 16)
NAMESPACES = ("chat", "news")
MOST_STEPS = 300


def fuzz_one(data: bytes) -> None:
    window, now, number = Window(LIMITS, OURS), 0.0, 0
    for code in data[:MOST_STEPS]:
        action, detail = code & 7, code >> 3
        namespace = NAMESPACES[detail & 1]
        try:
            match action:
                case 0:
                    number += 1 if detail & 2 else detail % 3
                    window.receive(said(namespace, n=number, ask=bool(detail & 4)), is_current=bool(detail & 8))
                case 1:
                    window.receive(word(detail, number))
                case 2:
                    window.receive(said(namespace, n=0, re=detail))
                case 3:
                    seen = Seen(OURS if detail & 4 else EPOCHS[0], detail) if detail & 2 else None
                    window.connect(EPOCHS[detail & 1], seen, acks=bool(detail & 8))
                case 4 if window.has_room(namespace, 2):
                    window.send(Parcel(said(namespace, ask=bool(detail & 2))))
                case 5:
                    now += detail
                    window.handle_timer(now)
                case 6:
                    window.disconnect()
                case 7:
                    window.took(namespace, window.life, detail & 3)
        except BadPacket:
            window.disconnect()
        window.transmit()
        answer(window, detail, now)
        held = window.statistics()
        assert held.unacked <= LIMITS.unacked + 2 * len(data)
        assert held.held <= 2 * LIMITS.credit * len(NAMESPACES) + LIMITS.held + len(data)


def answer(window: Window, detail: int, now: float) -> None:
    """What an owner does with what arrived."""
    for fact in window.take_messages():
        if isinstance(fact, Arrived):
            match detail & 3:
                case 0:
                    window.took(fact.envelope.namespace, fact.life)
                case 1:
                    window.hold(fact.envelope, now, for_listener=True)
                case 2:
                    window.refuse(fact.envelope, "shape")


def said(namespace: str, **changes: Any) -> Envelope:
    return Envelope(namespace, "message", msgspec.Raw(b"[]"), **changes)


def word(detail: int, number: int) -> Envelope:
    payloads: list[tuple[str, Any]] = [
        ("ack", {"n": detail, "took": {"chat": detail}}),
        ("ack", {"n": 0, "waiting": {"chat": detail}, "held": [detail]}),
        ("nack", {"n": detail, "why": "nobody"}),
        ("cancel", {"n": detail}),
        ("ack", detail),
        ("hug", None),
    ]
    kind, payload = payloads[detail % len(payloads)]
    return decode_text_untrusted(json.dumps({"namespace": "_", "msg_type": kind, "payload": payload}))


def seeds() -> list[bytes]:
    connect, send, message, ack = 3 | 8 << 3, 4, 0 | 2 << 3, 1 | 1 << 3
    return [
        bytes([connect, send, send, ack, message, message, 7, 5 | 31 << 3]),
        bytes([send, connect, message, 6, connect, 3 | 9 << 3, ack, 2 | 1 << 3]),
        bytes([connect, 4 | 2 << 3, 2 | 1 << 3, 1 | 3 << 3, 1 | 2 << 3, 3 | 14 << 3]),
    ]
