"""Who is told that we take large packets, and which ways carry them."""

from __future__ import annotations

import pytest

from ts_base.ip import parse_address
from ts_dataplane.engine import Engine
from ts_dataplane.relay_segments import RELAYED_MTU, Widths
from ts_dataplane.tables import PeerRoutes, compile_tables
from ts_derp.frames import MAX_PACKET_LENGTH, PACKET_OVERHEAD

PEER, PEER6, ROUTED, SERVICE = "100.64.0.2", "fd7a:115c:a1e0::2", "10.1.2.3", "100.100.1.1"
RELAY, OTHER_RELAY = (900, b"k" * 32), (901, b"k" * 32)
DIRECT, PEER_RELAYED = ("192.0.2.7", 41641), ("192.0.2.9", 40000, 7)


@pytest.fixture
def engine() -> Engine:
    made = Engine(None, None)  # type: ignore[arg-type]
    made.tables = compile_tables(
        own=("100.64.0.1/32", "fd7a:115c:a1e0::1/128"),
        peers=[PeerRoutes(2, (PEER, PEER6), (PEER, PEER6, "10.0.0.0/8", f"{SERVICE}/32", "0.0.0.0/0"))],
        accept_routes=True,
        exit_node=2,
    )
    made.paths = {2: (RELAY,)}
    return made


@pytest.mark.parametrize("address", [PEER, PEER6])
def test_a_peers_own_addresses_are_told(engine: Engine, address: str) -> None:
    widths = Widths(engine)
    assert (
        widths.offered_to((parse_address(address), 0)) == widths.carried_to((parse_address(address), 0)) == RELAYED_MTU
    )


@pytest.mark.parametrize("address", [ROUTED, SERVICE, "8.8.8.8", "100.64.0.1", "100.64.0.9", "224.0.0.1"])
def test_nobody_behind_a_peer_is_told(engine: Engine, address: str) -> None:
    widths = Widths(engine)
    assert widths.offered_to((parse_address(address), 0)) == widths.carried_to((parse_address(address), 0)) == 0


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
def test_the_smallest_of_the_paths_in_use_counts(engine: Engine, paths: tuple, carried: int) -> None:
    engine.paths = {2: paths}
    widths = Widths(engine)
    assert widths.carried_to((parse_address(PEER), 0)) == carried
    assert widths.offered_to((parse_address(PEER), 0)) == RELAYED_MTU  # a SYN is sent once, the path may change later


def test_a_sealed_one_fits_a_frame_and_two_tls_records() -> None:
    sealed = RELAYED_MTU + 32
    assert sealed <= MAX_PACKET_LENGTH
    assert sealed + PACKET_OVERHEAD <= 2 << 14
