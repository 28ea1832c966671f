"""What the codecs of the proxy make of bytes, without any stream: round trips, splits, names that are none."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_base.errors import BadPacket
from ts_base.ip import parse_address
from ts_proxy import http_rules
from ts_proxy.destinations import Destination, decode_authority_untrusted, decode_host_untrusted
from ts_proxy.local_places import is_local, is_local_name
from ts_proxy.socks5 import (
    Command,
    Credentials,
    Reply,
    Socks5Server,
    SocksRequest,
    decode_datagram_untrusted,
    encode_datagram,
)
from ts_proxy.user_names import Sessions, UserName, decode_user_untrusted

ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)


@given(ADDRESSES, st.integers(1, 65535), st.binary(max_size=64))
def test_datagram_comes_back_as_it_was(host: str, port: int, payload: bytes) -> None:
    found = decode_datagram_untrusted(encode_datagram(host, port, payload))
    assert ipaddress.ip_address(found.destination.host) == plain(host)
    assert (found.destination.port, found.payload) == (port, payload)


def plain(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """IPv4 in IPv6 clothes is IPv4."""
    address = ipaddress.ip_address(host)
    return getattr(address, "ipv4_mapped", None) or address


@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.binary(max_size=9))
def test_negotiation_is_the_same_however_it_is_cut(sizes: list[int], early: bytes) -> None:
    everything = b"\5\2\0\2\1\5alice\6secret\5\1\0\3\x0bexample.com\1\xbb" + early
    machine, events, sent = Socks5Server(needs_user=True), [], b""
    sizes = [*sizes, len(everything)]
    for size in sizes:
        piece, everything = everything[:size], everything[size:]
        event = machine.receive(piece)
        if isinstance(event, Credentials):
            events.append(event)
            machine.accept()
            event = machine.receive(b"")
        if isinstance(event, SocksRequest):
            events.append(event)
            machine.reply(Reply.SUCCEEDED, ("100.64.0.1", 9))
        sent += machine.transmit()
    assert events == [
        Credentials(b"alice", b"secret"),
        SocksRequest(Command.CONNECT, Destination("example.com", 443)),
    ]
    assert sent == b"\5\2\1\0\5\0\0\1\x64\x40\0\1\0\x09"
    assert machine.take_rest() == early


def test_credentials_show_no_password() -> None:
    assert "secret" not in repr(Credentials(b"alice", b"secret"))


@pytest.mark.parametrize(
    ("written", "host"),
    [
        (b"example.com", "example.com"),
        (b"example.com.", "example.com"),
        (b"_service.example", "_service.example"),
        (b"192.0.2.1", "192.0.2.1"),
        (b"2001:DB8:0::1", "2001:db8::1"),
        (b"[2001:db8::1]", "2001:db8::1"),
        (b"::ffff:192.0.2.1", "192.0.2.1"),
        ("b\u00fccher.example".encode(), "xn--bcher-kva.example"),
        ("\uff11\uff12\uff17.0.0.1.example".encode(), "127.0.0.1.example"),
        ("\uff11\uff12\uff17.0.0.1".encode(), "127.0.0.1"),  # and is judged as that
        (b"a" * 63, "a" * 63),
    ],
)
def test_host_has_one_spelling(written: bytes, host: str) -> None:
    assert decode_host_untrusted(written) == host


@pytest.mark.parametrize(
    "written",
    [
        *(b"", b".", b"a..b", b"a b", b"a\0b", b"a%00b", b"a\r\nb", b"a/b", b"a@b", b"a:b", b"[a]", b"[192.0.2.1]"),
        *(b"fe80::1%eth0", b"127.1", b"2130706433", b"0x7f000001", b"127.0.0.0x1", b"a" * 64, b"a." * 127 + b"a"),
        *("\u3002".encode(), b"\xff", "\u200d".encode(), b"a" * 256),
    ],
)
def test_host_that_is_none_is_a_bad_packet(written: bytes) -> None:
    with pytest.raises(BadPacket):
        decode_host_untrusted(written)


def test_authority_has_a_port_and_brackets() -> None:
    assert decode_authority_untrusted(b"a.example:1") == Destination("a.example", 1)
    assert str(decode_authority_untrusted(b"[2001:db8::1]:65535")) == "[2001:db8::1]:65535"
    assert decode_authority_untrusted(b"[2001:db8::1]", 80) == Destination("2001:db8::1", 80)
    for wrong in (b"a", b"a:", b":80", b"a:0", b"a:65536", b"a:8 0", b"2001:db8::1:80", b"a:80:80"):
        with pytest.raises(BadPacket):
            decode_authority_untrusted(wrong)


@pytest.mark.parametrize(
    ("written", "found"),
    [
        (b"alice", UserName("alice")),
        (b"alice+session=shop", UserName("alice", "shop")),
        (b"alice+session=shop+ttl=600", UserName("alice", "shop", 600)),
        (b"alice+ttl=600+session=shop", UserName("alice", "shop", 600)),
        (b"session=shop", UserName("", "shop")),
        (b"a+b@c.example", UserName("a+b@c.example")),
        (b"a+b+session=x", UserName("a+b", "x")),
        (b"alice+colour=red", UserName("alice+colour=red")),
    ],
)
def test_user_name_says_who_and_which_session(written: bytes, found: UserName) -> None:
    assert decode_user_untrusted(written) == found


@pytest.mark.parametrize(
    "written", [b"\xff", b"a+session=", b"a+session=" + b"x" * 65, b"a+session=\x1b[31m", b"a+ttl=0", b"a+ttl=x"]
)
def test_user_name_that_says_nonsense_is_a_bad_packet(written: bytes) -> None:
    with pytest.raises(BadPacket):
        decode_user_untrusted(written)


def test_session_is_its_users_own_and_another_after_its_ttl() -> None:
    sessions = Sessions()
    alice, bob, timed = UserName("alice", "shop"), UserName("bob", "shop"), UserName("", "shop", 60)
    words = [sessions.word_for(who, 0.0) for who in (alice, bob, timed, UserName("alice"))]
    assert len(set(words)) == 4
    assert words[3] == ""
    assert sessions.word_for(timed, 59.0) == words[2]
    later = sessions.word_for(timed, 60.0)
    assert later != words[2]
    assert sessions.word_for(timed, 119.0) == later
    assert sessions.word_for(alice, 1e9) == words[0]


@pytest.mark.parametrize(
    "address",
    [*("127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "169.254.169.254", "224.0.0.1", "255.255.255.255"),
     *("::1", "::", "fe80::1", "ff02::1", "fd00:ec2::254", "100.100.100.200")],
)  # fmt: skip
def test_places_that_mean_another_thing_at_each_machine(address: str) -> None:
    assert is_local(parse_address(address))


def test_places_that_mean_the_same_everywhere() -> None:
    assert not any(is_local(parse_address(a)) for a in ("100.64.0.1", "192.0.2.1", "10.0.0.1", "fd7a:115c:a1e0::1"))
    assert is_local_name("LOCALHOST")
    assert is_local_name("a.localhost")
    assert not is_local_name("localhost.example")


def test_head_keeps_what_connection_must_not_take_along() -> None:
    forward = http_rules.Forward(Destination("a", 80), b"a", b"/")
    headers = [(b"connection", b"content-length, cookie"), (b"content-length", b"5"), (b"cookie", b"x"), (b"x", b"y")]
    head = http_rules.request_head(forward, headers, http_version=b"1.1")
    assert head == [(b"host", b"a"), (b"content-length", b"5"), (b"x", b"y"), (b"via", b"1.1 pytailscale")]
