"""Several exits of one device at once: each flow by its own, nobody else's word in it, and nothing left of it after."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import msgspec
import pytest
import trio
from exit_scripts import EVERYWHERE, WEB, WEB6, Internet, exits
from tailnet_scripts import beside, collect, echo_service, echoed, held_by, runtime_of, until
from test_cancel_anywhere import cancelled_after
from trio.testing import MockClock

import tailscale
from tailscale import Device
from tailscale.testing import Tailnet
from ts_base.ip import TCP, UDP
from ts_base.ip import parse_address as address_of
from ts_base.ip_headers import ACK, SYN, ip_packet
from ts_control.wire import Location
from ts_dataplane.packets import Parsed
from ts_dataplane.tsmp import encode_pong, encode_rejected
from ts_netstack.icmp import host_unreachable
from ts_netstack.tcp import TcpConnection
from ts_netstack.wire import Address, tcp_packet, udp_payload


async def echoed_by(desk: Device, via: str | tailscale.Node, host: str = WEB, port: int = 80) -> bytes:
    async with await desk.tcp_connect(host, port, via=via, timeout=10) as stream:
        await stream.send_all(b"hello")
        return await stream.receive_some()


def in_use(desk: Device) -> dict[int, int]:
    held_by(desk)  # what was closed is counted no more
    return dict(runtime_of(desk).stack.exits_in_use)


def id_of(desk: Device, name: str) -> int:
    return desk.peers[name].id


# Each by its own


async def test_each_connection_goes_through_the_exit_it_names(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with exits(tailnet, "swiss", "dutch") as (desk, [swiss, dutch]):
        async with (
            await desk.tcp_connect(WEB, 80, via="swiss") as one,
            await desk.tcp_connect(WEB, 80, via=desk.peers["dutch"]) as two,
            await desk.tcp_connect(WEB6, 80, via="dutch") as three,
        ):
            for stream, hostname in ((one, "swiss"), (two, "dutch"), (three, "dutch")):
                await stream.send_all(hostname.encode())
                assert await stream.receive_some() == hostname.encode()
                assert stream.exit == desk.peers[hostname]
                assert stream.path == next(e.path for e in desk.exit_nodes if e.node.hostname == hostname) != ""
                assert stream.peer is None, "whoever is behind the exit is no node"
        assert (len(swiss.visitors), len(dutch.visitors)) == (1, 2)
        with pytest.raises(tailscale.NoRoute, match="no peer owns or routes"):
            await desk.tcp_connect(WEB, 80)
        async with echo_service(swiss.device, 7):
            async with await desk.tcp_connect("swiss", 7) as direct:
                assert direct.exit is None
            assert await echoed_by(desk, "swiss", "swiss", 7) == b"hello"


async def test_via_wins_over_the_exit_node_of_the_preferences(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with exits(tailnet, "swiss", "dutch") as (desk, [swiss, dutch]):
        await desk.set(exit_node="swiss")
        await until(lambda: runtime_of(desk).reach.routes_to(bytes([9, 9, 9, 9])))
        assert await echoed_by(desk, "dutch") == b"hello"
        assert await echoed(desk, WEB, 80) == b"hello"
        assert (len(swiss.visitors), len(dutch.visitors)) == (1, 1)
        async with await desk.connect_anywhere(WEB, 80, via="dutch"), echo_service(swiss.device, 7):
            assert len(dutch.visitors) == 2
            async with await desk.connect_anywhere("swiss", 7, via="dutch") as stream:
                assert isinstance(stream, tailscale.TcpStream)
                assert stream.exit is None, "what the tailnet has is reached as usual"


async def test_datagrams_go_through_the_exit_of_their_socket(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with exits(tailnet, "swiss", "dutch") as (desk, _):
        async with await desk.udp(via="swiss") as one, await desk.udp(via="dutch") as two:
            for socket, hostname in ((one, "swiss"), (two, "dutch")):
                await socket.send_to(hostname.encode(), (WEB, 53))
                assert await socket.receive_from() == (hostname.encode(), (WEB, 53))
                assert socket.exit == desk.peers[hostname]
            assert in_use(desk) == {id_of(desk, "swiss"): 1, id_of(desk, "dutch"): 1}
        assert in_use(desk) == {}
        async with await desk.udp() as plain:
            assert plain.exit is None


async def test_exit_nodes_are_those_whose_routes_are_approved(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk = await tailnet.device("desk")
    swiss = await tailnet.device("swiss", advertise_routes=EVERYWHERE)
    assert desk.exit_nodes == ()
    enrolled = tailnet.control.server.directory.find(tailnet.id_of(swiss))
    place = Location(country="Switzerland", country_code="CH", city="Zurich", city_code="ZRH", priority=7)
    enrolled.hostinfo = msgspec.structs.replace(enrolled.hostinfo, location=place)
    tailnet.approve_routes(swiss, *EVERYWHERE)
    await until(lambda: desk.exit_nodes)
    [found] = desk.exit_nodes
    assert found.node == desk.peers["swiss"]
    assert found.to_dict() | {"path": "", "latency": None} == {
        "node": "swiss",
        "country": "Switzerland",
        "country_code": "CH",
        "city": "Zurich",
        "city_code": "ZRH",
        "priority": 7,
        "online": True,
        "path": "",
        "latency": None,
    }


# Nobody else's word


def forged(theirs: TcpConnection, data: bytes) -> bytes:
    """The very segment that the other end would send next."""
    next_sequence, expected, _ = theirs.last_numbers()
    return tcp_packet(theirs.local, theirs.remote, next_sequence, expected, ACK, 500, b"", data)


@pytest.mark.parametrize(
    ("is_in_use", "reason"), [(False, "filter.not_an_answer"), (True, "tcp.wrong_peer")], ids=["idle", "in use"]
)
async def test_an_exit_cannot_speak_in_a_connection_through_another(
    autojump_clock: MockClock, tailnet: Tailnet, is_in_use: bool, reason: str
) -> None:
    async with exits(tailnet, "swiss", "dutch") as (desk, [swiss, dutch]):
        async with await desk.tcp_connect(WEB, 80, via="swiss") as stream, AsyncExitStack() as others:
            if is_in_use:
                await others.enter_async_context(await desk.udp(via="dutch"))
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"
            packet = forged(swiss.connections[0], b"forged")
            speak(dutch, packet)
            await until(lambda: desk.status().drops.get(reason))
            assert not stream.is_readable, "nothing of it was delivered"
            speak(swiss, packet)  # the same bytes from the right one
            assert await stream.receive_some() == b"forged"
            assert desk.status().drops[reason] == 1


async def test_an_exit_cannot_report_on_a_connection_through_another(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    """ICMP errors belong to whoever carries the flow that they quote."""
    async with exits(tailnet, "swiss", "dutch") as (desk, [swiss, dutch]), await desk.udp(via="dutch"):
        swiss.forwarder.owner = None  # a SYN waits there for ever
        failures: list[BaseException] = []

        async def dial() -> None:
            with pytest.raises(tailscale.NoRoute, match="the network on its side says it is unreachable") as caught:
                await desk.tcp_connect(WEB, 80, via="swiss", timeout=30)
            failures.append(caught.value)

        async with beside(dial):
            await until(lambda: swiss.forwarder.statistics().held)
            [connection] = (one for one in runtime_of(desk).stack.sockets() if isinstance(one, TcpConnection))
            first, _, _ = connection.last_numbers()
            quoted = tcp_packet(connection.local, connection.remote, first - 1, 0, SYN, 500, b"", b"")
            report = host_unreachable(quoted, connection.remote[0], connection.local[0])
            speak(dutch, report)
            await until(lambda: desk.status().drops.get("icmp.wrong_peer"))
            await trio.sleep(1)
            assert not failures
            speak(swiss, report)  # the same words from the right one
            await until(lambda: failures)


async def test_an_exit_cannot_refuse_a_dial_through_another(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    """A peer's policy speaks inside the tunnel, as the place that was dialled: of its own flows only."""
    async with exits(tailnet, "swiss", "dutch") as (desk, [swiss, dutch]), await desk.udp(via="dutch"):
        swiss.forwarder.owner = None  # a SYN waits there for ever
        failures: list[tailscale.ConnectionRefused] = []

        async def dial() -> None:
            with pytest.raises(tailscale.ConnectionRefused, match=r"does not let us in \(access rules\)") as caught:
                await desk.tcp_connect(WEB, 80, via="swiss", timeout=30)
            failures.append(caught.value)

        async with beside(dial):
            await until(lambda: swiss.forwarder.statistics().held)
            [connection] = (one for one in runtime_of(desk).stack.sockets() if isinstance(one, TcpConnection))
            ends = (*connection.local, *connection.remote)
            opening = Parsed(TCP, ends[0], ends[2], ends[1], ends[3], SYN)
            for wrong in (encode_rejected(opening, "A"), encode_pong(ends[2], ends[0], bytes(8), 0)):
                speak(dutch, wrong)
            await until(lambda: desk.status().drops.get("answers.wrong_peer"))
            await until(lambda: desk.status().drops.get("filter.not_owner"))
            await trio.sleep(1)
            assert not failures
            speak(swiss, encode_rejected(opening, "A"))  # the same words from the right one
            await until(lambda: failures)
            assert failures[0].by_policy


