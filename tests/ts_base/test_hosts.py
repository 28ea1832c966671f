"""One checked form for every host name that somebody else told us."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_base.errors import BadPacket
from ts_base.hosts import LONGEST_NAME, check_host_untrusted


@pytest.mark.parametrize(
    ("text", "ascii_form"),
    [
        ("derp1.example.com", "derp1.example.com"),
        ("example.com.", "example.com."),
        ("a_b", "a_b"),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("m\u00fcnchen.example", "xn--mnchen-3ya.example"),
    ],
)
def test_host_names_and_addresses_pass(text: str, ascii_form: str) -> None:
    assert check_host_untrusted(text) == ascii_form


@pytest.mark.parametrize(
    "text",
    ["", ".", "a..b", ".a", "a" * 64, "a b", "a\0b", "a\r\nb", "a/b", "a:1", "fe80::1%eth0", "\u200d.x", "a." * 130],
)
def test_what_no_resolver_takes_is_refused(text: str) -> None:
    with pytest.raises(BadPacket):
        check_host_untrusted(text)


@given(st.text(max_size=300))
def test_nothing_but_badpacket_comes_out(text: str) -> None:
    try:
        name = check_host_untrusted(text)
    except BadPacket:
        return
    assert name.isascii()
    assert len(name) <= LONGEST_NAME
