"""The rig itself: the peers we did not write talk to each other before any of ours does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.interop import build
from tests.interop.pattern import pattern_sha256
from tests.interop.processes import PORTS, Process, RigError, finished, poll_until, work_folder
from tests.interop.rig import Derper, Headscale, Rig, TsnetPeer

MIB = 1 << 20


async def test_two_tsnet_peers_talk(r: Rig, hs: Headscale, db: TsnetPeer) -> None:
    async with r.tsnet(hs, await hs.auth_key(), "worker") as worker:
        assert {n["givenName"] for n in await hs.nodes()} == {"db", "worker"}
        for host in (db.ip4, db.ip6, "db"):
            echoed = await worker.dial(host, 7, bytes=MIB, end="half", read=-1)
            assert (echoed["received"], echoed["sha256"]) == (MIB, pattern_sha256(MIB))
        hashed = await worker.dial(db.ip4, 9, bytes=MIB, end="half", read=-1)
        assert hashed["head"] == f"{MIB} {pattern_sha256(MIB)}\n".encode()
        made = await worker.dial(db.ip4, 19, data=b"100000\n", read=100_000)
        assert made["sha256"] == pattern_sha256(100_000)
        page = await worker.dial(db.ip4, 80, data=b"GET /x HTTP/1.0\r\n\r\n", read=-1)
        assert b'"node":"worker.rig.test."' in page["head"]
        reset = await worker.ask("dial", check=False, host=db.ip4, port=11, data=b"bye\n", read=-1)
        assert "reset" in reset["error"]
        datagrams = await worker.ask("udp", host=db.ip4, port=7, bytes=1200, count=5)
        assert (datagrams["answered"], datagrams["same"]) == (5, 5)
        assert (await worker.wait_direct(db.ip4)).startswith(("127.0.0.1:", "1", "["))


async def test_command_that_does_not_end_is_named_with_what_it_printed() -> None:
    with pytest.raises(RigError, match=r"waited 1 s for `sh -c 'echo so far; exec sleep 60'`; it had printed: so far"):
        await finished(["sh", "-c", "echo so far; exec sleep 60"], patience=1)
    done = await finished(["cat"], b"through")
    assert (done.returncode, done.stdout) == (0, b"through")


@pytest.mark.parametrize("relay_kind", ["derper tls", "derper http", "embedded"])
async def test_relay_only(r: Rig, relay_kind: str) -> None:
    http = relay_kind != "derper tls"
    async with r.derper(tls=not http) as relay:
        embedded = relay_kind == "embedded"
        async with (
            r.headscale(regions=[] if embedded else [relay.region], embedded_derp=embedded) as hs,
            r.tsnet(hs, await hs.auth_key(), "db", relay_only=True, derp_http=http) as db,
            r.tsnet(hs, await hs.auth_key(), "worker", relay_only=True, derp_http=http) as worker,
        ):
            echoed = await worker.dial(db.ip4, 7, bytes=MIB, end="half", read=-1)
            assert echoed["sha256"] == pattern_sha256(MIB)
            ping = await worker.ping(db.ip4)
            assert not ping["Endpoint"]
            assert ping["DERPRegionID"] == (999 if embedded else 900)


@pytest.mark.peers("headscale-0.28.0")
async def test_older_headscale(r: Rig, relay: Derper) -> None:
    async with (
        r.headscale("0.28.0", regions=[relay.region]) as hs,
        r.tsnet(hs, await hs.auth_key(), "db") as db,
        r.tsnet(hs, await hs.auth_key(), "worker") as worker,
    ):
        assert (await worker.dial(db.ip4, 7, bytes=1000, end="half", read=-1))["received"] == 1000


async def test_control_over_tls(r: Rig, relay: Derper) -> None:
    async with (
        r.headscale(regions=[relay.region], tls=True) as hs,
        r.tsnet(hs, await hs.auth_key(), "db") as db,
    ):
        assert hs.url.startswith("https://")
        assert db.ip4 == "100.64.0.1"


@pytest.mark.parametrize(("families", "ip4", "ip6"), [("4", True, False), ("6", False, True)])
async def test_one_address_family(r: Rig, relay: Derper, families: str, ip4: bool, ip6: bool) -> None:
    async with (
        r.headscale(regions=[relay.region], families=families) as hs,
        r.tsnet(hs, await hs.auth_key(), "db") as db,
    ):
        assert (bool(db.ip4), bool(db.ip6)) == (ip4, ip6)


@pytest.mark.peers("tailscaled", "tailscale")
async def test_tailscaled_reaches_tsnet(r: Rig, hs: Headscale, db: TsnetPeer) -> None:
    async with r.tailscaled("stock", control=hs, auth_key=await hs.auth_key()) as stock:
        async with await stock.connect(db.ip4, 80) as web:
            await web.send_all(b"GET / HTTP/1.0\r\n\r\n")
            page = b"".join([chunk async for chunk in web])
        assert b'"node":"stock.rig.test."' in page
        assert "pong from db" in await stock.cli("ping", "--until-direct=false", "-c", "3", db.ip4)


@pytest.mark.peers("tailscaled-old", "tailscale-old")
async def test_older_tailscaled_reaches_tsnet(r: Rig, hs: Headscale, db: TsnetPeer) -> None:
    async with r.tailscaled("old", control=hs, auth_key=await hs.auth_key(), old=True) as old:
        assert "pong from db" in await old.cli("ping", "--until-direct=false", "-c", "3", db.ip4)


async def test_interactive_login(r: Rig, hs: Headscale) -> None:
    async with r.tsnet(hs, "", "guest", wait_up=False) as guest:
        login = await guest.event("login")
        node = await hs.register(login["url"])
        assert (await guest.event("up"))["ip4"] in node["ipAddresses"]


async def test_administration(r: Rig, hs: Headscale, db: TsnetPeer) -> None:
    async with r.tsnet(hs, await hs.auth_key(), "worker") as worker:
        await hs.rename("db", "store")

        async def renamed() -> bool:
            return any(p["DNSName"].startswith("store.") for p in (await worker.status())["Peer"].values())

        await poll_until("the new name", renamed)
        await hs.set_policy({"acls": [{"action": "accept", "src": ["alice@"], "dst": ["alice@:7"]}]})

        async def refused() -> bool:
            answer = await worker.ask(
                "dial", check=False, host=db.ip4, port=9, data=b"x", end="half", read=-1, timeout=1
            )
            return not answer["ok"]

        await poll_until("the policy to bite", refused)
        assert (await worker.dial(db.ip4, 7, bytes=10, end="half", read=-1))["received"] == 10
        hs.set_extra_records([{"name": "extra.rig.test", "type": "A", "value": "100.64.0.99"}])

        async def resolves() -> bool:
            import base64

            answer = await worker.ask("dns", check=False, host="extra.rig.test", kind="A")
            return bytes([100, 64, 0, 99]) in base64.b64decode(answer.get("message") or "")

        await poll_until("the extra record", resolves)
        assert "responded in" in await hs.debug_ping("store")
        await hs.expire("store")

        async def expired() -> bool:
            return any(p.get("Expired") for p in (await worker.status())["Peer"].values())

        await poll_until("the expiry", expired)
        await hs.delete("store")

        async def gone() -> bool:
            return not (await worker.status()).get("Peer")

        await poll_until("the deletion", gone)


async def test_restarts(r: Rig, relay: Derper, hs: Headscale, db: TsnetPeer) -> None:
    async with r.tsnet(hs, await hs.auth_key(), "worker", relay_only=True) as worker:
        await hs.restart()
        await hs.wait_node("db")
        await relay.restart()

        async def answers() -> bool:
            answer = await worker.ask("dial", check=False, host=db.ip4, port=7, bytes=5, end="half", read=-1, timeout=3)
            return bool(answer["ok"])

        await poll_until("traffic over the restarted relay", answers, 30)


@pytest.mark.peers("scripted")
async def test_scripted_control(r: Rig, relay: Derper) -> None:
    async with (
        r.testcontrol(regions=[relay.region], require_auth=True) as control,
        r.tsnet(control, "", "db", wait_up=False) as db,
    ):
        login = await db.event("login")
        assert (await control.admin("complete-auth", {"url": login["url"]}))["done"]
        up = await db.event("up")
        async with r.tsnet(control, "", "worker", wait_up=False) as worker:
            login = await worker.event("login")
            await control.admin("complete-auth", {"url": login["url"]})
            await worker.event("up")
            assert (await worker.dial(up["ip4"], 7, bytes=10, end="half", read=-1))["received"] == 10
            assert (await control.admin("c2n", {"node": "db", "method": "GET", "path": "/echo"}))["status"] == 200


@pytest.mark.peers("oracle")
async def test_oracle_answers() -> None:
    questions = [
        {"op": "key", "text": "nodekey:" + "00" * 32},
        {"op": "stun", "hex": "00"},
        {"op": "packet", "hex": "45"},
        {"op": "filter", "rules": [], "local": ["100.64.0.1/32"], "steps": []},
    ]
    text = "".join(json.dumps(q) + "\n" for q in questions).encode()
    done = await trio.run_process([build.binary("oracle"), "serve"], stdin=text, capture_stdout=True)
    key, stun, packet, judged = [json.loads(line) for line in done.stdout.splitlines()]
    assert key["node"]
    assert not key["machine"]
    assert not stun["ok"]
    assert packet["version"] == 0
    assert judged["accept"] == []


FAILING = """
async def test_it_fails(r):
    (r.folder / "server.log").write_text("last words")
    assert not r
