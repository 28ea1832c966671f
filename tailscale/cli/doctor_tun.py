"""Whether this machine lets us have a TUN device, who has one, and what a killed process left behind."""

from __future__ import annotations

import argparse
import os
import sys

import trio

from tailscale.cli.findings import SKIP, Finding, good, warn
from tailscale.errors import TunFailed
from tailscale.kernel.interface import what_is_missing
from tailscale.kernel.names import SERVER, is_asked
from tailscale.kernel.netlink import Netlink
from tailscale.kernel.record import look, records_folder


async def tun(options: argparse.Namespace) -> list[Finding]:
    await trio.lowlevel.checkpoint()
    if sys.platform != "linux":
        return [Finding(SKIP, "`pytailscale tun` is for Linux: sockets of this program need none")]
    findings = _held()
    if missing := what_is_missing():
        return [*findings, Finding(SKIP, f"`pytailscale tun` would need {missing}: sockets of this program do not")]
    return findings or [good("`pytailscale tun up` may make an interface")]


def _held() -> list[Finding]:
    """Of the records in this network namespace."""
    netlink = Netlink()
    try:
        found = look(netlink, records_folder())
    except (TunFailed, OSError):  # then nobody here has one of ours either
        return []
    finally:
        netlink.close()
    findings = []
    for name, holder in found:
        if not holder:
            findings.append(warn(f"a killed process left rules of {name}", "pytailscale tun --cleanup, as root"))
            continue
        findings.append(good(f"{name} is held by {'this process' if holder == os.getpid() else f'process {holder}'}"))
        if not is_asked():
            remedy = f"nameserver {SERVER} in /etc/resolv.conf, before the others"
            findings.append(warn("programs do not ask the tailnet's resolver: /etc/resolv.conf names another", remedy))
    return findings
