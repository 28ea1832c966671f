"""Checks of what lies beyond this machine: the control server, then everything a joined device can tell."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import trio

from tailscale._config import has_login_in_environment
from tailscale._diagnostics import greet_control
from tailscale.cli.findings import BAD, SKIP, Finding, bad, fault, found_by, good, warn
from tailscale.cli.screen import Screen, in_time
from tailscale.cli.session import control_url, joined, state_path
from tailscale.errors import TailscaleError
from tailscale.faults import remedy_for
from tailscale.forwarding import APPROVE
from tailscale.state_file import FileStore

if TYPE_CHECKING:
    from tailscale.device import Device
    from tailscale.explanation import Explanation
    from tailscale.uplinks import Uplink

Findings = list[Finding]
Titled = tuple[str, Findings]
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
        remedy = "check --control-url (or TS_CONTROL_URL), the network, proxies and DNS"
        return [Finding(BAD, str(error), remedy, "control-unreachable")]
    took = in_time(trio.current_time() - began)
    secure = "certificate valid, " if url.startswith("https:") else ""
    return [good(f"{url} speaks the protocol ({secure}{took})")]


async def device_checks(options: argparse.Namespace, screen: Screen, *, has_control: bool) -> AsyncIterator[Titled]:
    """Join and look around; without the means to join, say so and skip."""
    unseen = f"{', '.join(NEEDS_TAILNET)} were not looked at"
    if not _may_join(options):
        yield "tailnet", [Finding(SKIP, f"not logged in: {unseen}", JOIN_REMEDY)]
    elif not has_control:
        yield "tailnet", [Finding(SKIP, f"there is no control server to join by: {unseen}")]
    else:
        for titled in await _joined_findings(options, screen):
            yield titled


def _may_join(options: argparse.Namespace) -> bool:
    if options.auth_key or options.client_id or has_login_in_environment():
        return True
    where = state_path(options)
    try:
        saved = FileStore(where).load() if where is not None else None
    except TailscaleError:
        return False  # the check of the state has said it
    return saved is not None and saved.registered


async def _joined_findings(options: argparse.Namespace, screen: Screen) -> list[Titled]:
    found: list[Titled] = []
    began = trio.current_time()
    try:
        async with joined(options, screen) as device:
            took = in_time(trio.current_time() - began)
            found.append(("joining", [good(f"{device.name} ({', '.join(device.node.addresses)}) in {took}")]))
            host, port = options.where
            found += [titled async for titled in look_around(device, host, port, screen)]
    except* (TailscaleError, OSError) as error:
        found.append(("joining" if not found else "leaving", [bad(error)]))
    return found


async def look_around(device: Device, host: str | None, port: int | None, screen: Screen) -> AsyncIterator[Titled]:
    """Everything that a device which has joined can tell; `host` is whom somebody wants to reach."""
    yield "key", [_key(device)]
    screen.show("measuring the network ...")
    for titled in await _network(device):
        yield titled
    screen.show("reaching peers ...")
    target = host or next((node.hostname for node in device.peers.values() if node.online), None)
    way = await device.explain(target, port) if target is not None else None
    if device.uplinks:
        yield "uplinks", [_uplink(device, one) for one in device.uplinks]
    yield "MTU", [_mtu(way)]
    yield "health", _health(device)
    if device.forwarding.advertised:
        yield "forwarding", _forwarding(device)
    yield "peers", _peers(device)
    if host is not None and way is not None:
        yield "the way", _way(way)


def _key(device: Device) -> Finding:
    expiry = device.node.key_expiry
    if device.node.expired:
        return fault("key-expired", "has expired: peers do not talk to this device", BAD)
    if expiry is None:
        return good("does not expire")
    if expiry <= datetime.now(UTC) + KEY_NOTICE:
        return warn(f"expires on {expiry:%Y-%m-%d %H:%M} UTC", "log in again, or turn key expiry off for this device")
    return good(f"good until {expiry:%Y-%m-%d}")


async def _network(device: Device) -> list[Titled]:
    report = await device.netcheck()
    if not report.udp:
        sentence = "no answer from any relay's STUN server: direct paths will not work"
        udp = fault("udp-blocked", sentence)
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
        relays = fault("relay-home-unreachable", "no relay answered", BAD)
    return [("UDP", [udp]), ("relays", [relays])]


def _uplink(device: Device, uplink: Uplink) -> Finding:
    """Whether anything comes by it; the peer that was reached before has been asked by every uplink."""
    if not uplink.up or not uplink.enabled:
        return warn(f"{uplink.name} is {'switched off' if uplink.up else 'down'}: nothing goes by it")
    if not uplink.bound:
        remedy = "look at the permissions of this process, and whether the interface has an address"
        return warn(f"{uplink.name} is up, and no socket could be bound to it", remedy)
    if _is_silent(device, uplink):
        remedy = "a captive portal or a firewall may hold UDP there"
        return warn(f"{uplink.name} is up and silent: nothing comes by it", remedy)
    if uplink.bound == "source":
        sentence = f"{uplink.name} works, but binding to it was refused: sockets are bound to its address only"
        return warn(sentence, "Linux 5.7 or later, or CAP_NET_RAW; routes of the system decide else")
    return good(f"{uplink.name} works{f' as {uplink.external}' if uplink.external else ''}")


def _is_silent(device: Device, uplink: Uplink) -> bool:
    """Nobody answers by it who did or should; or nobody was asked, and nothing was ever heard."""
    ways = (way for peer in device.peers.values() for way in device.paths(peer))
    states = {way.state for way in ways if way.uplink == uplink.name}
    if states & {"good", "degraded"}:
        return False
    return bool(states & {"dead", "suspect"}) or (not uplink.received and uplink.external is None)


def _mtu(way: Explanation | None) -> Finding:
    """Whether full packets make it to a peer; small ones nearly always do."""
    if way is None:
        return Finding(SKIP, "no peer is online to try it with")
    step = next((step for step in way.steps if step.name == "path"), None)
    if step is None or step.outcome == "skip":
        return Finding(SKIP, f"could not be tried with {way.host}: {way.verdict}")
    if step.fault == "black-hole":
        return fault("black-hole", f"{way.host}: {step.sentence}", BAD)
    if step.outcome == "bad":
        return Finding(SKIP, f"could not be tried: {way.host} gives {step.sentence}")
    return good(f"{way.host}: {step.sentence}")


def _health(device: Device) -> Findings:
    warnings = [
        Finding("warn", warning.sentence, remedy_for(warning.code) or warning.remedy, warning.code)
        for warning in device.health
    ]
    return warnings or [good("no warnings")]


def _forwarding(device: Device) -> Findings:
    """What a router or an exit node really carries."""
    now = device.forwarding
    findings = [
        warn(f"{route} is advertised, not approved: nothing is forwarded there", APPROVE) for route in now.missing
    ]
    if now.approved:
        carried = f"{now.tcp} TCP connections and {now.udp} UDP flows at this moment"
        findings.insert(0, good(f"{', '.join(now.approved)}: {carried}"))
    return findings


def _peers(device: Device) -> Findings:
    peers = device.peers.values()
    online = sum(node.online is True for node in peers)
    findings = [good(f"{len(peers)} visible, {online} online")]
    if not peers:
        findings = [warn("none: nobody else is in this tailnet, or its policy shows us nobody")]
    expired = [node.hostname for node in peers if node.expired]
    if expired:
        findings.append(warn(f"expired keys: {', '.join(expired)}", "log in again on those machines"))
    return findings


def _way(way: Explanation) -> Findings:
    """Each step that was looked at, and the verdict where it says more than they do."""
    found = [found_by(step) for step in way.steps if step.outcome != "skip"]
    if way.code in {finding.fault for finding in found} or not way.error:
        return [*found, good(way.verdict)] if way.is_reachable else found
    return [*found, fault(way.code, way.verdict, BAD)]
