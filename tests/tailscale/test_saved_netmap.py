"""A device that starts while control is away: with the netmap of its last run, where control asks to keep that."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from tailnet_scripts import echo_service, echoed, until
from trio.testing import MockClock

from tailscale.errors import ControlUnreachable
from tailscale.runtime.saved_netmap import NETMAP, NOTHING
from tailscale.state_file import MemoryStore
from tailscale.testing import Tailnet

ALLOW = {"action": "accept", "src": ["*"], "dst": ["*:*"]}


def policy(*attributes: str) -> dict[str, Any]:
    return {"acls": [ALLOW], "nodeAttrs": [{"target": ["*"], "attr": list(attributes)}]}


def settings(store: MemoryStore) -> dict[str, Any]:
    return {"state": store, "ephemeral": False}


async def first_run(net: Tailnet, store: MemoryStore, *attributes: str) -> None:
    net.policy(policy(*attributes))
    async with net.device("a", **settings(store), auth_key=net.auth_key(reusable=True)) as device:
        assert "b" in device.peers


async def test_device_comes_up_as_it_was_while_control_is_away(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    store = MemoryStore()
    async with tailnet.device("b") as b, echo_service(b, 7):
        await first_run(tailnet, store, "cache-network-maps")
        kept = store.read(NETMAP)
        assert kept is not None
        assert json.loads(kept)["Peers"][0]["Name"].startswith("b.")
        await tailnet.control.stop()
        began = trio.current_time()
        device, leave = await tailnet.join("a", **settings(store))
        assert trio.current_time() - began < 5
        assert device.peers["b"].name == b.node.name
        assert await echoed(device, "b", 7) == b"hello"
        found = await until(lambda: [one for one in device.health if one.code == "control-unreachable"], 120)
        assert "as they were in the last run" in str(found[0])
        await tailnet.control.start()
        await until(lambda: "control-unreachable" not in {one.code for one in device.health}, 120)
        assert await echoed(device, "b", 7) == b"hello"
        await leave()


async def test_control_that_does_not_answer_is_waited_for_only_so_long(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    store = MemoryStore()
    async with tailnet.device("b"):
        await first_run(tailnet, store, "cache-network-maps")
        tailnet.block("a", "control")
        began = trio.current_time()
        device, leave = await tailnet.join("a", **settings(store))
        assert 3 <= trio.current_time() - began < 6
        assert "b" in device.peers
        await leave()


@pytest.mark.parametrize("attributes", [(), ("cache-network-maps", "disable-cache-network-maps")])
async def test_netmap_is_kept_only_where_control_asks_for_it(
    autojump_clock: MockClock, tailnet: Tailnet, attributes: tuple[str, ...]
) -> None:
    store = MemoryStore()
    async with tailnet.device("b"):
        await first_run(tailnet, store, *attributes)
        assert store.read(NETMAP) is None
        await tailnet.control.stop()
        with pytest.raises(ControlUnreachable):
            await tailnet.join("a", **settings(store), ready_timeout=20)


async def test_netmap_is_forgotten_when_control_asks_no_more_and_with_the_identity(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    store = MemoryStore()
    async with tailnet.device("b"):
        await first_run(tailnet, store, "cache-network-maps")
        async with tailnet.device("a", **settings(store)):
            tailnet.policy(policy())
            await trio.sleep(10)
        assert store.read(NETMAP) == NOTHING
        await first_run(tailnet, store, "cache-network-maps")
        assert store.read(NETMAP) != NOTHING
        async with tailnet.device("a", **settings(store)) as device:
            await device.logout()
        assert store.read(NETMAP) == NOTHING


async def test_change_is_written_while_the_device_runs(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    """Who is killed finds what was there a minute ago."""
    store = MemoryStore()
    tailnet.policy(policy("cache-network-maps"))
    async with tailnet.device("a", **settings(store), auth_key=tailnet.auth_key(reusable=True)):
        await trio.sleep(10)
        assert b'"Peers":[]' in (store.read(NETMAP) or b"")
        async with tailnet.device("b"):
            await trio.sleep(70)
            assert b'"Name":"b.' in (store.read(NETMAP) or b"")


@pytest.mark.parametrize("entry", [b"", b"{", b'{"Node":null}', b'{"Peers":[{}]}', b'{"Node":{"Key":5}}'])
async def test_entry_that_cannot_be_read_is_none(autojump_clock: MockClock, tailnet: Tailnet, entry: bytes) -> None:
    store = MemoryStore()
    async with tailnet.device("b"):
        await first_run(tailnet, store, "cache-network-maps")
        store.write(NETMAP, entry)
        async with tailnet.device("a", **settings(store)) as device:
            assert "b" in device.peers


async def test_lock_holds_for_the_netmap_of_the_last_run(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    """Whoever could write that netmap can add no peer to it."""
    store = MemoryStore()
    async with tailnet.device("b"):
        tailnet.policy(policy("cache-network-maps"))
        async with tailnet.device("a", **settings(store), auth_key=tailnet.auth_key(reusable=True)) as device:
            tailnet.lock()
            await until(lambda: device.lock.enabled, 60)
            async with tailnet.device("c"):
                await trio.sleep(5)
                assert [one.node.hostname for one in device.lock.hidden_peers] == ["c"]
                await trio.sleep(70)
                kept = store.read(NETMAP)
        assert kept is not None
        assert b'"Name":"c.' in kept
        store.write(NETMAP, kept)
        await tailnet.control.stop()
        device, leave = await tailnet.join("a", **settings(store))
        assert device.lock.enabled
        assert [one.node.hostname for one in device.lock.hidden_peers] == ["c"]
        assert device.peers["b"].locked_out == ""
        await leave()
