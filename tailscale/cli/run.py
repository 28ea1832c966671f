"""From parsed options to an exit code: starts trio, hears signals, turns errors into one sentence.

Ctrl-C cancels the command, so that the device says goodbye; a second one does not wait for that.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import trio

from tailscale._causes import sole_cause
from tailscale.cli.exit_codes import FAILED, INTERRUPTED
from tailscale.cli.failures import explain
from tailscale.cli.screen import Screen
from tailscale.faults import in_option_words

Command = Callable[[argparse.Namespace, Screen], Awaitable[int]]
HOMES = {
    "demo": "demo",
    "status": "queries",
    "ping": "pinging",
    "whois": "queries",
    "ip": "queries",
    "exits": "exits",
    "bench": "bench",
    "uplinks": "uplinks",
    "paths": "uplinks",
    "lock": "lock",
    "netcheck": "queries",
    "dns": "dns",
    "version": "queries",
    "nc": "streams",
    "listen": "streams",
    "cp": "copying",
    "ssh": "ssh",
    "sshd": "ssh",
    "proxy": "proxying",
    "exec": "proxying",
    "doctor": "doctor",
    "why": "why",
    "capture": "capture",
    "cert": "cert",
    "metrics": "metrics",
    "login": "account",
    "logout": "account",
    **dict.fromkeys(("ls", "send", "recv", "wait", "watch", "tcp"), "mesh"),
    "file": "file",
    "serve": "serve",
    "funnel": "serve",
    "ingress": "ingress",
    "top": "top",
    "web": "web",
    "up": "up",
    "down": "up",
    "config": "config",
    "tun": "tun",
    "completion": "completion",
    "schema": "schema",
}
HEARS_SIGNALS_ITSELF = {"up"}
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def run(options: argparse.Namespace) -> int:
    """Run the command that was asked for."""
    screen = Screen(plain=options.plain)
    if options.command == "top" and (watched := _watch(options, screen)) is not None:
        return watched
    command = find_command(options.command)
    with logging_to(screen, options.verbose):
        try:
            if options.command in HEARS_SIGNALS_ITSELF:
                return trio.run(command, options, screen)
            return trio.run(_until_signal, command, options, screen)
        except BaseException as error:
            cause = sole_cause(error)
            if isinstance(cause, BrokenPipeError):
                return _reader_has_gone()
            if isinstance(cause, KeyboardInterrupt):  # before the command began to hear signals, or after it ended
                return INTERRUPTED
            return report(error, options, screen)
        finally:
            screen.hide()


def _watch(options: argparse.Namespace, screen: Screen) -> int | None:
    """The terminal interface, which brings a loop of its own; None where it is not for this terminal."""
    interface: Callable[..., int | None] = importlib.import_module("tailscale.cli.top").interface
    try:
        return interface(options, screen)
    except Exception as error:
        return report(error, options, screen)


def find_command(name: str) -> Command:
    """The function that a command is."""
    command: Command = getattr(importlib.import_module(f"tailscale.cli.{HOMES[name]}"), name)
    return command


async def _until_signal(command: Command, options: argparse.Namespace, screen: Screen) -> int:
    code: int | None = None
    caught: list[int] = []
    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        await nursery.start(_watch_signals, caught, scope)
        with scope:
            code = await command(options, screen)
        nursery.cancel_scope.cancel()
    if code is None:  # it was cut off
        screen.hide()
        return 128 + caught[0]
    return code


async def _watch_signals(
    caught: list[int], scope: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(*SIGNALS) as signals:
        task_status.started()
        async for number in signals:
            if caught:
                os._exit(128 + number)  # asked twice: the goodbye is not wanted
            caught.append(number)
            scope.cancel()


def report(error: BaseException, options: argparse.Namespace, screen: Screen) -> int:
    """One sentence and what helps; the traceback only for those who asked."""
    if options.verbose:
        screen.hide()
        traceback.print_exception(error, file=screen.err)
    failure = explain(error)
    if options.json:
        screen.json(failure.to_dict())
    screen.note_at(("pytailscale: ", "bold red"), failure.sentence)
    if failure.remedy:
        screen.note_at(("  try: ", "cyan"), failure.remedy)
    return failure.code


def _reader_has_gone() -> int:
    """`pytailscale status | head -1`: not an error worth a word, and nothing may be flushed at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED


@contextmanager
def logging_to(screen: Screen, verbose: int) -> Iterator[None]:
    """Warnings always, more with -v; gone with the command."""
    log = logging.getLogger("tailscale")
    handler = _NoteHandler(screen)
    handler.setFormatter(logging.Formatter("%(message)s"))
    before = log.level, log.propagate
    log.addHandler(handler)
    handler.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])
    log.setLevel(handler.level)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.level, log.propagate = before


class _NoteHandler(logging.Handler):
    """Log lines between results, without tearing the live line."""

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        if any(known in record.getMessage() for known in self._screen.has_said):
            return
        self._screen.note((f"{record.levelname.lower()}: ", "yellow"), in_option_words(self.format(record)))
