"""`up` and `down`: starting and ending the daemon that keeps this user's device.

Owns the process: in the background it is a child that outlives us, watched until it has joined; in the foreground it is
us. What the daemon does is `tailscale.daemon`'s; which commands it runs for others is `hosted.py`'s.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import trio

from tailscale._private_files import replace_file
from tailscale.cli.config import read_file
from tailscale.cli.exit_codes import FAILED, LOGIN, OK, UNREACHABLE
from tailscale.cli.hosted import login_options, run_hosted
from tailscale.cli.screen import Screen
from tailscale.cli.session import LOGIN_PATIENCE, control_url, hostname, remember_hostname, state_path
from tailscale.cli.unit import NAME, unit_path, unit_text
from tailscale.daemon.client import Client
from tailscale.daemon.daemon import AGAIN, Daemon, device_options
from tailscale.daemon.keeper import STOPPED, Wishes, is_final
from tailscale.daemon.places import Places, places
from tailscale.daemon.requests import DaemonAbsent, DaemonError
from tailscale.device import Device
from tailscale.errors import TailscaleError
from tailscale.state_file import FileStore

LOOK_AGAIN = 0.02
END_PATIENCE = 10.0
VARIABLES = {
    "auth_key": "TS_AUTHKEY",
    "client_id": "TS_CLIENT_ID",
    "id_token": "TS_ID_TOKEN",
    "audience": "TS_AUDIENCE",
}
log = logging.getLogger("tailscale.daemon")
RELOADS = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []
ENDS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM") if hasattr(signal, name)]


async def up(options: argparse.Namespace, screen: Screen) -> int:
    if options.install_unit:
        await trio.lowlevel.checkpoint()
        return _install_unit(options, screen)
    if options.foreground:
        return await _be_the_daemon(options, screen)
    where = places_of(options)
    client = Client(where.socket)
    try:
        daemon = client.get("status")["daemon"]
    except DaemonAbsent:
        return await trio.to_thread.run_sync(_start, options, screen, client, abandon_on_cancel=True)
    if options.restart:
        client.post("restart")
        await trio.to_thread.run_sync(_await_end, client, daemon["since"], abandon_on_cancel=True)
    else:
        asked = _wishes(options) | ({"tags": ",".join(options.tags)} if options.tags else {})
        client.post("up", asked | ({"runs_ssh": options.ssh} if options.ssh is not None else {}))
        for app in options.apps:
            client.post("up", {"app": app})
    return await trio.to_thread.run_sync(_watch, options, screen, client, None, abandon_on_cancel=True)


async def down(options: argparse.Namespace, screen: Screen) -> int:
    client = Client(places_of(options).socket)
    try:
        since = client.get("status")["daemon"]["since"]
        pid = client.post("stop")["pid"]
    except DaemonAbsent:
        await trio.lowlevel.checkpoint()
        screen.say("no daemon runs: nothing to do")
        return OK
    await trio.to_thread.run_sync(_await_end, client, since, abandon_on_cancel=True)
    screen.say(f"the daemon (process {pid}) has ended")
    return OK


def places_of(options: argparse.Namespace) -> Places:
    where = places(options.state)
    return where._replace(socket=os.path.abspath(options.socket)) if options.socket else where


def _wishes(options: argparse.Namespace) -> dict[str, Any]:
    """What was asked for on this command line, as options of a Device."""
    asked = {"hostname": options.hostname, "control_url": options.control_url}
    asked |= {"advertise_routes": options.advertise_routes, "advertise_exit_node": options.advertise_exit_node}
    asked |= {"uplinks": options.uplinks, "paths": options.paths}
    asked = {name: value for name, value in asked.items() if value is not None} | login_options(options)
    return asked | ({"tags": options.tags} if options.tags else {})


def _given(options: argparse.Namespace) -> list[str]:
    """The words that say which daemon it is, for another process that is to be it. No secrets."""
    files = {"--state": options.state, "--socket": options.socket, "--config": options.config}
    given = {name: os.path.abspath(os.path.expanduser(file)) for name, file in files.items() if file}
    given |= {"--hostname": options.hostname, "--control-url": options.control_url}
    given |= {"--advertise-tags": ",".join(options.tags)}
    words = [word for name, value in given.items() if value for word in (name, value)]
    if options.advertise_routes is not None:
        words += ["--advertise-routes", ",".join(options.advertise_routes)]
    if options.advertise_exit_node is not None:
        words.append("--advertise-exit-node" if options.advertise_exit_node else "--no-advertise-exit-node")
    words += [word for name in options.uplinks or () for word in ("--uplink", name)]
    if options.paths is not None:
        words += ["--paths", options.paths]
    if options.ssh is not None:
        words.append("--ssh" if options.ssh else "--no-ssh")
    return words + [word for app in options.apps for word in ("--app", app)]


def _install_unit(options: argparse.Namespace, screen: Screen) -> int:
    """Write it, and say what is left to do: systemd is the user's to command."""
    is_root = os.geteuid() == 0
    path = unit_path(is_root=is_root)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, unit_text(_given(options), is_root=is_root).encode())
    path.chmod(0o644)  # a unit is read by all, and holds no secret
    flag = "" if is_root else "--user "
    screen.say(("written: ", "green"), str(path))
    screen.say(
        f"to start it now and at every boot:  systemctl {flag}daemon-reload && systemctl {flag}enable --now {NAME}"
    )
    if options.auth_key:
        screen.note(
            "the key is not in the unit: log in once (`pytailscale login`), or name a file as [device] auth_key_file"
        )
    return OK


