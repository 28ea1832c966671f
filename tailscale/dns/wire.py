"""DNS messages as bytes, for those who answer: questions read, replies made, cut and compared. RFC 1035, 2181, 6891.

Owns the text form of names and records in whole messages. Refuses to know who asks whom. `messages.py` reads the
answers to our own questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct, pack
from typing import NamedTuple

from ts_base.errors import BadPacket
from ts_base.ip import format_address

HEADER, FIXED, RECORD = Struct("!6H"), Struct("!2H"), Struct("!2HIH")
QR, AA, TC, RD, RA = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080
OPCODE = 0x7800
NO_ERROR, FORMAT_ERROR, SERVER_FAILURE, NAME_ERROR, NOT_IMPLEMENTED, REFUSED = range(6)
CODES = ("Success", "FormatError", "ServerFailure", "NameError", "NotImplemented", "Refused")
A, NS, CNAME, SOA, PTR, HINFO, MX, TXT, AAAA, SRV, OPT, AXFR, ANY = 1, 2, 5, 6, 12, 13, 15, 16, 28, 33, 41, 252, 255
TYPES = {
    "A": A,
    "NS": NS,
    "CNAME": CNAME,
    "SOA": SOA,
    "PTR": PTR,
    "HINFO": HINFO,
    "MX": MX,
    "TXT": TXT,
    "AAAA": AAAA,
    "SRV": SRV,
    "OPT": OPT,
    "AXFR": AXFR,
    "ALL": ANY,
    "ANY": ANY,
}
NAMES_OF_TYPES = {number: name for name, number in TYPES.items() if name != "ANY"}
INTERNET = 1
LONGEST_NAME, LONGEST_LABEL = 255, 63
LEAST_SIZE = 512  # what every asker takes over UDP
LARGEST_EDNS = 4095  # what we tell resolvers that we take
TTL, NEGATIVE_TTL = 5, 10  # seconds; the tailnet's own names may change at any moment
RECORDS_LIMIT = 1024  # of one message
RECORDS_OF_QUESTIONS = 16  # behind a question: options, a signature
POINTERS_LIMIT = 32  # of one name; each may lead to another
POINTER_TO_QUESTION = b"\xc0\x0c"


class Question(NamedTuple):
    """One question. `size` is the largest reply its asker takes over UDP, `section` the question as it came."""

    identifier: int
    flags: int
    name: str
    kind: int
    klass: int
    size: int
    has_edns: bool
    section: bytes


class Record(NamedTuple):
    """One record of a reply, as people read it."""

    name: str
    ttl: int
    klass: int
    kind: int
    body: str


# -- reading -----------------------------------------------------------------------------------------------------------


def decode_question_untrusted(data: bytes) -> Question:
    """The one question of a query. BadPacket for what is none, and for what asks nothing or several things."""
    if len(data) < HEADER.size:
        raise BadPacket("DNS: shorter than a header")
    identifier, flags, questions, answers, authorities, more = HEADER.unpack_from(data)
    if flags & QR:
        raise BadPacket("DNS: a reply where a question belongs")
    if questions != 1:  # RFC 9619
        raise BadPacket("DNS: not one question")
    name, at = read_name_untrusted(data, HEADER.size)
    if at + FIXED.size > len(data):
        raise BadPacket("DNS: a question that is cut off")
    kind, klass = FIXED.unpack_from(data, at)
    at += FIXED.size
    section, size, has_edns = data[HEADER.size : at], LEAST_SIZE, False
    count = answers + authorities + more
    if count > RECORDS_OF_QUESTIONS:
        raise BadPacket("DNS: too many records behind a question")
    for _ in range(count):
        _, found, option_size, _, at = _skip_record_untrusted(data, at)
        if found == OPT:
            size, has_edns = max(option_size, LEAST_SIZE), True
    return Question(identifier, flags, name.lower(), kind, klass, size, has_edns, section)


def read_name_untrusted(data: bytes, at: int) -> tuple[str, int]:
    """A name with its dots, without the last, and where what follows begins. Pointers lead backwards only."""
    labels: list[str] = []
    length, pointers, after, bound = 0, 0, -1, at
    while True:
        if at >= len(data):
            raise BadPacket("DNS: a name that is cut off")
        size = data[at]
        if size >= 0xC0:
            if at + 1 >= len(data):
                raise BadPacket("DNS: a pointer that is cut off")
            target = (size & 0x3F) << 8 | data[at + 1]
            pointers += 1
            if not HEADER.size <= target < bound or pointers > POINTERS_LIMIT:
                raise BadPacket("DNS: a pointer that leads nowhere")
            after = after if after >= 0 else at + 2
            at = bound = target
            continue
        if size > LONGEST_LABEL:
            raise BadPacket("DNS: a label of an unknown kind")
        length += size + 1
        if length > LONGEST_NAME or at + 1 + size > len(data):
            raise BadPacket("DNS: a name that is too long")
        if not size:
            return ".".join(labels), after if after >= 0 else at + 1
        labels.append(_label_text(data[at + 1 : at + 1 + size]))
        at += 1 + size


def _label_text(label: bytes) -> str:
    """What is not plain is written as `\\065`: no two labels read alike (RFC 4343, 2.1)."""
    return "".join(chr(b) if 32 < b < 127 and b not in b".\\" else f"\\{b:03d}" for b in label)


def _skip_record_untrusted(data: bytes, at: int) -> tuple[str, int, int, int, int]:
    """Name, type, class and TTL of the record at `at`, and where the next begins."""
    name, at = read_name_untrusted(data, at)
    if at + RECORD.size > len(data):
        raise BadPacket("DNS: a record that is cut off")
    kind, klass, ttl, length = RECORD.unpack_from(data, at)
    after = at + RECORD.size + length
    if after > len(data):
        raise BadPacket("DNS: a record that is cut off")
    return name, kind, klass, ttl, after


def decode_records_untrusted(data: bytes) -> tuple[int, list[Record]]:
    """Code and answers of a reply."""
    if len(data) < HEADER.size:
        raise BadPacket("DNS: shorter than a header")
    _, flags, questions, answers, _, _ = HEADER.unpack_from(data)
    if not flags & QR or questions + answers > RECORDS_LIMIT:
        raise BadPacket("DNS: no reply that anybody reads")
    at = HEADER.size
    for _ in range(questions):
        at = read_name_untrusted(data, at)[1] + FIXED.size
    found = []
    for _ in range(answers):
        start = read_name_untrusted(data, at)[1] + RECORD.size
        name, kind, klass, ttl, at = _skip_record_untrusted(data, at)
        found.append(Record(f"{name}.", ttl, klass, kind, _body_untrusted(data, start, at, kind)))
    return flags & 0xF, found


def _body_untrusted(data: bytes, at: int, end: int, kind: int) -> str:
    """A record's data in upstream's words."""
    body = data[at:end]
    if kind in (A, AAAA):
        if len(body) != (4 if kind == A else 16):
            raise BadPacket("DNS: an address of another size")
        return format_address(body)
    if kind == TXT:
        return " ".join(f'"{text}"' for text in _strings_untrusted(body))
    skipped = {MX: 2, SRV: 6}.get(kind, 0)
    if kind not in (NS, CNAME, PTR, MX, SRV):
        return body.hex()
    if len(body) <= skipped:
        raise BadPacket("DNS: a record that is cut off")
    name, after = read_name_untrusted(data, at + skipped)
    if after > end:
        raise BadPacket("DNS: a name beyond its record")
    if kind == MX:
        return f"{name}. (Priority={int.from_bytes(body[:2], 'big')})"
    if kind == SRV:
        priority, weight, port = (int.from_bytes(body[i : i + 2], "big") for i in (0, 2, 4))
        return f"Target={name}., Port={port}, Priority={priority}, Weight={weight}"
    return f"{name}."


def _text_character(byte: int) -> str:
    return chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03d}"


def _strings_untrusted(body: bytes) -> list[str]:
    found = []
    at = 0
    while at < len(body):
        size = body[at]
        if at + 1 + size > len(body):
            raise BadPacket("DNS: a text that is cut off")
        found.append("".join(map(_text_character, body[at + 1 : at + 1 + size])))
        at += 1 + size
    return found


def is_answer(reply: bytes, question: Question, identifier: int) -> bool:
    """Whether `reply` answers this question under this number, and nothing else (RFC 5452, 9.1)."""
    if len(reply) < HEADER.size + len(question.section):
        return False
    number, flags, questions, *_ = HEADER.unpack_from(reply)
    if number != identifier or not flags & QR or questions != 1 or flags & OPCODE != question.flags & OPCODE:
        return False
    echoed = reply[HEADER.size : HEADER.size + len(question.section)]
    return echoed[:-4].lower() == question.section[:-4].lower() and echoed[-4:] == question.section[-4:]


def code_of(reply: bytes) -> int:
    return reply[3] & 0xF


def is_cut(reply: bytes) -> bool:
    """Whether it says that there is more (TC)."""
    return bool(reply[2] & TC >> 8)


# -- making ------------------------------------------------------------------------------------------------------------


def encode_name(name: str) -> bytes:
    """ValueError for what cannot be a name."""
    out = b""
    for label in name.rstrip(".").split(".") if name.rstrip(".") else ():
        data = label.encode("idna") if not label.isascii() else label.encode()
        if not 0 < len(data) <= LONGEST_LABEL:
            raise ValueError(f"{name!r} cannot be a DNS name")
        out += bytes([len(data)]) + data
    if len(out) >= LONGEST_NAME:
        raise ValueError(f"{name[:LONGEST_LABEL]!r}... cannot be a DNS name: too long")
    return out + b"\0"


def encode_question(name: str, kind: int, identifier: int) -> bytes:
    """A query with recursion desired."""
    return HEADER.pack(identifier, RD, 1, 0, 0, 0) + encode_name(name) + FIXED.pack(kind, INTERNET)


def for_resolvers(query: bytes, identifier: int) -> bytes:
    """A query under another number, asking for no more over UDP than we take."""
    out = bytearray(identifier.to_bytes(2, "big") + query[2:])
    _, _, questions, answers, authorities, more = HEADER.unpack_from(query)
    at = HEADER.size
    for _ in range(questions):
        at = read_name_untrusted(query, at)[1] + FIXED.size
    for _ in range(answers + authorities + more):
        field = read_name_untrusted(query, at)[1]
        _, kind, size, _, at = _skip_record_untrusted(query, at)
        if kind == OPT and size > LARGEST_EDNS:
            out[field + 2 : field + 4] = LARGEST_EDNS.to_bytes(2, "big")
    return bytes(out)


def encode_reply(
    question: Question, code: int, records: Sequence[tuple[int, bytes]] = (), zone: str | None = None, serial: int = 0
) -> bytes:
    """Our own answer: (type, data) of each record; `zone` is named as the one that has nothing (RFC 2308)."""
    flags = QR | AA | (question.flags & (OPCODE | RD)) | (RA if question.flags & RD else 0) | code
    out = HEADER.pack(question.identifier, flags, 1, len(records), zone is not None, question.has_edns)
    out += question.section
    for kind, data in records:
        out += POINTER_TO_QUESTION + RECORD.pack(kind, INTERNET, TTL, len(data)) + data
    if zone is not None:
        owner = encode_name(zone)
        data = owner + owner + pack("!5I", serial, *[NEGATIVE_TTL] * 4)
        out += owner + RECORD.pack(SOA, INTERNET, NEGATIVE_TTL, len(data)) + data
    return out + _edns(question)


def encode_failure(question: Question, code: int) -> bytes:
    """An answer that says nothing but why there is none."""
    flags = QR | (question.flags & (OPCODE | RD)) | (RA if question.flags & RD else 0) | code
    head = HEADER.pack(question.identifier, flags, 1, 0, 0, question.has_edns)
    return head + question.section + _edns(question)


def encode_format_error(data: bytes) -> bytes | None:
    """The answer to what is no question; None to what has no number, or is an answer: two servers must not talk on."""
    if len(data) < HEADER.size or data[2] & QR >> 8:
        return None
    flags = QR | (int.from_bytes(data[2:4], "big") & (OPCODE | RD)) | FORMAT_ERROR
    return data[:2] + pack("!5H", flags, 0, 0, 0, 0)


def _edns(question: Question) -> bytes:
    return b"\0" + RECORD.pack(OPT, LARGEST_EDNS, 0, 0) if question.has_edns else b""


def under_number(reply: bytes, question: Question) -> bytes:
    """A resolver's reply as the answer to who asked us."""
    return question.identifier.to_bytes(2, "big") + reply[2:]


def fitted(reply: bytes, question: Question, size: int) -> bytes:
    """The reply, or where it is larger its head with TC set and no records, so that nobody takes a part for all."""
    if len(reply) <= size:
        return reply
    flags = int.from_bytes(reply[2:4], "big") | TC
    head = HEADER.pack(question.identifier, flags, 1, 0, 0, question.has_edns)
    return head + question.section + _edns(question)
