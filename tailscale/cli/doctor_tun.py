"""Whether this machine lets us have a TUN device, who has one, and what a killed process left behind."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import trio

from tailscale.cli.findings import SKIP, Finding, good, warn
from tailscale.errors import TunFailed
from tailscale.kernel.names import SERVER, is_asked
from tailscale.kernel.netlink import Netlink
from tailscale.kernel.record import look, records_folder

CAP_NET_ADMIN = 12
DEVICE, OWN_STATUS = Path("/dev/net/tun"), Path("/proc/self/status")


async def tun(options: argparse.Namespace) -> list[Finding]:
    await trio.lowlevel.checkpoint()
    if sys.platform != "linux":
        return [Finding(SKIP, "`pytailscale tun` is for Linux: sockets of this program need none")]
    findings = _held()
    if missing := _missing():
        return [*findings, Finding(SKIP, f"`pytailscale tun` would need {missing}: sockets of this program do not")]
    return findings or [good("`pytailscale tun up` may make an interface")]


def _missing() -> str:
    wanted = []
    if not DEVICE.exists():
        wanted.append(f"{DEVICE} (modprobe tun; in a container --device {DEVICE})")
    if not _may_administer():
        wanted.append("root or CAP_NET_ADMIN (in a container --cap-add NET_ADMIN)")
    return " and ".join(wanted)


def _may_administer() -> bool:
    """What root may lack in a container."""
    lines = [line.split() for line in OWN_STATUS.read_text().splitlines() if line.startswith("CapEff:")]
    return any(int(words[1], 16) >> CAP_NET_ADMIN & 1 for words in lines)


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
