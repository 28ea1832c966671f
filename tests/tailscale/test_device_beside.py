"""What a device lends to what is built on it: tasks beside it, one peer's figures, and streams that are given up."""

from __future__ import annotations

import pytest
import trio
from tailnet_scripts import actors_of, count_tasks, echo_service, until
from trio.testing import MockClock

import tailscale
from tailscale.testing import Tailnet


async def test_a_spawned_task_ends_by_itself_or_with_the_device(
    autojump_clock: MockClock, tailnet: Tailnet, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[str] = []

    async def forever() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("forever")

    async def fail(what: str) -> None:
        raise ValueError(what)

    async with tailnet.device("a") as a:
        before = count_tasks(actors_of(a))
        a.spawn(forever)
        a.spawn(fail, "a mistake of the program's")
        await trio.sleep(1)
        assert count_tasks(actors_of(a)) == before + 1
        assert not ended
    assert ended == ["forever"]
    assert "a mistake of the program's" in caplog.text
    with pytest.raises(tailscale.DeviceClosed):
        a.spawn(forever)


async def test_one_peers_status_is_that_of_all(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    async with echo_service(b, 7), await a.tcp_connect("b", 7) as stream:
        await stream.send_all(b"hello")
        await stream.receive_some()
        [of_all] = a.status().peers
        assert a.peer_status("b") == a.peer_status(a.peers["b"]) == of_all
        assert of_all.bytes_received
        assert of_all.unanswered_for is None
        for other in ("b", "relay"):
            tailnet.block("a", other)
        await trio.sleep(200)
        await stream.send_all(b"anybody there?")
        await trio.sleep(10)
        assert 9 < (a.peer_status("b").unanswered_for or 0) < 11
    with pytest.raises(KeyError, match="nobody"):
        a.peer_status("nobody")


async def test_what_is_given_up_fails_at_once_for_whoever_waits(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    failures: list[BaseException] = []
    async with echo_service(b, 7), trio.open_nursery() as nursery:
        stream, udp = await a.tcp_connect("b", 7), await a.udp()

        async def read() -> None:
            with pytest.raises(tailscale.ConnectionReset) as caught:
                await stream.receive_some()
            failures.append(caught.value)

        async def hear() -> None:
            with pytest.raises(tailscale.NoRoute) as caught:
                await udp.receive()
            failures.append(caught.value)

        nursery.start_soon(read)
        nursery.start_soon(hear)
        await trio.sleep(1)
        stream.give_up()
        udp.give_up()
        await until(lambda: len(failures) == 2)
        with pytest.raises(tailscale.ConnectionReset):
            await stream.send_all(b"more")
        await stream.aclose()
        await udp.aclose()
