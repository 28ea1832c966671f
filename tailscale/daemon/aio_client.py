"""`Client` for asyncio: what a terminal or web interface uses that lives in an asyncio loop."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tailscale.daemon.client import API, CHUNK, connect
from tailscale.daemon.places import places
from tailscale.daemon.requests import DaemonAbsent, Head, Lines, check, request, split_head

LONGEST_LINE = 64 << 20


class AsyncClient:
    """One daemon, by its socket; without a path, that of this user's default device.

    ```python no-run: needs a daemon
    daemon = tailscale.daemon.AsyncClient()
    async for event in daemon.stream("events"):
        print(event["event"], event)
    ```
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = os.fspath(path) if path is not None else places().socket

    async def get(self, what: str) -> Any:
        """Ask for a path below `/pytailscale/v1/`, or a whole one."""
        return await self.ask("GET", what)

    async def post(self, what: str, body: Any = None) -> Any:
        """Have something done."""
        return await self.ask("POST", what, body)

    async def ask(self, method: str, what: str, body: Any = None) -> Any:
        """Any request; None where the answer is empty."""
        async with self._asked(method, what, body) as (reader, head, data):
            text = data + await reader.read(-1)
        check(head, text)
        return json.loads(text) if text else None

    async def stream(self, what: str) -> AsyncIterator[Any]:
        """The lines of a stream, until it ends or the loop over it is left."""
        async with self._asked("GET", what, None) as (reader, head, data):
            if head.status >= 400:
                check(head, data + await reader.read(-1))
            lines = Lines()
            for value in lines.take(data):
                yield value
            while piece := await reader.read(CHUNK):
                for value in lines.take(piece):
                    yield value

    @asynccontextmanager
    async def _asked(
        self, method: str, what: str, body: Any
    ) -> AsyncIterator[tuple[asyncio.StreamReader, Head, bytes]]:
        door, token = connect(self.path)  # to a socket of this machine: nothing to wait for
        reader, writer = await asyncio.open_connection(sock=door, limit=LONGEST_LINE)
        try:
            path = what if what.startswith("/") else f"{API}/{what}"
            writer.write(request(method, path, body, token=token))
            await writer.drain()
            data = b""
            while (found := split_head(data)) is None:
                piece = await reader.read(CHUNK)
                if not piece:
                    raise DaemonAbsent(self.path, "it hung up")
                data += piece
            yield reader, *found
        finally:
            writer.close()
