"""Rules of the window one by one: questions and answers, refusals before acks, and what ends a session."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from ts_base.errors import BadPacket
from ts_mesh.envelope import Envelope, decode_text_untrusted
from ts_mesh.facts import GONE, Answered, Arrived, Cancelled, Parcel, Restarted, Settled
from ts_mesh.hello import Seen
from ts_mesh.limits import MeshLimits
from ts_mesh.window import Window

A, B, C = "a" * 16, "b" * 16, "c" * 16


def message(namespace: str = "chat", payload: Any = None, **changes: Any) -> Envelope:
    return Envelope(namespace, "message", msgspec.Raw(json.dumps(payload).encode()), **changes)


def word(kind: str, payload: Any, n: int = 0) -> Envelope:
    return decode_text_untrusted(json.dumps({"namespace": "_", "msg_type": kind, "payload": payload, "n": n}))


def connected(**limits: Any) -> Window:
    window = Window(MeshLimits(**limits), A)
    window.connect(B, None, acks=True)
    window.transmit()
    return window


def asked(window: Window) -> Parcel:
    parcel = Parcel(message(ask=True))
    window.send(parcel)
    window.transmit()
    return parcel


def test_an_answer_is_matched_by_its_number() -> None:
    window = connected()
    first, second = asked(window), asked(window)
    window.receive(message(n=1, re=2))
    window.receive(message(n=2, re=2))  # twice
    window.receive(message(n=3, re=7))  # of a request of somebody else
    assert [fact.parcel for fact in window.take_messages() if isinstance(fact, Answered)] == [second]
    assert window.statistics().drops == {"mesh.stray_answer": 2}
    window.receive(word("nack", {"n": 1, "why": "nobody"}, 4))
    assert window.take_messages() == [Settled(first, "nobody")]


def test_a_question_read_by_a_process_that_ended_is_lost() -> None:
    window = connected()
    read, unread = asked(window), asked(window)
    window.receive(word("ack", {"n": 1}))
    assert window.take_messages() == [Settled(read, "")]
    window.connect(C, None, acks=True)
    assert window.take_messages() == [Restarted(), Settled(read, GONE)]
    assert [envelope for envelope in window.transmit() if envelope.ask] == [unread.envelope]
    assert unread.envelope.n == 1


def test_a_question_that_is_given_up_is_cancelled_once() -> None:
    window = connected()
    parcel, unsent = asked(window), Parcel(message(ask=True))
    window.send(unsent)
    window.cancel(unsent)
    window.cancel(parcel)
    window.cancel(parcel)
    assert [(e.msg_type, bytes(e.payload or b"")) for e in window.transmit()] == [("cancel", b'{"n":1}')]
    window.receive(word("cancel", {"n": 9}, 1))
    assert window.take_messages() == [Cancelled(9)]


def test_a_refusal_is_written_before_the_ack_that_covers_it() -> None:
    window = connected()
    window.receive(message(n=1))
    (arrived,) = window.take_messages()
    assert isinstance(arrived, Arrived)
    window.refuse(arrived.envelope, "shape")
    kinds = [envelope.msg_type for envelope in window.transmit()]
    assert kinds == ["nack", "ack"]
    window.disconnect()
    window.connect(B, Seen(A, 0), acks=True)
    assert [envelope.msg_type for envelope in window.transmit()] == ["nack", "ack"]


def test_what_is_held_is_not_acknowledged() -> None:
    window = connected()
    for n in (1, 2):
        window.receive(message(n=n))
    first, _ = [fact.envelope for fact in window.take_messages() if isinstance(fact, Arrived)]
    window.hold(first, 10.0, for_listener=True)
    (ack,) = window.transmit()
    assert json.loads(bytes(ack.payload or b"")) == {"n": 2, "held": [1]}
    assert window.next_timer() == 12.0
    window.handle_timer(12.0)
    (nack,) = window.transmit()
    assert json.loads(bytes(nack.payload or b"")) == {"n": 1, "why": "nobody"}


@pytest.mark.parametrize(
    "bad",
    [
        word("ack", {"n": 1}),
        word("ack", {"n": -1}),
        word("ack", []),
        word("ack", {"n": 0, "held": [1.5]}),
        word("nack", {"n": 1, "why": "nobody"}),
        word("nack", {"n": 0}),
        word("cancel", None),
        message(n=3),
    ],
    ids=lambda bad: f"{bad.msg_type} {bytes(bad.payload or b'')}",
)
def test_what_no_honest_peer_says_ends_the_session(bad: Envelope) -> None:
    """Acks of what was never sent, words that are none, and a gap in the numbers."""
    window = connected()
    window.receive(message(n=1))
    with pytest.raises(BadPacket):
        window.receive(bad)


def test_words_nobody_knows_are_dropped() -> None:
    window = connected()
    window.receive(word("hug", {}, 1))
    assert window.take_messages() == []
    assert window.statistics().drops == {"mesh.unknown_word": 1}


def test_refusals_that_nobody_acknowledges_are_bounded() -> None:
    window = connected(held=0)
    with pytest.raises(BadPacket, match="to nobody"):
        for n in range(1, 6000):
            window.receive(message("nobody", n=n))
            for fact in window.take_messages():
                assert isinstance(fact, Arrived)
                window.hold(fact.envelope, 0.0, for_listener=True)
            window.transmit()
    assert n < 4200


def test_a_peer_without_acks_is_told_once() -> None:
    window = Window(MeshLimits(), A)
    parcel = Parcel(message())
    window.send(parcel)
    window.connect("", None, acks=False)
    assert [envelope.n for envelope in window.transmit()] == [0]
    assert window.take_messages() == [Settled(parcel, "")]
    window.receive(message(n=7))
    window.receive(message(n=7))
    assert len(window.take_messages()) == 2
    assert window.transmit() == []