async def test_an_exit_cannot_answer_a_datagram_sent_through_another(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    async with exits(tailnet, "swiss", "dutch") as (desk, [swiss, dutch]), await desk.udp(via="dutch"):
        async with await desk.udp(via="swiss") as socket:
            await socket.send_to(b"hello", (WEB, 53))
            assert await socket.receive() == b"hello"
            ends = (address_of(WEB), 53), (address_of(str(desk.ipv4)), socket.local_address[1])
            speak(dutch, udp_packet(*ends, b"forged, and no runt"))
            await until(lambda: desk.status().drops.get("filter.not_an_answer"))
            speak(swiss, udp_packet(*ends, b"from the right one"))
            assert await socket.receive() == b"from the right one"


def udp_packet(local: Address, remote: Address, data: bytes) -> bytes:
    return ip_packet(local[0], remote[0], UDP, udp_payload(local, remote, data))


def speak(internet: Internet, packet: bytes) -> None:
    """Send the desk a packet as if it came from behind an exit."""
    runtime = runtime_of(internet.device)
    runtime.endpoint.send([(id_of(internet.device, "desk"), [packet])], trio.current_time())
    runtime.dataplane.kick()


# Nothing is left


async def test_an_exit_is_in_use_until_the_last_word_of_a_connection_could_come(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    async with exits(tailnet, "swiss") as (desk, _):
        peer = id_of(desk, "swiss")
        async with await desk.tcp_connect(WEB, 80, via="swiss"):
            assert in_use(desk) == {peer: 1}
        await trio.sleep(50)
        assert in_use(desk) == {peer: 1}, "the other side's FIN may come again"
        await trio.sleep(15)
        assert in_use(desk) == {}
        stream = await desk.tcp_connect(WEB, 80, via="swiss")
        stream.abort()
        await trio.sleep(0.1)
        assert in_use(desk) == {}
        lost = [await desk.tcp_connect(WEB, 80, via="swiss"), await desk.udp(via="swiss")]
        assert in_use(desk) == {peer: 2}
        with pytest.warns(ResourceWarning, match="unclosed"):
            lose(lost)
        await trio.sleep(0.1)
        assert in_use(desk) == {}


def lose(sockets: list[tailscale.TcpStream | tailscale.UdpSocket]) -> None:
    sockets.clear()
    collect()


async def test_a_dial_that_fails_lets_go_of_its_exit(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with exits(tailnet, "swiss") as (desk, [swiss]):
        with pytest.raises(tailscale.ConnectionRefused):
            await desk.tcp_connect(WEB, 81, via="swiss")
        assert in_use(desk) == {}
        swiss.forwarder.owner = None  # a SYN waits there for ever
        with pytest.raises(tailscale.ConnectionTimedOut, match=r"9\.9\.9\.9 port 80 did not answer .* through swiss"):
            await desk.tcp_connect(WEB, 80, via="swiss", timeout=5)
        await trio.sleep(0.1)
        assert in_use(desk) == {}


async def talk(desk: Device) -> None:
    await echoed_by(desk, "swiss")


async def race(desk: Device) -> None:
    await echoed_by(desk, "swiss", "www.example")


async def datagram(desk: Device) -> None:
    async with await desk.udp(via="swiss") as socket:
        await socket.send_to(b"?", (WEB, 53))
        await socket.receive()


@pytest.mark.parametrize("deed", [talk, race, datagram])
async def test_cancelled_at_every_step_nothing_keeps_an_exit(
    autojump_clock: MockClock, tailnet: Tailnet, deed: Callable[[Device], Awaitable[None]]
) -> None:
    tailnet.dns(records=[("www.example", WEB), ("www.example", WEB6)])
    async with exits(tailnet, "swiss") as (desk, _):
        for steps in itertools.count(1):
            was_cut = await cancelled_after(steps, lambda: deed(desk))
            await trio.sleep(65)
            assert in_use(desk) == {}, f"after {steps} steps"
            if not was_cut:
                break
        assert steps > 3


# Exits that go


async def leaves(net: Tailnet, exit_device: Device) -> None:
    net.remove(exit_device)


async def is_taken_back(net: Tailnet, exit_device: Device) -> None:
    net.approve_routes(exit_device)


async def expires(net: Tailnet, exit_device: Device) -> None:
    net.expire(exit_device)


@pytest.mark.parametrize("goes", [leaves, is_taken_back, expires])
async def test_what_went_through_an_exit_that_goes_fails_at_once(
    autojump_clock: MockClock, tailnet: Tailnet, goes: Callable[[Tailnet, Device], Awaitable[None]]
) -> None:
    async with exits(tailnet, "swiss", "dutch") as (desk, [swiss, _]):
        silent = await desk.tcp_connect(WEB, 80, via="swiss")
        other = await desk.tcp_connect(WEB, 80, via="dutch")
        socket = await desk.udp(via="swiss")
        swiss.forwarder.owner = None  # the next SYN waits
        failures: dict[str, BaseException] = {}

        async def fails(name: str, deed: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(tailscale.TailscaleError) as caught:
                await deed()
            failures[name] = caught.value

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails, "stream", silent.receive_some)
            nursery.start_soon(fails, "socket", socket.receive)
            nursery.start_soon(fails, "dial", lambda: desk.tcp_connect(WEB, 80, via="swiss"))
            await trio.sleep(1)
            assert not failures
            began = trio.current_time()
            await goes(tailnet, swiss.device)
        assert trio.current_time() - began < 2
        assert isinstance(failures["stream"], tailscale.ConnectionReset)
        assert isinstance(failures["stream"], trio.BrokenResourceError)
        assert "its exit node left the tailnet, or takes nothing there any more" in str(failures["stream"])
        assert isinstance(failures["socket"], tailscale.NoRoute)
        assert isinstance(failures["dial"], tailscale.NoRoute | tailscale.PeerKeyExpired)
        with pytest.raises((tailscale.NoRoute, tailscale.PeerKeyExpired)):
            await socket.send_to(b"?", (WEB, 53))
        await other.send_all(b"unmoved")
        assert await other.receive_some() == b"unmoved"
        for one in (silent, other, socket):
            await one.aclose()
        await trio.sleep(65)
        assert in_use(desk) == {}


async def test_a_dial_to_a_peer_that_leaves_meanwhile_fails_at_once(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    for other in (b, "relay"):
        tailnet.block(a, other)
    began = trio.current_time()

    async def leave() -> None:
        await trio.sleep(1)
        tailnet.remove(b)

    async with beside(leave):
        with pytest.raises(tailscale.NoRoute, match="no peer owns or routes"):
            await a.tcp_connect("b", 80)
    assert trio.current_time() - began < 5


async def test_a_connection_outlives_a_moment_without_a_route(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    """Without `via` nobody was promised anything: the route may be back before TCP gives up (RFC 1122, 4.2.3.9)."""
    desk = await tailnet.device("desk")
    router = await tailnet.device("router", advertise_routes=["10.9.0.0/16"])
    await until(lambda: tailnet.control.server.directory.find(tailnet.id_of(router)).advertised)
    tailnet.approve_routes(router, "10.9.0.0/16")
    async with trio.open_nursery() as nursery:
        Internet(router, nursery)
        await until(lambda: runtime_of(desk).reach.routes_to(bytes([10, 9, 0, 1])))
        async with await desk.tcp_connect("10.9.0.1", 80) as stream:
            await desk.set(accept_routes=False)
            await until(lambda: not runtime_of(desk).reach.routes_to(bytes([10, 9, 0, 1])))
            await stream.send_all(b"hello")
            await until(lambda: desk.status().drops.get("engine.no_route"))
            await desk.set(accept_routes=True)
            assert await stream.receive_some() == b"hello"
        nursery.cancel_scope.cancel()


# Sentences


async def test_why_an_exit_will_not_do(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with exits(tailnet, "swiss") as (desk, [swiss]):
        await tailnet.device("plain")
        left, gone = tailnet.device("left"), None
        async with left:
            gone = desk.peers["left"]
        await until(lambda: "left" not in desk.peers)
        no_exit = "plain .*it is no exit node.* must offer to be one, and its routes must be approved"

        async def says(kind: type[BaseException], sentence: str, host: str, via: str | tailscale.Node) -> None:
            with pytest.raises(kind, match=sentence):
                await desk.tcp_connect(host, 80, via=via)

        await says(tailscale.NameNotFound, "'swisss' .via= names a peer.; did you mean 'swiss'", WEB, "swisss")
        await says(tailscale.NoRoute, "plain takes no packets to 9.9.9.9: " + no_exit[7:], WEB, "plain")
        await says(
            tailscale.NoRoute, "swiss takes no packets to plain .*reached directly: leave via= out", "plain", "swiss"
        )
        await says(tailscale.NoRoute, "cannot reach 9.9.9.9: the node named by via= has left the tailnet", WEB, gone)
        with pytest.raises(tailscale.NoRoute, match="plain is no exit node"):
            await desk.udp(via="plain")
        with pytest.raises(tailscale.NoRoute, match="has left"):
            await desk.udp(via=gone)
        tailnet.approve_routes(swiss.device, "0.0.0.0/0")
        await until(lambda: not runtime_of(desk).reach.routes_to(b"\x26" * 16, id_of(desk, "swiss")))
        await says(tailscale.NoRoute, "an exit node, but not for that address: does it offer IPv6 too", WEB6, "swiss")
        tailnet.expire(swiss.device)
        await until(lambda: desk.peers["swiss"].expired)
        await says(tailscale.PeerKeyExpired, "the key of swiss expired", WEB, "swiss")


async def test_an_exit_that_is_offline_is_named(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk = await tailnet.device("desk")
    async with tailnet.device("swiss", advertise_routes=EVERYWHERE, ephemeral=False) as swiss:
        tailnet.approve_routes(swiss, *EVERYWHERE)
        await until(lambda: desk.exit_nodes)
    await until(lambda: desk.exit_nodes[0].online is False)
    with pytest.raises(tailscale.PeerOffline, match="swiss is offline"):
        await desk.tcp_connect(WEB, 80, via="swiss", timeout=5)
