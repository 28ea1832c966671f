"""The commands `ssh` and `sshd`: OpenSSH to a peer whose keys the tailnet knows, and a server for the tailnet.

Owns what OpenSSH is told. It goes through a private Unix socket of the device, so nobody else of this machine can
speak in the device's name.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tailscale.cli.arguments import SSH_PORT
from tailscale.cli.exit_codes import OK
from tailscale.cli.pipes import run_program
from tailscale.cli.screen import Screen
from tailscale.cli.session import joined
from tailscale.errors import NameNotFound
from tailscale.nodes import Peers
from tailscale.ssh.known_hosts import host_keys, known_hosts

if TYPE_CHECKING:
    from tailscale.device import Device
    from ts_control.wire import Node

NO_SUCH_PROGRAM = 127


async def ssh(options: argparse.Namespace, screen: Screen) -> int:
    user, at, host = options.where.rpartition("@")
    if not host or host.startswith("-") or user.startswith("-"):
        raise ValueError(f"ssh goes to [USER@]HOST, and {options.where!a} is none")
    async with joined(options, screen) as device:
        node = _peer(device, host)
        name = node.name.rstrip(".")
        with ExitStack() as held:
            folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="pytailscale-ssh-")))
            async with device.forward(name, options.port, path=folder / "way") as way:
                command = ["ssh", *_options(device, node, folder, way.host, screen), f"{user}{at}{name}", *options.rest]
                try:
                    return await run_program(command, {})
                except (FileNotFoundError, PermissionError) as problem:
                    screen.note(("pytailscale: ", "bold red"), f"ssh: {problem.strerror}: install OpenSSH's client")
                    return NO_SUCH_PROGRAM


def _peer(device: Device, host: str) -> Node:
    """As the tailnet knows it: only with a peer are there keys to hold it to."""
    netmap, peers = device.netmap, Peers(device.netmap)
    try:
        known = peers[host]
    except KeyError:
        raise NameNotFound(host, peers.close_to(host), detail="ssh goes to peers of the tailnet") from None
    assert netmap is not None
    return netmap.peers[known.id]


def _options(device: Device, node: Node, folder: Path, way: str, screen: Screen) -> list[str]:
    helper = Path(__file__).with_name("by_socket.py")
    proxy = shlex.join([sys.executable, "-I", "-S", str(helper), way]).replace("%", "%%")
    found = [f"ProxyCommand={proxy}", "CanonicalizeHostname=no"]
    netmap = device.netmap
    if host_keys(node) and netmap is not None:
        file = folder / "known_hosts"
        file.write_text(known_hosts(netmap, [node]))
        quoted = str(file).replace("%", "%%")
        found += [f'UserKnownHostsFile="{quoted}"', "UpdateHostKeys=no", "StrictHostKeyChecking=yes"]
    else:
        screen.note(
            (f"{node.name.rstrip('.')} has told the tailnet no SSH host key: ssh goes by those it knows", "dim")
        )
    return [word for option in found for word in ("-o", option)]


async def sshd(options: argparse.Namespace, screen: Screen) -> int:
    if not options.shell:
        raise ValueError("sshd gives a shell of this user to whom the tailnet's policy lets in: say so with --shell")
    from tailscale.ssh.serving import serve_ssh  # needs asyncssh

    async with joined(options, screen) as device, trio.open_nursery() as nursery:
        port = await nursery.start(serve_ssh, device, None, options.port, True)
        way = f"ssh {device.node.name}" if port == SSH_PORT else f"port {port} of {device.node.name}"
        screen.note(("SSH is served: ", "dim"), way)
        for warning in device.health:
            if warning.code == "ssh-unusable":
                screen.note((f"{warning.sentence}: {warning.remedy}", "yellow"))
    return OK
