"""`pytailscale dns`: one question, how names are looked up, or a DNS server on a port of this machine."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import trio

from tailscale.cli.exit_codes import FAILED, NOT_FOUND, OK
from tailscale.cli.screen import Screen
from tailscale.cli.session import joined
from tailscale.http.local import split_listen

if TYPE_CHECKING:
    from tailscale.device import Device
    from tailscale.dns_reply import DnsReply
    from ts_control.wire import Resolver

CODES = {"Success": OK, "NameError": NOT_FOUND}


async def dns(options: argparse.Namespace, screen: Screen) -> int:
    async with joined(options, screen) as device:
        if options.listen is not None:
            return await _listen(device, options, screen)
        if options.question == "query":
            reply = await device.dns_query(options.name, options.type)
            if options.json:
                screen.json(reply.to_dict())
            else:
                _say_reply(reply, screen)
            return CODES.get(reply.code, FAILED)
        found = status_of(device)
        if options.json:
            screen.json(found)
        else:
            _say_status(found, screen)
    return OK


async def _listen(device: Device, options: argparse.Namespace, screen: Screen) -> int:
    host, port = split_listen(options.listen)
    async with device.name_server(host, port) as server:
        screen.note(f"answering names at {server.host} port {server.port}, UDP and TCP, until Ctrl-C")
        await trio.sleep_forever()
    return OK


def _say_reply(reply: DnsReply, screen: Screen) -> None:
    """For people."""
    screen.say((reply.name, "bold"), f"  {reply.type}  {reply.code}")
    for record in reply.answers:
        screen.say(f"  {record.name}  {record.ttl}  {record.type}  {record.body}")
    if not reply.answers:
        screen.say(("  no answers", "dim"))
    by = ", ".join(reply.resolvers) if reply.resolvers else "the tailnet itself"
    screen.say((f"  asked: {by}", "dim"))


def status_of(device: Device) -> dict[str, Any]:
    """As `tailscale dns status --json` writes it."""
    netmap = device.netmap
    assert netmap is not None, "a device that has joined has a netmap"
    config = netmap.dns
    found: dict[str, Any] = {
        "TailscaleDNS": True,
        "CurrentTailnet": {
            "MagicDNSEnabled": config.proxied,
            "MagicDNSSuffix": device.name.partition(".")[2],
            "SelfDNSName": f"{device.name}.",
        },
        "Resolvers": _resolvers(config.resolvers),
        "SplitDNSRoutes": {suffix: _resolvers(servers or ()) for suffix, servers in config.routes.items() if servers},
        "FallbackResolvers": _resolvers(config.fallback_resolvers),
        "SearchDomains": sorted(config.domains),
        "CertDomains": list(config.cert_domains),
        "ExtraRecords": [
            {"Name": record.name, **({"Type": record.type} if record.type else {}), "Value": record.value}
            for record in config.extra_records
        ],
        "ExitNodeFilteredSet": list(config.exit_node_filtered_set),
    }
    return {name: value for name, value in found.items() if value not in ([], {})}


def _resolvers(servers: tuple[Resolver, ...]) -> list[dict[str, Any]]:
    return [
        {"Addr": server.addr}
        | ({"BootstrapResolution": list(server.bootstrap_resolution)} if server.bootstrap_resolution else {})
        for server in servers
    ]


def _say_status(found: dict[str, Any], screen: Screen) -> None:
    """For people."""
    tailnet = found["CurrentTailnet"]
    state = f"on, as {tailnet['SelfDNSName']}" if tailnet["MagicDNSEnabled"] else "off"
    screen.say(("MagicDNS  ", "bold"), f"{state} in {tailnet['MagicDNSSuffix']}")
    asked = ", ".join(server["Addr"] for server in found.get("Resolvers", [])) or "none: this tailnet has no resolvers"
    screen.say(("asked     ", "bold"), asked)
    for suffix, servers in sorted(found.get("SplitDNSRoutes", {}).items()):
        screen.say(("          ", "bold"), f"{suffix}: {', '.join(server['Addr'] for server in servers)}")
    for record in found.get("ExtraRecords", []):
        screen.say(("record    ", "bold"), f"{record['Name']}  {record['Value']}")
