"""Where the terminal interface hears from: a daemon's streams, taken up again when they break.

Owns the patience between attempts and how news read in the log. A daemon may end, and another begin in its place.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Protocol

from tailscale.daemon import AsyncClient
from tailscale.errors import TailscaleError
from tailscale.tui.drawing import Row

RETRY = 2.0
EVERY = 1.0  # seconds between looks
LEVEL_STYLES = {"warning": "yellow", "error": "red", "critical": "bold red", "debug": "dim", "info": ""}


class Source(Protocol):
    """What the app asks. Iterators end never; a loss of the daemon is said, and waited out."""

    def looks(self) -> AsyncIterator[dict[str, Any] | str]:
        """Looks at the device; a sentence in place of one says why there is none."""

    def news(self) -> AsyncIterator[Row]:
        """Lines for the log."""

    async def pin(self, exit_node: str) -> str:
        """Use this exit node, none for "". Returns what to say of it."""


class DaemonSource:
    """A daemon, by its socket."""

    def __init__(self, path: str | None = None) -> None:
        self._client = AsyncClient(path)

    async def looks(self) -> AsyncIterator[dict[str, Any] | str]:
        async for look in self._stream(f"view?watch={EVERY:g}"):
            yield look if isinstance(look, str) else str(look["problem"]) if "problem" in look else look

    async def news(self) -> AsyncIterator[Row]:
        """Events and lines of the log as they happen; between two daemons there are none."""
        queue: asyncio.Queue[Row] = asyncio.Queue(maxsize=256)
        readers = [asyncio.create_task(self._read(stream, queue)) for stream in ("events", "log?level=info&backlog=50")]
        try:
            while True:
                yield await queue.get()
        finally:
            for reader in readers:
                reader.cancel()

    async def _read(self, what: str, queue: asyncio.Queue[Row]) -> None:
        async for line in self._stream(what):
            if isinstance(line, dict):
                await queue.put(log_row(line))

    async def _stream(self, what: str) -> AsyncIterator[Any]:
        while True:
            try:
                async for value in self._client.stream(what):
                    yield value
                yield "the daemon has hung up"
            except (OSError, TailscaleError, ValueError) as error:
                yield str(error)
            await asyncio.sleep(RETRY)

    async def pin(self, exit_node: str) -> str:
        try:
            await self._client.post("exit", {"exit_node": exit_node or None})
        except (OSError, TailscaleError) as error:
            return str(error)
        return f"exit node: {exit_node}" if exit_node else "no exit node"


def log_row(line: dict[str, Any]) -> Row:
    """A line of either stream, as it stands in the log."""
    at = datetime.fromtimestamp(line["at"]).strftime("%H:%M:%S") if "at" in line else ""
    kind = str(line.get("event", ""))
    if kind == "Line":
        return Row(None, ((at, "dim"), (line["message"].partition("\n")[0], LEVEL_STYLES.get(line["level"], ""))))
    return Row(None, ((at, "dim"), (f"{kind} {sentence(line)}".strip(), "cyan")))


def sentence(line: dict[str, Any]) -> str:
    """The fields of an event in one line; a node is its name."""
    words = []
    for name, value in line.items():
        if name in ("event", "at", "before") or value in ("", None):
            continue
        if isinstance(value, dict):
            words.append(str(value.get("hostname") or json.dumps(value)))
        elif name == "latency":
            words.append(f"{value * 1000:.1f} ms")
        elif isinstance(value, bool):
            words.append(name if value else f"not {name}")
        else:
            words.append(str(value))
    return " ".join(words)
