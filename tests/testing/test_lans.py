"""A private network behind a router, as users test with it."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tailscale.testing import Tailnet


async def test_a_lan_is_reached_through_its_router_and_by_nobody_else(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        lan = net.lan("192.168.7.0/24")
        printer, nas = lan.host("printer"), lan.host("nas", "192.168.7.77")
        laptop, router = await net.device("laptop"), await net.router("pi", lan)
        assert (printer.address, nas.address) == ("192.168.7.1", "192.168.7.77")
        assert router.forwarding.approved == ("192.168.7.0/24",)
        listener = nas.listen_tcp(445)
        async with await laptop.tcp_connect(nas.address, 445) as stream:
            await stream.send_all(b"hello")
            assert await (await listener.accept()).receive_some() == b"hello"
        with pytest.raises(OSError, match="no way"):
            await net.host("laptop").open_tcp(nas.address, 445)
        with pytest.raises(ValueError, match="not in"):
            lan.host("elsewhere", "10.0.0.1")


async def test_a_second_router_takes_over(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        lan = net.lan("192.168.7.0/24")
        listener = lan.host("nas").listen_tcp(445)
        laptop = await net.device("laptop")
        first, second = await net.router("pi", lan), await net.router("spare", lan)
        assert (first.forwarding.flows, second.forwarding.missing) == (0, ("192.168.7.0/24",))
        async with await laptop.tcp_connect("192.168.7.1", 445):
            await listener.accept()
            assert (first.forwarding.tcp, second.forwarding.tcp) == (1, 0)
        began = trio.current_time()
        await first.set(advertise_routes=[])
        while not second.forwarding.approved:  # noqa: ASYNC110 - a fact, not an event
            await trio.sleep(0.01)
        async with await laptop.tcp_connect("192.168.7.1", 445):
            await listener.accept()
            assert (first.forwarding.tcp, second.forwarding.tcp) == (0, 1)
        assert trio.current_time() - began < 1


async def test_a_router_that_is_not_approved_carries_nothing(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        router = await net.router("pi", net.lan("192.168.7.0/30"), approve=False)
        assert router.forwarding.missing == ("192.168.7.0/30",)
