"""A relay of one's own: TLS is carried by name, nothing of a client is believed, and nobody shuts the others out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio
from funnel_scripts import NAME, POLICY, client_context, fetch, server_context, until_end
from hello_scripts import body_of, hello, message, records, server_name
from tailnet_scripts import beside, until
from trio.testing import MockClock

import tailscale.aio
import tailscale.sync
from tailscale import Device, FunnelStream
from tailscale.ingress import Ingress, IngressLimits, ingress
from tailscale.peerapi.actor import PORT
from tailscale.testing import Tailnet
from tailscale.testing.network import VirtualHost
from ts_base.client_hello import INTERNAL_ERROR, MISSING_EXTENSION, UNRECOGNIZED_NAME, encode_alert

OTHER = "other.example"


class Lab:
    """A relay on a public machine, two nodes that publish a name each, and a client somewhere."""

    def __init__(self, net: Tailnet, gate: Device, web: Device, other: Device) -> None:
        self.net, self.gate, self.web, self.other = net, gate, web, other
        self.client = net.host("client", "203.0.113.9")
        self.door = net.host("gatehouse", "198.51.100.1").listen_tcp(443)
        self.relay: Ingress

    async def knock(self, data: bytes = b"", client: VirtualHost | None = None) -> trio.abc.HalfCloseableStream:
        stream = await (client or self.client).open_tcp("198.51.100.1", 443)
        if data:
            await stream.send_all(data)
        return stream

    async def told(self, data: bytes) -> bytes:
        """Everything that a client hears which sends this and waits."""
        async with await self.knock(data) as stream:
            return await until_end(stream)

    def drops(self) -> dict[str, int]:
        return {reason: count for reason, count in self.relay.statistics().drops.items() if count}

    @asynccontextmanager
    async def serving(self, to: Any = None, **limits: Any) -> AsyncIterator[Ingress]:
        async with trio.open_nursery() as nursery:
            names = {NAME: "web", OTHER: "other"} if to is None else to
            how = partial(ingress, to=names, limits=IngressLimits(**limits))
            self.relay = await nursery.start(how, self.gate, self.door)
            yield self.relay
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def publishing(device: Device, name: str) -> AsyncIterator[None]:
    """It answers whoever comes for the name with who it is and from where they come; "big" gets much of it."""

    async def answer(stream: FunnelStream) -> None:
        with suppress(trio.BrokenResourceError):
            await speak(stream)

    async def speak(stream: FunnelStream) -> None:
        async with stream:
            asked = await stream.receive_some()
            if asked == b"big":
                await stream.send_all(bytes(300_000))
            elif asked == b"wait":
                await stream.send_all(b"waiting")
                await stream.receive_some()
            await stream.send_all(f"{device.hostname} {stream.source[0]} {stream.peer}".encode())

    listener = await device.listen_funnel(name=name, tls=server_context(name), funnel_only=True)
    async with listener, beside(partial(trio.serve_listeners, answer, [listener])):
        yield


@asynccontextmanager
async def lab(net: Tailnet) -> AsyncIterator[Lab]:
    net.policy(POLICY | {"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]})
    gate = await net.device("gate", auth_key=net.auth_key(tags=["tag:relay"]))
    web, other = await net.device("web"), await net.device("other")
    async with publishing(web, NAME), publishing(other, OTHER):
        yield Lab(net, gate, web, other)


async def test_tls_is_carried_by_the_name_that_is_wanted(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with lab(tailnet) as it, it.serving() as relay:
        assert await fetch(await it.knock(), NAME) == b"web 203.0.113.9 None"
        assert await fetch(await it.knock(), OTHER) == b"other 203.0.113.9 None"
        assert len(await fetch(await it.knock(), NAME, b"big")) > 300_000
        assert relay.port == 443
        await until(lambda: not relay.statistics().open)
        done = relay.statistics()
        assert (done.clients, done.open, done.names, done.drops) == (3, 0, {}, {})
        assert done.bytes_received > 300_000
        counters = it.gate.status().counters
        assert counters.levels["ingress.clients"] == 3


async def test_one_node_may_have_all_names_or_those_below_one(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with lab(tailnet) as it:
        async with it.serving("web"):
            assert (await fetch(await it.knock(), NAME)).startswith(b"web")
            assert await it.told(hello(OTHER.encode())) == encode_alert(UNRECOGNIZED_NAME), "the node does not have it"
            assert it.drops() == {"ingress.not_published": 1}


async def test_wildcards_lead_one_label_and_exact_names_win(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with lab(tailnet) as it, it.serving({"*.Example.": it.gate.peers["web"], OTHER: "other"}):
        assert (await fetch(await it.knock(), NAME)).startswith(b"web")
        assert (await fetch(await it.knock(), OTHER)).startswith(b"other")
        for name in (b"example", b"a.b.example", b"evil-example"):
            assert await it.told(hello(name)) == encode_alert(UNRECOGNIZED_NAME)
        assert it.drops() == {"ingress.unknown_name": 3}


async def test_a_hello_may_come_in_pieces_of_any_size(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with lab(tailnet) as it, it.serving():
        async with await it.knock() as stream:
            dribbling = Dribbling(stream)
            assert (await fetch(dribbling, NAME)).startswith(b"web")


class Dribbling(trio.abc.Stream):
    """Sends byte by byte."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        for at in range(len(data)):
            await self._stream.send_all(data[at : at + 1])

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()


