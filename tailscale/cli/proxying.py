"""The commands that let other programs use the tailnet and its exits: `proxy` and `exec`."""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import trio

from tailscale.cli.exit_codes import OK
from tailscale.cli.pipes import run_program
from tailscale.cli.proxy_config import DEFAULT_LISTEN, BadConfig, Settings, read_config, read_port, read_users
from tailscale.cli.screen import Screen
from tailscale.cli.session import joined
from tailscale.figures import in_bytes
from tailscale.proxy import Exits, Proxy, serve
from ts_proxy.spec import parse_spec

if TYPE_CHECKING:
    from tailscale.device import Device

REDRAW = 1.0
NOT_EXECUTABLE, NO_SUCH_COMMAND = 126, 127  # as shells say it
EXEC_USER = "exec"
NEVER_BY_PROXY = "localhost,127.0.0.1,::1"


async def proxy(options: argparse.Namespace, screen: Screen) -> int:
    settings = settings_of(options)
    async with joined(options, screen) as device, trio.open_nursery() as nursery:
        proxies: list[Proxy] = []
        for port in settings.ports:
            exits = Exits.from_spec(device, port.exit)
            run = partial(serve, users=settings.users, limits=settings.limits)
            one = await nursery.start(run, device, port.at, exits)
            proxies.append(one)
            where = f"{device.name} port {one.port}" if one.host == "tailnet" else f"{one.host}:{one.port}"
            screen.note(("proxy at ", "dim"), where, (f" (SOCKS 5 and HTTP), exit {port.exit}", "dim"))
        while screen.is_live and not options.no_ui:
            screen.show(line_of(proxies))
            await trio.sleep(REDRAW)
    return OK


def line_of(proxies: list[Proxy]) -> str:
    """How it goes, in one line."""
    all_of_them = [one.statistics() for one in proxies]
    carried = sum(each.carried for each in all_of_them)
    failed = sum(sum(each.failures.values()) for each in all_of_them)
    sent, received = (sum(getattr(each, name) for each in all_of_them) for name in ("bytes_sent", "bytes_received"))
    return f"{carried} connections, {in_bytes(sent)} out, {in_bytes(received)} in, {failed} requests failed"


def settings_of(options: argparse.Namespace) -> Settings:
    """Arguments over the file."""
    exit = exit_of(options)
    settings = read_config(options.config, exit) if options.config is not None else Settings()
    if options.users is not None:
        settings.users = read_users(options.users)
    if options.listen:
        settings.ports = [read_port(text, exit) for text in options.listen]
    elif not settings.ports:
        settings.ports = [read_port(DEFAULT_LISTEN, exit)]
    for port in settings.ports:
        if options.direct is False and parse_spec(port.exit).kind == "direct":
            raise BadConfig(f"{port.at}={port.exit}: --no-direct forbids this machine's own network as a way out")
    return settings


def exit_of(options: argparse.Namespace) -> str:
    """What `--exit` says, or `--direct`, or nothing: then nobody gets out."""
    if options.exit is not None and options.direct:
        raise BadConfig("--exit and --direct are two ways out: choose one, or give each LISTEN its own =SPEC")
    exit: str = options.exit or ("direct" if options.direct else "none")
    try:
        parse_spec(exit)
    except ValueError as problem:
        raise BadConfig(f"--exit: {problem}") from None
    return exit


async def exec(options: argparse.Namespace, screen: Screen) -> int:
    exit = exit_of(options)
    command = options.program[1:] if options.program[:1] == ["--"] else options.program
    if not command:
        raise BadConfig("exec needs a command: pytailscale exec -- curl http://db/")
    async with joined(options, screen) as device, trio.open_nursery() as nursery:
        try:
            return await _run(device, exit, command, screen, nursery)
        finally:
            nursery.cancel_scope.cancel()


async def _run(device: Device, exit: str, command: list[str], screen: Screen, nursery: trio.Nursery) -> int:
    """The command, with a proxy that only it can use: every user of this machine reaches loopback."""
    password = secrets.token_urlsafe(16)
    run = partial(serve, users={EXEC_USER: password})
    made = await nursery.start(run, device, None, Exits.from_spec(device, exit))
    environment = proxy_variables(made.address, f"{EXEC_USER}:{password}@")
    try:
        return await run_program(command, environment)
    except (FileNotFoundError, PermissionError) as problem:
        screen.note(("pytailscale: ", "bold red"), f"{command[0]}: {problem.strerror}")
        return NO_SUCH_COMMAND if isinstance(problem, FileNotFoundError) else NOT_EXECUTABLE


def proxy_variables(address: tuple[str, int], who: str) -> Mapping[str, str]:
    """What programs look for, in both spellings; names are left to the proxy to look up."""
    where = f"{who}{address[0]}:{address[1]}"
    found = {
        "ALL_PROXY": f"socks5h://{where}",
        "HTTP_PROXY": f"http://{where}",
        "HTTPS_PROXY": f"http://{where}",
        "NO_PROXY": NEVER_BY_PROXY,
    }
    return found | {name.lower(): value for name, value in found.items()}
