"""DNS messages from those who mean no good, and what the tailnet itself answers, question by question."""

from __future__ import annotations

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailscale.dns import wire
from tailscale.dns.local import LocalZone
from ts_base.errors import BadPacket
from ts_base.ip import format_address, parse_address
from ts_control.netmap import NetMap
from ts_control.wire import DNSConfig, DNSRecord, Node, Resolver

QUESTION = wire.encode_question("host.example", wire.A, 7)
LABEL = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=63)
NAME = st.lists(LABEL, min_size=1, max_size=3).map(".".join)


@given(NAME, st.sampled_from(sorted(wire.TYPES.values())), st.integers(0, 0xFFFF))
def test_questions_are_read_as_another_codec_writes_them(name: str, kind: int, identifier: int) -> None:
    theirs = bytes(dpkt.dns.DNS(id=identifier, op=dpkt.dns.DNS_RD, qd=[dpkt.dns.DNS.Q(name=name, type=kind, cls=1)]))
    assert wire.encode_question(name, kind, identifier) == theirs
    question = wire.decode_question_untrusted(theirs)
    assert (question.name, question.kind, question.identifier, question.size) == (name, kind, identifier, 512)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        QUESTION[:11],
        QUESTION[:-1],
        QUESTION[:4] + b"\0\0" + QUESTION[6:],
        QUESTION[:4] + b"\0\2" + QUESTION[6:],
        QUESTION[:2] + b"\x81" + QUESTION[3:],
        QUESTION[:12] + b"\xc0\x0c\0\1\0\1",
        QUESTION[:12] + b"\xc0\x00\0\1\0\1",
        QUESTION[:12] + b"\x40a\0\0\1\0\1",
        QUESTION[:12] + b"\x3f" + bytes(10),
        QUESTION[:12] + (b"\x3f" + b"a" * 63) * 5 + b"\0\0\1\0\1",
        QUESTION[:10] + b"\0\1" + QUESTION[12:] + b"\0\0\x29\x10\0\0\0\0\0\0\x09",
        QUESTION[:6] + b"\xff\xff" * 3 + QUESTION[12:],
        QUESTION[:10] + b"\0\x11" + QUESTION[12:] + (b"\0\0\x29" + bytes(8)) * 17,
        bytes(65_536),
    ],
)
def test_what_is_no_question_is_refused(data: bytes) -> None:
    with pytest.raises(BadPacket):
        wire.decode_question_untrusted(data)


def test_pointers_to_pointers_end() -> None:
    chain = (
        bytearray(QUESTION[:12])
        + b"\0"
        + b"".join((0xC000 | 12 + max(0, 2 * n - 1)).to_bytes(2, "big") for n in range(99))
    )
    assert wire.read_name_untrusted(bytes(chain), 13) == ("", 15)
    with pytest.raises(BadPacket, match="a pointer that leads nowhere"):
        wire.read_name_untrusted(bytes(chain), len(chain) - 2)


def test_answers_are_never_answered() -> None:
    question = wire.decode_question_untrusted(QUESTION)
    assert wire.encode_format_error(wire.encode_failure(question, wire.NAME_ERROR)) is None
    assert wire.encode_format_error(b"\0\1") is None
    assert wire.encode_format_error(b"\0\7" + bytes(10)) == b"\0\7\x80\1" + bytes(8)


def test_replies_are_believed_for_the_very_question_only() -> None:
    question = wire.decode_question_untrusted(QUESTION)
    reply = wire.encode_reply(question, wire.NO_ERROR, [(wire.A, bytes(4))])
    assert wire.is_answer(reply, question, 7)
    assert wire.is_answer(reply.replace(b"host", b"HOST"), question, 7)
    assert not wire.is_answer(reply, question, 8)
    assert not wire.is_answer(QUESTION, question, 7)
    assert not wire.is_answer(reply.replace(b"host", b"most"), question, 7)
    other = wire.decode_question_untrusted(wire.encode_question("host.example", wire.AAAA, 7))
    assert not wire.is_answer(wire.encode_reply(other, 0), question, 7)


def test_a_reply_is_cut_to_what_was_asked_for() -> None:
    edns = QUESTION[:10] + b"\0\1" + QUESTION[12:] + b"\0\0\x29\x04\xd0\0\0\0\0\0\0"
    for query, size in ((QUESTION, 512), (edns, 1232)):
        question = wire.decode_question_untrusted(query)
        assert question.size == size
        whole = wire.encode_reply(question, 0, [(wire.A, bytes(4))] * 100)
        cut = dpkt.dns.DNS(wire.fitted(whole, question, question.size))
        assert (cut.tc, cut.an, len(cut.ar)) == (1, [], question.has_edns)
        assert wire.fitted(whole, question, len(whole)) is whole
    assert wire.for_resolvers(edns.replace(b"\x04\xd0", b"\xff\xff"), 9)[-8:-6] == (4095).to_bytes(2, "big")


def node(number: int, name: str, *addresses: str, **more: object) -> Node:
    return Node(
        id=number,
        name=f"{name}.t.example.",
        addresses=tuple(f"{a}/{128 if ':' in a else 32}" for a in addresses),
        **more,
    )  # type: ignore[arg-type]


