"""Which path wins: worked examples, and what must not flap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_dataplane.path_scoring import PathQuality, address_points, is_better

PUBLIC, PRIVATE, LINK_LOCAL, LOOPBACK = "203.0.113.7", "10.0.0.7", "169.254.0.7", "127.0.0.1"
PUBLIC6, ULA, LOOPBACK6 = "2001:db8::7", "fd00::7", "::1"


def quality(host, milliseconds, mtu=0, vni=None):
    return PathQuality((host, 1) if vni is None else (host, 1, vni), milliseconds / 1000, mtu)


@pytest.mark.parametrize(
    ("host", "points"),
    [(PUBLIC, 0), (PRIVATE, 20), (LINK_LOCAL, 30), (LOOPBACK, 50), (PUBLIC6, 10), (ULA, 30), (LOOPBACK6, 60), ("x", 0)],
)
def test_address_points(host, points):
    assert address_points(host) == points


@pytest.mark.parametrize(
    ("challenger", "incumbent", "wins"),
    [
        ((PRIVATE, 2.0), (PUBLIC6, 1.9), True),  # 5 + 10 against 20
        ((PUBLIC6, 1.9), (PRIVATE, 2.0), False),
        ((PUBLIC, 10.0), (PUBLIC, 10.05), False),  # same address
        (("198.51.100.1", 10.0), (PUBLIC, 10.05), False),  # half a per cent is noise
        (("198.51.100.1", 10.05), (PUBLIC, 10.0), False),
        (("198.51.100.1", 10.0), (PUBLIC, 10.5), True),
        (("198.51.100.1", 9.0), (PUBLIC, 10.0), True),
        ((PUBLIC, 5.0), (PRIVATE, 20.0), True),  # four times as fast outweighs being near
        ((PRIVATE, 20.0), (PUBLIC, 17.0), True),
        ((PRIVATE, 20.0), (PUBLIC, 15.0), False),
        ((LOOPBACK, 1.0), (PRIVATE, 1.0), True),
    ],
)
def test_worked_example(challenger, incumbent, wins):
    assert is_better(quality(*challenger), quality(*incumbent)) is wins


def test_larger_mtu_wins_on_one_address_only():
    assert is_better(quality(PUBLIC, 9, mtu=1280), quality(PUBLIC, 5))
    assert not is_better(quality(PUBLIC, 5), quality(PUBLIC, 9))


def test_direct_beats_peer_relayed_and_anything_beats_nothing():
    assert is_better(quality(PUBLIC, 90), quality(LOOPBACK, 1, vni=7))
    assert not is_better(quality(LOOPBACK, 1, vni=7), quality(PUBLIC, 90))
    assert is_better(quality(PUBLIC, 90), None)
    assert not is_better(None, quality(PUBLIC, 90))


hosts = st.sampled_from([PUBLIC, "198.51.100.1", PRIVATE, LINK_LOCAL, LOOPBACK, PUBLIC6, ULA])
qualities = st.builds(quality, hosts, st.floats(0, 2000), st.sampled_from([0, 1280]), st.sampled_from([None, 5]))


@given(qualities, qualities)
def test_two_paths_never_both_win(a, b):
    assert not (is_better(a, b) and is_better(b, a))