"""


def test_logs_are_kept_when_a_test_fails_and_only_then(tmp_path: Path) -> None:
    for program, fails in ((FAILING, True), (FAILING.replace("assert not r", ""), False)):
        (tmp_path / "test_it.py").write_text(program)
        command = [sys.executable, "-m", "pytest", "-c", "pyproject.toml", "-p", "tests.interop.conftest"]
        done = subprocess.run(
            [*command, "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path / "test_it.py"],
            cwd=Path(__file__).parents[2], env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert (done.returncode != 0) == fails, done.stdout
        kept = [path.read_text() for path in tmp_path.glob("pyts-*/server.log")]
        assert kept == (["last words"] if fails else [])
        if fails:
            (folder,) = tmp_path.glob("pyts-*")
            assert f"kept: {folder}" in done.stdout
            shutil.rmtree(folder)


def test_ports_are_not_given_twice() -> None:
    taken = [PORTS.take() for _ in range(20)]
    assert len(set(taken)) == 20


async def test_a_dead_peer_is_told_with_its_log() -> None:
    async with work_folder("dead") as folder:
        process = Process("mayfly", ["sh", "-c", "echo last words >&2; exit 3"], folder)
        assert await process.wait() == 3
        with pytest.raises(RigError, match=r"(?s)mayfly ended with status 3.*last words"):
            process.check()
        process.kill()
