"""Unmodified tailscaled and `tailscale lock ...` against our control server, with our own node as a member."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import trio

from tailscale.device import Device
from tailscale.errors import PeerLockedOut
from tests.interop.embedded import EmbeddedControl, embedded_control
from tests.interop.ourdaemon import daemon
from tests.interop.processes import poll_until
from tests.interop.rig import Derper, Rig, RigError
from tests.interop.rig.tailscaled import Tailscaled

pytestmark = pytest.mark.peers("tailscaled", "tailscale")


@pytest.fixture
async def control(relay: Derper) -> AsyncIterator[EmbeddedControl]:
    async with embedded_control(relay.region) as made:
        yield made


async def lock_status(node: Tailscaled) -> Any:
    return json.loads(await node.cli("lock", "status", "--json"))


async def lock_key(node: Tailscaled) -> str:
    return str((await lock_status(node))["PublicKey"]).replace("nlpub:", "tlpub:")


async def filtered(node: Tailscaled) -> list[str]:
    status = await lock_status(node)
    return [_name(peer).split(".")[0] for peer in status.get("FilteredPeers") or ()]


async def answers(node: Tailscaled, ip: str) -> bool:
    try:
        await node.cli("ping", "--c=1", "--until-direct=false", "--timeout=2s", ip)
    except RigError:
        return False
    return True


def _name(peer: Any) -> str:
    return str(peer.get("DNSName") or peer.get("Name"))


def waits(node: Tailscaled, *hidden: str) -> Callable[[], Awaitable[bool]]:
    async def is_so() -> bool:
        return sorted(await filtered(node)) == sorted(hidden)

    return is_so


async def test_stock_commands_make_change_and_end_a_lock(r: Rig, control: EmbeddedControl) -> None:
    """init, status, sign, add, remove, log, disable: everything that no open server offered."""
    key = control.server.create_auth_key(reusable=True)
    async with r.tailscaled("one") as one, r.tailscaled("two") as two, r.tailscaled("three") as three:
        await one.up(control.url, key)
        await two.up(control.url, key)
        assert "NOT enabled" in await one.cli("lock", "status")
        keys = await lock_key(one), await lock_key(two)
        told = await one.cli("lock", "init", "--gen-disablements=2", "--confirm", *keys)
        secrets = re.findall(r"disablement-secret:[0-9A-Fa-f]+", told)
        assert len(secrets) == 2
        for node in (one, two):

            async def is_signed(node: Tailscaled = node) -> bool:
                status = await lock_status(node)
                return bool(status["Enabled"] and status["NodeKeySigned"])

            await poll_until("the lock to be known and the node to be signed", is_signed, 30)
        assert await answers(one, two.ip4)

        await three.up(control.url, key)
        await poll_until("the third to be locked out", waits(one, "three"), 30)
        assert not await answers(three, one.ip4)
        status = await lock_status(three)
        await two.cli("lock", "sign", (await three.status())["Self"]["PublicKey"], await lock_key(three))
        await poll_until("the third to be signed", waits(one), 30)
        assert await answers(one, three.ip4)
        assert status["Enabled"]

        third = await lock_key(three)
        await one.cli("lock", "add", third)

        async def has_keys(number: int) -> bool:
            return len((await lock_status(three))["TrustedKeys"]) == number

        await poll_until("the third key to be trusted", lambda: has_keys(3), 30)
        await two.cli("lock", "remove", third)
        await poll_until("it not to be trusted", lambda: has_keys(2), 30)
        log = json.loads(await three.cli("lock", "log", "--json"))
        assert len(log["Messages"] if isinstance(log, dict) else log) >= 3

        await one.cli("lock", "disable", secrets[1])

        async def is_over() -> bool:
            return not any([(await lock_status(node))["Enabled"] for node in (one, two, three)])

        await poll_until("the lock to end for all", is_over, 30)


async def test_our_node_is_a_member_of_a_lock_that_stock_nodes_made(r: Rig, control: EmbeddedControl) -> None:
    key = control.server.create_auth_key(reusable=True)
    async with r.tailscaled("one") as one, r.tailscaled("stranger") as stranger:
        await one.up(control.url, key)
        async with Device("ours", auth_key=key, control_url=control.url) as ours:
            await one.cli("lock", "init", "--gen-disablements=1", "--confirm", await lock_key(one))
            await poll_until(
                "our node to know the lock", _is(lambda: ours.lock.enabled and ours.lock.our_node_signed), 30
            )
            assert ours.lock.head == control.server.lock.info.head  # type: ignore[union-attr]
            assert (await ours.ping("one")).node is not None
            assert await answers(one, str(ours.ipv4))
            await stranger.up(control.url, key)
            await poll_until("the stranger to be hidden", _is(lambda: len(ours.lock.hidden_peers) == 1), 30)
            assert not await answers(stranger, str(ours.ipv4))
            with pytest.raises(PeerLockedOut):
                await ours.tcp_connect("stranger", 80)
            # Our key becomes one that signs, and signs for a stock node.
            await one.cli("lock", "add", ours.lock.our_key)
            await poll_until("our key to be trusted", _is(lambda: len(ours.lock.keys) == 2), 30)
            await ours.lock.sign("stranger", await lock_key(stranger))
            await poll_until("the stranger to be a peer", waits(one), 30)
            assert await answers(stranger, str(ours.ipv4))
        async with Device("late", auth_key=key, control_url=control.url) as late:
            await poll_until("the late one to be locked out", _is(lambda: not late.lock.our_node_signed), 30)
            assert not await answers(one, str(late.ipv4))
            await one.cli("lock", "sign", late.lock.node_key, late.lock.our_key)
            await poll_until("it to be signed", _is(lambda: late.lock.our_node_signed), 30)
            await poll_until("it to be a peer", lambda: answers(one, str(late.ipv4)), 30)
            assert (await late.ping("one")).node is not None
            # It changes its node key by itself.
            before = late.lock.node_key
            await late.login()
            await poll_until("the new key", _is(lambda: late.lock.node_key != before and late.lock.our_node_signed), 30)
            await poll_until("the new key to be believed", waits(one), 30)
            assert await answers(one, str(late.ipv4))


@dataclass
class ByKey:
    """The embedded server, as our daemon logs in to it."""

    url: str
    key: str

    async def auth_key(self) -> str:
        await trio.lowlevel.checkpoint()
        return self.key


async def test_stock_lock_commands_work_against_our_daemon(r: Rig, control: EmbeddedControl) -> None:
    """status, log, add, sign (nodes and keys), remove, disable; what needs more is refused by name."""
    key = control.server.create_auth_key(reusable=True)
    async with (
        r.tailscaled("one") as one,
        r.tailscaled("stranger") as stranger,
        daemon(r, ByKey(control.url, key), "ours") as stock,
    ):
        await one.up(control.url, key)
        assert "NOT enabled" in await stock("lock", "status")
        assert (await stock.run("lock", "log"))[0] != 0
        told = await one.cli("lock", "init", "--gen-disablements=1", "--confirm", await lock_key(one))
        (secret,) = re.findall(r"disablement-secret:[0-9A-Fa-f]+", told)

        async def ours() -> Any:
            return json.loads(await stock("lock", "status", "--json"))

        async def agrees() -> bool:
            left, right = await ours(), await lock_status(one)
            names = "Enabled", "Head", "TrustedKeys", "State"
            return bool(left["NodeKeySigned"]) and [left[name] for name in names] == [right[name] for name in names]

        await poll_until("our daemon to know the lock as the stock one does", agrees, 30)
        await stranger.up(control.url, key)
        await poll_until("the stranger to be locked out", waits(one, "stranger"), 30)

        async def hides(*names: str) -> bool:
            return sorted(_name(peer).split(".")[0] for peer in (await ours()).get("FilteredPeers") or ()) == list(
                names
            )

        await poll_until("the stranger to be locked out for us", lambda: hides("stranger"), 30)
        node_key = (await stranger.status())["Self"]["PublicKey"]
        code, told = await stock.run("lock", "sign", node_key, await lock_key(stranger))
        assert code != 0
        assert "lock add tlpub:" in told  # who is not trusted cannot sign
        own = str((await ours())["PublicKey"]).replace("nlpub:", "tlpub:")
        await one.cli("lock", "add", own)

        async def trusts(number: int) -> bool:
            return (
                len((await ours())["TrustedKeys"]) == number and len((await lock_status(one))["TrustedKeys"]) == number
            )

        await poll_until("our key to be trusted", lambda: trusts(2), 30)
        await stock("lock", "sign", node_key, await lock_key(stranger))
        await poll_until("the stranger to be a peer for all", waits(one), 30)
        assert await answers(one, stranger.ip4)
        kinds = {peer["NodeKeySignature"]["SigKind"] for peer in (await ours())["VisiblePeers"]}
        assert kinds == {"direct"}
        await stock("lock", "add", await lock_key(stranger))
        await poll_until("a third key to be trusted", lambda: trusts(3), 30)
        await stock("lock", "remove", await lock_key(one))  # what it signed is signed again by us
        await poll_until("the first key not to be trusted", lambda: trusts(2), 30)
        await poll_until("nobody to be locked out by that", lambda: hides(), 30)
        assert await answers(stranger, one.ip4)
        assert (await stock("lock", "log")).count("update ") >= 4
        wrapped = (await stock("lock", "sign", key)).strip().split()[-1]
        async with Device("late", auth_key=wrapped, control_url=control.url) as late:
            await poll_until("a device to join by the key that we signed", _is(lambda: late.lock.our_node_signed), 30)
            assert await answers(one, str(late.ipv4))
        for words in (("local-disable",), ("revoke-keys", own), ("disable", "disablement-secret:" + "AB" * 32)):
            assert (await stock.run("lock", *words))[0] != 0
        await stock("lock", "disable", secret)

        async def is_over() -> bool:
            return not (await ours())["Enabled"] and not (await lock_status(one))["Enabled"]

        await poll_until("the lock to end", is_over, 30)


async def test_auth_key_that_a_stock_node_signed_lets_ours_in(r: Rig, control: EmbeddedControl) -> None:
    key = control.server.create_auth_key(reusable=True)
    async with r.tailscaled("one") as one:
        await one.up(control.url, key)
        await one.cli("lock", "init", "--gen-disablements=1", "--confirm", await lock_key(one))
        wrapped = (await one.cli("lock", "sign", key)).strip().split()[-1]
        assert "--TL" in wrapped
        async with Device("ours", auth_key=wrapped, control_url=control.url) as ours:
            await poll_until("our node to know the lock", _is(lambda: ours.lock.enabled), 30)
            assert ours.lock.our_node_signed
            assert (await ours.ping("one")).node is not None
            assert await answers(one, str(ours.ipv4))


def _is(condition: Callable[[], object]) -> Callable[[], Awaitable[bool]]:
    async def is_so() -> bool:
        await trio.lowlevel.checkpoint()
        return bool(condition())

    return is_so


@pytest.mark.peers("lockcontrol")
async def test_our_node_in_a_lock_on_upstreams_control_server(r: Rig, relay: Derper) -> None:
    """It tells nodes of a lock with their next whole map only: so ours joins when the lock is there."""
    async with (
        r.lockcontrol(regions=[relay.region]) as url,
        r.tailscaled("one") as one,
        r.tailscaled("stranger") as stranger,
    ):
        await one.up(url, "")
        await one.cli("lock", "init", "--gen-disablements=1", "--confirm", await lock_key(one))
        async with Device("ours", auth_key="any", control_url=url) as ours:
            await poll_until("our node to know the lock", _is(lambda: ours.lock.enabled), 30)
            assert not ours.lock.our_node_signed
            assert not ours.lock.hidden_peers
            await one.cli("lock", "sign", ours.lock.node_key, ours.lock.our_key)
            await poll_until("our node to be signed", _is(lambda: ours.lock.our_node_signed), 30)
            await poll_until("our node to be a peer", lambda: answers(one, str(ours.ipv4)), 30)
            assert (await ours.ping("one")).node is not None
            await stranger.up(url, "")
            await poll_until("the stranger to be hidden", _is(lambda: len(ours.lock.hidden_peers) == 1), 30)
            assert not await answers(stranger, str(ours.ipv4))


@pytest.mark.peers("lockcontrol")
async def test_our_daemon_shows_the_lock_of_upstreams_control_server_as_stock_does(r: Rig, relay: Derper) -> None:
    async with r.lockcontrol(regions=[relay.region]) as url, r.tailscaled("one") as one:
        await one.up(url, "")
        await one.cli("lock", "init", "--gen-disablements=1", "--confirm", await lock_key(one))
        async with daemon(r, ByKey(url, "any"), "ours") as stock:

            async def agrees() -> bool:
                left, right = json.loads(await stock("lock", "status", "--json")), await lock_status(one)
                names = "Enabled", "Head", "TrustedKeys", "State"
                return bool(left["Enabled"]) and [left[name] for name in names] == [right[name] for name in names]

            await poll_until("our daemon to know the lock", agrees, 30)
            assert await stock("lock", "log") == await one.cli("lock", "log")
            status = json.loads(await stock("lock", "status", "--json"))
            assert not status["NodeKeySigned"]
            await one.cli("lock", "sign", status["NodeKey"], status["PublicKey"])

            async def is_signed() -> bool:
                return bool(json.loads(await stock("lock", "status", "--json"))["NodeKeySigned"])

            await poll_until("our daemon's node to be signed", is_signed, 30)
