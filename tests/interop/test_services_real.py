"""Services between ours and stock programs, in a tailnet of the embedded control server."""

from __future__ import annotations

import contextlib

import pytest
import trio

import tailscale
from tests.interop.embedded import EmbeddedControl, embedded_control
from tests.interop.ourdaemon import daemon
from tests.interop.processes import poll_until
from tests.interop.rig import Derper, Rig

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
