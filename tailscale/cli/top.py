"""`top`: the terminal interface where there is a terminal and textual for it, else one plain table.

The interface is a client of the daemon. Where none runs, one runs in a thread for as long as the interface does, and
other commands use it meanwhile.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from tailscale.cli.exit_codes import OK
from tailscale.cli.peers_table import show_peers
from tailscale.cli.screen import Cell, Screen, wants_style
from tailscale.cli.session import joined
from tailscale.cli.up import daemon_for, places_of
from tailscale.daemon.client import Client
from tailscale.daemon.daemon import Daemon
from tailscale.daemon.requests import DaemonAbsent
from tailscale.figures import in_bytes
from tailscale.metrics import view
from tailscale.status import Flow
from ts_base.optional import optional

FLOWS_SHOWN = 20
MISSING = "the interface needs textual: pip install 'pytailscale[tui]'"


def interface(options: argparse.Namespace, screen: Screen) -> int | None:
    """The whole screen, until the user leaves it; None where a table will do."""
    if options.plain or options.json or not wants_style(screen.out):
        return None
    if optional("textual.app", "App") is None:
        screen.note((MISSING, "dim"))
        return None
    from tailscale.tui.app import run
    from tailscale.tui.source import DaemonSource

    where = places_of(options)
    try:
        Client(where.socket).get("status")
    except DaemonAbsent:
        with _daemon_meanwhile(daemon_for(options)):
            run(DaemonSource(where.socket))
    else:
        run(DaemonSource(where.socket))
    return OK


@contextmanager
def _daemon_meanwhile(daemon: Daemon) -> Iterator[None]:
    """A daemon in a thread. What keeps it from starting is raised here."""
    started: threading.Event = threading.Event()
    failed: list[BaseException] = []
    token: list[trio.lowlevel.TrioToken] = []

    async def live() -> None:
        token.append(trio.lowlevel.current_trio_token())
        async with trio.open_nursery() as nursery:
            await nursery.start(daemon.run)
            started.set()

    def work() -> None:
        try:
            trio.run(live)
        except BaseException as error:  # whatever it is, the interface must not wait for it
            failed.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=work, name="daemon")
    thread.start()
    try:
        started.wait()
        if failed:
            raise failed[0]
        yield
    finally:
        if thread.is_alive() and token:
            token[0].run_sync_soon(daemon.end)
        thread.join()


async def top(options: argparse.Namespace, screen: Screen) -> int:
    """Once, as tables."""
    async with joined(options, screen) as device:
        if options.json:
            screen.json(view(device))
            return OK
        status, flows = device.status(), device.flows(FLOWS_SHOWN)
        for warning in status.health:
            screen.say(("! ", "yellow"), warning.sentence)
        spoken = [peer for peer in status.peers if peer.handshake_age is not None]
        show_peers(screen, spoken or status.peers)
        if flows:
            screen.say()
            screen.table(("PEER", "PORT", "WAY", "received", "sent"), [_flow_row(flow) for flow in flows])
    return OK


def _flow_row(flow: Flow) -> tuple[Cell, ...]:
    return (
        (flow.peer or (flow.remote[0] if flow.remote else "anybody"), "bold"),
        f"{flow.protocol} {flow.port}",
        "to us" if flow.is_inbound else "from us",
        in_bytes(flow.bytes_received) if flow.bytes_received is not None else "-",
        in_bytes(flow.bytes_sent) if flow.bytes_sent is not None else "-",
    )
