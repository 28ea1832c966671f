"""A mesh among programs that are not ours: Headscale carries the announcement, a stock node speaks `/ws`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from bench.crowd import Crowd
from tailscale import Device
from tailscale.mesh import Lagged, Mesh, PeerJoined, Subscription
from tests.interop.embedded import EmbeddedControl, embedded_control
from tests.interop.rig import Derper, Rig
from tests.interop.rig.tailscaled import Tailscaled

APP = "notes"
FAKES = 497


@pytest.fixture
async def control(relay: Derper) -> AsyncIterator[EmbeddedControl]:
    async with embedded_control(relay.region) as made:
        yield made


async def next_of(inbox: Subscription[Any]) -> Any:
    with trio.fail_after(20):
        message = await inbox.__anext__()
    assert not isinstance(message, Lagged)
    return message


@pytest.mark.interop
@pytest.mark.peers("headscale-0.29.2")
async def test_headscale_carries_the_announcement(r: Rig, relay: Derper) -> None:
    """A member is seen within a second of being up, and what is sent to it arrives."""
    async with r.headscale("0.29.2", regions=[relay.region]) as hs:
        keys = [await hs.auth_key() for _ in range(2)]
        async with (
            Device("a", control_url=hs.url, auth_key=keys[0]) as a,
            Device("b", control_url=hs.url, auth_key=keys[1]) as b,
            Mesh(a, APP) as ours,
        ):
            events = ours.events()
            began = trio.current_time()
            async with Mesh(b, APP) as theirs, theirs.subscribe("chat") as inbox:
                with trio.fail_after(10):
                    while not isinstance(event := await events.__anext__(), PeerJoined):
                        pass
                assert trio.current_time() - began < 1.0
                assert a.peers["b"].announced == {f"mesh:{APP}": 9417}
                await event.peer.send("chat", "hello", timeout=20)
                assert (await next_of(inbox)).data == "hello"
            with trio.fail_after(10):
                while ours.peers:
                    await events.__anext__()


class StockSession:
    """A WebSocket of the `websockets` package from a stock node, through its SOCKS port."""

    def __init__(self, daemon: Tailscaled, peer: str, own_id: str, **more: Any) -> None:
        websockets = pytest.importorskip("websockets.sync.client")
        pytest.importorskip("python_socks")
        proxy = f"socks5h://127.0.0.1:{daemon.socks_port}"
        opened = websockets.connect(f"ws://{peer}:9417/ws", proxy=proxy, open_timeout=20)
        self.session = contextlib.ExitStack().enter_context(opened)
        identity = {"app_id": APP, "device_id": "STOCK", "device_name": "desk", "os": "linux", "tailscale_id": own_id}
        self.say({"kind": "hello", "version": 2, "identity": identity, **more})

    def say(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            self.session.send(json.dumps(message))

    def hear(self) -> dict[str, Any]:
        heard: dict[str, Any] = json.loads(self.session.recv(20))
        return heard

    def code(self) -> int:
        """With which it is closed."""
        closed = pytest.importorskip("websockets.exceptions").ConnectionClosed
        with pytest.raises(closed) as caught:
            while True:
                self.session.recv(20)
        return int(caught.value.rcvd.code)


@pytest.mark.interop
@pytest.mark.peers("tailscaled", "tailscale")
async def test_stock_node_speaks_a_session(r: Rig, control: EmbeddedControl) -> None:
    key = control.server.create_auth_key(reusable=True)
    run = trio.to_thread.run_sync
    async with r.tailscaled("stock") as daemon, Device("ours", control_url=control.url, auth_key=key) as device:
        await daemon.up(control.url, key)
        own_id = str((await daemon.status())["Self"]["ID"])
        async with Mesh(device, APP) as mesh, mesh.subscribe("chat") as inbox:
            plain = await run(lambda: StockSession(daemon, str(device.ipv4), own_id))
            hello = await run(plain.hear)
            assert hello["identity"]["tailscale_id"] == device.node.stable_id
            await run(plain.say, {"namespace": "chat", "msg_type": "message", "payload": {"text": "hi"}})
            message = await next_of(inbox)
            assert (message.sender.node.hostname, message.data) == ("stock", {"text": "hi"})
            assert message.sender.features == frozenset()
            await mesh.send("stock", "chat", {"text": "hello"})
            assert (await run(plain.hear))["payload"] == {"text": "hello"}
            await run(plain.session.close)
            acked = await run(
                lambda: StockSession(daemon, str(device.ipv4), own_id, features=["ack"], epoch="0123456789abcdef")
            )
            await run(acked.hear)
            await run(acked.say, {"namespace": "chat", "msg_type": "message", "payload": 1, "n": 1})
            assert (await next_of(inbox)).data == 1
            while (ack := await run(acked.hear))["payload"]["n"] != 1:
                pass
            assert (ack["namespace"], ack["msg_type"]) == ("_", "ack")
            await run(acked.session.close)
            liar = await run(lambda: StockSession(daemon, str(device.ipv4), device.node.stable_id))
            assert await run(liar.code) == 4003


@pytest.mark.interop
@pytest.mark.peers("tailscaled", "tailscale")
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_curl_on_a_stock_node_is_told_what_a_mesh_port_is(r: Rig, control: EmbeddedControl) -> None:
    key = control.server.create_auth_key(reusable=True)
    async with r.tailscaled("stock") as daemon, Device("ours", control_url=control.url, auth_key=key) as device:
        await daemon.up(control.url, key)
        proxy = f"socks5h://127.0.0.1:{daemon.socks_port}"
        upgrade = ["-H", "Connection: Upgrade", "-H", "Upgrade: websocket", "-H", "Sec-WebSocket-Version: 13"]
        key_header = ["-H", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="]
        async with Mesh(device, APP):
            for path, more, status in (("/", [], "404"), ("/ws", [], "404"), ("/ws", [*upgrade, *key_header], "101")):
                command = ["curl", "-s", "-o", os.devnull, "-w", "%{http_code}", "--max-time", "10", "-x", proxy, *more]
                done = await trio.run_process(
                    [*command, f"http://{device.ipv4}:9417{path}"], capture_stdout=True, check=False
                )
                assert done.stdout.decode() == status


@pytest.mark.interop
async def test_nobody_is_asked_among_five_hundred_who_is_no_member(relay: Derper, control: EmbeddedControl) -> None:
    """Two members and 497 peers that announce nothing: to those not one packet is sent, not even a handshake."""
    crowd = Crowd(control.server, relay.region["regionid"])
    crowd.enroll(FAKES)
    key = control.server.create_auth_key(reusable=True)
    async with (
        Device("a", control_url=control.url, auth_key=key) as a,
        Device("b", control_url=control.url, auth_key=key) as b,
        Mesh(a, APP) as ours,
        Mesh(b, APP) as theirs,
        theirs.subscribe("chat") as inbox,
    ):
        assert (await ours.peer("b", timeout=5)).connected
        report = await ours.broadcast("chat", "hello")
        assert [peer.node.hostname for peer in report.delivered] == ["b"]
        assert (await next_of(inbox)).data == "hello"
        await trio.sleep(3)
        peers = a.status().peers
        assert len(peers) == FAKES + 1
        spoken_to = [peer.node.hostname for peer in peers if peer.bytes_sent or peer.handshake_age is not None]
        assert spoken_to == ["b"]
