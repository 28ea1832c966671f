"""Signatures of a lock checked by threads: each verdict comes back to its own claim."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from tailscale.runtime.judging import FEW, SLICE, judged
from ts_control.locked_view import Steps
from ts_control.netmap import NetMap
from ts_lock.keys import LockPrivate
from ts_lock.remembered import Claim
from ts_lock.signatures import sign_node
from ts_lock.vouching import NOT_SIGNED, Verdict, judge

ONE = LockPrivate(b"\1" * 32)


def claims(count: int) -> list[Claim]:
    """Every fifth is not signed."""
    keys = [number.to_bytes(2, "big") * 16 for number in range(count)]
    signatures = [base64.b64encode(sign_node(ONE, key, None).encode()).decode() for key in keys]
    return [
        Claim(key, text if number % 5 else "") for number, (key, text) in enumerate(zip(keys, signatures, strict=True))
    ]


async def test_verdicts_come_in_the_order_of_the_claims() -> None:
    asked = {count: claims(count) for count in (1, FEW, FEW + 1, 2 * SLICE + 3)}
    heard: dict[int, Sequence[Verdict]] = {}

    def steps() -> Steps:
        assert (yield ()) == ()
        for count in asked:
            heard[count] = yield asked[count]
        assert (yield ()) == ()
        return NetMap.empty()

    assert await judged(steps()) is NetMap.empty()
    for count, verdicts in heard.items():
        assert verdicts == [judge(claim) for claim in asked[count]]
        assert [verdict.problem == NOT_SIGNED for verdict in verdicts] == [not number % 5 for number in range(count)]
