"""`config check`: whether a config.toml can be used, told by line before a daemon needs it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import trio

from tailscale.cli.exit_codes import FAILED, OK
from tailscale.cli.screen import Screen
from tailscale.daemon.places import places
from tailscale.daemon.settings import LONGEST_SETTINGS, BadSettings, Fault, Settings, read_settings


async def config(options: argparse.Namespace, screen: Screen) -> int:
    await trio.lowlevel.checkpoint()
    path = os.fspath(options.file or places(options.state).settings)
    try:
        settings = read_file(path, must_exist=True)
    except BadSettings as error:
        if options.json:
            screen.json({"file": path, "valid": False, "faults": [fault.to_dict() for fault in error.faults]})
        else:
            for fault in error.faults:
                screen.say((f"{path}:{fault.line}: ", "bold"), fault.sentence)
        return FAILED
    if options.json:
        screen.json({"file": path, "valid": True, "faults": []})
    else:
        screen.say((f"{path}: ", "bold"), f"right, with {len(settings.parts)} part{'s' * (len(settings.parts) != 1)}")
    return OK


def read_file(path: str | os.PathLike[str], *, must_exist: bool) -> Settings:
    """The settings in a file; none where there is none. Raises BadSettings, OSError."""
    name = os.fspath(path)
    try:
        with Path(name).expanduser().open("rb") as file:
            data = file.read(LONGEST_SETTINGS + 1)
    except FileNotFoundError:
        if must_exist:
            raise
        return Settings(name)
    if len(data) > LONGEST_SETTINGS:
        raise BadSettings(name, [Fault(1, f"more than {LONGEST_SETTINGS} bytes")])
    try:
        return read_settings(data.decode(), name)
    except UnicodeDecodeError as problem:
        line = data[: problem.start].count(b"\n") + 1
        raise BadSettings(name, [Fault(line, "this is not UTF-8")]) from None