# The daemon itself


def daemon_for(options: argparse.Namespace) -> Daemon:
    """The daemon that these words mean."""
    where = places_of(options)
    read = partial(read_file, options.config or where.settings, must_exist=options.config is not None)
    settings = read()
    asked = {"control_url": control_url(options)} | device_options(settings.device) | _wishes(options)
    make = partial(
        Device,
        hostname=hostname(options),
        state=state_path(options),
        ephemeral=options.ephemeral,
        login_timeout=math.inf,
        handle_sigterm=False,  # the daemon hears it
        ready_timeout=options.timeout,
    )
    kept = state_path(options)
    store = FileStore(kept) if kept is not None else None
    wished = Wishes(options=asked)
    more: dict[str, Any] = {"apps": options.apps, "runs_ssh": options.ssh, "store": store}
    return Daemon(where, make, run_hosted, wishes=wished, read=read, **more)


async def _be_the_daemon(options: argparse.Namespace, screen: Screen) -> int:
    daemon = daemon_for(options)
    async with trio.open_nursery() as nursery:
        await nursery.start(_hear_signals, daemon)
        nursery.start_soon(_leave_if_hopeless, daemon)
        outcome = await daemon.run()
        nursery.cancel_scope.cancel()
    problem = daemon.keeper.problem
    if problem is not None and is_final(problem):
        raise problem
    if outcome == AGAIN:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - the same words again
    return OK


async def _hear_signals(daemon: Daemon, *, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(*ENDS, *RELOADS) as signals:
        task_status.started()
        async for number in signals:
            if number in RELOADS:
                await _reload(daemon)
                continue
            if daemon.is_ending:
                os._exit(128 + number)  # asked twice: the goodbye is not wanted
            daemon.end()


async def _reload(daemon: Daemon) -> None:
    """SIGHUP: a file that is wrong changes nothing."""
    try:
        await daemon.reload()
    except (TailscaleError, OSError) as error:
        log.warning("the settings stay as they are: %s", error)


async def _leave_if_hopeless(daemon: Daemon) -> None:
    """A first Device that can never be is the end: whoever started us hears why. Later ones wait to be mended."""
    await daemon.keeper.settle()
    if is_final(daemon.keeper.problem):
        daemon.end()
    _let_go_of_stderr()


def _let_go_of_stderr() -> None:
    """Whoever started us in the background reads our first words from a file without a name; it must not grow."""
    status = os.fstat(2)
    if stat.S_ISREG(status.st_mode) and not status.st_nlink:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)


# Starting it, and looking on


