"""Our daemon as a process, and stock `tailscale` 1.102.3, unmodified, pointed at its socket."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from tailscale.daemon.places import places
from tests.interop import build
from tests.interop.processes import Process, finished, poll_until
from tests.interop.rig import Rig

ROOT = Path(__file__).parents[2]


class Control(Protocol):
    """A control server that lets nodes in by keys."""

    @property
    def url(self) -> str: ...

    async def auth_key(self) -> str: ...


@dataclass
class Stock:
    """The stock command line, pointed at our daemon."""

    socket: str
    state: str

    async def run(self, *words: str, stdin: bytes = b"") -> tuple[int, str]:
        """Exit code, and both outputs."""
        command = [str(build.binary("tailscale")), f"--socket={self.socket}", *words]
        done = await finished(command, stdin)
        told = (done.stdout + done.stderr).decode()
        print(f"$ tailscale {' '.join(words)}\n{told}[{done.returncode}]")
        return done.returncode, told

    async def __call__(self, *words: str, stdin: bytes = b"") -> str:
        code, told = await self.run(*words, stdin=stdin)
        assert code == 0, f"tailscale {' '.join(words)}: {told}"
        return told


@asynccontextmanager
async def daemon(r: Rig, control: Control, name: str, env: Mapping[str, str] | None = None) -> AsyncIterator[Stock]:
    """`pytailscale up --foreground`, joined."""
    with tempfile.TemporaryDirectory(prefix="pyts-d-") as folder:
        words = ["up", "--foreground", "--state", folder, "--hostname", name, "--control-url", control.url]
        environment = os.environ | {"TS_AUTHKEY": await control.auth_key(), "PYTHONPATH": str(ROOT), **(env or {})}
        process = Process(name, [sys.executable, "-m", "tailscale.cli", *words], r.room(name), env=environment)
        stock = Stock(places(folder).socket, folder)
        try:
            await poll_until("our daemon's socket", lambda: _exists(stock.socket), 30)
            await stock("wait")
            yield stock
        finally:
            await process.stop()


async def _exists(path: str) -> bool | None:
    return (await trio.Path(path).exists()) or None
