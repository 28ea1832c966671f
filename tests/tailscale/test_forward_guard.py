"""Where nothing is forwarded, in every spelling: one by one, against a slow twin, and asked for by a hostile peer."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tailscale.runtime.forward_guard import Destinations, embedded, inside_via, never
from ts_base.ip import format_address, parse_address, parse_prefix

EVERYWHERE = [parse_prefix("0.0.0.0/0"), parse_prefix("::/0")]
AT_HOME = [parse_prefix(text) for text in ("198.51.100.0/24", "198.51.100.1", "2001:db8:5::/64", "127.0.0.0/8")]
EXIT = Destinations(EVERYWHERE, AT_HOME)


def raw(text: str) -> bytes:
    """Without turning a v4-mapped address into IPv4, as `parse_address` would."""
    return ipaddress.ip_address(text).packed


NEVER = [
    ("127.0.0.1", "loopback"),
    ("127.255.255.254", "loopback"),
    ("::1", "loopback"),
    ("169.254.0.1", "link_local"),
    ("169.254.169.254", "link_local"),
    ("fe80::1", "link_local"),
    ("168.63.129.16", "metadata"),
    ("100.100.100.200", "metadata"),
    ("fd00:ec2::254", "metadata"),
    ("224.0.0.251", "multicast"),
    ("239.255.255.250", "multicast"),
    ("ff02::1", "multicast"),
    ("100.64.0.7", "tailnet_address"),
    ("100.100.100.100", "tailnet_address"),
    ("fd7a:115c:a1e0::1", "tailnet_address"),
    ("0.0.0.0", "no_host"),
    ("0.1.2.3", "no_host"),
    ("240.0.0.1", "no_host"),
    ("255.255.255.255", "no_host"),
    ("::", "no_host"),
    ("::ffff:127.0.0.1", "no_host"),
    ("::ffff:8.8.8.8", "no_host"),
    ("::127.0.0.1", "no_host"),
]
ONLY_OF_A_DEFAULT = [
    ("10.0.0.1", "private"),
    ("172.16.0.1", "private"),
    ("172.31.255.254", "private"),
    ("192.168.0.1", "private"),
    ("192.0.0.170", "private"),
    ("fc00::1", "private"),
    ("fd12:3456::1", "private"),
    ("fec0::1", "private"),
    ("198.51.100.1", "own_network"),
    ("198.51.100.2", "own_network"),
    ("2001:db8:5::9", "own_network"),
]
HELD = [*NEVER[:2], *NEVER[3:5], NEVER[6], NEVER[9], *NEVER[12:14], *NEVER[15:17], ("10.0.0.1", "private")]
SPELLINGS = {
    "NAT64": "64:ff9b::{0:x}:{1:x}",
    "NAT64 of a site": "64:ff9b:1::{0:x}:{1:x}",
    "6to4": "2002:{0:x}:{1:x}::1",
    "Teredo server": "2001:0:{0:x}:{1:x}::1",
    "Teredo client": "2001::1:{2:x}:{3:x}",
    "ISATAP": "2001:db8::5efe:{0:x}:{1:x}",
    "translated": "::ffff:0:{0:x}:{1:x}",
}


def spelled(form: str, text: str) -> bytes:
    number = int(ipaddress.IPv4Address(text))
    high, low = number >> 16, number & 0xFFFF
    return raw(SPELLINGS[form].format(high, low, high ^ 0xFFFF, low ^ 0xFFFF))


@pytest.mark.parametrize(("address", "word"), NEVER)
def test_some_places_are_never_dialled(address: str, word: str) -> None:
    everything = Destinations([*EVERYWHERE, parse_prefix("0.0.0.0/1"), parse_prefix("128.0.0.0/1")])
    for destinations in (EXIT, everything, Destinations([parse_prefix("::/1"), parse_prefix("8000::/1")])):
        assert destinations.why_not(raw(address)) == f"forward.{word}"


@pytest.mark.parametrize(("address", "word"), ONLY_OF_A_DEFAULT)
def test_a_default_route_leads_to_public_addresses_outside_our_networks(address: str, word: str) -> None:
    assert EXIT.why_not(raw(address)) in (f"forward.{word}", "forward.no_route")
    named = Destinations([*EVERYWHERE, parse_prefix(address)], AT_HOME)
    assert named.why_not(raw(address)) is None, "this one was named"


@pytest.mark.parametrize("form", SPELLINGS)
@pytest.mark.parametrize("text", [address for address, _ in HELD if ":" not in address])
def test_another_spelling_is_no_way_around(form: str, text: str) -> None:
    address = spelled(form, text)
    assert parse_address(text) in embedded(address)
    assert EXIT.why_not(address) is not None
    named = Destinations([parse_prefix("10.0.0.0/8"), *EVERYWHERE], AT_HOME)
    assert named.why_not(address) is not None, "policy has not seen what it spells"


@pytest.mark.parametrize("form", ["NAT64", "6to4", "ISATAP"])
def test_a_public_address_may_be_spelled_any_way(form: str) -> None:
    assert EXIT.why_not(spelled(form, "8.8.8.8")) is None


def test_who_advertises_a_translator_means_its_private_side_but_not_this_machine() -> None:
    translator = Destinations([parse_prefix("64:ff9b::/96")])
    assert translator.why_not(spelled("NAT64", "10.0.0.1")) is None
    assert translator.why_not(spelled("NAT64", "127.0.0.1")) == "forward.loopback"
    assert translator.why_not(spelled("NAT64", "169.254.169.254")) == "forward.link_local"


def test_only_the_very_address_opens_a_metadata_service() -> None:
    address = raw("169.254.169.254")
    assert Destinations([parse_prefix("169.254.0.0/16")]).why_not(address) == "forward.link_local"
    assert Destinations([parse_prefix("169.254.169.254")]).why_not(address) is None
    for text in ("127.0.0.1", "100.64.0.7", "0.0.0.0", "224.0.0.1", "::1"):
        assert Destinations([parse_prefix(text)]).why_not(raw(text)) is not None, "nobody can mean this one"


VIA_ROUTE = Destinations([parse_prefix("fd7a:115c:a1e0:b1a:0:7::/96"), *EVERYWHERE])


@pytest.mark.parametrize(
    ("inner", "word"),
    [
        ("10.77.0.2", None),
        ("192.168.1.1", None),
        ("8.8.8.8", None),
        *((address, f"forward.{word}") for address, word in NEVER if ":" not in address),
    ],
)
def test_what_a_4via6_address_holds_is_judged(inner: str, word: str | None) -> None:
    address = raw("fd7a:115c:a1e0:b1a:0:7::")[:12] + raw(inner)
    assert inside_via(address) == raw(inner)
    assert VIA_ROUTE.target_of(address) == raw(inner)
    assert VIA_ROUTE.why_not(address) == word
    other_site = raw("fd7a:115c:a1e0:b1a:0:8::")[:12] + raw(inner)
    assert VIA_ROUTE.why_not(other_site) == "forward.no_route"


def test_ordinary_places_may_be_dialled() -> None:
    lan = Destinations([parse_prefix("192.168.7.0/24"), parse_prefix("fd12::/64")], AT_HOME)
    assert [lan.why_not(raw(text)) for text in ("192.168.7.9", "fd12::9")] == [None, None]
    assert lan.why_not(raw("192.168.8.9")) == "forward.no_route"
    assert [EXIT.why_not(raw(text)) for text in ("8.8.8.8", "2606:4700::1111")] == [None, None]


def test_a_network_of_ours_inside_a_named_one_stays_named() -> None:
    lan = Destinations([*EVERYWHERE, parse_prefix("10.0.0.0/8")], [parse_prefix("10.0.5.0/24")])
    assert lan.covers(raw("10.0.5.9"))
    assert lan.why_not(raw("10.0.5.9")) is None


ADDRESSES = st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16))


@given(ADDRESSES)
@example(raw("2002:7f00:1::"))
@example(raw("64:ff9b::a9fe:a9fe"))
def test_what_an_exit_dials_is_global_in_the_words_of_the_standard_library(address: bytes) -> None:
    """Python's own registry of special addresses is the slow twin: it may refuse more, never less."""
    if EXIT.why_not(address) is not None:
        return
    for each in (address, *embedded(address)):
        known = ipaddress.ip_address(each)
        assert not any((known.is_loopback, known.is_link_local, known.is_multicast, known.is_unspecified)), known
        assert known.is_global or not known.is_private or _is_documentation(known), format_address(each)
        assert never(each) is None


def _is_documentation(known: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Private to the registry, since nobody has them; harmless, and what tests have."""
    texts = ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "198.18.0.0/15", "2001:db8::/32", "3fff::/20")
    documented = any(
        known in ipaddress.ip_network(text) for text in texts if ipaddress.ip_network(text).version == known.version
    )
    return documented or (known.version == 6 and known in ipaddress.ip_network("2001::/23"))