US = node(1, "us", "100.64.0.1", "fd7a:115c:a1e0::1")
DB = node(2, "db", "100.64.0.2", "fd7a:115c:a1e0::2")
SIX = node(3, "six", "fd7a:115c:a1e0::3")
WIDE = node(4, "wide", "100.64.0.4", cap_map={"dns-subdomain-resolve": None})
DNS = DNSConfig(
    proxied=True,
    routes={
        "t.example.": (),
        "64.100.in-addr.arpa.": (),
        "corp.example": (Resolver(addr="10.0.0.1"),),
        "shut.example": None,
    },
    extra_records=(
        DNSRecord(name="two.example", value="10.0.0.1"),
        DNSRecord(name="two.example", value="10.0.0.2"),
        DNSRecord(name="two.example", value="fd00::1"),
        DNSRecord(name="bad.example", value="no address"),
    ),
)


def zone(**changes: object) -> LocalZone:
    from dataclasses import replace

    found = replace(NetMap.empty(), self_node=US, dns=DNS, peers={n.id: n for n in (DB, SIX, WIDE)})
    return LocalZone(replace(found, **changes))  # type: ignore[arg-type]


LOCAL = [
    ("db.t.example", "A", "Success 100.64.0.2"),
    ("DB.T.Example", "A", "Success 100.64.0.2"),
    ("db", "A", "Success 100.64.0.2"),
    ("db.t.example", "AAAA", "Success"),
    ("six.t.example", "AAAA", "Success fd7a:115c:a1e0::3"),
    ("six.t.example", "A", "Success"),
    ("db.t.example", "ANY", "Success 100.64.0.2"),
    ("db.t.example", "TXT", "Success"),
    ("db.t.example", "SOA", "NotImplemented"),
    ("db.t.example", "PTR", "Success"),
    ("nobody.t.example", "A", "NameError"),
    ("t.example", "A", "NameError"),
    ("x.db.t.example", "A", "NameError"),
    ("x.y.wide.t.example", "A", "Success 100.64.0.4"),
    ("x.shut.example", "A", "NameError"),
    ("x.corp.example", "A", None),
    ("www.example", "A", None),
    ("two.example", "A", "Success 10.0.0.1 10.0.0.2"),
    ("two.example", "AAAA", "Success fd00::1"),
    ("bad.example", "A", None),
    ("x.onion", "A", "NameError"),
    ("2.0.64.100.in-addr.arpa", "PTR", "Success db.t.example."),
    ("9.0.64.100.in-addr.arpa", "PTR", "NameError"),
    ("8.8.8.8.in-addr.arpa", "PTR", None),
    ("3." + "0." * 19 + "0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa", "PTR", "Success six.t.example."),
    ("100.100.100.100.in-addr.arpa", "PTR", "Success magicdns.localhost-tailscale-daemon."),
    ("magicdns.localhost-tailscale-daemon", "A", "Success 100.100.100.100"),
    ("lb._dns-sd._udp.0.0.64.100.in-addr.arpa", "PTR", None),
    ("10-1-2-3-via-7", "AAAA", "Success fd7a:115c:a1e0:b1a:0:7:a01:203"),
    ("10-1-2-3-via-7.x.ts.net", "AAAA", "Success fd7a:115c:a1e0:b1a:0:7:a01:203"),
    ("10-1-2-3-via-0x10.t.example", "AAAA", "Success fd7a:115c:a1e0:b1a:0:10:a01:203"),
    ("10-1-2-3-via-7", "A", "Success"),
    ("10-1-2-3-via-7.www.example", "AAAA", None),
    ("10-1-2-3-via-x.t.example", "AAAA", "NameError"),
    ("10-1-2-300-via-7.t.example", "AAAA", "NameError"),
    ("10-1-2-3-via-4294967296.t.example", "AAAA", "NameError"),
]


@pytest.mark.parametrize(("name", "kind", "said"), LOCAL)
def test_the_tailnet_answers(name: str, kind: str, said: str | None) -> None:
    question = wire.decode_question_untrusted(wire.encode_question(name, wire.TYPES[kind], 1))
    answer = zone().answer(question)
    if answer is None:
        assert said is None
        return
    reply = wire.encode_reply(question, answer.code, answer.records, answer.zone)
    code, records = wire.decode_records_untrusted(reply)
    assert " ".join([wire.CODES[code], *(record.body for record in records)]) == said
    dpkt.dns.DNS(reply)


def test_addresses_of_ipv6_are_said_where_control_wants_it_or_we_have_no_other() -> None:
    question = wire.decode_question_untrusted(wire.encode_question("db.t.example", wire.AAAA, 1))
    wanting = node(1, "us", "100.64.0.1", cap_map={"magicdns-aaaa": None})
    for us in (wanting, node(1, "us", "fd7a:115c:a1e0::1")):
        answer = zone(self_node=us).answer(question)
        assert answer is not None
        assert [format_address(data) for _, data in answer.records] == ["fd7a:115c:a1e0::2"]
    assert zone().domains[0] == "64.100.in-addr.arpa"
    assert parse_address("fd7a:115c:a1e0::53")
