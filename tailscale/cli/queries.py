"""The commands that only look: status, ping, whois, ip, netcheck, version. Each has a `--json` form."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING, Any

import trio

from tailscale import __version__
from tailscale.cli.exit_codes import FAILED, OK, UNREACHABLE
from tailscale.cli.peers_table import presence, show_peers
from tailscale.cli.screen import Screen, in_time, text_of
from tailscale.cli.session import joined
from tailscale.dns.names import literal_address
from tailscale.errors import ConnectionTimedOut, NameNotFound

if TYPE_CHECKING:
    from tailscale.device import Device
    from tailscale.nodes import Node
    from tailscale.status import Identity, NetcheckReport, PingResult

PING_PATIENCE = 5.0
PINGS, PINGS_UNTIL_DIRECT = 4, 20
STANDS_ON = ("trio", "cryptography", "pynacl", "noiseprotocol", "h2", "h11", "httpx", "msgspec")
EXTRAS = ("rich", "wsproto", "numpy")
NAT_KINDS = {None: "unknown", False: "easy: one outside address for all peers", True: "hard: a new one for every peer"}


async def status(options: argparse.Namespace, screen: Screen) -> int:
    async with joined(options, screen) as device:
        found = device.status()
        if options.json:
            screen.json(found.to_dict())
            return OK
        node = device.node
        screen.say((node.name, "bold"), f"  {', '.join(node.addresses)}")
        screen.say(f"{found.state} in {found.tailnet} as {node.user or '-'}, by {found.control_url}")
        screen.say(f"home relay {found.relay or 'none'}, UDP port {found.udp_port or 'none'}")
        for warning in found.health:
            screen.say(("! ", "yellow"), warning.sentence, (f" {warning.remedy}" if warning.remedy else ""))
        peers = [peer for peer in found.peers if peer.node.online or not options.online]
        screen.say()
        if peers:
            show_peers(screen, peers)
        else:
            screen.say("no peers: nobody else is in this tailnet, or its policy shows us nobody")
    return OK


async def ping(options: argparse.Namespace, screen: Screen) -> int:
    count = options.count or (PINGS_UNTIL_DIRECT if options.until_direct else PINGS)
    latencies: list[float] = []
    is_direct = False
    async with joined(options, screen) as device:
        for number in range(1, count + 1):
            if number > 1:
                await trio.sleep(options.interval)
            try:
                result = await device.ping(
                    options.host, options.kind, options.size, timeout=min(options.timeout, PING_PATIENCE)
                )
            except ConnectionTimedOut as error:
                _say_ping(screen, options, number, None, str(error))
                continue
            latencies.append(result.latency)
            is_direct = result.path.kind == "direct"
            _say_ping(screen, options, number, result, "")
            if options.until_direct and is_direct:
                break
    if not options.json and len(latencies) > 1:
        best, mean, worst = min(latencies), sum(latencies) / len(latencies), max(latencies)
        screen.say(
            (f"{len(latencies)} of {number} answered; {in_time(best)} / {in_time(mean)} / {in_time(worst)}", "dim")
        )
    if not latencies:
        return UNREACHABLE
    if options.until_direct and not is_direct:
        screen.note("no direct path was found: `pytailscale netcheck` says what the network allows")
        return FAILED
    return OK


def _say_ping(screen: Screen, options: argparse.Namespace, number: int, result: PingResult | None, why: str) -> None:
    if options.json:
        found: dict[str, Any] = {"sequence": number, "host": options.host}
        screen.json_line(found | (result.to_dict() if result is not None else {"error": why}))
    elif result is None:
        screen.say((f"{number:>3}  {why}", "yellow"))
    else:
        name = result.node.hostname if result.node is not None else options.host
        style = "green" if result.path.kind == "direct" else "yellow"
        screen.say(f"{number:>3}  {name} answered in {in_time(result.latency)} by ", (result.path, style))


async def whois(options: argparse.Namespace, screen: Screen) -> int:
    async with joined(options, screen) as device:
        identity = await device.whois(await _address_of(device, options.address))
    if options.json:
        screen.json(identity.to_dict())
    else:
        _say_identity(screen, identity)
    return OK


async def _address_of(device: Device, text: str) -> str:
    """`whois` takes addresses; a person may also know a name."""
    if literal_address(text) or literal_address(text.rpartition(":")[0]):
        return text
    return await device.resolve(text)


def _say_identity(screen: Screen, identity: Identity) -> None:
    node = identity.node
    facts = {
        "name": node.name,
        "addresses": ", ".join(node.addresses),
        "user": identity.user or "-",
        "tags": ", ".join(node.tags),
        "system": node.os,
        "state": text_of(presence(node)),
        "routes": ", ".join(node.routes),
        "key expires": f"{node.key_expiry:%Y-%m-%d}" if node.key_expiry else "",
    }
    _say_facts(screen, facts)
    for name, values in identity.capabilities.items():
        screen.say(("grants     ", "dim"), f" {name} {json.dumps(values) if values else ''}".rstrip())


def _say_facts(screen: Screen, facts: dict[str, str]) -> None:
    width = max(len(title) for title in facts)
    for title, value in facts.items():
        if value:
            screen.say((f"{title:<{width}}  ", "dim"), value)


async def ip(options: argparse.Namespace, screen: Screen) -> int:
    async with joined(options, screen) as device:
        node = device.node if options.host is None else await _node_of(device, options.host)
    wanted = [a for a in node.addresses if options.family is None or (":" in a) == (options.family == 6)]
    if options.json:
        screen.json({"name": node.name, "hostname": node.hostname, "addresses": wanted})
    else:
        for address in wanted:
            screen.say(address)
    return OK if wanted else FAILED


async def _node_of(device: Device, host: str) -> Node:
    try:
        return (await device.whois(await _address_of(device, host))).node
    except NameNotFound:
        if host in device.peers:
            return device.peers[host]
        raise


async def netcheck(options: argparse.Namespace, screen: Screen) -> int:
    async with joined(options, screen) as device:
        screen.show("measuring relays and the NAT ...")
        report = await device.netcheck()
    if options.json:
        screen.json(report.to_dict())
    else:
        _say_network(screen, report)
    return OK


def _say_network(screen: Screen, report: NetcheckReport) -> None:
    facts = {
        "UDP": "works" if report.udp else "blocked: everything goes through relays",
        "IPv4": report.ipv4 or "no answer",
        "IPv6": report.ipv6 or "no answer",
        "NAT": NAT_KINDS[report.mapping_varies_by_destination],
        "port mapping": report.port_mapping or "none",
        "home relay": report.home or "none",
    }
    _say_facts(screen, facts)
    if report.latencies:
        screen.say()
        ranked = sorted(report.latencies.items(), key=lambda item: item[1])
        screen.table(("RELAY", "LATENCY"), [(code, in_time(latency)) for code, latency in ranked])


async def version(options: argparse.Namespace, screen: Screen) -> int:
    packages = {name: known for name in (*STANDS_ON, *EXTRAS) if (known := _version_of(name))}
    found = {
        "pytailscale": __version__,
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "packages": packages,
    }
    await trio.lowlevel.checkpoint()
    if options.json:
        screen.json(found)
        return OK
    screen.say((f"pytailscale {__version__}", "bold"))
    screen.say(f"{platform.python_implementation()} {platform.python_version()} on {sys.platform} {platform.machine()}")
    screen.say((", ".join(f"{name} {known}" for name, known in packages.items()), "dim"))
    return OK


def _version_of(distribution: str) -> str:
    try:
        return version_of(distribution)
    except PackageNotFoundError:
        return ""
