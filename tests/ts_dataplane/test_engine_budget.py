"""Work per packet, counted and not timed: Python and C calls while 48 packets cross a real tunnel and the engine.

A ceiling that breaks means somebody put work into a loop that runs for every packet. bench/engine.py has the times.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable

import pytest

from bench.engine import PATHS, Side, pair, segments
from ts_base.ip import TCP, UDP

RUN = 48
# Measured: 7.0 in and 3.3 out, of which the engine's own are 3.2 and 0.3; the rest is ts_tunnel's.
INBOUND_CALLS, OUTBOUND_CALLS = 8.0, 4.0
ENGINE_INBOUND_CALLS, ENGINE_OUTBOUND_CALLS = 3.5, 0.5


def calls(work: Callable[[], object]) -> Counter[str]:
    """How often each function was called, by the file it was called in."""
    counted: Counter[str] = Counter()

    def watch(frame, event, argument):
        if event in ("call", "c_call"):
            counted[frame.f_code.co_filename.rsplit("/", 1)[-1]] += 1

    sys.setprofile(watch)
    try:
        work()
    finally:
        sys.setprofile(None)
    return counted


def send(side: Side, packets: list[bytes]):
    destination = packets[0][16:20] if packets[0][0] == 0x45 else packets[0][24:40]
    side.shelf.outgoing.append(((destination, 0), packets))
    return side.engine.transmit(1.0)


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("family", [0, 1])
def test_calls_per_packet_stay_under_their_ceiling(protocol, family):
    a, b = pair()
    packets = segments(protocol, family, RUN, 1280)
    b.engine.receive([(PATHS[1], datagrams) for _, datagrams in send(a, packets)], 1.0)  # warm
    sent: list = []
    outbound = calls(lambda: sent.extend(send(a, packets)))
    before = b.shelf.received
    inbound = calls(lambda: b.engine.receive([(PATHS[1], datagrams) for _, datagrams in sent], 1.0))
    assert b.shelf.received - before == RUN
    assert inbound.total() / RUN <= INBOUND_CALLS, inbound
    assert outbound.total() / RUN <= OUTBOUND_CALLS, outbound
    assert inbound["engine.py"] / RUN <= ENGINE_INBOUND_CALLS, inbound
    assert outbound["engine.py"] / RUN <= ENGINE_OUTBOUND_CALLS, outbound


def test_a_known_flow_is_judged_once_per_run():
    a, b = pair()
    packets = segments(TCP, 0, RUN, 1280)
    runs = [(PATHS[1], datagrams) for _, datagrams in send(a, packets)]
    assert calls(lambda: b.engine.receive(runs, 1.0))["tables.py"] <= 40
    runs = [(PATHS[1], datagrams) for _, datagrams in send(a, packets)]
    assert calls(lambda: b.engine.receive(runs, 1.0))["tables.py"] <= 2
