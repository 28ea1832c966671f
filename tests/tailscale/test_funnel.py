"""A published node: what relays may bring, what is believed of it, and what programs see of it."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial

import pytest
import trio
import trio.testing
from funnel_scripts import NAME, POLICY, asked, client_context, fetch, knock, post, server_context, until_end
from tailnet_scripts import beside, runtime_of, until
from trio.testing import MockClock

import tailscale.aio
import tailscale.sync
from tailscale import Device, FunnelListener, FunnelStream
from tailscale.funnel.arrivals import CONNECTIONS, PUBLISHED
from tailscale.funnel.listening import BACKLOG
from tailscale.funnel.words import PORTS, allowed_ports
from tailscale.peerapi.serving import LIMITS, RELAY_LIMITS
from tailscale.testing import Tailnet
from tailscale.threads.loopback import TailnetListener


async def pair(tailnet: Tailnet) -> tuple[Device, Device]:
    """A relay, and a node that it may lead to."""
    tailnet.policy(POLICY)
    relay = await tailnet.device("gate", auth_key=tailnet.auth_key(tags=["tag:relay"]))
    return relay, await tailnet.device("web")


def told(seer: Device, seen: Device) -> tuple[bool, bool]:
    hostinfo = runtime_of(seer).directory.netmap.peers[seen.node.id].hostinfo
    return hostinfo.ingress_enabled, hostinfo.wire_ingress


async def say_who(stream: FunnelStream) -> None:
    """Answers each connection with what the listener knows of it."""
    async with stream:
        await stream.receive_some()
        peer = stream.peer.hostname if stream.peer else None
        await stream.send_all(f"{stream.source} {stream.target} {stream.is_funnel} {peer}".encode())


def serving(listener: FunnelListener) -> AbstractAsyncContextManager[None]:
    return beside(partial(trio.serve_listeners, say_who, [listener]))


async def test_a_relay_brings_what_is_published_and_says_from_where(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    gate, web = await pair(tailnet)
    other = await tailnet.device("other")
    assert told(gate, web) == (False, False)
    async with await web.listen_funnel(name=NAME, tls=server_context(NAME)) as listener, serving(listener):
        async with knock(gate, web, post()) as (status, stream):
            assert status == 101
            assert await fetch(stream) == b"('203.0.113.9', 5555) web.example:443 True None"
        async with knock(gate, web, post("[2001:db8::9]:1", "WEB.example.:443")) as (status, stream):
            assert await fetch(stream) == b"('2001:db8::9', 1) web.example:443 True None"
        direct = await fetch(await other.tcp_connect("web", 443))
        assert direct.startswith(f"('{other.ipv4}', ".encode())
        assert direct.endswith(b"web.example:443 False other")
        await until(lambda: told(gate, web) == (True, False))
        levels = web.status().counters.levels
        assert (levels["funnel.arrived"], levels["funnel.connections"]) == (2, 0)
    await until(lambda: told(gate, web) == (False, False))
    assert await asked(gate, web, post()) == 403


REFUSED = [
    (post(verb="GET"), 405),
    (post(src=""), 400),
    (post(src="203.0.113.9"), 400),
    (post(src="nobody:80"), 400),
    (post(src="203.0.113.9:80, 198.51.100.7:80"), 400),
    (post(src="2001:db8::9:80"), 400),
    (post(src="203.0.113.9:65536"), 400),
    (post(more=["Tailscale-Ingress-Src: 198.51.100.7:80"]), 400),
    (post(target=""), 400),
    (post(target=NAME), 400),
    (post(target=f"{NAME}:https"), 400),
    (post(target=f"{NAME} x:443"), 400),
    (post(target=f"{NAME}\x80:443"), 400),
    (post(target=f"{'a' * 254}:443"), 400),
    (post(target=f"{NAME}:8443"), 403),
    (post(target="other.example:443"), 403),
    (post(target=f"{NAME}:444"), 403),
    (post().replace("Content-Length: 0", "Content-Length: 3") + "abc", 413),
    (post(more=["Origin: https://evil.example"]), 403),
]


async def test_what_a_relay_says_is_held_to_its_form(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    gate, web = await pair(tailnet)

    async def never(_: FunnelStream) -> None:
        raise AssertionError("this was to be refused")

    with web.answer_funnel(NAME, 443, never), web.answer_funnel("off.example", 443, None):
        for request, status in REFUSED:
            assert await asked(gate, web, request) == status, request
        assert await asked(gate, web, post(target="off.example:443")) == 403
    drops = web.status().drops
    assert drops["funnel.bad_request"] == 14
    assert drops["funnel.not_published"] == 4


async def test_who_holds_no_capability_is_no_relay(
    autojump_clock: MockClock, tailnet: Tailnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, web = await pair(tailnet)
    other = await tailnet.device("other")
    tagged = await tailnet.device("tagged", auth_key=tailnet.auth_key(tags=["tag:other"]))
    guest = await tailnet.device("guest", auth_key=tailnet.auth_key("guest@tailnet.test"))
    async with await web.listen_funnel(name=NAME, tls=server_context(NAME), relays=["tagged"]) as listener:
        async with serving(listener):
            assert await asked(other, web, post()) == 403
            monkeypatch.setenv("TS_ALLOW_SELF_INGRESS", "false")
            assert await asked(other, web, post()) == 403
            monkeypatch.setenv("TS_ALLOW_SELF_INGRESS", "1")
            assert await asked(other, web, post()) == 101, "the same user, and upstream's switch"
            assert await asked(guest, web, post()) == 403
            assert await asked(tagged, web, post()) == 101, "named as a relay of this name"
            with web.answer_funnel("two.example", 443, say_who):
                assert await asked(tagged, web, post(target="two.example:443")) == 403, "and of this one only"
    assert web.status().drops["funnel.no_capability"] == 3


async def test_an_unsigned_relay_may_do_nothing_but_bring(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    gate, web = await pair(tailnet)
    control = tailnet.control
    control.do(control.server.send_to, tailnet.id_of(web), {"PeersChanged": [_unsigned(web, gate)]})
    await until(lambda: runtime_of(web).directory.netmap.peers[gate.node.id].unsigned_peer_api_only)
    async with await web.listen_funnel(name=NAME, tls=server_context(NAME), funnel_only=True) as listener:
        async with serving(listener), knock(gate, web, post()) as (status, stream):
            assert status == 101
            assert (await fetch(stream)).endswith(b"True None")


def _unsigned(web: Device, gate: Device) -> dict[str, object]:
    import json

    from ts_control.gojson import encode_json

    node = json.loads(encode_json(runtime_of(web).directory.netmap.peers[gate.node.id]))
    return {**node, "UnsignedPeerAPIOnly": True, "IsJailed": True}


async def test_listeners_of_several_ports_and_names_stand_beside_each_other(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    gate, web = await pair(tailnet)
    context = server_context(NAME)
    first = await web.listen_funnel(name=NAME, tls=context)
    second = await web.listen_funnel(8443, name=NAME, tls=context)
    with pytest.raises(ValueError, match="already"):
        await web.listen_funnel(name=NAME, tls=context, funnel_only=True)
    with pytest.raises(OSError, match="443"):
        await web.listen_funnel(name="two.example", tls=context)
    third = await web.listen_funnel(name="two.example", tls=context, funnel_only=True)
    await first.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await first.accept()
    assert await asked(gate, web, post()) == 403
    assert await asked(gate, web, post(target=f"{NAME}:8443")) == 101
    assert await asked(gate, web, post(target="two.example:443")) == 101
    again = await web.listen_funnel(name=NAME, tls=context)
    for listener in (second, third, again):
        await listener.aclose()


async def test_what_the_tailnet_lacks_is_named(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    web = await tailnet.device("web")
    context = server_context("web.tailnet.test")
    for attributes, missing in [
        ([], "https"),
        (["https"], "funnel"),
        (["https", "funnel"], "funnel-ports"),
        (["https", "funnel", "https://tailscale.com/cap/funnel-ports?ports=8443"], "funnel-ports"),
    ]:
        tailnet.policy(POLICY | {"nodeAttrs": [{"target": ["*"], "attr": attributes}]})
        await until(lambda: set(attributes) == set(web.node.capabilities) & {"https", "funnel", *attributes})  # noqa: B023
        with pytest.raises(tailscale.FunnelUnavailable) as caught:
            await web.listen_funnel(tls=context)
        assert caught.value.missing == missing
        assert {"https": "DNS page", "funnel": "nodeAttrs", "funnel-ports": "443"}[missing] in str(caught.value)
    tailnet.policy(POLICY)
    await until(lambda: "funnel" in web.node.capabilities and allowed_ports(web.node.capabilities)[0] == (443, 443))
    async with await web.listen_funnel(10_005, tls=context) as listener:
        assert (listener.name, listener.port) == ("web.tailnet.test", 10_005)
    with pytest.raises(ValueError, match="no name"):
        await web.listen_funnel(name="a b", tls=context)
    with pytest.raises(ValueError, match="65535"):
        await web.listen_funnel(0, tls=context)


async def test_tls_may_be_found_by_the_name_that_is_asked_for(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    gate, web = await pair(tailnet)
    asked_for = []

    def find(name: str) -> ssl.SSLContext | None:
        asked_for.append(name)
        if name == "fails.example":
            raise KeyError(name)
        return server_context(name) if name == NAME else None

    async with await web.listen_funnel(name=NAME, tls=find, funnel_only=True) as listener, serving(listener):
        async with knock(gate, web, post()) as (_, stream):
            assert (await fetch(stream)).endswith(b"True None")
        for name in ("other.example", "fails.example"):
            async with knock(gate, web, post()) as (_, stream):
                with pytest.raises(trio.BrokenResourceError):
                    await fetch(stream, name)
        await until(lambda: web.status().drops.get("funnel.handshake_failed") == 2)
    assert asked_for == [NAME, "other.example", "fails.example"]


async def test_bytes_sent_with_the_request_are_not_lost(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    gate, web = await pair(tailnet)
    got = []

    async def handle(stream: FunnelStream) -> None:
        got.append(await stream.receive_some(3))
        got.append(await until_end(stream))
        await stream.send_all(b"bye")

    with web.answer_funnel(NAME, 443, handle):
        async with knock(gate, web, post(), b"hello") as (_, stream):
            await stream.send_all(b" there")
            await stream.send_eof()
            assert await until_end(stream) == b"bye"
    assert b"".join(got) == b"hello there"


# -- who means no good -------------------------------------------------------------------------------------------------


async def test_clients_without_tls_cost_nobody_else_anything(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    gate, web = await pair(tailnet)
    async with await web.listen_funnel(name=NAME, tls=server_context(NAME)) as listener, serving(listener):
        async with knock(gate, web, post()) as (_, silent), knock(gate, web, post()) as (_, garbage):
            await garbage.send_all(b"GET / HTTP/1.1\r\n\r\n")
            async with knock(gate, web, post()) as (_, stream):
                assert (await fetch(stream)).endswith(b"True None")
            assert await silent.receive_some() == b"", "after its time was up"
        await until(lambda: web.status().counters.levels["funnel.connections"] == 0)
    assert web.status().drops["funnel.handshake_failed"] == 2


@pytest.mark.slow
async def test_what_a_program_does_not_accept_is_bounded(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    gate, web = await pair(tailnet)
    async with await web.listen_funnel(name=NAME, tls=server_context(NAME)) as listener:
        async with trio.open_nursery() as nursery:
            for _ in range(BACKLOG + 2):
                nursery.start_soon(_greet, gate, web)
            await until(lambda: web.status().drops.get("funnel.backlog_full") == 2)
            async with await listener.accept() as stream:
                assert stream.is_funnel
            nursery.cancel_scope.cancel()
    await until(lambda: web.status().counters.levels["funnel.connections"] == 0)


async def _greet(gate: Device, web: Device) -> None:
    async with knock(gate, web, post()) as (_, stream):
        tls = trio.SSLStream(stream, client_context(), server_hostname=NAME)
        await tls.do_handshake()
        await trio.sleep_forever()


async def test_connections_from_the_internet_are_bounded_and_do_not_shut_the_peer_api(
    autojump_clock: MockClock, tailnet: Tailnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailscale.funnel.arrivals.CONNECTIONS", LIMITS.connections_per_peer + 8)
    assert RELAY_LIMITS.connections < CONNECTIONS
    gate, web = await pair(tailnet)

    async def keep(stream: FunnelStream) -> None:
        await stream.receive_some()

    with web.answer_funnel(NAME, 443, keep):
        async with trio.open_nursery() as nursery:
            for _ in range(LIMITS.connections_per_peer + 8):
                nursery.start_soon(_hold, gate, web)
            await until(lambda: web.status().counters.levels["funnel.connections"] == LIMITS.connections_per_peer + 8)
            assert await asked(gate, web, post()) == 503
            assert (await gate.ping("web", "peerapi")).kind == "peerapi"
            assert web.status().counters.levels["peerapi.connections"] < 4
            nursery.cancel_scope.cancel()
        await until(lambda: not web.status().counters.levels["funnel.connections"])


async def _hold(gate: Device, web: Device) -> None:
    async with knock(gate, web, post()):
        await trio.sleep_forever()


async def test_published_names_are_bounded(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    web = await tailnet.device("web")
    publish = runtime_of(web).arrivals.publish
    takes = [publish(f"{number}.example", 443, None) for number in range(PUBLISHED)]
    with pytest.raises(ValueError, match="64 names"):
        publish(NAME, 443, None)
    for take_back in takes:
        take_back()
        take_back()


async def test_shields_and_closing_end_what_came_from_the_internet(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    gate, web = await pair(tailnet)
    async with await web.listen_funnel(name=NAME, tls=server_context(NAME)) as listener:
        async with knock(gate, web, post()) as (_, stream), trio.open_nursery() as nursery:
            nursery.start_soon(_greet_over, stream)
            accepted = await listener.accept()
            await web.set(shields_up=True)
            with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
                await accepted.receive_some()
            await accepted.aclose()
            nursery.cancel_scope.cancel()
    async with tailnet.device("brief") as brief:
        waiting = await brief.listen_funnel(name="b.example", tls=server_context("b.example"), funnel_only=True)
    with pytest.raises(trio.ClosedResourceError):
        await waiting.accept()


async def _greet_over(stream: trio.abc.Stream) -> None:
    tls = trio.SSLStream(stream, client_context(), server_hostname=NAME)
    await tls.do_handshake()
    await trio.sleep_forever()


async def test_a_stream_that_the_program_loses_is_closed(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    gate, web = await pair(tailnet)
    async with await web.listen_funnel(name=NAME, tls=server_context(NAME)) as listener:
        async with knock(gate, web, post()) as (_, stream), trio.open_nursery() as nursery:
            nursery.start_soon(_greet_over, stream)
            with pytest.warns(ResourceWarning, match=r"FunnelStream to web\.example:443 from 203"):  # noqa: PT031
                await listener.accept()
                await trio.testing.wait_all_tasks_blocked()
            await until(lambda: not web.status().counters.levels["funnel.connections"])
            nursery.cancel_scope.cancel()


async def test_the_tailnet_of_tests_can_be_published_whatever_its_policy_says(autojump_clock: MockClock) -> None:
    """By its own name, with a certificate of the test authority; another policy changes nothing of that."""
    async with Tailnet(certificates=True) as net:
        web, gate = await net.device("web"), await net.device("gate")
        with pytest.raises(tailscale.FunnelUnavailable):
            await web.listen_funnel()
        net.funnel(gate, ports="443")
        net.policy({"acls": [{"action": "accept", "src": ["*"], "dst": ["*:443"]}]})
        await until(lambda: "funnel" in web.node.capabilities and web.granted("gate"))
        async with await web.listen_funnel() as listener, serving(listener):
            assert (listener.name, listener.port) == (web.name, 443)
            async with knock(gate, web, post(target=f"{web.name}:443")) as (status, stream):
                assert status == 101
                context = net.certificates.client_context()
                async with trio.SSLStream(stream, context, server_hostname=web.name, https_compatible=True) as tls:
                    await tls.send_all(b"ping")
                    assert (await until_end(tls)).endswith(b"443 True None")
        with pytest.raises(tailscale.FunnelUnavailable, match="8443"):
            await web.listen_funnel(8443)


# -- the other faces ---------------------------------------------------------------------------------------------------


async def test_a_source_in_the_tailnet_is_not_told_as_one(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    gate, web = await pair(tailnet)
    async with await web.listen_funnel(name=NAME, tls=server_context(NAME)) as listener, serving(listener):
        for claimed, told_as in ((f"{web.ipv4}:80", "0.0.0.0"), (f"[{gate.ipv6}]:80", "::")):
            async with knock(gate, web, post(claimed)) as (_, stream):
                assert await fetch(stream) == f"('{told_as}', 80) {NAME}:443 True None".encode()


async def test_other_faces_hand_out_sockets_of_nobody() -> None:
    async with Tailnet(real=True) as net:
        net.policy(POLICY)
        gate = await net.device("gate", auth_key=net.auth_key(tags=["tag:relay"]))
        joined = {"control_url": net.control.url, "auth_key": net.auth_key(), "hostname": "web"}
        await trio.to_thread.run_sync(_answer_from_a_thread, joined, trio.from_thread.run, gate)


def _answer_from_a_thread(joined: dict[str, str], run: Callable[..., bytes], gate: Device) -> None:
    context = server_context(NAME)
    with tailscale.sync.Device(**joined) as web, web.listen_funnel(name=NAME, tls=context) as door:
        answering = threading.Thread(target=_accept_one, args=(web, door))
        answering.start()
        assert run(_fetch_from, gate, web.ipv4) == b"('203.0.113.9', 5555) None"
        answering.join()


async def _fetch_from(gate: Device, address: str) -> bytes:
    while address not in {peer.ipv4 for peer in gate.peers.values()}:  # noqa: ASYNC110 - another device's fact
        await trio.sleep(0.01)
    async with knock(gate, gate.peers[address], post()) as (_, stream):
        return await fetch(stream)


def _accept_one(web: tailscale.sync.Device, door: TailnetListener) -> None:
    sock, source = door.accept()
    with sock:
        assert sock.recv(100) == b"ping"
        assert source == sock.getpeername()
        sock.sendall(f"{source} {web.caller_at(source)}".encode())


async def test_asyncio_serves_what_relays_bring() -> None:
    async with Tailnet(real=True) as net:
        net.policy(POLICY)
        gate = await net.device("gate", auth_key=net.auth_key(tags=["tag:relay"]))
        joined = {"control_url": net.control.url, "auth_key": net.auth_key(), "hostname": "web"}

        async def serve() -> None:
            async with tailscale.aio.Device(**joined) as web:
                door = await web.listen_funnel(name=NAME, tls=server_context(NAME))
                done = asyncio.Event()

                async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                    await reader.read(100)
                    source = writer.get_extra_info("peername")
                    writer.write(f"{source} {web.caller_at(source)}".encode())
                    writer.close()
                    await writer.wait_closed()
                    done.set()

                async with await asyncio.start_server(answer, sock=door):
                    trio.from_thread.run_sync(addresses.append, web.ipv4, trio_token=token)
                    await done.wait()

        addresses: list[str] = []
        token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, lambda: asyncio.run(serve()))
            address = await until(lambda: addresses and addresses[0])
            assert await _fetch_from(gate, address) == b"('203.0.113.9', 5555) None"


def test_an_attribute_of_any_form_names_ports_or_none() -> None:
    for query, ports in {
        "ports=443,8443,10000-10010": [(443, 443), (8443, 8443), (10000, 10010)],
        "ports=443%2C80": [(80, 80), (443, 443)],
        "&" * 40 + "ports=80": [(80, 80)],
        "ports=-1,x,99999999,": [],
        "": [],
    }.items():
        assert allowed_ports([f"{PORTS}?{query}", "https://example.com/cap/funnel-ports?ports=1"]) == ports
