"""Unmodified tailscaled and tsnet join our own coordination server, see each other and exchange traffic."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from tailscale.testing import Tailnet
from tests.interop.embedded import EmbeddedControl, embedded_control
from tests.interop.pattern import pattern_sha256
from tests.interop.processes import poll_until
from tests.interop.rig import Derper, Rig, RigError

MIB = 1 << 20


@pytest.fixture
async def control(relay: Derper) -> AsyncIterator[EmbeddedControl]:
    async with embedded_control(relay.region) as made:
        yield made


@pytest.mark.peers("tailscaled", "tailscale")
async def test_tailscaled_and_tsnet_join_and_talk(r: Rig, control: EmbeddedControl) -> None:
    key = control.server.create_auth_key(reusable=True)
    async with (
        r.tsnet(control.url, key, "db") as db,
        r.tsnet(control.url, key, "worker") as worker,
        r.tailscaled("daemon") as daemon,
    ):
        await daemon.up(control.url, key)
        assert {device.label for device in control.server.directory} == {"db", "worker", "daemon"}
        for host in (db.ip4, db.ip6, "db", "db.tailnet.test"):
            echoed = await worker.dial(host, 7, bytes=MIB, end="half", read=-1)
            assert (echoed["received"], echoed["sha256"]) == (MIB, pattern_sha256(MIB))
        assert (await worker.wait_direct(db.ip4)).startswith(("127.0.0.1:", "1", "["))
        async with await daemon.connect(db.ip4, 7) as stream:
            await stream.send_all(b"hello")
            assert await stream.receive_some(16) == b"hello"
        peers = {peer["HostName"] for peer in (await daemon.status())["Peer"].values()}
        assert peers == {"db", "worker"}


async def test_changes_reach_tsnet_while_it_runs(r: Rig, control: EmbeddedControl) -> None:
    key = control.server.create_auth_key(reusable=True)
    async with r.tsnet(control.url, key, "db") as db, r.tsnet(control.url, key, "worker") as worker:
        assert (await worker.dial(db.ip4, 7, data=b"x", end="half", read=-1))["received"] == 1
        only_port_7 = {"acls": [{"action": "accept", "src": ["*"], "dst": ["*:7"]}]}
        control.do("set_policy", only_port_7)

        async def is_closed() -> bool:
            try:
                await worker.dial(db.ip4, 80, data=b"GET / HTTP/1.0\r\n\r\n", read=-1, timeout=2)
            except RigError:
                return True
            return False

        await poll_until("the policy to arrive", is_closed, 20)
        assert (await worker.dial(db.ip4, 7, data=b"x", end="half", read=-1))["received"] == 1
        control.do("rename", control.id_of("db"), "store")
        control.do("set_policy", None)

        async def is_renamed() -> bool:
            return (await worker.path_to(db.ip4))["DNSName"] == "store.tailnet.test."

        await poll_until("the new name", is_renamed, 20)
        control.do("expire", control.id_of("store"))

        async def is_expired() -> bool:
            return (await worker.path_to(db.ip4)).get("Expired", False) is True

        await poll_until("the expiry to be seen", is_expired, 20)
        control.do("remove", control.id_of("store"))

        async def is_gone() -> bool:
            return not (await worker.status()).get("Peer")

        await poll_until("the removal to be seen", is_gone, 20)


@pytest.mark.peers("tailscaled", "tailscale")
async def test_tailscaled_logs_in_by_url_keeps_its_address_and_logs_out(r: Rig, control: EmbeddedControl) -> None:
    async with r.tailscaled("daemon") as daemon, trio.open_nursery() as nursery:
        nursery.start_soon(daemon.cli, "up", f"--login-server={control.url}", "--hostname=daemon", "--accept-dns=false")

        async def asked() -> bool:
            return bool(control.server.pending_logins)

        await poll_until("the login to be asked for", asked, 20)

        async def waits() -> bool:
            return bool(control.server._logins.parked)

        await poll_until("the daemon to wait for the decision", waits, 20)
        control.do("approve_login", control.server.pending_logins[0].url, user="alice@example.com")

        async def is_running() -> bool:
            return (await daemon.status())["BackendState"] == "Running"

        await poll_until("the daemon to run", is_running, 20)
        device = control.server.directory.by_label("daemon")
        assert device is not None
        assert device.login == "alice@example.com"
        first_key, first_addresses = device.key, device.addresses
        control.do("expire", device.id)

        async def needs_login() -> bool:
            return (await daemon.status())["BackendState"] == "NeedsLogin"

        await poll_until("the daemon to notice", needs_login, 20)
        # Reusable: a hurried daemon interrupts its own first registration and asks again under yet another node key.
        key = control.server.create_auth_key("alice@example.com", reusable=True)
        await daemon.up(control.url, key, "--force-reauth")
        assert (device.id, device.addresses) == (1, first_addresses)
        assert device.key != first_key
        await daemon.cli("logout")
        assert device.expired


async def test_tsnet_answers_our_pings(r: Rig, control: EmbeddedControl) -> None:
    key = control.server.create_auth_key(reusable=True, ephemeral=True)
    async with r.tsnet(control.url, key, "db") as db:
        ping = control.do("ping", control.id_of("db"))
        seen = control.do("ping", control.id_of("db"), types="TSMP", ip=db.ip4)

        async def answered() -> bool:
            return ping.answer is not None and seen.answer is not None

        await poll_until("both answers", answered, 10)
        assert b'"Type":"TSMP"' in seen.answer


@pytest.mark.parametrize("relay_only", [False, True])
async def test_tsnet_and_a_device_share_a_tailnet_of_ours(r: Rig, relay_only: bool) -> None:
    async with (
        Tailnet(real=True) as net,
        r.tsnet(net.control.url, net.auth_key(), "db", relay_only=relay_only) as db,
    ):
        device = await net.device("ours")
        for host in ("db", db.ip4, db.ip6):
            async with await device.tcp_connect(host, 7, timeout=20) as stream:
                await stream.send_all(b"hello")
                assert await stream.receive_some(16) == b"hello"
        listener = await device.listen(80)

        async def answer() -> None:
            async with await listener.accept() as stream:
                await stream.send_all(await stream.receive_some(100))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            echoed = await db.dial("ours", 80, data=b"back", end="half", read=4)
        assert echoed["received"] == 4
        if relay_only:
            assert net.relay.server.server.statistics().clients == 2
            assert (await device.ping("db")).path.startswith("relay")
