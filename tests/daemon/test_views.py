"""Looks at a device through a real daemon's socket: as JSON, in the terminal interface, and without a device."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from textual.pilot import Pilot

from tailscale import Device
from tailscale.daemon import AsyncClient, Client, DaemonError
from tailscale.daemon.calls import Call
from tailscale.daemon.daemon import Daemon
from tailscale.daemon.places import places
from tailscale.daemon.settings import read_settings
from tailscale.testing import Tailnet
from tailscale.tui.app import Top
from tailscale.tui.source import DaemonSource, log_row, sentence
from tests.tailscale.tailnet_scripts import echo_service, echoed, until
from tests.tailscale.tui_scripts import screen_of

PATIENCE = 1500  # looks at a screen, 20 ms apart


async def decline(_: Daemon, __: Call) -> None:
    await trio.lowlevel.checkpoint()


@asynccontextmanager
async def kept(net: Tailnet, folder: Path, **more: Any) -> AsyncIterator[Daemon]:
    """A daemon whose device has joined."""
    make = partial(Device, "laptop", control_url=net.control.url, auth_key=net.auth_key(), state=folder / "state")
    daemon = Daemon(places(str(folder / "state")), make, decline, **more)
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        await until(lambda: daemon.keeper.is_ready)
        yield daemon
        daemon.end()


async def test_a_look_tells_what_is_worth_showing(tmp_path: Path) -> None:
    async with Tailnet(real=True) as net, net.device("db") as db, echo_service(db, 80):
        async with kept(net, tmp_path) as daemon:
            ask = partial(trio.to_thread.run_sync, Client(daemon.places.socket).get)
            await echoed(daemon.keeper.device, "db", 80)
            async with await daemon.keeper.device.tcp_connect("db", 80):
                look = await ask("view")
            assert (look["hostname"], look["state"], look["exit_node"]) == ("laptop", "running", "")
            assert look["count"]["peers"] == len(look["peers"]) == 1
            assert look["peers"][0]["hostname"] == look["flows"][0]["peer"] == "db"
            assert look["flows"][0]["port"] == 80
            assert sum(look["sent"].values()) > 0
            await daemon.keeper.stop()
            look = await ask("view")
            assert look["state"] == "stopped"
            assert "pytailscale up" in look["problem"]


async def test_an_exit_is_used_when_it_is_one(tmp_path: Path) -> None:
    async with Tailnet(real=True) as net, net.device("exit-nl", advertise_routes=["0.0.0.0/0", "::/0"]) as exit_node:
        net.approve_routes(exit_node, "0.0.0.0/0", "::/0")
        async with kept(net, tmp_path) as daemon:
            device, client = daemon.keeper.device, Client(daemon.places.socket)
            await until(lambda: device.exit_nodes)
            for wrong in ("nobody", 7):
                with pytest.raises(DaemonError, match="exit"):
                    await trio.to_thread.run_sync(client.post, "exit", {"exit_node": wrong})
            await trio.to_thread.run_sync(client.post, "exit", {"exit_node": "exit-nl"})
            assert device.preferences.exit_node == "exit-nl"
            (one,) = (await trio.to_thread.run_sync(client.get, "view"))["exits"]
            assert one["is_used"]
            await trio.to_thread.run_sync(client.post, "exit", {"exit_node": None})
            assert device.preferences.exit_node is None


async def test_a_daemon_serves_metrics_where_its_settings_say_so(tmp_path: Path) -> None:
    settings = read_settings('[metrics]\nlisten = "127.0.0.1:0"\npeers = true\n', "config.toml")
    async with Tailnet(real=True) as net, net.device("db"), kept(net, tmp_path, read=lambda: settings) as daemon:
        where = await until(
            lambda: [part["where"] for part in daemon.parts.to_list() if part["kind"] == "metrics" and part["where"]]
        )
        async with httpx.AsyncClient() as client:
            answer = await client.get(where[0] + "/metrics")
        assert "pytailscale_running 1" in answer.text
        assert 'peer="db.tailnet.test"' in answer.text


async def seen(pilot: Pilot[None], fact: Callable[[str], bool]) -> str:
    """The screen, once it shows a fact."""
    assert isinstance(pilot.app, Top)
    for _ in range(PATIENCE):
        await pilot.pause(0.02)
        if fact(shown := screen_of(pilot.app)):
            return shown
    raise AssertionError(shown)


@pytest.mark.slow
async def test_the_interface_over_a_real_daemon(tmp_path: Path) -> None:
    async with Tailnet(real=True) as net, net.device("exit-nl", advertise_routes=["0.0.0.0/0", "::/0"]) as exit_node:
        net.approve_routes(exit_node, "0.0.0.0/0", "::/0")
        async with kept(net, tmp_path) as daemon:
            await until(lambda: daemon.keeper.device.exit_nodes)

            async def show() -> None:
                async with Top(DaemonSource(daemon.places.socket)).run_test(size=(80, 24)) as pilot:
                    await seen(pilot, lambda shown: "● laptop" in shown and "1 of 1 peers online" in shown)
                    await pilot.press("6")
                    await seen(pilot, lambda shown: "exit-nl" in shown)
                    await pilot.press("enter")
                    await seen(pilot, lambda shown: "exit node: exit-nl" in shown and "●  exit-nl" in shown)
                    await pilot.press("8")
                    await seen(pilot, lambda shown: "the daemon listens at" in shown)

            await trio.to_thread.run_sync(asyncio.run, show())
            assert daemon.keeper.device.preferences.exit_node == "exit-nl"


async def test_without_a_daemon_the_interface_says_so_and_waits(tmp_path: Path) -> None:
    async def first() -> object:
        async for look in DaemonSource(str(tmp_path / "nobody.sock")).looks():
            return look
        return None

    said = await trio.to_thread.run_sync(asyncio.run, first())
    assert "nobody.sock" in str(said)
    assert AsyncClient(tmp_path / "x").path.endswith("x")


def test_events_read_as_sentences() -> None:
    assert sentence({"event": "PeerUp", "at": 1.0, "node": {"hostname": "db", "id": "n1"}}) == "db"
    changed = {"event": "PathChanged", "node": {"hostname": "db"}, "path": "direct 192.0.2.7:1", "latency": 0.0031}
    assert sentence(changed) == "db direct 192.0.2.7:1 3.1 ms"
    assert sentence({"event": "RelayChanged", "relay": "fra", "connected": False}) == "fra not connected"
    assert log_row({"event": "Line", "at": 0, "level": "warning", "message": "a\nb"}).cells[1] == ("a", "yellow")
    assert log_row({"event": "Lagged", "missed": 3}).cells[1] == ("Lagged 3", "cyan")
