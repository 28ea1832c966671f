"""Stock `tailscale` 1.102.3, unmodified, against our daemon's socket, on a tailnet of Headscale with stock peers.

`pytest -s` prints the transcript.
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any

import dpkt
import pytest
import trio

from tests.interop import build
from tests.interop.ourdaemon import Stock, daemon
from tests.interop.processes import poll_until
from tests.interop.rig import Headscale, Rig, TsnetPeer

pytestmark = pytest.mark.peers("tailscale", "tailscaled")


# command, exit code, what its output must match
READING: list[tuple[str, int, str]] = [
    ("status", 0, r"(?s)100\.64\.\d+\.\d+ +ours +alice +linux.*db +alice +linux"),
    ("status --json", 0, r'"BackendState": "Running"'),
    ("ip", 0, r"^100\.64\.\d+\.\d+\nfd7a:115c:a1e0::\w+\n$"),
    ("ip -4 db", 0, r"^100\.64\.\d+\.\d+\n$"),
    ("ping -c 1 --until-direct=false db", 0, r"^pong from db \(100\.64\.\d+\.\d+\) via \S+ in \d+"),
    ("ping -c 1 --tsmp db", 0, r"^pong from db \(100\.64\.\d+\.\d+\) via TSMP in \d+"),
    ("ping -c 1 --icmp db", 0, r"^pong from db \(100\.64\.\d+\.\d+\) via ICMP in \d+"),
    ("ping -c 1 --peerapi db", 0, r"^hit peerapi of 100\.64\.\d+\.\d+ \(db\) at http://\S+ in \d+"),
    ("ping -c 1 ours", 0, r"is local Tailscale IP"),
    ("whois DB", 0, r"(?s)Name: +db\.rig\.test\n.*Name: +alice\n"),
    ("whoami", 0, r"Name: +ours\.rig\.test"),
    ("netcheck", 0, r"(?s)UDP: true.*Nearest DERP: rig900"),
    ("dns status", 0, r"(?s)MagicDNS: enabled tailnet-wide \(suffix = rig\.test\).*not supported on this platform"),
    ("dns query db.rig.test", 0, r"(?s)RCodeSuccess.*TypeA +100\.64\."),
    ("dns query nobody.rig.test", 0, r"RCodeNameError"),
    ("metrics print", 0, r'tailscaled_inbound_bytes_total\{path="derp"\}'),
    ("exit-node list", 1, r"no exit nodes found"),
    ("get", 0, r"hostname +ours"),
    ("lock status", 0, r"Tailnet Lock is NOT enabled"),
    ("serve status", 0, r"No serve config"),
    ("switch --list", 0, r"alice\*"),
    ("version --daemon", 0, r"Daemon: \d+\.\d+\.\d+-pytailscale"),
    ("wait", 0, r"^$"),
]


async def test_stock_command_line_reads_our_daemon(r: Rig, hs: Headscale, db: TsnetPeer) -> None:
    async with daemon(r, hs, "ours") as stock:
        for line, expected, pattern in READING:
            code, told = await stock.run(*line.replace("DB", db.ip4).split())
            assert (code, bool(re.search(pattern, told))) == (expected, True), f"tailscale {line}: {told}"


async def test_stock_command_line_changes_our_daemon(r: Rig, hs: Headscale, db: TsnetPeer) -> None:
    async with daemon(r, hs, "ours") as stock:
        await stock("set", "--hostname=other", "--accept-routes=false", "--shields-up")
        told = await stock("get")
        for name, value in {"hostname": "other", "accept-routes": "false", "shields-up": "true"}.items():
            assert re.search(rf"{name} +{value}\n", told)
        await poll_until("the name at the control server", lambda: _is_called(hs, "other"), 10)
        code, told = await stock.run("set", "--webclient")
        assert (code, "RunWebClient cannot be set" in told) == (1, True)
        code, told = await stock.run("set", "--exit-node=db")
        assert (code, "not advertising" in told or "does not offer" in told) == (1, True)
        await stock("down")
        assert (await stock.run("status"))[1] == "Tailscale is stopped.\n"
        await stock("up", "--hostname=third", "--accept-routes=false", "--shields-up", f"--login-server={hs.url}")
        assert "third" in await stock("status")
        await stock("logout")
        code, told = await stock.run("status")
        assert (code, "Logged out." in told) == (1, True)
        key = await hs.auth_key()
        again = ["--hostname=fourth", "--accept-routes=false", "--shields-up", f"--login-server={hs.url}"]
        await stock("up", f"--auth-key={key}", *again, "--timeout=20s")
        await poll_until("the name at the control server", lambda: _is_called(hs, "fourth"), 10)


async def _is_called(hs: Headscale, name: str) -> bool | None:
    return any(node["name"].startswith(name) for node in await hs.nodes()) or None


async def test_stock_nc_carries_bytes_through_our_daemon(r: Rig, hs: Headscale, db: TsnetPeer) -> None:
    async with daemon(r, hs, "ours") as stock:
        command = [str(build.binary("tailscale")), f"--socket={stock.socket}", "nc", "db", "7"]
        async with trio.open_nursery() as nursery:
            nc = await nursery.start(partial(trio.run_process, command, stdin=PIPE, stdout=PIPE))
            await nc.stdin.send_all(b"hello")
            assert await nc.stdout.receive_some() == b"hello"
            await nc.stdin.aclose()  # stock nc ends with its input, and does not wait for answers
        code, told = await stock.run("nc", "db", "81")
        assert (code, "refused the connection" in told) == (1, True)


async def test_what_is_not_there_is_said(r: Rig, hs: Headscale, db: TsnetPeer) -> None:
    async with daemon(r, hs, "ours") as stock:
        for line, sentence in {
            "cert ours.rig.test": "gives this device no name for a certificate",
            "serve --bg 3000": "gives this device no name for a certificate",
            "file cp README.md db:": "db takes no files: no program there does",
            "bugreport": "bug reports: this daemon has no such part",
            "set --webclient": "RunWebClient cannot be set",
        }.items():
            code, told = await stock.run(*line.split())
            assert code == 1
            assert sentence in told
        own_key = json.loads(await stock("lock", "status", "--json"))["PublicKey"]
        code, told = await stock.run("lock", "init", "--confirm", "--gen-disablements=1", own_key)
        assert (code, "changing Tailnet Lock: this daemon has no such part" in told) == (1, True), told


async def test_status_has_the_keys_of_tailscaleds(r: Rig, hs: Headscale, db: TsnetPeer) -> None:
    """Key by key, of the same tailnet. docs/daemon.md says of which we have a zero value alone."""
    async with daemon(r, hs, "ours") as stock, r.tailscaled("stock", control=hs, auth_key=await hs.auth_key()) as other:
        await db_is_reached(stock)
        theirs: Any = await other.status()
        ours = json.loads(await stock("status", "--json"))
        assert differing(ours, theirs) == (set(), set())
        assert differing(ours["Self"], theirs["Self"]) == (set(), set())
        assert differing(peer_named(ours, "db"), peer_named(theirs, "db")) == (set(), set())
        assert differing(ours["CurrentTailnet"], theirs["CurrentTailnet"]) == (set(), set())
        for key in ("MagicDNSSuffix", "CurrentTailnet", "User", "BackendState", "CertDomains", "ClientVersion"):
            assert ours[key] == theirs[key]
        same = {
            "ID",
            "PublicKey",
            "HostName",
            "DNSName",
            "OS",
            "UserID",
            "TailscaleIPs",
            "AllowedIPs",
            "Online",
        }
        same |= {"Relay", "PeerAPIURL", "LastSeen", "ExitNode", "ExitNodeOption", "InNetworkMap", "NodeID"}
        for key in same:
            assert peer_named(ours, "db")[key] == peer_named(theirs, "db")[key], key


def differing(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[set[str], set[str]]:
    return ours.keys() - theirs.keys(), theirs.keys() - ours.keys()


def peer_named(status: Any, name: str) -> dict[str, Any]:
    return next(peer for peer in status["Peer"].values() if peer["HostName"] == name)


async def db_is_reached(stock: Stock) -> None:
    await stock("ping", "-c", "1", "--tsmp", "db")


async def test_curl_is_a_client(r: Rig, hs: Headscale) -> None:
    async with daemon(r, hs, "ours") as stock:
        for path in ("localapi/v0/status", "pytailscale/v1/status"):
            command = ["curl", "-sS", "--fail", "--unix-socket", stock.socket, f"http://localhost/{path}"]
            told = json.loads((await trio.run_process(command, capture_stdout=True)).stdout)
            assert told.get("BackendState", "Running") == "Running"


async def test_curl_gets_a_capture_that_dpkt_reads(r: Rig, hs: Headscale, db: TsnetPeer, tmp_path: Path) -> None:
    async with daemon(r, hs, "ours") as stock, trio.open_nursery() as nursery:
        url = "http://localhost/pytailscale/v1/capture?peer=db&count=2"
        command = [
            "curl",
            "-sS",
            "--fail",
            "--no-buffer",
            "-o",
            str(tmp_path / "c"),
            "--unix-socket",
            stock.socket,
            url,
        ]
        curl = await nursery.start(partial(trio.run_process, command))
        while curl.poll() is None:
            await db_is_reached(stock)
        with (tmp_path / "c").open("rb") as file:
            assert len(list(dpkt.pcapng.Reader(file))) == 2


@pytest.mark.peers("localclient")
async def test_a_go_program_on_upstreams_client_library(r: Rig, hs: Headscale, db: TsnetPeer) -> None:
    async with daemon(r, hs, "ours") as stock:
        command = [str(build.binary("localclient")), stock.socket, "db"]
        told = json.loads((await trio.run_process(command, capture_stdout=True)).stdout)
        assert told == {
            "state": "Running",
            "self": "ours",
            "peers": 1,
            "peers without peers": 0,
            "whois": "db",
            "user": "alice",
            "ping": "",
            "hostname": "ours",
            "shields": True,
            "regions": 1,
            "profile": "alice",
            "profiles": 1,
            "bus state": "Running",
            "bus hostname": "ours",
            "bus peers": 1,
            "echo": "hello",
        }
