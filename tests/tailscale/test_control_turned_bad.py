"""A control server, or a relay, that turns bad: it costs service at most, never the program that uses it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import trio
from tailnet_scripts import runtime_of
from trio.testing import MockClock

from tailscale import Device
from tailscale.testing import Tailnet
from ts_derp.machine import PeerGone, ServerHealth


async def put(tailnet: Tailnet, device: Device, message: Mapping[str, Any]) -> None:
    """Raw JSON into a device's open map stream."""
    server = tailnet.control.server
    server._news.send(device.node.id, json.dumps(message).encode(), trio.current_time())
    tailnet.control.poke()
    await trio.sleep(2)


async def survives(tailnet: Tailnet, message: Mapping[str, Any]) -> Device:
    victim = await tailnet.device("victim")
    await put(tailnet, victim, message)
    assert victim.status().state == "running"
    return victim


def relay(host: str, **fields: Any) -> dict[str, Any]:
    node = {"Name": "x", "RegionID": 901, "HostName": host, **fields}
    return {"DERPMap": {"Regions": {"901": {"RegionID": 901, "RegionCode": "x", "Nodes": [node]}}}}


@pytest.mark.parametrize(
    "message",
    [
        relay("a..b"),
        relay("a" * 64 + ".example"),
        relay(""),
        relay("a\0b"),
        relay("a b\r\nc: d"),
        relay("\u200d.invalid"),
        relay("a..b", IPv4="10.77.0.1", IPv6="none", DERPPort=9),
        relay("10.77.0.1", IPv4="a..b"),
        relay("10.77.0.1", IPv4="10.77.0.1", STUNPort=70000),
        relay("10.77.0.1", IPv4="10.77.0.1", DERPPort=99999),
        relay("10.77.0.1", IPv4="10.77.0.1", DERPPort=-7),
        relay("10.77.0.1", IPv4="10.77.0.1", Name="a\r\nb"),
        relay("10.77.0.1", IPv4="10.77.0.1", CertName="a..b"),
    ],
)
@pytest.mark.parametrize("at_home", [False, True])
async def test_a_careless_relay_map_ends_no_device(
    autojump_clock: MockClock, tailnet: Tailnet, message: dict[str, Any], at_home: bool
) -> None:
    if at_home:  # where it must be dialled
        region = message["DERPMap"]["Regions"].pop("901")
        region["RegionID"] = region["Nodes"][0]["RegionID"] = 900
        message["DERPMap"]["Regions"]["900"] = region
    await survives(tailnet, message)


@pytest.mark.parametrize(
    "url",
    ["/a b", "/\x00", "/\u00e9", "//", "/" + "a" * 100_000, "/nothing"],
)
@pytest.mark.parametrize("is_noise", [False, True])
async def test_a_ping_request_for_nonsense_ends_no_device(
    autojump_clock: MockClock, tailnet: Tailnet, url: str, is_noise: bool
) -> None:
    request = {"URL": tailnet.control.url + url, "URLIsNoise": is_noise}
    await survives(tailnet, {"KeepAlive": True, "PingRequest": request})


async def test_a_ping_request_without_a_usable_host_ends_no_device(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    victim = await tailnet.device("victim")
    for url in ("http://a..b/", "http://\u200d/", "http://[::/", "http://x:70000/", "http://", "javascript:alert(1)"):
        await put(tailnet, victim, {"KeepAlive": True, "PingRequest": {"URL": url}})
    assert victim.status().state == "running"


@pytest.mark.parametrize(
    "message",
    [
        {"Health": [f"s{n}" for n in range(3000)]},
        {"DisplayMessages": {f"s{n}": {"Title": "t", "Text": "x", "Severity": "high"} for n in range(3000)}},
    ],
    ids=["health", "messages"],
)
async def test_thousands_of_complaints_of_control_end_no_device(
    autojump_clock: MockClock, tailnet: Tailnet, message: dict[str, Any]
) -> None:
    victim = await survives(tailnet, message)
    assert 0 < len(victim.health) < 100


async def test_a_relay_that_complains_without_end_ends_no_device(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    victim = await tailnet.device("victim")
    relays = runtime_of(victim).relays
    for number in range(15_000):  # what fits one read of the relay's stream
        relays.on_fact(900, ServerHealth(f"complaint {number}" if number % 2 else ""))
        relays.on_fact(900, PeerGone(number.to_bytes(32, "big"), 1))
    await trio.sleep(1)
    assert victim.status().state == "running"
    assert [warning.sentence for warning in victim.health] == ["relay region 900 reports: complaint 14999"]