LED_NOWHERE = [
    ("no name", records(message(body_of())), encode_alert(MISSING_EXTENSION), "ingress.no_name"),
    ("an address", hello(b"192.0.2.1"), encode_alert(UNRECOGNIZED_NAME), "ingress.bad_name"),
    ("odd bytes", hello(b"web\n.example"), encode_alert(UNRECOGNIZED_NAME), "ingress.bad_name"),
    ("a stranger", hello(b"stranger.example"), encode_alert(UNRECOGNIZED_NAME), "ingress.unknown_name"),
    ("two names", records(message(body_of(server_name(b"a", b"b")))), encode_alert(47), "ingress.bad_hello"),
    ("64 KiB", records(message(bytes(65_000))), encode_alert(50), "ingress.bad_hello"),
    ("garbage", bytes(range(128, 256)), encode_alert(10), "ingress.bad_hello"),
    ("SSLv2", b"\x80\x2e\1\0\2\0\x15\0\0\0\x10", encode_alert(10), "ingress.bad_hello"),
    ("nothing, and an end", b"", b"", "ingress.no_hello"),
    ("half of it, and an end", hello(NAME.encode())[:20], b"", "ingress.no_hello"),
]


@pytest.mark.parametrize(("what", "sent", "answer", "reason"), LED_NOWHERE, ids=[row[0] for row in LED_NOWHERE])
async def test_who_leads_nowhere_is_told_so_in_tls(
    autojump_clock: MockClock, tailnet: Tailnet, what: str, sent: bytes, answer: bytes, reason: str
) -> None:
    async with lab(tailnet) as it, it.serving():
        async with await it.knock(sent) as stream:
            await stream.send_eof()
            assert await until_end(stream) == answer, what
        assert it.drops() == {reason: 1}
        assert (await fetch(await it.knock(), NAME)).startswith(b"web")


