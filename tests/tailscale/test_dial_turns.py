"""One peer's addresses are tried in turn: a slow path must not make a second connection that is reset at once."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from tailscale_stack_pair import StackHome
from trio.testing import MockClock

import tailscale
from tailscale.dial.dialing import _dial
from tailscale.errors import ConnectionReset
from tailscale.testing import Tailnet
from ts_netstack.arrivals import USUAL


async def test_a_slow_dial_by_name_makes_one_connection(autojump_clock: MockClock) -> None:
    async with Tailnet(latency=0.4) as net:
        a, b = await net.device("a"), await net.device("b")
        listener = await b.listen(80)
        accepted = []

        async def accept() -> None:
            while True:
                accepted.append(await listener.accept())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            stream = await a.tcp_connect("b", 80)
            assert stream.remote_address[0] == b.ipv4
            await trio.sleep(30)
            assert len(accepted) == 1
            nursery.cancel_scope.cancel()


async def test_a_service_on_the_second_family_only_is_found(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        a, b = await net.device("a"), await net.device("b")
        async with await b.listen(80, host=b.ipv6) as listener:
            stream = await a.tcp_connect("b", 80)
            assert stream.remote_address[0] == b.ipv6
            assert (await listener.accept()).local_address[0] == b.ipv6


async def test_a_port_closed_on_both_is_refused(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        a, _ = await net.device("a"), await net.device("b")
        with pytest.raises(tailscale.ConnectionRefused, match="port 81"):
            await a.tcp_connect("b", 81)


async def test_a_connection_reset_before_the_dialler_looks_was_not_refused() -> None:
    theirs = StackHome("100.64.0.2", 2)
    listens = theirs.stack.listen(80)

    class Dialler(StackHome):
        """Everything happens within one kick: accepted, and reset."""

        replies = SimpleNamespace(rejections=lambda connection: nullcontext([]))

        def kick(self) -> None:
            for sender, receiver in ((self, theirs), (theirs, self), (self, theirs)):
                for _, packets in sender.stack.transmit(0.0):
                    receiver.stack.receive([(USUAL, packets)], 0.0)
            if (accepted := listens.accept()) is not None:
                accepted.abort(0.0)
                for _, packets in theirs.stack.transmit(0.0):
                    self.stack.receive([(USUAL, packets)], 0.0)
            for socket in self.stack.take_messages():
                socket.owner.wake()

    ours: Any = Dialler("100.64.0.1", 1)
    with pytest.raises(ConnectionReset, match="right port 80 accepted the connection and reset it at once"):
        await _dial(ours, theirs.address, "right", 80, 0)
