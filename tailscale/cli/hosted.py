"""A command that runs inside the daemon, for a light client somewhere else.

Owns what has to differ: whose terminal the words go to, whose standard input is read, from which folder paths count,
and that the Device is the daemon's. Everything else of a command is the same code. `hosting()` is None in an ordinary
process.
"""

from __future__ import annotations

import argparse
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from tailscale.cli.screen import Screen
from tailscale.daemon import frames
from tailscale.daemon.calls import ReaderStopped
from tailscale.daemon.keeper import LOGIN
from tailscale.daemon.places import places
from tailscale.errors import ControlUnreachable, LoginRequired, TailscaleError
from tailscale.foreign_text import for_log

if TYPE_CHECKING:
    from tailscale.daemon.calls import Call
    from tailscale.daemon.daemon import Daemon
    from tailscale.device import Device

LOGIN_PATIENCE = 300.0


@dataclass(frozen=True, slots=True)
class Hosting:
    """One command's surroundings in the daemon."""

    call: Call
    served_by: Daemon


_HOSTING: ContextVar[Hosting | None] = ContextVar("hosting", default=None)


def hosting() -> Hosting | None:
    """The surroundings of this task's command; None where the process is the command."""
    return _HOSTING.get()


class RemoteText(io.StringIO):
    """Where a hosted command's words go."""

    def __init__(self, call: Call, kind: bytes) -> None:
        super().__init__()
        self._call, self._kind = call, kind
        self._terminal = call.out if kind == frames.OUT else call.err
        self.wants_style = self._terminal.wants_style
        self.columns = call.columns

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._terminal.encoding

    def isatty(self) -> bool:
        return self.wants_style

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        try:
            data = text.encode(self.encoding, errors="replace")
        except LookupError:  # the name of an encoding that this machine does not have
            data = text.encode()
        self._call.write(self._kind, data)
        return len(text)


async def run_hosted(daemon: Daemon, call: Call) -> int | None:
    """Run what a light client typed; None where it is to run it itself."""
    from tailscale.cli.run import find_command, report

    out, err = RemoteText(call, frames.OUT), RemoteText(call, frames.ERR)
    try:
        options = _parse(call, out, err)
    except SystemExit as leaving:
        await trio.lowlevel.checkpoint()
        return leaving.code if isinstance(leaving.code, int) else 1
    if not _is_for(daemon, options, call):
        await trio.lowlevel.checkpoint()
        return None
    _make_paths_absolute(options, call.cwd)
    vars(options)["state"] = daemon.places.state  # however the client came to mean it
    screen = Screen(plain=options.plain, out=out, err=err)
    token = _HOSTING.set(Hosting(call, daemon))
    try:
        with _log_to(screen, options.verbose):
            code: int = await find_command(options.command)(options, screen)
            return code
    except ReaderStopped:
        return 1
    except Exception as error:
        return report(error, options, screen)
    finally:
        screen.hide()
        _HOSTING.reset(token)


def _parse(call: Call, out: RemoteText, err: RemoteText) -> argparse.Namespace:
    from tailscale.cli.arguments import parse

    with redirect_stdout(out), redirect_stderr(err):
        return parse(call.argv)


def _is_for(daemon: Daemon, options: argparse.Namespace, call: Call) -> bool:
    """Not where the words mean another device than the daemon's, however they were abbreviated; nor a whole screen."""
    if options.ephemeral or (options.command == "top" and call.out.wants_style and not options.plain):
        return False
    return options.state is None or places(Path(call.cwd, options.state)).state == daemon.places.state


def _make_paths_absolute(options: argparse.Namespace, cwd: str) -> None:
    """Files are those of whoever typed: arguments of `type=Path` count from the client's folder."""
    for name, value in vars(options).items():
        if isinstance(value, Path):
            setattr(options, name, Path(cwd, value))
        elif isinstance(value, list):
            setattr(options, name, [Path(cwd, each) if isinstance(each, Path) else each for each in value])


def login_options(options: argparse.Namespace) -> dict[str, Any]:
    """By what a Device shall log in, as far as this command line says it."""
    asked = {name: getattr(options, name) for name in LOGIN}
    return {name: value for name, value in asked.items() if value}


async def borrow(host: Hosting, options: argparse.Namespace, screen: Screen) -> Device:
    """The daemon's Device for a command, once it is usable, with what the options ask of it."""
    keeper = host.served_by.keeper
    if not keeper.is_ready:
        asked = login_options(options)
        if asked or options.command == "login":
            await keeper.start(**asked)
        await _until_usable(host, options, screen)
    device = keeper.usable
    if options.control_url and options.control_url.rstrip("/") != device.status().control_url:
        raise ValueError(
            f"the daemon's device belongs to {device.status().control_url}: give this command a device "
            "of its own (--state), or move the daemon (pytailscale down, then up --control-url)"
        )
    if options.uplinks:
        await device.set(uplinks=options.uplinks)
    if options.paths is not None:
        await device.set(paths=options.paths)
    if options.hostname and options.hostname != device.preferences.hostname:
        await host.served_by.prefs.apply({"Hostname": options.hostname, "HostnameSet": True})
    return device


async def _until_usable(host: Hosting, options: argparse.Namespace, screen: Screen) -> None:
    keeper = host.served_by.keeper
    if not keeper.wishes.is_wanted:
        return  # `usable` says so
    patient = options.command == "login" or host.call.is_input_terminal
    with trio.move_on_after(options.timeout):
        await keeper.until(lambda: keeper.is_ready or keeper.login_url or keeper.problem)
    if keeper.login_url and patient:
        screen.note(("To let this device into the tailnet, open:", "bold"))
        screen.note("")
        screen.note("    ", (keeper.login_url, "cyan"))
        screen.note("")
        with trio.move_on_after(LOGIN_PATIENCE):
            await keeper.until(lambda: keeper.is_ready or keeper.problem)
    if keeper.is_ready:
        return
    if keeper.login_url:
        raise LoginRequired(keeper.login_url)
    if isinstance(keeper.problem, TailscaleError):
        raise keeper.problem
    raise ControlUnreachable(f"the daemon has not joined within {options.timeout:g} s: it goes on trying")


@contextmanager
def _log_to(screen: Screen, verbose: int) -> Iterator[None]:
    """With -v the daemon's log while the command runs, on the client's stderr."""
    if not verbose:
        yield
        return
    logger = logging.getLogger("tailscale")
    handler = _Lines(screen, logging.DEBUG if verbose > 1 else logging.INFO)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(before or logging.WARNING, handler.level))
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _Lines(logging.Handler):
    def __init__(self, screen: Screen, level: int) -> None:
        super().__init__(level)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._screen.note((f"{record.levelname.lower()}: ", "dim"), for_log(record.getMessage()))
        except ReaderStopped:
            return


def is_input_terminal() -> bool:
    """Whether somebody sits at the standard input of whoever typed the command."""
    import sys

    host = hosting()
    if host is not None:
        return host.call.is_input_terminal
    stdin: Any = sys.stdin
    return stdin is not None and bool(stdin.isatty())
