"""Checks of what lies beyond this machine: the control server, then everything a joined device can tell."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import trio

from tailscale._config import auth_key_from_environment
from tailscale._diagnostics import greet_control
from tailscale.cli.findings import BAD, SKIP, Finding, bad, good, warn
from tailscale.cli.screen import Screen, in_time
from tailscale.cli.session import control_url, joined, state_path
from tailscale.errors import ConnectionTimedOut, TailscaleError
from tailscale.state_file import FileStore

if TYPE_CHECKING:
    from tailscale.device import Device

Findings = list[Finding]
FULL = 1200  # bytes of padding: with the headers around it what a full packet needs
PROBE_TIMEOUT = 3.0
KEY_NOTICE = timedelta(days=7)
NEEDS_TAILNET = ("joining", "key", "UDP", "relays", "MTU", "health", "peers")
JOIN_REMEDY = "pytailscale login, or pass --auth-key (or set TS_AUTHKEY)"


async def control(options: argparse.Namespace) -> Findings:
    """Whether it speaks the protocol, and how long that took."""
    url = control_url(options)
    began = trio.current_time()
    try:
        await greet_control(url)
    except (TailscaleError, ValueError) as error:
        return [Finding(BAD, str(error), "check --control-url (or TS_CONTROL_URL), the network, proxies and DNS")]
    took = in_time(trio.current_time() - began)
    secure = "certificate valid, " if url.startswith("https:") else ""
    return [good(f"{url} speaks the protocol ({secure}{took})")]


async def device_checks(options: argparse.Namespace, screen: Screen) -> AsyncIterator[tuple[str, Findings]]:
    """Join and look around; without the means to join, say so and skip."""
    if not _may_join(options):
        yield "tailnet", [Finding(SKIP, f"not logged in: {', '.join(NEEDS_TAILNET)} were not looked at", JOIN_REMEDY)]
        return
    for title, findings in await _joined_findings(options, screen):
        yield title, findings


def _may_join(options: argparse.Namespace) -> bool:
    if options.auth_key or auth_key_from_environment():
        return True
    where = state_path(options)
    try:
        saved = FileStore(where).load() if where is not None else None
    except TailscaleError:
        return False  # the check of the state has said it
    return saved is not None and saved.registered


async def _joined_findings(options: argparse.Namespace, screen: Screen) -> list[tuple[str, Findings]]:
    found: list[tuple[str, Findings]] = []
    began = trio.current_time()
    try:
        async with joined(options, screen) as device:
            took = in_time(trio.current_time() - began)
            found.append(("joining", [good(f"{device.name} ({', '.join(device.node.addresses)}) in {took}")]))
            found.append(("key", [_key(device)]))
            screen.show("measuring the network ...")
            found += await _network(device)
            screen.show("reaching peers ...")
            found.append(("MTU", await _mtu(device, options.host)))
            found.append(("health", _health(device)))
            found.append(("peers", await _peers(device, options.host)))
    except* (TailscaleError, OSError) as error:
        found.append(("joining" if not found else "leaving", [bad(error)]))
    return found


def _key(device: Device) -> Finding:
    expiry = device.node.key_expiry
    if expiry is None:
        return good("does not expire")
    if expiry <= datetime.now(UTC) + KEY_NOTICE:
        return warn(f"expires on {expiry:%Y-%m-%d %H:%M} UTC", "log in again, or turn key expiry off for this device")
    return good(f"good until {expiry:%Y-%m-%d}")


async def _network(device: Device) -> list[tuple[str, Findings]]:
    report = await device.netcheck()
    if not report.udp:
        remedy = "let UDP out to port 3478 and to peers; relays carry everything until then"
        udp = warn("no answer from any relay's STUN server: direct paths will not work", remedy)
    elif report.mapping_varies_by_destination:
        remedy = "a port mapping (UPnP, NAT-PMP) on the router, or a fixed forwarded UDP port"
        udp = warn(f"works as {report.ipv4}, behind a hard NAT: direct paths need a peer in the open", remedy)
    else:
        udp = good(f"works as {report.ipv4 or report.ipv6}")
    ranked = sorted(report.latencies.items(), key=lambda item: item[1])
    if ranked:
        fastest = ", ".join(f"{code} {in_time(latency)}" for code, latency in ranked[:5])
        relays = good(f"home {report.home or 'none'}; {fastest}")
    else:
        relays = Finding(BAD, "no relay answered", "let TCP 443 out to the relays of your tailnet")
    return [("UDP", [udp]), ("relays", [relays])]


async def _mtu(device: Device, host: str | None) -> Findings:
    """Whether full packets make it to a peer; small ones nearly always do."""
    name = host or next((node.hostname for node in device.peers.values() if node.online), None)
    if name is None:
        return [Finding(SKIP, "no peer is online to try it with")]
    try:
        await device.ping(name, timeout=PROBE_TIMEOUT)
    except TailscaleError as error:
        return [Finding(SKIP, f"could not be tried: {error}")]
    try:
        result = await device.ping(name, size=FULL, timeout=PROBE_TIMEOUT)
    except ConnectionTimedOut:
        remedy = "the network drops packets over 1,300 bytes: raise its MTU, or let ICMP 'packet too big' through"
        return [Finding(BAD, f"small packets reach {name}, full ones do not", remedy)]
    return [good(f"full packets reach {name} ({result.path})")]


def _health(device: Device) -> Findings:
    warnings = [warn(warning.sentence, warning.remedy) for warning in device.health]
    return warnings or [good("no warnings")]


async def _peers(device: Device, host: str | None) -> Findings:
    peers = device.peers.values()
    online = sum(node.online is True for node in peers)
    findings = [good(f"{len(peers)} visible, {online} online")]
    if not peers:
        findings = [warn("none: nobody else is in this tailnet, or its policy shows us nobody")]
    expired = [node.hostname for node in peers if node.expired]
    if expired:
        findings.append(warn(f"expired keys: {', '.join(expired)}", "log in again on those machines"))
    if host is not None:
        try:
            result = await device.ping(host, "tsmp", timeout=PROBE_TIMEOUT)
            findings.append(good(f"{host} answers in {in_time(result.latency)} by {result.path}"))
        except TailscaleError as error:
            findings.append(bad(error))
    return findings