def _start(options: argparse.Namespace, screen: Screen, client: Client) -> int:
    """A child that nothing ties to this terminal. Secrets go by its environment, which `ps` does not show."""
    words = ["--timeout", f"{options.timeout:g}", *_given(options), *["--ephemeral"] * options.ephemeral]
    command = [sys.executable, "-m", "tailscale.cli", "up", "--foreground", *words]
    environment = os.environ | {VARIABLES[name]: value for name, value in login_options(options).items()}
    with tempfile.TemporaryFile() as last_words:
        child = subprocess.Popen(  # noqa: S603 - our own interpreter and our own words
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=last_words,
            env=environment,
            start_new_session=True,
            close_fds=True,
        )
        try:
            return _watch(options, screen, client, child)
        except _Ended as ended:
            last_words.seek(0)
            screen.note(last_words.read().decode(errors="replace").strip() or "the daemon has ended")
            return ended.code


class _Ended(Exception):
    """The child is no more."""

    def __init__(self, code: int) -> None:
        self.code = code


def _watch(options: argparse.Namespace, screen: Screen, client: Client, child: subprocess.Popen[bytes] | None) -> int:
    """Tell how the joining goes, until it is done or this person's patience is."""
    began, told, has_asked = time.monotonic(), "", False
    while True:
        if child is not None and (code := child.poll()) is not None:
            raise _Ended(code)
        try:
            found = client.get("status")
        except DaemonAbsent as absent:
            if time.monotonic() - began > options.timeout:
                raise TailscaleError(f"the daemon did not come up: {absent}") from None
            time.sleep(LOOK_AGAIN)
            continue
        daemon, device = found["daemon"], found["device"]
        if daemon["state"] == STOPPED and not has_asked:
            client.post("up", {})  # somebody said `tailscale down` once, and that outlives the daemon
            has_asked = True
            continue
        if daemon["is_ready"]:
            return _say_ready(options, screen, daemon, device)
        if daemon["login_url"] and daemon["login_url"] != told:
            told = daemon["login_url"]
            screen.note(("To let this device into the tailnet, open:", "bold"))
            screen.note("")
            screen.note("    ", (told, "cyan"))
            screen.note("")
        waited = time.monotonic() - began
        patience = LOGIN_PATIENCE if told and sys.stdin.isatty() else options.timeout
        if daemon["problem"] or waited > patience:
            return _say_not_yet(screen, daemon, told)
        screen.show(f"the daemon is {daemon['state']} ... {waited:.1f} s")
        time.sleep(0.05)


def _say_ready(options: argparse.Namespace, screen: Screen, daemon: dict[str, Any], device: dict[str, Any]) -> int:
    remember_hostname(options)
    if options.json:
        screen.json({"daemon": daemon, "device": device})
        return OK
    node = device["self"]
    screen.say(("up as ", "green"), (node["name"], "bold"), f" ({', '.join(node['addresses'])})")
    screen.say((f"process {daemon['pid']}, socket {daemon['socket']}, log {daemon['log']}", "dim"))
    return OK


def _say_not_yet(screen: Screen, daemon: dict[str, Any], login_url: str) -> int:
    screen.hide()
    reason = daemon["problem"] or ("nobody has opened the address yet" if login_url else f"it is {daemon['state']}")
    screen.note(("pytailscale: ", "bold red"), f"the daemon runs, and has not joined: {reason}")
    screen.note(("  try: ", "cyan"), f"it goes on trying; its log is {daemon['log']}, `pytailscale down` ends it")
    return LOGIN if login_url or daemon["problem_kind"] == "AuthKeyRejected" else UNREACHABLE if reason else FAILED


def _await_end(client: Client, since: float) -> None:
    """Until another daemon answers there, or none."""
    deadline = time.monotonic() + END_PATIENCE
    while time.monotonic() < deadline:
        try:
            if client.get("status")["daemon"]["since"] != since:
                return
        except DaemonAbsent:
            if not Path(client.path).exists():
                return
        except DaemonError:
            return
        time.sleep(LOOK_AGAIN)
    raise TailscaleError(f"the daemon at {client.path} did not end within {END_PATIENCE:g} s")
