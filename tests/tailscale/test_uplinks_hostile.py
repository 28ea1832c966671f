"""What others repeat earns no path any credit, where there are several uplinks."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
import trio.testing
from uplink_scripts import a_flow, a_van

DISCO_MAGIC = b"TS\xf0"


@pytest.mark.slow
@pytest.mark.parametrize("repeater", ["nas", "stranger"])
async def test_what_is_repeated_on_another_uplink_earns_it_nothing(
    repeater: str, autojump_clock: trio.testing.MockClock
) -> None:
    """All that comes by the first uplink, pongs and data, comes by the second later; there nothing gets out."""
    async with a_van() as made:
        made.internet.link("van%wwan0", "nas").change(udp_blocked=True)
        wlan, wwan = (made.internet.find("van").uplinks[name] for name in ("wlan0", "wwan0"))
        sender = made.internet.host(repeater).address
        repeated: Counter[str] = Counter()
        carry = made.internet.carry

        def carry_and_repeat(source, destination, datagrams, drops):
            carry(source, destination, datagrams, drops)
            if destination[0] == wlan:
                carry((sender, source[1]), (wwan, destination[1]), datagrams, drops)
                repeated["pongs" if datagrams[0].startswith(DISCO_MAGIC) else "data"] += len(datagrams)

        made.internet.carry = carry_and_repeat  # type: ignore[method-assign]
        async with a_flow(made, False) as flow:
            await trio.sleep(12)
            assert made.used == ["wlan0"]
            assert flow.wrong == 0
        assert repeated["data"] > 1000
        assert repeated["pongs"] > 2
        ways = [way for way in made.van.paths("nas") if way.uplink == "wwan0"]
        assert [(way.state, way.rtt, way.received) for way in ways if way.address.startswith(sender)] == (
            [("unknown", None, 0)] if repeater == "nas" else []
        )
        assert {way.state for way in ways} <= {"unknown", "dead"}
