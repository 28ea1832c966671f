"""A port that is announced is found by its word, for as long as it is open."""

from __future__ import annotations

import pytest
from tailnet_scripts import until
from trio.testing import MockClock

from tailscale.testing import Tailnet


async def test_a_port_is_found_by_its_word_while_it_is_open(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    async with await b.listen(0, announce="guestbook") as listener:
        await until(lambda: a.peers["b"].announced == {"guestbook": listener.port})
        async with await a.tcp_connect("b", a.peers["b"].announced["guestbook"]) as stream:
            async with await listener.accept():
                assert stream.peer is not None
        assert a.peers["b"].to_dict()["announced"] == {"guestbook": listener.port}
        async with await b.listen(0, announce="wiki") as other, await b.listen(0):
            await until(lambda: a.peers["b"].announced == {"guestbook": listener.port, "wiki": other.port})
        await until(lambda: a.peers["b"].announced == {"guestbook": listener.port})
    await until(lambda: not a.peers["b"].announced)


@pytest.mark.parametrize("word", ["two\nlines", "x" * 65, "\x1b[31m"])
async def test_a_word_is_short_and_printable(autojump_clock: MockClock, tailnet: Tailnet, word: str) -> None:
    a = await tailnet.device("a")
    with pytest.raises(ValueError, match="announces nothing"):
        await a.listen(0, announce=word)
    async with await a.listen(0):
        pass
