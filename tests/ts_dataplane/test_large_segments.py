"""Who is told that we take large packets, and which ways carry them."""

from __future__ import annotations

import pytest

from ts_base.ip import parse_address
from ts_base.who import Hop
from ts_dataplane.claims import PeerRoutes
from ts_dataplane.filter import run_through
from ts_dataplane.large_segments import RELAYED_MTU, LargeSegments
from ts_dataplane.path_mtus import LARGEST
from ts_dataplane.tables import compile_tables_steps
from ts_derp.frames import MAX_PACKET_LENGTH, PACKET_OVERHEAD

PEER, PEER6, ROUTED, SERVICE = "100.64.0.2", "fd7a:115c:a1e0::2", "10.1.2.3", "100.100.1.1"
RELAY, OTHER_RELAY = (900, b"k" * 32), (901, b"k" * 32)
OTHER = ("198.51.100.7", 41641)
DIRECT, PEER_RELAYED = ("192.0.2.7", 41641), ("192.0.2.9", 40000, 7)


TABLES = run_through(
    compile_tables_steps(
        own=("100.64.0.1/32", "fd7a:115c:a1e0::1/128"),
        peers=[PeerRoutes(2, (PEER, PEER6), (PEER, PEER6, "10.0.0.0/8", f"{SERVICE}/32", "0.0.0.0/0"))],
        accept_routes=True,
        exit_node=2,
    )
)


def hop(address: str, via: int = 0) -> Hop:
    return parse_address(address), via


@pytest.mark.parametrize("address", [PEER, PEER6])
def test_a_peers_own_addresses_are_told(address: str) -> None:
    widths = LargeSegments(TABLES, {2: (RELAY,)})
    assert widths.offered_to(hop(address)) == LARGEST
    assert widths.carried_to(hop(address)) == RELAYED_MTU


@pytest.mark.parametrize("address", [ROUTED, SERVICE, "8.8.8.8", "100.64.0.1", "100.64.0.9", "224.0.0.1"])
def test_nobody_behind_a_peer_is_told(address: str) -> None:
    widths = LargeSegments(TABLES, {2: (RELAY,)})
    assert widths.offered_to(hop(address)) == widths.carried_to(hop(address)) == 0


@pytest.mark.parametrize(
    ("paths", "carried"),
    [
        ((RELAY,), RELAYED_MTU),
        ((RELAY, OTHER_RELAY), RELAYED_MTU),
        ((DIRECT,), 0),
        ((DIRECT, RELAY), 0),
        ((PEER_RELAYED,), 0),
        ((PEER_RELAYED, RELAY), 0),
        ((), 0),
    ],
)
def test_the_smallest_of_the_paths_in_use_counts(paths: tuple, carried: int) -> None:
    widths = LargeSegments(TABLES, {2: paths})
    assert widths.carried_to(hop(PEER)) == carried
    assert widths.offered_to(hop(PEER)) == LARGEST  # a SYN is sent once, the path may change later


@pytest.mark.parametrize(
    ("paths", "carried"), [((DIRECT,), 8940), ((DIRECT, RELAY), 8940), ((OTHER,), 0), ((DIRECT, OTHER), 0)]
)
def test_a_direct_path_carries_what_was_measured(paths: tuple, carried: int) -> None:
    widths = LargeSegments(TABLES, {2: paths}, {DIRECT: 8940, OTHER: 0})
    assert widths.carried_to(hop(PEER)) == carried


def test_a_path_that_nobody_measured_is_wished_for_once_it_is_asked_about() -> None:
    measured: dict = {}
    wanted: set = set()
    widths = LargeSegments(TABLES, {2: (DIRECT,)}, measured, wanted)
    assert widths.offered_to(hop(PEER))
    assert wanted == set()
    assert widths.carried_to(hop(PEER)) == 0
    assert wanted == {2}
    wanted.clear()
    measured[DIRECT] = 0
    assert widths.carried_to(hop(PEER)) == 0
    assert wanted == set()


def test_a_hop_by_another_peer_is_asked_about_that_peer() -> None:
    widths = LargeSegments(TABLES, {2: (RELAY,)})
    assert widths.carried_to(hop(PEER, via=2)) == RELAYED_MTU
    assert widths.carried_to(hop(PEER, via=3)) == widths.carried_to(hop("8.8.8.8", via=2)) == 0


def test_a_sealed_one_fits_a_frame_and_two_tls_records() -> None:
    sealed = RELAYED_MTU + 32
    assert sealed <= MAX_PACKET_LENGTH
    assert sealed + PACKET_OVERHEAD <= 2 << 14
