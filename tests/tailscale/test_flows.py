"""`device.flows()`: who talks to whom, with the bytes that moved, busiest first and within bounds."""

from __future__ import annotations

import functools
import json

import trio
from tailnet_scripts import beside, until
from trio.testing import MockClock

from tailscale import Device, Flow
from tailscale.testing import Tailnet


async def keep(_: trio.abc.Stream) -> None:
    await trio.sleep_forever()


def flow_to(device: Device, port: int) -> Flow:
    (found,) = (flow for flow in device.flows() if flow.port == port)
    return found


async def test_both_ends_of_a_connection_tell_the_same_bytes(autojump_clock: MockClock) -> None:
    async with Tailnet() as net, net.device("a") as a, net.device("b") as b:
        async with (
            await b.listen(80) as listener,
            await a.tcp_connect("b", 80) as near,
            await listener.accept() as far,
        ):
            await near.send_all(bytes(30_000))
            await far.send_all(b"thanks")
            await near.receive_some()
            await trio.sleep(1)
            ours, theirs = flow_to(a, 80), flow_to(b, 80)
            assert (ours.peer, ours.is_inbound, theirs.peer, theirs.is_inbound) == ("b", False, "a", True)
            assert (ours.local, ours.remote) == (theirs.remote, theirs.local) == (near.local_address, far.local_address)
            assert (ours.bytes_sent, ours.bytes_received) == (30_000, 6)
            assert (theirs.bytes_sent, theirs.bytes_received) == (6, 30_000)
        await until(lambda: not a.flows())


async def test_the_busiest_come_first_and_no_more_than_asked_for(autojump_clock: MockClock) -> None:
    async with Tailnet() as net, net.device("a") as a, net.device("b") as b:
        async with await b.listen(80) as quiet, await b.listen(81) as busy:
            async with await a.tcp_connect("b", 80), await a.tcp_connect("b", 81) as stream, await a.udp(5000):
                async with await quiet.accept(), await busy.accept():
                    await stream.send_all(b"x")
                    await trio.sleep(1)
                    assert [flow.port for flow in a.flows()] == [81, 80, 5000]
                    assert [flow.port for flow in a.flows(1)] == [81]
                    assert a.flows(0) == a.flows(-1) == ()


async def test_a_udp_socket_is_told_without_bytes(autojump_clock: MockClock) -> None:
    async with Tailnet() as net, net.device("a") as a, await a.udp(5000):
        flow = flow_to(a, 5000)
        assert flow == Flow("udp", ("", 5000), None, "", "", False, False, None, None)
        assert json.loads(json.dumps(flow.to_dict()))["remote"] is None


async def test_what_is_carried_for_others_is_told_as_such(autojump_clock: MockClock) -> None:
    async with Tailnet() as net:
        behind = net.host("printer")
        client, router = await net.device("client"), await net.device("router", advertise_routes=[behind.address])
        net.approve_routes(router, f"{behind.address}/32")
        await until(lambda: any(f"{behind.address}/32" in peer.routes for peer in client.peers.values()))
        await until(lambda: router.node.routes)
        serve = functools.partial(trio.serve_listeners, keep, [behind.listen_tcp(631)])
        async with beside(serve), await client.tcp_connect(behind.address, 631) as stream:
            await stream.send_all(b"page")
            await trio.sleep(1)
            carried = flow_to(router, 631)
            assert (carried.peer, carried.is_forwarded, carried.is_inbound) == ("client", True, True)
            assert (carried.local, carried.bytes_received) == ((behind.address, 631), 4)
            assert (flow_to(client, 631).peer, flow_to(client, 631).is_forwarded) == ("router", False)
