"""The line protocol of `tsnetpeer`, spoken by a program of ours: commands in, events and answers out, one JSON a line.

Owns standard input and output. What a command does is its caller's business.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import trio

import tailscale

Json = dict[str, Any]
PATIENCE = 30.0  # seconds a command may take that names no timeout
FAILURES = (tailscale.TailscaleError, OSError, trio.TooSlowError, trio.BrokenResourceError, ValueError)


def arguments(description: str | None = None) -> argparse.ArgumentParser:
    """What the rig gives every peer; not all of it means something to us."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-control", required=True)
    parser.add_argument("-authkey", default="")
    parser.add_argument("-hostname", default="ours")
    parser.add_argument("-dir")
    parser.add_argument("-port", type=int, default=0)
    parser.add_argument("-timeout", type=lambda text: float(text.rstrip("s")), default=60.0)
    parser.add_argument("-ephemeral", action="store_true", default=None)
    parser.add_argument("-tags", default="")
    parser.add_argument("-verbose", action="store_true")
    return parser


def say(said: Json) -> None:
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


def say_up(device: tailscale.Device, elapsed: float) -> None:
    addresses = {"ip4": device.ipv4 or "", "ip6": device.ipv6 or "", "hostname": device.hostname}
    say({"event": "up", **addresses, "elapsed_ms": elapsed * 1000})


async def obey(answer: Callable[[Json], Awaitable[Json]]) -> None:
    """Answer commands side by side, as they come, until "quit" or the end of input."""
    waiting = b""
    async with trio.open_nursery() as nursery, trio.lowlevel.FdStream(os.dup(0)) as stdin:
        async for chunk in stdin:
            *lines, waiting = (waiting + chunk).split(b"\n")
            for line in lines:
                command = json.loads(line)
                if command["cmd"] == "quit":
                    nursery.cancel_scope.cancel()
                    return
                nursery.start_soon(_obey_one, answer, command)
        nursery.cancel_scope.cancel()


async def _obey_one(answer: Callable[[Json], Awaitable[Json]], command: Json) -> None:
    said: Json = {"id": command["id"]}
    began = trio.current_time()
    try:
        with trio.fail_after(command.get("timeout") or PATIENCE):
            said |= await answer(command)
        said["ok"] = True
    except FAILURES as error:
        said |= {"ok": False, "error": f"{type(error).__name__}: {error}"}
    except BaseExceptionGroup as group:
        said |= {"ok": False, "error": repr(group.exceptions)}
    said["elapsed_ms"] = (trio.current_time() - began) * 1000
    say(said)
