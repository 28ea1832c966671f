"""The short way through loss recovery says and remembers what the long one does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ts_netstack.tcp_recovery import LossRecovery
from ts_netstack.tcp_timing import RoundTrip

MSS = 1228
OBJECTS = {"congestion", "flight", "round_trip"}
steps = st.lists(
    st.tuples(st.sampled_from(["send", "ack all", "ack some", "sack"]), st.integers(1, 3 * MSS), st.floats(0.0, 0.2)),
    max_size=40,
)


def remembered(recovery: LossRecovery) -> dict[str, object]:
    plain = {name: getattr(recovery, name) for name in LossRecovery.__slots__ if name not in OBJECTS}
    spans = [(s.start, s.end, s.sent_at, s.fate, s.resent) for s in recovery.flight.spans]
    return plain | {"spans": spans, "lost": recovery.flight.lost, "sacked": recovery.flight.sacked}


@given(steps)
def test_a_plain_acknowledgement_is_an_acknowledgement(history: list[tuple[str, int, float]]) -> None:
    quick, thorough = (LossRecovery(MSS, RoundTrip(), True) for _ in range(2))
    una = nxt = 0
    now = 1.0
    for what, size, later in history:
        now += later
        if what == "send":
            for recovery in (quick, thorough):
                recovery.on_sent(nxt, nxt + size, now)
            nxt += size
        elif una < nxt:
            blocks = ()
            if what == "sack":
                blocks = ((nxt - min(size, nxt - una - 1), nxt),) if nxt - una > 1 else ()
            else:
                una = nxt if what == "ack all" else una + 1 + (size - 1) % (nxt - una)
            expected = thorough.on_ack(una, nxt, blocks, None, int(now * 1000), now)
            said = None if blocks else quick.on_plain_ack(una, now)
            assert expected == (quick.on_ack(una, nxt, blocks, None, int(now * 1000), now) if said is None else said)
        assert remembered(quick) == remembered(thorough)


def test_the_short_way_is_taken_by_a_lone_segment() -> None:
    recovery = LossRecovery(MSS, RoundTrip(), True)
    recovery.on_sent(0, 64, 1.0)
    assert recovery.on_plain_ack(64, 1.25) == (64, 0.25)
    recovery.on_sent(64, 128, 2.0)
    assert recovery.on_plain_ack(100, 2.25) is None
