"""Lines that answer pings and carry nothing else, or only what is small: they are left, and not taken back by turns."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing
from uplink_scripts import Van, a_flow, a_van

DISCO_MAGIC = b"TS\xf0"
LEFT_WITHIN = 3.0


def swallow(made: Van, uplink: str, is_swallowed: Callable[[bytes], bool]) -> None:
    """From now on the line loses such datagrams both ways, without a word."""
    address = made.internet.find("van").uplinks[uplink]
    carry = made.internet.carry

    def carry_the_rest(source, destination, datagrams, drops):
        if address in (source[0], destination[0]):
            datagrams = [datagram for datagram in datagrams if not is_swallowed(datagram)]
        if datagrams:
            carry(source, destination, datagrams, drops)

    made.internet.carry = carry_the_rest  # type: ignore[method-assign]


def is_data(datagram: bytes) -> bool:
    return not datagram.startswith(DISCO_MAGIC)


def is_large(datagram: bytes) -> bool:
    return len(datagram) > 1000


@pytest.mark.slow
@pytest.mark.parametrize(("is_swallowed", "upward"), [(is_data, True), (is_large, True), (is_large, False)])
async def test_a_line_that_passes_pings_and_swallows_data_is_left_for_good(
    is_swallowed: Callable[[bytes], bool], upward: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with a_van() as made, a_flow(made, upward) as flow:
        await made.settle()
        await trio.sleep(2)
        assert made.used == ["wlan0"]
        made.changes.clear()
        began = trio.current_time()
        swallow(made, "wlan0", is_swallowed)
        await trio.sleep(LEFT_WITHIN)
        assert made.used == ["wwan0"]
        await trio.sleep(57)
        assert [one.path.uplink for one in made.changes] == ["wwan0"]
        assert flow.longest_gap(began) <= LEFT_WITHIN
        assert flow.wrong == 0
        [liar] = [way for way in made.van.paths("nas") if way.uplink == "wlan0"]
        assert liar.state in ("dead", "unknown")
        assert any(word in liar.why for word in ("pass", "swallow")), liar.why
