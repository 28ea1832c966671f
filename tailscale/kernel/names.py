"""Tells systemd-resolved that an interface knows the tailnet's names, where it runs; writes no resolv.conf.

Owns the words for resolvectl, and what a person is told where nobody can be. What resolved is told goes with the
interface.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import NamedTuple

import trio

from tailscale.nodes import clean_name
from tailscale.runtime.network import HOST_RESOLVERS
from ts_base.ip import SERVICE_IP4, format_address
from ts_control.netmap import NetMap

SERVER = format_address(SERVICE_IP4)
RESOLVED = "/run/systemd/resolve/io.systemd.Resolve"
PATIENCE = 5.0
DOMAINS_LIMIT = 256


class Domains(NamedTuple):
    """Which names go to the tailnet's resolver: `search` completes short ones; all of them where `everything`."""

    search: tuple[str, ...] = ()
    routed: tuple[str, ...] = ()
    everything: bool = False


def domains_of(netmap: NetMap) -> Domains:
    """What control says of names, as far as these are names.

    All names only where control names resolvers for all: else ours would ask this machine's, which would ask us.
    """
    dns = netmap.dns
    suffix = clean_name(netmap.self_node.name).partition(".")[2]
    search = dict.fromkeys(one for one in (suffix, *map(clean_name, dns.domains)) if is_domain(one))
    routed = dict.fromkeys(one for one in map(clean_name, dns.routes) if is_domain(one) and one not in search)
    return Domains(tuple(search)[:DOMAINS_LIMIT], tuple(routed)[:DOMAINS_LIMIT], bool(dns.resolvers))


def is_domain(name: str) -> bool:
    """Fit for a command line, whoever chose it."""
    return (
        0 < len(name) < 254
        and name.isascii()
        and all(
            label.replace("-", "a").replace("_", "a").isalnum() and not label.startswith("-")
            for label in name.split(".")
        )
    )


def has_resolved() -> bool:
    return os.path.exists(RESOLVED) and shutil.which("resolvectl") is not None


def is_asked() -> bool:
    """Whether programs here ask our resolver, or one that can be told of it."""
    return has_resolved() or SERVER in HOST_RESOLVERS.read()


async def tell_resolved(interface: str, domains: Domains) -> str:
    """What went wrong; "" when resolved knows."""
    words = [*domains.search, *(f"~{name}" for name in domains.routed), *(["~."] if domains.everything else [])]
    for command in (
        ["dns", interface, SERVER],
        ["domain", interface, *words],
        ["default-route", interface, "yes" if domains.everything else "no"],
    ):
        try:
            with trio.fail_after(PATIENCE):
                done = await trio.run_process(
                    ["resolvectl", *command],
                    capture_stdout=True,
                    capture_stderr=True,
                    stdin=subprocess.DEVNULL,
                    check=False,
                )
        except (OSError, trio.TooSlowError) as error:
            return f"resolvectl {command[0]}: {error or 'no answer'}"
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            return f"resolvectl {command[0]}: {said[:200] or f'exit code {done.returncode}'}"
    return ""


def by_hand(domains: Domains) -> str:
    """What somebody has to write, and where."""
    search = f" and `search {' '.join(domains.search)}`" if domains.search else ""
    return f"put `nameserver {SERVER}`{search} into /etc/resolv.conf, or say dns=False to do without names"