async def test_who_speaks_http_is_told_to_speak_tls(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with lab(tailnet) as it, it.serving():
        answer = await it.told(b"GET / HTTP/1.1\r\nHost: web.example\r\n\r\n")
        assert answer.startswith(b"HTTP/1.0 400 Bad Request\r\n")
        assert b"https://" in answer
        assert it.drops() == {"ingress.not_tls": 1}


# -- floods ------------------------------------------------------------------------------------------------------------


async def test_who_says_nothing_has_its_time_and_makes_room(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with lab(tailnet) as it, it.serving(connections=20, per_source=1000):
        began = trio.current_time()
        silent = [await it.knock(hello(NAME.encode())[: number % 7]) for number in range(50)]
        await until(lambda: it.relay.statistics().clients == 50)
        assert (await fetch(await it.knock(), NAME)).startswith(b"web"), "who speaks is served"
        assert it.relay.statistics().hung_up >= 30
        for stream in silent:
            with_end = await until_end(stream)
            assert with_end == b""
        assert trio.current_time() - began < 12
        drops = it.drops()
        assert drops["ingress.made_room"] + drops["ingress.hello_late"] == 50
        assert it.relay.statistics().open == 0


async def test_one_that_drips_has_no_more_time_than_others(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with lab(tailnet) as it, it.serving(hello=5.0):
        began, sent = trio.current_time(), hello(NAME.encode())
        async with await it.knock() as stream:
            with pytest.raises((trio.BrokenResourceError, AssertionError)):
                for at in range(len(sent)):
                    await stream.send_all(sent[at : at + 1])
                    await trio.sleep(1)
                    assert it.relay.statistics().open
        assert 5 <= trio.current_time() - began < 8
        assert it.drops() == {"ingress.hello_late": 1}


async def test_one_source_has_its_share(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with lab(tailnet) as it, it.serving(per_source=4):
        held = [await it.knock() for _ in range(4)]
        await until(lambda: it.relay.statistics().open == 4)
        assert await it.told(b"") == encode_alert(INTERNAL_ERROR)
        assert (await fetch(await it.knock(client=it.net.host("second", "203.0.113.10")), NAME)).startswith(b"web")
        assert it.drops() == {"ingress.source_full": 1}
        for stream in held:
            await stream.aclose()
        await until(lambda: it.relay.statistics().open == 0)
        assert (await fetch(await it.knock(), NAME)).startswith(b"web")


async def test_one_name_does_not_take_all_places(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with lab(tailnet) as it, it.serving(connections=6, per_name=4), trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(_hold, it)
        await until(lambda: it.relay.statistics().names == {NAME: 4})
        assert await it.told(hello(NAME.encode())) == encode_alert(INTERNAL_ERROR)
        assert (await fetch(await it.knock(), OTHER)).startswith(b"other")
        assert it.drops() == {"ingress.name_full": 1}
        nursery.cancel_scope.cancel()


async def _hold(it: Lab) -> None:
    tls = trio.SSLStream(await it.knock(), client_context(), server_hostname=NAME, https_compatible=True)
    async with tls:
        await tls.send_all(b"wait")
        await trio.sleep_forever()


async def test_when_all_places_are_busy_who_comes_is_turned_away(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with lab(tailnet) as it, it.serving(connections=2), trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(_hold, it)
        await until(lambda: it.relay.statistics().names == {NAME: 2})
        assert await it.told(hello(NAME.encode())) == encode_alert(INTERNAL_ERROR)
        assert it.relay.statistics().turned_away == 1
        nursery.cancel_scope.cancel()


# -- targets -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def instead(
    device: Device, answer: Callable[[trio.abc.HalfCloseableStream], Awaitable[None]]
) -> AsyncIterator[None]:
    """A device whose peer API is this."""

    async def attend(stream: trio.abc.HalfCloseableStream) -> None:
        with suppress(trio.BrokenResourceError):
            await answer(stream)

    async with await device.listen(PORT) as listener, beside(partial(trio.serve_listeners, attend, [listener])):
        yield


async def _never(stream: trio.abc.HalfCloseableStream) -> None:
    await stream.receive_some()
    await trio.sleep_forever()


async def _babble(stream: trio.abc.HalfCloseableStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"SSH-2.0-OpenSSH\r\n\r\n")
    await stream.receive_some()


async def _endless(stream: trio.abc.HalfCloseableStream) -> None:
    await stream.receive_some()
    while True:
        await stream.send_all(b"HTTP/1.1 101 Switching\r\nx: " + bytes(8000))


async def _hang_up(stream: trio.abc.HalfCloseableStream) -> None:
    await stream.receive_some()
    await stream.aclose()


async def _redirect(stream: trio.abc.HalfCloseableStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 302 Found\r\nLocation: https://evil.example\r\n\r\n\x1b[31mgo there")
    await stream.receive_some()


ODD_TARGETS = [
    (_never, "ingress.unreachable"),
    (_babble, "ingress.bad_answer"),
    (_endless, "ingress.bad_answer"),
    (_hang_up, "ingress.bad_answer"),
    (_redirect, "ingress.bad_answer"),
]


@pytest.mark.parametrize(("answer", "reason"), ODD_TARGETS)
async def test_a_target_that_misbehaves_costs_its_clients_only(
    autojump_clock: MockClock, tailnet: Tailnet, answer: Any, reason: str
) -> None:
    async with lab(tailnet) as it:
        odd = await tailnet.device("odd", peerapi=False)
        describe_peerapi(it, odd)
        await until(lambda: it.gate.netmap.peers[odd.node.id].hostinfo.services)
        async with instead(odd, answer), it.serving({NAME: "web", "odd.example": "odd"}):
            assert await it.told(hello(b"odd.example")) == encode_alert(INTERNAL_ERROR)
            assert it.drops() == {reason: 1}
            assert (await fetch(await it.knock(), NAME)).startswith(b"web")


def describe_peerapi(it: Lab, device: Device) -> None:
    from ts_control.wire import Service

    control = it.net.control
    control.do(control.server.describe, it.net.id_of(device), services=[Service("peerapi4", PORT)])


async def test_what_a_target_says_ahead_arrives(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async def greet(stream: trio.abc.HalfCloseableStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\nahead ")
        got = await until_end(stream)
        await stream.send_all(b"%d" % len(got))
        await stream.aclose()

    async with lab(tailnet) as it:
        odd = await tailnet.device("odd", peerapi=False)
        describe_peerapi(it, odd)
        await until(lambda: it.gate.netmap.peers[odd.node.id].hostinfo.services)
        async with instead(odd, greet), it.serving({"odd.example": "odd"}):
            sent = hello(b"odd.example") + b"and more"
            async with await it.knock(sent) as stream:
                await stream.send_eof()
                assert await until_end(stream) == b"ahead %d" % len(sent)


async def test_a_target_that_is_not_there_or_dies_in_the_middle(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with lab(tailnet) as it, it.serving({NAME: "web", "brief.example": "brief", "no.example": "nobody"}):
        assert await it.told(hello(b"no.example")) == encode_alert(INTERNAL_ERROR)
        assert it.drops() == {"ingress.no_target": 1}
        async with tailnet.device("brief") as brief, publishing(brief, "brief.example"):
            tls = trio.SSLStream(await it.knock(), client_context(), server_hostname="brief.example")
            await tls.send_all(b"wait")
            assert await tls.receive_some() == b"waiting"
        with pytest.raises(trio.BrokenResourceError):
            await tls.receive_some()
        await trio.aclose_forcefully(tls)
        await until(lambda: it.relay.statistics().open == 0)
        tailnet.block("gate", "web")
        tailnet.block_udp("gate", "web")
        assert (await it.told(hello(NAME.encode()))) in (encode_alert(INTERNAL_ERROR), b"")


async def test_a_relay_without_the_capability_says_what_is_missing(
    autojump_clock: MockClock, tailnet: Tailnet, caplog: pytest.LogCaptureFixture
) -> None:
    async with lab(tailnet) as it:
        tailnet.policy(POLICY | {"grants": [{"src": ["tag:relay"], "dst": ["*"], "ip": ["*"]}]})
        await until(lambda: not it.web.granted("gate"))
        async with it.serving():
            for _ in range(3):
                assert await it.told(hello(NAME.encode())) == encode_alert(INTERNAL_ERROR)
            assert it.drops() == {"ingress.denied": 3}
        said = [record.getMessage() for record in caplog.records if record.name == "tailscale.ingress"]
        assert len([line for line in said if "cap/ingress" in line]) >= 1
        warned = [r for r in caplog.records if r.name == "tailscale.ingress" and r.levelname == "WARNING"]
        assert len(warned) == 1


# -- how it is run -----------------------------------------------------------------------------------------------------


async def test_a_load_balancer_in_front_says_who_comes(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with lab(tailnet) as it, it.serving(proxy_protocol=True, per_source=2):
        for line, source in (
            (b"PROXY TCP4 192.0.2.77 198.51.100.1 5000 443\r\n", b"192.0.2.77"),
            (b"PROXY TCP6 2001:db8::7 ::1 5000 443\r\n", b"2001:db8::7"),
            (b"PROXY UNKNOWN\r\n", b"0.0.0.0"),
        ):
            assert await fetch(await it.knock(line), NAME) == b"web %s None" % source
        assert await it.told(hello(NAME.encode())) == b"", "who comes without one is no balancer"
        assert it.drops() == {"ingress.bad_proxy_header": 1}


async def test_what_is_open_has_its_time_when_a_relay_shuts_down(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with lab(tailnet) as it, trio.open_nursery() as nursery:
        shutdown = trio.Event()
        how = partial(ingress, to="web", shutdown=shutdown, limits=IngressLimits(grace=5))
        relay = await nursery.start(how, it.gate, it.door)
        tls = trio.SSLStream(await it.knock(), client_context(), server_hostname=NAME, https_compatible=True)
        await tls.send_all(b"wait")
        assert await tls.receive_some() == b"waiting"
        silent = await it.knock()
        await until(lambda: relay.statistics().open == 2)
        shutdown.set()
        assert await until_end(silent) == b""
        await tls.send_all(b"go on")
        assert await until_end(tls) == b"web 203.0.113.9 None"
        with pytest.raises(OSError):
            await it.knock()


async def test_idle_connections_end(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with lab(tailnet) as it, it.serving(idle=60.0), trio.open_nursery() as nursery:
        nursery.start_soon(_hold, it)
        await until(lambda: it.relay.statistics().carried == 1)
        await until(lambda: it.relay.statistics().timed_out == 1, 120)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("to", ["", {}, {"": "web"}, {"*": "web"}, {"a.*.b": "web"}, {"web.example:443": "web"}])
async def test_a_relay_that_leads_nowhere_is_refused(autojump_clock: MockClock, tailnet: Tailnet, to: Any) -> None:
    gate = await tailnet.device("gate")
    with pytest.raises(ValueError, match="relay"):
        await ingress(gate, tailnet.host("gatehouse", "198.51.100.1").listen_tcp(443), to)


def test_limits_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="greater"):
        IngressLimits(per_source=0)


async def test_other_faces_run_a_relay_until_their_device_ends() -> None:
    async with Tailnet(real=True) as net:
        joined = {"control_url": net.control.url, "auth_key": net.auth_key(reusable=True)}

        def port_of(listener: list[trio.SocketListener]) -> int:
            port: int = listener[0].socket.getsockname()[1]
            return port

        async def asked(port: int) -> bytes:
            while True:
                try:
                    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                        await stream.send_all(hello(b"x.example"))
                        return bytes(await stream.receive_some())
                except OSError:
                    await trio.sleep(0.01)

        async def under_asyncio(port: int) -> None:
            async with tailscale.aio.Device("a", **joined) as gate:
                task = asyncio.create_task(ingress(gate, f"127.0.0.1:{port}", {NAME: "web"}))
                await asyncio.to_thread(done.wait)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

        def blocking(port: int) -> None:
            gate = tailscale.sync.Device("s", **joined)
            with gate:
                ending = threading.Thread(target=lambda: (done.wait(), gate.close()))
                ending.start()
                with suppress(tailscale.DeviceClosed):
                    ingress(gate, f"127.0.0.1:{port}", {NAME: "web"})
                ending.join()

        for work in (lambda port: asyncio.run(under_asyncio(port)), blocking):
            done = threading.Event()
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = port_of(listeners)
            await listeners[0].aclose()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, work, port)
                with trio.fail_after(30):
                    assert await asked(port) == encode_alert(UNRECOGNIZED_NAME)
                done.set()
