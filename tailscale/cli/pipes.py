"""Bytes between streams and the input and output of whoever typed the command: this process's, or a light client's.

Standard input and output may be terminals, pipes or files, on every platform: a worker thread reads and writes them,
because only a thread may wait for all three. A read that nobody waits for any more is abandoned, not joined.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tailscale.cli.hosted import hosting, is_input_terminal
from tailscale.daemon import frames

if TYPE_CHECKING:
    from tailscale.daemon.calls import FileThere

CHUNK = 64 << 10


class StandardInput:
    """`receive()` gives b"" at the end."""

    def __init__(self) -> None:
        self._host = hosting()
        self._descriptor = sys.stdin.fileno() if self._host is None else -1
        self.is_terminal = is_input_terminal()

    async def receive(self) -> bytes:
        if self._host is not None:
            return await self._host.call.read()
        return await trio.to_thread.run_sync(os.read, self._descriptor, CHUNK, abandon_on_cancel=True)


class StandardOutput:
    """Unbuffered, in whole pieces, however slow the reader is."""

    def __init__(self) -> None:
        self._host = hosting()
        if self._host is None:
            sys.stdout.flush()
        self._descriptor = sys.stdout.fileno() if self._host is None else -1
        self._turn = trio.Lock()

    async def send(self, data: bytes | bytearray) -> None:
        async with self._turn:
            if self._host is not None:
                self._host.call.write(frames.OUT, bytes(data))
                await self._host.call.drain()
                return
            await trio.to_thread.run_sync(self._write, data, abandon_on_cancel=True)

    def _write(self, data: bytes | bytearray) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]


class OutputFile:
    """Standard output as a file, for what writes in a worker thread of trio's."""

    def __init__(self) -> None:
        self._output = StandardOutput()

    def write(self, data: bytes, /) -> int:
        trio.from_thread.run(self._output.send, data)
        return len(data)


class FileOf:
    """A file at a light client, for what writes in a worker thread of trio's."""

    def __init__(self, file: FileThere) -> None:
        self._file = file

    def write(self, data: bytes, /) -> int:
        trio.from_thread.run(self._file.send, bytes(data))
        return len(data)

    async def send(self, data: bytes) -> None:
        """The same, where no thread writes."""
        await self._file.send(data)


@asynccontextmanager
async def file_to_write(path: Path, mode: int = 0o600) -> AsyncIterator[Path | FileOf]:
    """A file of whoever typed the command: in the daemon the light client writes it, with its own user and disks."""
    host = hosting()
    if host is None:
        yield path
        return
    async with host.call.file(path, mode) as file:
        yield FileOf(file)


async def run_program(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a program where the command was typed, with `environment` added; its exit code as shells say it.

    FileNotFoundError and PermissionError where this process would run it and cannot; a light client says so itself.
    """
    host = hosting()
    if host is not None:
        return await host.call.run_program(list(argv), dict(environment))
    done = await trio.run_process(list(argv), stdin=None, check=False, env={**os.environ, **environment})
    return done.returncode if done.returncode >= 0 else 128 - done.returncode
