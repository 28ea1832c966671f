"""Services between ours and stock programs, in a tailnet of the embedded control server."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

import tailscale
from tests.interop.embedded import EmbeddedControl, embedded_control
from tests.interop.ourdaemon import daemon
from tests.interop.processes import poll_until
from tests.interop.rig import Derper, Rig, Tailscaled, pebble
from ts_base.ip import format_address

pytestmark = pytest.mark.peers("tailscaled", "tailscale")
PATIENCE = 30.0


async def greet(stream: trio.abc.Stream) -> None:
    async with stream:
        await stream.send_all(b"hello from the host\n")


async def test_stock_clients_reach_a_service_of_ours_by_its_name(r: Rig, relay: Derper) -> None:
    async with contextlib.AsyncExitStack() as stack:
        control = await stack.enter_async_context(embedded_control(relay.region))
        addresses = control.do("define_service", "svc:web", tags=["tag:web"])
        key = control.server.create_auth_key(reusable=True)
        tagged = control.server.create_auth_key(tags=["tag:web"])
        daemon = await stack.enter_async_context(r.tailscaled("daemon"))
        await daemon.up(control.url, key, "--accept-routes")
        host = await stack.enter_async_context(tailscale.Device("host", control_url=control.url, auth_key=tagged))
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        listener = await host.listen_service("svc:web", 80)
        nursery.start_soon(trio.serve_listeners, greet, [listener])

        async def is_led_there() -> bool:
            status = await daemon.status()
            routes = [peer.get("AllowedIPs") or [] for peer in status["Peer"].values() if peer["HostName"] == "host"]
            return len(listener.addresses) == len(addresses) and any(
                f"{address}/{128 if ':' in address else 32}" in listed
                for listed in routes
                for address in listener.addresses
            )

        await poll_until("stock tailscaled to hear where the service is", is_led_there, PATIENCE)
        for place in ("web.tailnet.test", *listener.addresses):
            with trio.fail_after(PATIENCE):
                async with await daemon.connect(place, 80) as stream:
                    assert await stream.receive_some() == b"hello from the host\n", place
        await daemon.cli("ping", "--c=1", "--icmp", listener.addresses[0])


async def test_ours_reaches_a_service_of_a_stock_host(r: Rig, relay: Derper) -> None:
    async with contextlib.AsyncExitStack() as stack:
        control = await stack.enter_async_context(embedded_control(relay.region))
        control.do("define_service", "svc:db")
        key = control.server.create_auth_key(reusable=True)
        tagged = control.server.create_auth_key(tags=["tag:db"])
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        (local,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, greet, [local])
        daemon = await stack.enter_async_context(r.tailscaled("host"))
        await daemon.up(control.url, tagged)
        ours = await stack.enter_async_context(tailscale.Device("laptop", control_url=control.url, auth_key=key))
        port = local.socket.getsockname()[1]
        said = await daemon.cli("serve", "--service=svc:db", "--tcp=5432", f"tcp://127.0.0.1:{port}")
        enrolled = control.server.directory.find(control.id_of("host"))

        async def is_hosted() -> bool:
            return "svc:db" in enrolled.hosted and any(len(peer.routes) == 2 for peer in ours.peers.values())

        await poll_until(f"control to learn of the stock host's service, which said: {said}", is_hosted, PATIENCE)
        with trio.fail_after(PATIENCE):
            async with await ours.tcp_connect("db", 5432) as stream:
                assert await stream.receive_some() == b"hello from the host\n"
        await daemon.cli("serve", "clear", "svc:db")

        async def is_withdrawn() -> bool:
            return not enrolled.hosted

        await poll_until("the stock host to withdraw its service", is_withdrawn, PATIENCE)


VERBS = [
    ("--http=80", "text:by http"),
    ("--https=443", "text:by https"),
    ("--tcp=7", "tcp://127.0.0.1:{port}"),
    ("--tls-terminated-tcp=8", "tcp://127.0.0.1:{port}"),
]


async def test_all_that_a_service_of_ours_serves_is_reached_through_stock(
    r: Rig, relay: Derper, tmp_path: Path
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        authority = await stack.enter_async_context(pebble(r))
        control = await stack.enter_async_context(embedded_control(relay.region))
        control.do("serve_certificates", authority.publish)
        addresses = [*map(format_address, control.do("define_service", "svc:web"))]
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        (local,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, greet, [local])
        joins = TaggedJoins(control)
        ours = await stack.enter_async_context(daemon(r, joins, "host", env=authority.environment))
        caller = await stack.enter_async_context(r.tailscaled("caller"))
        await caller.up(control.url, control.server.create_auth_key(), "--accept-routes")
        for kind, target in VERBS:
            await ours("serve", "--service=svc:web", kind, target.format(port=local.socket.getsockname()[1]))
        root = tmp_path / "root.pem"
        root.write_text(await authority.root_pem())
        await hosted_by(caller, "host", addresses)

        async def curl(*words: str) -> str:
            proxy = f"socks5h://127.0.0.1:{caller.socks_port}"
            line = ["curl", "-sS", "--cacert", str(root), "-x", proxy, "--max-time", "20", *words]
            return (await trio.run_process(line, capture_stdout=True)).stdout.decode()

        assert await curl("http://web.tailnet.test/") == "by http"
        assert await curl("https://web.tailnet.test/") == "by https"
        for address in addresses:
            where = f"[{address}]" if ":" in address else address
            assert await curl("-H", "Host: anything", f"http://{where}/") == "by http"
        assert await curl("telnet://web.tailnet.test:7") == "hello from the host\n"
        context = ssl.create_default_context(cadata=root.read_text())
        with trio.fail_after(PATIENCE):
            async with await caller.connect("web.tailnet.test", 8) as tcp:
                secure = trio.SSLStream(tcp, context, server_hostname="web.tailnet.test", https_compatible=True)
                assert await secure.receive_some() == b"hello from the host\n"


async def hosted_by(caller: Tailscaled, name: str, addresses: Sequence[str]) -> None:
    """Wait until a stock client is led to that host for all of a service."""

    async def is_led_there() -> bool:
        peers = (await caller.status())["Peer"].values()
        carried = {route for peer in peers if peer["HostName"] == name for route in peer.get("AllowedIPs") or ()}
        return all(f"{address}/{128 if ':' in address else 32}" in carried for address in addresses)

    await poll_until(f"stock tailscaled to hear that {name} hosts the service", is_led_there, PATIENCE)


async def test_a_host_that_drains_hands_over_to_another_stock_or_ours(r: Rig, relay: Derper) -> None:
    async with contextlib.AsyncExitStack() as stack:
        control = await stack.enter_async_context(embedded_control(relay.region))
        addresses = [*map(format_address, control.do("define_service", "svc:web"))]
        joins = TaggedJoins(control)
        ours = await stack.enter_async_context(daemon(r, joins, "ours"))
        stock = await stack.enter_async_context(r.tailscaled("stock"))
        await stock.up(control.url, await joins.auth_key())
        caller = await stack.enter_async_context(r.tailscaled("caller"))
        await caller.up(control.url, control.server.create_auth_key(), "--accept-routes")

        async def page() -> str:
            async with await caller.connect(addresses[0], 80) as stream:
                await stream.send_all(b"GET / HTTP/1.0\r\nHost: web\r\n\r\n")
                told = b"".join([bytes(piece) async for piece in stream])
                return told.partition(b"\r\n\r\n")[2].decode()

        await ours("serve", "--service=svc:web", "--http=80", "text:ours")
        await hosted_by(caller, "ours", addresses)
        await stock.cli("serve", "--service=svc:web", "--http=80", "text:stock")
        assert await page() == "ours"
        await ours("serve", "drain", "svc:web")
        await hosted_by(caller, "stock", addresses)
        assert await page() == "stock"
        await ours("serve", "advertise", "svc:web")
        await stock.cli("serve", "drain", "svc:web")
        await hosted_by(caller, "ours", addresses)
        assert await page() == "ours"
        assert "svc:web" in await ours("serve", "status", "--json")


class TaggedJoins:
    """Our control server, as those ask who start a daemon: each is given a tag."""

    def __init__(self, control: EmbeddedControl) -> None:
        self.url, self._control = control.url, control

    async def auth_key(self) -> str:
        await trio.lowlevel.checkpoint()
        return self._control.server.create_auth_key(tags=["tag:web"])


async def test_stock_command_line_hosts_a_service_on_our_daemon(r: Rig, relay: Derper) -> None:
    async with (
        embedded_control(relay.region) as control,
        daemon(r, TaggedJoins(control), "host") as stock,
        r.tailscaled("caller") as caller,
    ):
        control.do("define_service", "svc:web")
        await caller.up(control.url, control.server.create_auth_key(), "--accept-routes")
        said = await stock("serve", "--service=svc:web", "--http=80", "text:hello")
        enrolled = control.server.directory.find(control.id_of("host"))

        async def page() -> bytes | None:
            try:
                async with await caller.connect("web.tailnet.test", 80) as stream:
                    await stream.send_all(b"GET / HTTP/1.0\r\nHost: whatever\r\n\r\n")
                    return b"".join([bytes(piece) async for piece in stream]).partition(b"\r\n\r\n")[2] or None
            except OSError:
                return None

        assert await poll_until(f"the service's page, after: {said}", page, PATIENCE) == b"hello"
        assert "svc:web" in await stock("serve", "status", "--json")
        await stock("serve", "clear", "svc:web")

        async def is_withdrawn() -> bool:
            return not enrolled.hosted

        await poll_until("our daemon to withdraw its service", is_withdrawn, PATIENCE)
