"""Upstream's LocalAPI without upstream: what each path gives, and the notices. The referee is in tests/interop."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from daemon.daemon_scripts import ECHO_PORT, PATIENCE, World, client_of
from daemon.test_door import UPGRADE, talk

from tailscale.daemon import ipn
from tailscale.daemon.answering import Answer, Question, Routes, json_answer
from tailscale.daemon.bus import Bus
from tailscale.daemon.client import Client
from tailscale.daemon.daemon import Daemon
from tailscale.daemon.keeper import Keeper
from tailscale.daemon.localapi import LocalApi
from tailscale.daemon.requests import DaemonError
from tailscale.daemon.transport import Asker
from tailscale.device import Device
from tailscale.dns.messages import NAME_ERROR, decode_answer_untrusted
from tailscale.events import QUEUE_LIMIT, HealthChanged
from tailscale.peerapi.actor import PORT

API = "/localapi/v0/"


def test_status_names_ourselves_and_our_peers(client: Client) -> None:
    found = client.get(f"{API}status")
    assert (found["BackendState"], found["Self"]["HostName"]) == ("Running", "keeper")
    (peer,) = found["Peer"].values()
    assert (peer["HostName"], peer["Online"], peer["Relay"]) == ("db", True, "test")
    assert found["User"][str(peer["UserID"])]["LoginName"] == "user@tailnet.test"
    assert client.get(f"{API}status?peers=false")["Peer"] is None


def test_whois_by_address_and_key(client: Client) -> None:
    found = client.get(f"{API}whois?addr=100.64.0.1:80")
    assert (found["Node"]["ComputedName"], found["UserProfile"]["LoginName"]) == ("db", "user@tailnet.test")
    assert client.get(f"{API}whois?addr={found['Node']['Key']}")["Node"] == found["Node"]


@pytest.mark.parametrize("kind", ["disco", "TSMP", "ICMP"])
def test_pings_of_every_kind(client: Client, kind: str) -> None:
    found = client.ask("POST", f"{API}ping?ip=100.64.0.1&type={kind}&size=0")
    assert (found["Err"], found["NodeName"], found["LatencySeconds"] > 0) == ("", "db", True)


def test_pings_that_cannot_be_say_why(client: Client) -> None:
    own = client.get(f"{API}status")["TailscaleIPs"][0]
    assert client.ask("POST", f"{API}ping?ip={own}")["IsLocalIP"] is True
    assert client.ask("POST", f"{API}ping?ip=100.64.0.1&type=peerapi")["PeerAPIURL"] == f"http://100.64.0.1:{PORT}"
    assert "no peer owns or routes" in client.ask("POST", f"{API}ping?ip=192.0.2.7")["Err"]


def test_dial_changes_to_raw_bytes(daemon: Daemon) -> None:
    head = (UPGRADE % (b"/localapi/v0/dial", b"ts-dial")).removesuffix(b"\r\n")
    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout(PATIENCE)
        door.connect(daemon.places.socket)
        door.sendall(head + b"Dial-Host: db\r\nDial-Port: %d\r\nDial-Network: tcp\r\n\r\nhello" % ECHO_PORT)
        got = b""
        while not got.endswith(b"hello"):
            got += door.recv(4096)
        assert got.startswith(b"HTTP/1.1 101 ")
        door.shutdown(socket.SHUT_WR)
        assert door.recv(4096) == b""


def test_dial_says_what_stands_in_the_way(daemon: Daemon) -> None:
    for dialled, code, sentence in (
        (b"Dial-Host: db\r\nDial-Port: 9\r\n", b"502", b"db port 9 refused the connection"),
        (b"Dial-Host: dbb\r\nDial-Port: 9\r\n", b"404", b"did you mean 'db'?"),
        (b"Dial-Host: db\r\nDial-Port: 9\r\nDial-Network: udp\r\n", b"501", b"only TCP"),
        (b"Dial-Host: db\r\n", b"400", b"missing or wrong"),
    ):
        head = (UPGRADE % (b"/localapi/v0/dial", b"ts-dial")).removesuffix(b"\r\n")
        with socket.socket(socket.AF_UNIX) as door:
            door.settimeout(PATIENCE)
            door.connect(daemon.places.socket)
            door.sendall(head + dialled + b"\r\n")
            got = b""
            while piece := door.recv(4096):
                got += piece
        assert got.startswith(b"HTTP/1.1 " + code)
        assert sentence in got


def test_dns_query_gives_a_dns_message(client: Client) -> None:
    found = client.get(f"{API}dns-query?name=db&type=A")
    answer = decode_answer_untrusted(base64.b64decode(found["Bytes"]), 1, "db", "A")
    assert answer.values == ("100.64.0.1",)
    found = client.get(f"{API}dns-query?name=nobody.tailnet.test.&type=A")
    assert decode_answer_untrusted(base64.b64decode(found["Bytes"]), 1, "nobody.tailnet.test", "A").code == NAME_ERROR


def test_what_stands_on_no_part_is_honest(client: Client) -> None:
    assert client.get(f"{API}serve-config") == {}
    with pytest.raises(DaemonError, match="debugging: this daemon has no such part"):
        client.post(f"{API}debug")
    assert client.get(f"{API}tka/status")["Enabled"] is False
    for name, body in {
        "sign": {"NodeKey": "nodekey:" + "0" * 64},
        "modify": {"RemoveKeys": [{"Kind": 1, "Votes": 1, "Public": "A" * 43 + "="}]},
        "disable": {"secret": 1},
        "wrap-preauth-key": {"TSKey": "tskey-auth-x", "TKAKey": "nlpriv:" + "1" * 128},
        "affected-sigs": {},
    }.items():
        with pytest.raises(DaemonError, match="no lock") as caught:
            client.ask("POST", f"{API}tka/{name}", body)
        assert caught.value.status == 500
    for bad in ({"AddKeys": ["x"]}, {"AddKeys": [{"Public": "AA=="}]}, {"AddKeys": [{"Public": "!"}]}):
        with pytest.raises(DaemonError, match=r"not base64|not a key"):
            client.ask("POST", f"{API}tka/modify", bad)
    assert client.get(f"{API}derpmap")["Regions"]
    assert client.get(f"{API}dns-config")["Proxied"] is True
    assert client.get(f"{API}profiles/current")["Name"] == "user@tailnet.test"
    assert len(client.get(f"{API}profiles/")) == 1
    assert client.get(f"{API}check-ip-forwarding") == {"Warning": ""}
    with pytest.raises(DaemonError, match="not supported"):
        client.get(f"{API}dns-osconfig")


class Updating:
    """A room as one is added: a class with two methods, and its name in `ROOMS`."""

    def __init__(self, keeper: Keeper) -> None:
        self.met: list[str] = []

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", f"{API}update/check", self.targets)

    async def run(self, device: Device) -> None:
        self.met.append(device.hostname)
        await trio.sleep_forever()

    async def targets(self, _: Question) -> Answer:
        await trio.lowlevel.checkpoint()
        return json_answer(self.met)


@pytest.mark.parametrize(
    ("method", "path", "part"),
    [
        ("POST", "tka/init", "Lock"),
        ("POST", "tka/force-local-disable", "Lock"), ("POST", "debug?action=x", "debugging"),
        ("POST", "bugreport", "bug reports"), ("GET", "drive/shares", "Taildrive"), ("GET", "policy/x", "policies"),
    ],
)  # fmt: skip
def test_parts_that_are_not_there_are_named(client: Client, method: str, path: str, part: str) -> None:
    with pytest.raises(DaemonError, match=f"{part}.*: this daemon has no such part") as caught:
        client.ask(method, f"{API}{path}")
    assert caught.value.status == 501


def test_prefs_change_what_they_can_and_keep_the_rest(client: Client) -> None:
    before = client.get(f"{API}prefs")
    masked = {
        "ShieldsUp": True,
        "ShieldsUpSet": True,
        "RouteAll": False,
        "RouteAllSet": True,
        "NoSNAT": True,
        "NoSNATSet": True,
    }
    after = client.ask("PATCH", f"{API}prefs", masked)
    assert {name for name in after if after[name] != before[name]} == {"ShieldsUp", "RouteAll", "NoSNAT"}
    assert client.get(f"{API}prefs") == after
    back = {
        "ShieldsUp": False,
        "ShieldsUpSet": True,
        "RouteAll": True,
        "RouteAllSet": True,
        "NoSNAT": False,
        "NoSNATSet": True,
    }
    assert client.ask("PATCH", f"{API}prefs", back) == before
    assert client.ask("POST", f"{API}check-prefs", before) == {"Error": ""}
    assert "RunWebClient" in client.ask("POST", f"{API}check-prefs", before | {"RunWebClient": True})["Error"]


def test_bus_begins_with_what_was_asked_for(client: Client) -> None:
    first = next(client.stream(f"{API}watch-ipn-bus?mask={2 + 4 + 8 + 128 + 16384}"))
    assert ipn.STATES[first["State"]] == "Running"
    assert first["Prefs"]["Hostname"] == "keeper"
    assert [node["ComputedName"] for node in first["NetMap"]["Peers"]] == ["db"]
    assert first["InitialStatus"]["BackendState"] == "Running"
    assert first["Health"] == {"Warnings": {}}
    assert next(client.stream(f"{API}watch-ipn-bus")).keys() == {"Version"}


@pytest.mark.parametrize("missed", [0, 2 * QUEUE_LIMIT], ids=["at once", "after more events than are kept"])
def test_bus_tells_what_changed_while_its_first_notice_was_on_the_way(net: World, tmp_path: Path, missed: int) -> None:
    """Who waits for a state would otherwise wait for ever."""

    async def down_meanwhile(daemon: Daemon) -> str:
        async with notices_of(daemon) as (lines, _):
            assert ipn.STATES[json.loads(await anext(lines))["State"]] == "Running"
            await daemon.keeper.stop()
            for _ in range(missed):
                daemon.keeper.say(HealthChanged("some-code", active=False))
            with trio.fail_after(5):
                return ipn.STATES[json.loads(await anext(lines))["State"]]

    with net.daemon(tmp_path) as daemon:
        assert net.within(down_meanwhile, daemon) == "Stopped"


def test_who_hears_that_it_runs_can_ask_for_its_addresses_at_once(net: World, tmp_path: Path) -> None:
    """Stock `tailscale wait` asks once, and then waits for the next time it hears so."""

    async def up_again(daemon: Daemon) -> Any:
        await daemon.keeper.stop()
        async with notices_of(daemon) as (lines, api):
            await daemon.keeper.start()
            with trio.fail_after(20):
                async for line in lines:
                    if ipn.STATES[json.loads(line).get("State", 0)] == "Running":
                        break
            return api.status_json(peers=False)["TailscaleIPs"]

    with net.daemon(tmp_path) as daemon:
        assert len(net.within(up_again, daemon)) == 2


@asynccontextmanager
async def notices_of(daemon: Daemon) -> AsyncIterator[tuple[AsyncIterator[bytes], LocalApi]]:
    """The lines as they are made: nothing happens between one and the next but what the test does."""

    async def never() -> Any:
        await trio.sleep_forever()

    keeper, routes = daemon.keeper, Routes()
    api = LocalApi(keeper, daemon.prefs, daemon.own_api)
    Bus(keeper, daemon.prefs, api, daemon.serving).add_to(routes)
    question = Question("GET", f"{API}watch-ipn-bus", {"mask": "2"}, {}, Asker(None, True), never)
    answer = await routes.find("GET", question.path, question.asker)(question)
    assert not isinstance(answer.body, bytes)
    async with aclosing(answer.body) as lines:  # type: ignore[type-var]
        yield lines, api


async def joined(net: World, name: str) -> None:
    await net.net.device(name)


def test_bus_tells_of_preferences_peers_and_going_down(net: World, tmp_path: Path) -> None:
    with net.daemon(tmp_path) as daemon:
        client = client_of(daemon)
        notices = client.stream(f"{API}watch-ipn-bus?mask={2 + 4096}")
        next(notices)

        def until(key: str) -> Any:
            return next(notice[key] for notice in notices if key in notice)

        client.ask("PATCH", f"{API}prefs", {"ShieldsUp": True, "ShieldsUpSet": True})
        assert until("Prefs")["ShieldsUp"] is True
        net.within(joined, net, "late")
        assert until("PeersChanged")[0]["ComputedName"] == "late"
        client.ask("PATCH", f"{API}prefs", {"WantRunning": False, "WantRunningSet": True})
        assert ipn.STATES[until("State")] == "Stopped"
        assert client.get(f"{API}status")["BackendState"] == "Stopped"
        with pytest.raises(DaemonError, match="the daemon is down"):
            client.get("ping?host=db")
        client.ask("POST", f"{API}start", {})
        assert ipn.STATES[until("State")] == "Starting"
        while ipn.STATES[until("State")] != "Running":
            pass
        client.ask("POST", f"{API}logout")
        assert client.get(f"{API}status")["BackendState"] == "NeedsLogin"
        client.ask("POST", f"{API}login-interactive")
        assert "/register/" in until("BrowseToURL")


def test_metrics_are_those_of_the_device(daemon: Daemon) -> None:
    answer = talk(daemon.places.socket, b"GET /localapi/v0/usermetrics HTTP/1.0\r\n\r\n")
    assert b'tailscaled_inbound_bytes_total{path="derp"}' in answer


def test_a_room_takes_the_place_of_a_refusal(net: World, tmp_path: Path, client: Client) -> None:
    with pytest.raises(DaemonError, match="updating: this daemon has no such part"):
        client.get(f"{API}update/check")
    with net.daemon(tmp_path, rooms=(Updating,)) as daemon:
        assert client_of(daemon).get(f"{API}update/check") == [daemon.keeper.device.hostname]
        with pytest.raises(DaemonError, match="certificates: this daemon has no such part"):
            client_of(daemon).get(f"{API}cert/x")
