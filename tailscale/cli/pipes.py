"""Bytes between streams and the process's own input and output.

Standard input and output may be terminals, pipes or files, on every platform: a worker thread reads and writes them,
because only a thread may wait for all three. A read that nobody waits for any more is abandoned, not joined.
"""

from __future__ import annotations

import os
import sys

import trio

CHUNK = 64 << 10


class StandardInput:
    """`receive()` gives b"" at the end."""

    def __init__(self) -> None:
        self._descriptor = sys.stdin.fileno()
        self.is_terminal = os.isatty(self._descriptor)

    async def receive(self) -> bytes:
        return await trio.to_thread.run_sync(os.read, self._descriptor, CHUNK, abandon_on_cancel=True)


class StandardOutput:
    """Unbuffered, in whole pieces, however slow the reader is."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self._descriptor = sys.stdout.fileno()
        self._turn = trio.Lock()

    async def send(self, data: bytes | bytearray) -> None:
        async with self._turn:
            await trio.to_thread.run_sync(self._write, data, abandon_on_cancel=True)

    def _write(self, data: bytes | bytearray) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
