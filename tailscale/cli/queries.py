"""The commands that only look: status, whois, ip, netcheck, version. Each has a `--json` form."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING

import trio

from tailscale import __version__
from tailscale.cli.exit_codes import FAILED, OK
from tailscale.cli.hosted import hosting
from tailscale.cli.peers_table import has_spoken, presence, show_peers
from tailscale.cli.screen import Screen, in_time, text_of
from tailscale.cli.session import joined
from tailscale.dns.names import literal_address
from tailscale.errors import NameNotFound
from tailscale.faults import in_option_words

if TYPE_CHECKING:
    from tailscale.device import Device
    from tailscale.nodes import Node
    from tailscale.status import Identity, NetcheckReport, Status

STANDS_ON = ("trio", "cryptography", "pynacl", "noiseprotocol", "h2", "h11", "httpx", "msgspec")
TAILDROP = "taildrop"  # under which an inbox is counted
TUN = "tun"
EXTRAS = ("rich", "wsproto", "numpy")
NAT_KINDS = {None: "unknown", False: "easy: one outside address for all peers", True: "hard: a new one for every peer"}


async def status(options: argparse.Namespace, screen: Screen) -> int:
    async with joined(options, screen) as device:
        while options.watch is not None:
            if options.json:
                screen.json_line(device.status().to_dict())
            else:
                screen.clear()
                say_status(device.status(), options, screen)
            await trio.sleep(options.watch)
        found = device.status()
        if options.json:
            screen.json(found.to_dict())
        else:
            say_status(found, options, screen)
    return OK


def say_status(found: Status, options: argparse.Namespace, screen: Screen) -> None:
    """For people."""
    node = found.node
    if node is not None:
        addresses = ", ".join(node.addresses)
        if len(screen.fitted(f"{node.name}  {addresses}", 0)) == 1:
            screen.say((node.name, "bold"), f"  {addresses}")
        else:
            screen.say((node.name, "bold"))
            _say_lines(screen, addresses, 2)
    _say_lines(screen, f"{found.state} in {found.domain} as {node.user if node else '-'}, by {found.control_url}")
    _say_lines(screen, f"home relay {found.relay or 'none'}, UDP port {found.udp_port or 'none'}")
    if found.advertised_routes:
        _say_lines(screen, f"forwards for others: {forwarded(found.advertised_routes, found.approved_routes)}")
    if found.counters.levels.get(f"{TUN}.up"):
        _say_lines(screen, "every program of this machine reaches the tailnet: `pytailscale tun` shows how")
    for warning in found.health:
        first, *more = screen.fitted(
            in_option_words(warning.sentence + (f" ({warning.remedy})" if warning.remedy else "")), 2
        )
        screen.say(("! ", "yellow"), first)
        for line in more:
            screen.say("  ", line)
    if waiting := found.counters.levels.get(f"{TAILDROP}.waiting", 0):
        told = "1 file waits" if waiting == 1 else f"{waiting} files wait"
        _say_lines(screen, f"{told}: `pytailscale file get` fetches what was sent here")
    peers = [peer for peer in found.peers if peer.node.online or not options.online]
    screen.say()
    if not peers:
        _say_lines(screen, "no peers: nobody else is in this tailnet, or its policy shows us nobody")
        return
    show_peers(screen, peers)
    if hosting() is None and not any(has_spoken(peer) for peer in peers):
        screen.note_at(("note: ", "dim"), "paths and latencies are known to a device that stays: `pytailscale up`")


def forwarded(advertised: tuple[str, ...], approved: tuple[str, ...]) -> str:
    """Each route that is offered, and whether anything comes of it."""
    return ", ".join(route if route in approved else f"{route} (not approved)" for route in advertised)


def _say_lines(screen: Screen, text: str, indent: int = 0) -> None:
    for line in screen.fitted(text, indent):
        screen.say(" " * indent + line)


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
