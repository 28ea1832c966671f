"""One peer's addresses are tried in turn: a slow path must not make a second connection that is reset at once."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from tailscale_stack_pair import StackHome
from trio.testing import MockClock

import tailscale
from tailscale.dial.by_address import AddressDialer
from tailscale.errors import ConnectionReset
from tailscale.runtime.awaited_answers import AwaitedAnswers
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
            async with await a.tcp_connect("b", 80) as stream, await listener.accept() as accepted:
                assert stream.remote_address[0] == b.ipv6
                assert accepted.local_address[0] == b.ipv6


async def test_a_port_closed_on_both_is_refused(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        a, _ = await net.device("a"), await net.device("b")
        with pytest.raises(tailscale.ConnectionRefused, match="port 81"):
            await a.tcp_connect("b", 81)


async def test_a_connection_reset_before_the_dialler_looks_was_not_refused() -> None:
    ours, theirs = StackHome("100.64.0.1", 1), StackHome("100.64.0.2", 2)
    listens = theirs.stack.listen(80)

    def kick() -> None:
        """Everything happens at once: accepted, and reset."""
        for sender, receiver in ((ours, theirs), (theirs, ours), (ours, theirs)):
            for _, packets in sender.stack.transmit(0.0):
                receiver.stack.receive([(USUAL, packets)], 0.0)
        if (accepted := listens.accept()) is not None:
            accepted.abort(0.0)
            for _, packets in theirs.stack.transmit(0.0):
                ours.stack.receive([(USUAL, packets)], 0.0)
        for socket in ours.stack.take_messages():
            socket.owner.wake()

    nobody: Any = None  # neither who is there nor by which way is asked
    dialer = AddressDialer(nobody, nobody, AwaitedAnswers(), ours.stack, kick)
    with pytest.raises(ConnectionReset, match="right port 80 accepted the connection and reset it at once"):
        await dialer.connect(theirs.address, "right", 80)
