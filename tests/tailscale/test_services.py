"""Services: a name with addresses of its own, hosted by a tagged device and reached by its peers."""

from __future__ import annotations

import asyncio
import json
from functools import partial

import pytest
import trio
from tailnet_scripts import beside, until
from trio.testing import MockClock

import tailscale
import tailscale.aio
import tailscale.sync
from tailscale import Device
from tailscale.serve import Serve
from tailscale.testing import Tailnet


async def host_of(tailnet: Tailnet, name: str = "host") -> Device:
    return await tailnet.device(name, auth_key=tailnet.auth_key(tags=["tag:web"]))


async def say_where(stream: tailscale.TcpStream) -> None:
    async with stream:
        await stream.send_all(f"{stream.local_address[0]} {stream.peer.hostname if stream.peer else None}".encode())


async def read_from(device: Device, name: str, port: int) -> str:
    with trio.fail_after(20):
        async with await device.tcp_connect(name, port) as stream:
            return (await stream.receive_some()).decode()


async def test_a_service_is_reached_by_its_name_at_an_address_of_its_own(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    ipv4, ipv6 = tailnet.service("svc:web")
    host, laptop = await host_of(tailnet), await tailnet.device("laptop")
    listener = await host.listen_service("svc:web", 80)
    assert listener.name == "web.tailnet.test"
    async with listener, beside(partial(trio.serve_listeners, say_where, [listener])):
        await until(lambda: set(listener.addresses) == {ipv4, ipv6})
        await until(lambda: f"{ipv4}/32" in laptop.peers["host"].routes)
        assert await read_from(laptop, "web", 80) in (f"{ipv4} laptop", f"{ipv6} laptop")
        assert await read_from(laptop, ipv4, 80) == f"{ipv4} laptop"
        assert await read_from(laptop, ipv6, 80) == f"{ipv6} laptop"
    await until(lambda: f"{ipv4}/32" not in laptop.peers["host"].routes)
    assert listener.addresses == ()


async def test_other_ports_of_a_service_are_silent(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    ipv4, _ = tailnet.service("svc:web")
    host, laptop = await host_of(tailnet), await tailnet.device("laptop")
    async with await host.listen_service("svc:web", 80) as listener, await host.listen(81):
        await until(lambda: len(listener.addresses) == 2 and f"{ipv4}/32" in laptop.peers["host"].routes)
        with pytest.raises(tailscale.ConnectionTimedOut):
            await laptop.tcp_connect(ipv4, 81, timeout=5)
        await laptop.ping(ipv4, kind="icmp")


async def test_the_last_port_withdraws_the_service(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    tailnet.service("svc:web")
    host = await host_of(tailnet)
    first, second = await host.listen_service("svc:web", 80), await host.listen_service("svc:web", 443)
    enrolled = tailnet.control.server.directory.find(tailnet.id_of(host))
    await until(lambda: "svc:web" in enrolled.hosted and len(second.addresses) == 2)
    with pytest.raises(OSError, match="listened on already"):
        await host.listen_service("svc:web", 80)
    await first.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await first.accept()
    await until(lambda: bool(enrolled.hosted) and len(second.addresses) == 2)
    await second.aclose()
    await until(lambda: enrolled.hostinfo.services_hash == "" and not enrolled.hosted)


async def test_control_may_let_a_host_late_and_take_that_back(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    host = await host_of(tailnet)
    async with await host.listen_service("svc:web", 80) as listener:
        await trio.testing.wait_all_tasks_blocked()
        assert listener.addresses == ()
        ipv4, ipv6 = tailnet.service("svc:web", tags=["tag:web"])
        await until(lambda: set(listener.addresses) == {ipv4, ipv6})
        tailnet.service("svc:web", tags=["tag:other"])
        await until(lambda: listener.addresses == ())


async def test_another_host_takes_over(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    ipv4, _ = tailnet.service("svc:web")
    first, second = await host_of(tailnet, "first"), await host_of(tailnet, "second")
    laptop = await tailnet.device("laptop")
    carrier = lambda: [n.hostname for n in laptop.peers.values() if f"{ipv4}/32" in n.routes]  # noqa: E731
    one = await first.listen_service("svc:web", 80)
    await until(lambda: carrier() == ["first"])
    other = await second.listen_service("svc:web", 80)
    await until(lambda: len(one.addresses) == len(other.addresses) == 2)
    assert carrier() == ["first"], "who came first keeps it"
    await one.aclose()
    await until(lambda: carrier() == ["second"])
    await other.aclose()


async def test_a_host_that_drains_gets_nobody_new_and_answers_who_is_there(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    ipv4, _ = tailnet.service("svc:web")
    first, second = await host_of(tailnet, "first"), await host_of(tailnet, "second")
    laptop = await tailnet.device("laptop")
    carrier = lambda: [n.hostname for n in laptop.peers.values() if f"{ipv4}/32" in n.routes]  # noqa: E731
    config = {"Services": {"svc:web": {"TCP": {"80": {"HTTP": True}}, "Web": {"web:80": {"Handlers": {"/": {}}}}}}}
    published = []
    async with trio.open_nursery() as nursery:
        for device, text in ((first, "one"), (second, "two")):
            config["Services"]["svc:web"]["Web"]["web:80"]["Handlers"]["/"] = {"Text": text}
            web = Serve.from_json(device, json.dumps(config))
            await nursery.start(web.run)
            published.append(web)
            await until(lambda: carrier() == ["first"])
        assert "one" in await page_of(laptop, "web", "web")
        published[0].drain("svc:web")
        await until(lambda: carrier() == ["second"])
        assert "two" in await page_of(laptop, "web", "web")
        published[0].drain()
        published[1].drain("svc:web")
        await until(lambda: carrier() == ["first"])
        published[1].drain("svc:web", "svc:other")
        with pytest.raises(ValueError, match="is no service"):
            published[1].drain("web")
        nursery.cancel_scope.cancel()


async def test_what_cannot_be_hosted_is_refused_with_a_reason(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    laptop, host = await tailnet.device("laptop"), await host_of(tailnet)
    with pytest.raises(tailscale.ServiceUnavailable, match="has no tags: join with tags="):
        await laptop.listen_service("svc:web", 80)
    for name, port in (
        ("web", 80),
        ("svc:", 80),
        ("svc:-web", 80),
        ("svc:we b", 80),
        ("svc:web", 0),
        ("svc:web", 65536),
    ):
        with pytest.raises(ValueError, match="service"):
            await host.listen_service(name, port)


CONFIG = {
    "Services": {
        "svc:web": {
            "TCP": {"80": {"HTTP": True}, "7": {"TCPForward": "127.0.0.1:7"}},
            "Web": {"web.tailnet.test:80": {"Handlers": {"/": {"Text": "the service"}}}},
        }
    },
    "TCP": {"80": {"HTTP": True}},
    "Web": {":80": {"Handlers": {"/": {"Text": "the node"}}}},
}


async def test_a_serve_config_publishes_services_at_their_own_addresses(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    ipv4, _ = tailnet.service("svc:web")
    host, laptop = await host_of(tailnet), await tailnet.device("laptop")
    web = Serve.from_json(host, json.dumps(CONFIG))
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(web.run)
        assert urls == ("http://host.tailnet.test", "tcp://web.tailnet.test:7", "http://web.tailnet.test")
        await until(lambda: f"{ipv4}/32" in laptop.peers["host"].routes)
        await until(lambda: laptop.peers["host"].routes != ())
        for place, text in (("web", "the service"), ("host", "the node")):
            for asked in ("web.tailnet.test", "host", "anything.example"):
                if place == "web" or asked == "host":
                    assert text in await page_of(laptop, place, asked), (place, asked)
        assert web.statistics().ports["svc:web:80"].connections == 3
        config = web.config
        del config.told["Services"]
        web.use(config)
        await until(lambda: laptop.peers["host"].routes == ())
        nursery.cancel_scope.cancel()


async def page_of(device: Device, place: str, asked: str) -> str:
    with trio.fail_after(20):
        async with await device.tcp_connect(place, 80) as stream:
            await stream.send_all(f"GET / HTTP/1.1\r\nHost: {asked}\r\nConnection: close\r\n\r\n".encode())
            return "".join([part.decode() async for part in stream])


@pytest.mark.parametrize("face", ["sync", "aio"])
async def test_other_faces_listen_to_services_with_sockets(face: str) -> None:
    async with Tailnet(real=True) as net:
        ipv4, _ = net.service("svc:web")
        laptop = await net.device("laptop")
        joined = {"control_url": net.control.url, "auth_key": net.auth_key(tags=["tag:web"]), "hostname": "host"}
        answer = partial(_answer_in_this_thread, joined) if face == "sync" else lambda: asyncio.run(_answer(joined))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, answer)
            await until(lambda: any(f"{ipv4}/32" in peer.routes for peer in laptop.peers.values()))
            assert await read_from(laptop, "web", 80) == "laptop"


def _answer_in_this_thread(joined: dict[str, str]) -> None:
    with tailscale.sync.Device(**joined) as host, host.listen_service("svc:web", 80) as door:
        sock, address = door.accept()
        with sock:
            sock.sendall(host.whois(address[0]).node.hostname.encode())
            assert sock.recv(1) == b""


async def _answer(joined: dict[str, str]) -> None:
    async with tailscale.aio.Device(**joined) as host:
        with await host.listen_service("svc:web", 80) as door:
            loop = asyncio.get_running_loop()
            sock, address = await loop.sock_accept(door)
            with sock:
                await loop.sock_sendall(sock, (await host.whois(address[0])).node.hostname.encode())
                assert await loop.sock_recv(sock, 1) == b""
