"""Any bytes as a question to our resolver, and as a resolver's reply to be passed on: text, bytes, or BadPacket."""

from __future__ import annotations

import contextlib

from tailscale.dns import wire
from ts_base.errors import BadPacket

QUESTION = wire.encode_question("host.example", wire.A, 0x1234)
KNOWN = wire.decode_question_untrusted(QUESTION)


def fuzz_one(data: bytes) -> None:
    wire.is_answer(data, KNOWN, 0x1234)
    refused = wire.encode_format_error(data)
    assert refused is None or len(refused) == wire.HEADER.size
    try:
        _, records = wire.decode_records_untrusted(data)
        assert len(records) <= wire.RECORDS_LIMIT
        assert all(record.body.isascii() for record in records)
    except BadPacket:
        pass
    with contextlib.suppress(BadPacket):
        wire.read_name_untrusted(data, 0)
    try:
        question = wire.decode_question_untrusted(data)
    except BadPacket:
        return
    assert len(question.name) <= 4 * wire.LONGEST_NAME
    passed = wire.for_resolvers(data, 7)
    assert (len(passed), passed[:2]) == (len(data), b"\0\7")
    assert wire.decode_question_untrusted(passed).section == question.section
    reply = wire.encode_reply(question, wire.NO_ERROR, [(wire.A, b"\1\2\3\4")] * 40, "example")
    assert wire.is_answer(reply, question, question.identifier)
    assert wire.decode_records_untrusted(reply)[0] == wire.NO_ERROR
    cut = wire.fitted(reply, question, question.size)
    assert len(cut) <= max(question.size, wire.LEAST_SIZE)
    assert wire.is_answer(cut, question, question.identifier)
    assert wire.is_cut(cut) == (len(reply) > question.size)


def seeds() -> list[bytes]:
    edns = bytearray(QUESTION) + b"\0\0\x29\xff\xff\0\0\0\0\0\0"
    edns[11] = 1
    looped = bytearray(QUESTION[:12]) + b"\xc0\x0c\0\1\0\1"
    question = wire.decode_question_untrusted(bytes(edns))
    texts = [(wire.TXT, b"\5hello\0"), (wire.MX, b"\0\1\1a\xc0\x0c"), (wire.SRV, bytes(6) + b"\xc0\x0c")]
    reply = wire.encode_reply(question, 0, [(wire.A, b"\1\2\3\4"), (wire.AAAA, bytes(16)), *texts], "example")
    return [QUESTION, bytes(edns), bytes(looped), reply, wire.encode_failure(question, 2), QUESTION[:12] + bytes(300)]
