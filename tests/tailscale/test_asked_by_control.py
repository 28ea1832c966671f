"""What control asks a whole device, and what a device asks control: c2n, attributes of the node, ID tokens, groups."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import trio
from tailnet_scripts import runtime_of, until
from trio.testing import MockClock

import tailscale
from tailscale.runtime.udp import ALL_OFFLOADS, Offloads
from tailscale.testing import Tailnet
from ts_control.gojson import encode_json


async def ask(net: Tailnet, device: tailscale.Device, line: str) -> tuple[int, bytes]:
    payload = base64.b64encode(f"{line} HTTP/1.1\r\nHost: h\r\n\r\n".encode()).decode()
    ping = net.control.do(net.control.server.ping, net.id_of(device), types="c2n", payload=payload)
    answer: bytes = await until(lambda: ping.answer)
    return int(answer.split(b" ", 2)[1]), answer.partition(b"\r\n\r\n")[2]


def tell(net: Tailnet, device: tailscale.Device, **parts: Any) -> None:
    net.control.do(net.control.server.send_to, net.id_of(device), parts)


async def test_device_answers_for_itself(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a = await tailnet.device("a", shields_up=True)
    tell(tailnet, a, DisplayMessages={"gap": {"Title": "Mind", "Text": "the gap"}})
    await until(lambda: a.health)
    status, body = await ask(tailnet, a, "GET /debug/health")
    assert status == 200
    assert list(json.loads(body)["Warnings"]) == ["control-health.gap"]
    status, body = await ask(tailnet, a, "GET /debug/prefs")
    assert (json.loads(body)["Hostname"], json.loads(body)["ShieldsUp"]) == ("a", True)
    status, body = await ask(tailnet, a, "GET /debug/metrics")
    assert b'tailscaled_health_messages{type="warning"} 1\n' in body
    assert b"tailscaled_home_derp_region_id " in body
    assert b"# TYPE tailscaled_inbound_bytes_total counter\n" in body
    assert b'tailscaled_outbound_packets_total{path="derp"} ' in body
    assert (await ask(tailnet, a, "GET /remoteapi/localapi/v0/status"))[0] == 403
    assert (await ask(tailnet, a, "POST /nothing"))[0] == 400


async def test_control_is_told_how_long_a_certificate_is_good(autojump_clock: MockClock) -> None:
    """By this control knows when it may forget the record of the challenge."""
    async with Tailnet(certificates=600.0) as net:
        web = await net.device("web")
        line = f"GET /tls-cert-status?domain={web.name}"
        assert json.loads((await ask(net, web, line))[1])["Missing"] is True
        held = await web.certificate()
        times = {"NotBefore": f"{held.begins:%Y-%m-%dT%H:%M:%SZ}", "NotAfter": f"{held.expires:%Y-%m-%dT%H:%M:%SZ}"}
        assert json.loads((await ask(net, web, line))[1]) == {"Valid": True, **times}
        net.certificates.refuse("serverInternal", None)
        await trio.sleep(620)
        assert json.loads((await ask(net, web, line))[1])["Expired"] is True
        assert await ask(net, web, "GET /tls-cert-status") == (400, b"no 'domain'\n")


async def test_attributes_of_the_node_forbid_offloads(
    autojump_clock: MockClock, tailnet: Tailnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await tailnet.device("a")
    udp, limits = runtime_of(a).underlay.udp, []
    assert udp is not None
    monkeypatch.setattr(udp, "limit", limits.append)
    for attributes, expected in (
        ({"disable-udp-gso": None, "never-gso-equal-tail": None}, Offloads(False, True, False)),
        ({"disable-udp-gro": None}, Offloads(True, False, True)),
        ({}, ALL_OFFLOADS),
    ):
        tell(tailnet, a, Node=own_node(a) | {"CapMap": attributes})
        await until(lambda expected=expected: limits and limits[-1] == expected)


def own_node(device: tailscale.Device) -> dict[str, Any]:
    assert device.netmap is not None
    found: dict[str, Any] = json.loads(encode_json(device.netmap.self_node))
    return found


async def test_whois_tells_groups(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    user = a.netmap.peers[b.node.id].user if a.netmap else 0
    assert (await a.whois(str(b.ipv4))).groups == ()
    tell(tailnet, a, UserProfiles=[{"ID": user, "LoginName": "x", "Groups": ["group:eng", "group:ops"]}])
    await until(lambda: a.netmap is not None and a.netmap.user_profiles[user].groups)
    identity = await a.whois(str(b.ipv4))
    assert identity.groups == ("group:eng", "group:ops")
    assert identity.to_dict()["groups"] == ["group:eng", "group:ops"]


async def test_id_token_is_asked_of_control(
    autojump_clock: MockClock, tailnet: Tailnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await tailnet.device("a")
    with pytest.raises(tailscale.ControlProtocolError, match=r"gives no ID token: .*Headscale signs none"):
        await a.id_token("sts.example.com")
    with pytest.raises(ValueError, match="name the audience"):
        await a.id_token("")
    asked: list[tuple[str, str, Any]] = []
    answers = [b'{"id_token":"a.b.c"}', b"<html>", b"{}"]

    async def answer(method: str, path: str, body: bytes = b"") -> bytes:
        await trio.lowlevel.checkpoint()
        asked.append((method, path, json.loads(body)))
        return answers.pop(0)

    monkeypatch.setattr(runtime_of(a).control, "ask", answer)
    assert await a.id_token("sts.example.com") == "a.b.c"
    method, path, body = asked[0]
    assert (method, path, body["Audience"], set(body)) == (
        "POST", "/machine/id-token", "sts.example.com", {"CapVersion", "NodeKey", "Audience"},
    )  # fmt: skip
    for sentence in ("nonsense", "an empty ID token"):
        with pytest.raises(tailscale.ControlProtocolError, match=sentence):
            await a.id_token("sts.example.com")
