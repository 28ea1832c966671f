"""Which server a TLS client wants: real hellos however they are cut, and what is refused with which alert."""

from __future__ import annotations

import pytest
from hello_scripts import body_of, hello, hello_of_openssl, message, records, server_name, vector
from hypothesis import given
from hypothesis import strategies as st

from ts_base import client_hello
from ts_base.client_hello import BadHello, ClientHello, HelloReader, decode_hello_untrusted, encode_alert

REAL = hello_of_openssl("web.example.com", "h2", "http/1.1")
GREASE = [(0x0A0A, b""), (0xFAFA, b"\0"), (0xFE0D, bytes(200))]  # RFC 8701, and an ECH that nobody here can open


def read(*pieces: bytes) -> ClientHello | None:
    reader, found = HelloReader(), None
    for piece in pieces:
        assert found is None
        found = reader.receive_untrusted(piece)
    assert reader.received == b"".join(pieces)
    return found


def test_hello_of_openssl_is_read_byte_by_byte() -> None:
    assert read(REAL) == ClientHello("web.example.com", (b"h2", b"http/1.1"))
    assert read(*(REAL[at : at + 1] for at in range(len(REAL)))) == read(REAL)
    assert read(REAL[:-1]) is None
    assert read(REAL + b"early data") == read(REAL)


@given(size=st.integers(10, 600), cut=st.integers(1, 400))
def test_hello_is_the_same_in_records_and_segments_of_any_size(size: int, cut: int) -> None:
    sent = records(REAL[5:], size)
    assert read(*(sent[at : at + cut] for at in range(0, len(sent), cut))) == read(REAL)


def test_hello_with_what_nobody_knows_is_read() -> None:
    body = body_of(*GREASE[:1], server_name(b"Web.Example."), *GREASE[1:], session=bytes(32))
    assert decode_hello_untrusted(body) == ClientHello("web.example", ())
    many = body_of((21, bytes(12_000)), server_name(b"a"))  # padding, RFC 7685
    assert read(records(message(many))) == ClientHello("a", ())


NO_NAMES = [
    b"",
    b".",
    b"a..b",
    b".a",
    b"a" * 64 + b".b",
    b".".join([b"a" * 63] * 4),
    b"a b",
    b"a\0.example",
    b"a\n.example",
    b"\xc3\xa4.example",
    b"a/b",
    b"a:443",
    b"*.example",
    b"192.0.2.1",
    b"127.1",
    b"::1",
    b"2130706433",
]


@pytest.mark.parametrize("name", NO_NAMES)
def test_names_that_are_none_are_told_so(name: bytes) -> None:
    with pytest.raises(BadHello) as caught:
        read(hello(name))
    assert caught.value.alert == client_hello.UNRECOGNIZED_NAME


REFUSED = {
    "no name": (records(message(body_of())), client_hello.MISSING_EXTENSION),
    "no name, by OpenSSL": (hello_of_openssl(None), client_hello.MISSING_EXTENSION),
    "no extensions at all": (records(message(body_of()[:-2])), client_hello.MISSING_EXTENSION),
    "two names": (records(message(body_of(server_name(b"a", b"b")))), client_hello.ILLEGAL_PARAMETER),
    "a name of another kind": (records(message(body_of(server_name(b"a", kind=7)))), client_hello.ILLEGAL_PARAMETER),
    "an extension twice": (
        records(message(body_of(server_name(b"a"), server_name(b"b")))),
        client_hello.ILLEGAL_PARAMETER,
    ),
    "a name that ends behind its end": (
        records(message(body_of((0, b"\0\5\0\0\7a")))),
        client_hello.DECODE_ERROR,
    ),
    "bytes behind the extensions": (records(message(body_of(server_name(b"a")) + b"x")), client_hello.DECODE_ERROR),
    "half a cipher suite": (records(message(body_of(server_name(b"a"), suites=b"\1"))), client_hello.DECODE_ERROR),
    "a long session": (records(message(body_of(server_name(b"a"), session=bytes(33)))), client_hello.DECODE_ERROR),
    "an old version inside": (
        records(message(body_of(server_name(b"a"), version=b"\2\0"))),
        client_hello.PROTOCOL_VERSION,
    ),
    "another message": (records(message(b"", kind=2)), client_hello.UNEXPECTED_MESSAGE),
    "64 KiB": (records(message(bytes(65_000))), client_hello.DECODE_ERROR),
    "a long record": (b"\x16\3\1" + vector(2, bytes(16_385)), client_hello.RECORD_OVERFLOW),
    "an empty record": (b"\x16\3\1\0\0", client_hello.UNEXPECTED_MESSAGE),
    "a hundred records": (records(REAL[5:], 3), client_hello.DECODE_ERROR),
    "SSLv2": (b"\x80\x2e\1\0\2\0\x15\0\0\0\x10", client_hello.UNEXPECTED_MESSAGE),
    "HTTP": (b"GET / HTTP/1.1\r\n", client_hello.UNEXPECTED_MESSAGE),
    "an alert": (encode_alert(80), client_hello.UNEXPECTED_MESSAGE),
    "a version that never was": (b"\x16\4\1\0\1\1", client_hello.PROTOCOL_VERSION),
}


@pytest.mark.parametrize("what", REFUSED)
def test_hello_that_leads_nowhere_is_answered_with_its_alert(what: str) -> None:
    sent, alert = REFUSED[what]
    with pytest.raises(BadHello) as caught:
        read(sent)
    assert caught.value.alert == alert


def test_what_one_client_makes_us_hold_is_bounded() -> None:
    """The longest that is still waited for: a message of the greatest length, but for its last byte."""
    reader = HelloReader()
    whole = message(bytes(client_hello.LONGEST_HELLO))
    assert reader.receive_untrusted(records(whole[:-1], 1 << 14)) is None
    assert len(reader.received) < 2 * client_hello.LONGEST_HELLO
    with pytest.raises(BadHello):
        HelloReader().receive_untrusted(records(message(bytes(client_hello.LONGEST_HELLO + 1))))
