"""Joining the tailnet for one command: from options to a Device, with something to look at while it takes.

Owns where the state is kept and what a login asks of the person. The phases come from the device's events, which may
be read before it is entered.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tailscale._config import DEFAULT_CONTROL_URL, default_hostname
from tailscale._private_files import replace_file
from tailscale.cli.arguments import default_state
from tailscale.cli.hosted import borrow, hosting, is_input_terminal
from tailscale.cli.screen import Screen, in_time
from tailscale.device import Device
from tailscale.events import Event, NetworkChecked, PeerUp, RelayChanged, StateChanged
from tailscale.faults import WAITS_FOR_LOGIN
from tailscale.state_file import FileStore

if TYPE_CHECKING:
    from tailscale.mesh.mesh import Mesh

log = logging.getLogger("tailscale")
LOGIN_PATIENCE = 300.0
REDRAW = 0.25


def state_path(options: argparse.Namespace) -> Path | None:
    """Where the device is kept; None for one that is forgotten."""
    if options.state is not None:
        return Path(options.state)
    return None if options.ephemeral else default_state()


def control_url(options: argparse.Namespace) -> str:
    """Asked for now, else by the environment, else the one this device belongs to, else Tailscale's."""
    if options.control_url or os.environ.get("TS_CONTROL_URL"):
        return str(options.control_url or os.environ["TS_CONTROL_URL"])
    where = state_path(options)
    saved = FileStore(where).load() if where is not None else None
    return saved.control_url if saved is not None and saved.control_url else DEFAULT_CONTROL_URL


def hostname(options: argparse.Namespace) -> str | None:
    """Asked for now, else by the environment, else the last time; None for the machine's own name."""
    if options.hostname or os.environ.get("TS_HOSTNAME"):
        return str(options.hostname or default_hostname())
    note = _hostname_note(options)
    try:
        return note.read_text().strip() or None if note is not None else None
    except (OSError, UnicodeDecodeError):
        return None


def remember_hostname(options: argparse.Namespace) -> None:
    """Or the next command, which names none, would rename the device."""
    note = _hostname_note(options)
    if note is not None and options.hostname:
        try:
            replace_file(note, f"{options.hostname}\n".encode())
        except OSError as error:
            log.warning("the name is not remembered: %s: %s", note, error.strerror or error)


def _hostname_note(options: argparse.Namespace) -> Path | None:
    where = state_path(options)
    return FileStore(where).path.with_suffix(".hostname") if where is not None else None


@asynccontextmanager
async def joined(options: argparse.Namespace, screen: Screen) -> AsyncIterator[Device]:
    """A device, usable inside: the daemon's where the command runs in one, else one of the command's own.

    The latter leaves the tailnet properly however the block ends.
    """
    if (host := hosting()) is not None:
        yield await borrow(host, options, screen)
        return
    patient = options.command == "login" or is_input_terminal()
    screen.has_said.add(f"{WAITS_FOR_LOGIN} (open")  # the page itself is shown, or is in the error
    name = hostname(options)
    device = Device(
        name,
        auth_key=options.auth_key,
        client_id=options.client_id,
        id_token=options.id_token,
        audience=options.audience,
        tags=options.tags,
        control_url=control_url(options),
        state=state_path(options),
        ephemeral=options.ephemeral,
        uplinks=options.uplinks,
        paths=options.paths,
        on_login_url=lambda url: _ask_to_open(url, screen, patient),
        login_timeout=LOGIN_PATIENCE if patient else options.timeout,
        ready_timeout=options.timeout,
    )
    progress = Progress(name or default_hostname(), screen, device)
    async with trio.open_nursery() as nursery:
        following = await nursery.start(progress.follow)
        async with device:
            following.cancel()
            screen.hide()
            remember_hostname(options)
            if options.verbose:
                screen.note((progress.line(), "dim"))
            yield device
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def meshed(options: argparse.Namespace, screen: Screen, app: str) -> AsyncIterator[Mesh]:
    """The mesh of an app, over `joined`: in the daemon the one that all its commands share."""
    async with joined(options, screen) as device:
        host = hosting()
        if host is not None:
            async with host.served_by.meshes.of(app) as mesh:
                yield mesh
        else:
            where = state_path(options)
            state = FileStore(where).path.with_suffix(".mesh") if where is not None else None
            from tailscale.mesh.mesh import Mesh  # few commands want one

            async with Mesh(device, app, state=state) as mesh:
                yield mesh


def _ask_to_open(url: str, screen: Screen, patient: bool) -> None:
    """Where nobody can be asked to wait, the error names the address, and once is enough."""
    screen.has_said.add(url)
    if patient:
        screen.note(("To let this device into the tailnet, open:", "bold"))
        screen.note("")
        screen.note("    ", (url, "cyan"))
        screen.note("")


class Progress:
    """One live line: which phase was reached when."""

    def __init__(self, name: str, screen: Screen, device: Device) -> None:
        self._name, self._screen, self._device = name, screen, device
        self._events = device.events()
        self._began = trio.current_time()
        self._phases: dict[str, float] = {}

    def line(self) -> str:
        reached = ", ".join(f"{phase} {at * 1000:.0f} ms" for phase, at in self._phases.items())
        return f"joining as {self._name}: {reached or 'starting'}"

    async def follow(self, *, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.CancelScope() as scope:
            task_status.started(scope)
            while True:
                event = None
                with trio.move_on_after(REDRAW):
                    event = await anext(self._events, None)
                if scope.cancel_called:
                    return  # the line belongs to the command by now
                self._note(event)
                waited = in_time(trio.current_time() - self._began)
                self._screen.show(f"{self.line()} ... {waited}")

    def _note(self, event: Event | None) -> None:
        match event:
            case StateChanged(state=state):
                phase = state.replace("_", " ")
            case PeerUp():
                phase = f"{len(self._device.peers)} peers"
            case RelayChanged(connected=True):
                phase = "relay connected"
            case NetworkChecked(udp=True):
                phase = "UDP works"
            case _:
                return
        self._phases.setdefault(phase, trio.current_time() - self._began)
