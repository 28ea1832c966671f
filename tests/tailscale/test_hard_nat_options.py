"""`hard_nats=`: what may be said, what it becomes, and how the way to a peer is told."""

from __future__ import annotations

from typing import Any

import pytest

import tailscale
from tailscale.hard_nats import HardNats, limits_of
from tailscale.runtime.messages import NetInfoChanged
from tailscale.runtime.path_actor import hard_router
from ts_dataplane.endpoints import LOCAL, PORT_MAPPED, STUN
from ts_dataplane.hard_nats import HardNatLimits

STUN_TWICE = (("203.0.113.9:4000", STUN), ("203.0.113.9:4001", STUN), ("192.168.1.7:41641", LOCAL))


def test_a_budget_becomes_limits() -> None:
    assert limits_of(True) == HardNatLimits() == limits_of(HardNats())
    assert limits_of(False).sockets == 0
    assert limits_of(HardNats(sockets=9, rate=5)) == HardNatLimits(sockets=9, rate=5)
    assert tailscale.HardNats is HardNats


@pytest.mark.parametrize(
    "wrong",
    [{"sockets": 0}, {"sockets": 1.5}, {"sockets": 2000}, {"probes": True}, {"rate": -1}, {"rest": 1}, {"seconds": 61}],
)
def test_a_budget_that_is_none_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        HardNats(**wrong)


def test_nothing_else_is_taken() -> None:
    with pytest.raises(TypeError, match="hard_nats is True, False or a HardNats"):
        tailscale.Device("a", hard_nats="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("varies", "endpoints", "router"),
    [
        (True, STUN_TWICE, "203.0.113.9"),
        (False, STUN_TWICE, ""),
        (None, STUN_TWICE, ""),
        (True, (("203.0.113.9:41641", PORT_MAPPED), *STUN_TWICE), ""),
        (True, (("[2001:db8::1]:4000", STUN),), ""),
        (True, (), ""),
    ],
)
def test_a_router_is_hard_if_stun_says_so_and_no_port_is_mapped(
    varies: bool | None, endpoints: Any, router: str
) -> None:
    found = NetInfoChanged(home_region=1, latencies={}, mapping_varies_by_destination=varies)
    assert hard_router(found, endpoints) == router


def test_nothing_is_hard_before_anything_was_measured() -> None:
    assert hard_router(None, STUN_TWICE) == ""
