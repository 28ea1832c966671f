"""A suite as users write it: the `tailnet` fixture comes with pytailscale[testing], nothing is mocked."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from guestbook import GuestBook, visit
from trio.testing import MockClock

from tailscale.testing import Tailnet


@pytest.fixture
async def book(tailnet: Tailnet) -> AsyncIterator[GuestBook]:
    """A guest book that is open on the device `hall`."""
    made = GuestBook()
    async with trio.open_nursery() as nursery:
        await nursery.start(made.serve, await tailnet.device("hall"))
        yield made
        nursery.cancel_scope.cancel()


async def test_guests_are_written_down_by_their_tailnet_name(tailnet: Tailnet, book: GuestBook) -> None:
    ada, grace = await tailnet.device("ada"), await tailnet.device("grace")
    assert await visit(ada, "hall") == []
    assert await visit(grace, "hall") == ["ada"]
    assert book.guests == ["ada", "grace"]


async def test_a_visit_goes_by_relay_where_udp_is_blocked(tailnet: Tailnet, book: GuestBook) -> None:
    ada = await tailnet.device("ada")
    tailnet.block_udp(ada, "hall")
    assert await visit(ada, "hall") == []
    assert (await ada.ping("hall")).path.startswith("relay")


async def test_a_visitor_waits_until_the_way_is_open_again(
    autojump_clock: MockClock, tailnet: Tailnet, book: GuestBook
) -> None:
    ada = await tailnet.device("ada")
    tailnet.policy({"acls": [{"action": "accept", "src": ["*"], "dst": ["*:22"]}]})
    await trio.sleep(1)
    with pytest.raises(ConnectionRefusedError, match="policy"):
        await visit(ada, "hall")
    tailnet.policy(None)
    await trio.sleep(1)
    assert await visit(ada, "hall") == []


async def test_the_book_stays_open_while_control_is_gone(
    autojump_clock: MockClock, tailnet: Tailnet, book: GuestBook
) -> None:
    ada = await tailnet.device("ada")
    await tailnet.control.stop()
    await trio.sleep(3600)
    assert await visit(ada, "hall") == []
