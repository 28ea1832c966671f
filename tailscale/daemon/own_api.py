"""`/pytailscale/v1/`: what this daemon tells of itself, and does, beside upstream's LocalAPI. HTTP/1.1 and JSON.

Owns the routes; `CONTRACT` below says what each gives, and is printed by `GET /pytailscale/v1/`. Everything here is for
the user whose daemon it is, and root. Names and texts of others come as JSON escapes where they are not printable.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import AsyncIterator
from dataclasses import fields
from datetime import datetime
from typing import Any, Literal, cast

import trio

from tailscale import __version__
from tailscale.daemon.answering import Answer, Question, Routes, json_answer, lines_answer
from tailscale.daemon.keeper import STOPPED, Keeper
from tailscale.daemon.log import LEVELS, DaemonLog
from tailscale.events import Event, EventStream
from tailscale.nodes import Node
from tailscale.status import PathInfo, PingKind

ROOT = "/pytailscale/v1/"
SHORTEST_INTERVAL = 0.1
BACKLOG = 100
LONGEST_LOOK = 60.0  # seconds
CONTRACT = {
    "GET status": "{daemon: {version, pid, since, state, is_ready, problem, login_url, ...}, device: Status or null}",
    "GET status?watch=SECONDS": "the same as JSON lines: one now, then one every so many seconds",
    "GET events": "JSON lines {event, at, ...fields}: classes of tailscale.events; first {event: 'Hello', state}",
    "GET log?level=info&backlog=100": "JSON lines {event: 'Line', at, level, logger, message}; the last ones first",
    "GET statistics?watch=SECONDS": "JSON lines {at, counters, peers: {name: {path, kind, latency, received, sent}}}",
    "GET view?watch=SECONDS": "JSON lines of tailscale.metrics.view; {at, state, problem} while there is no device",
    "GET peers": "[Node, ...]: what `status` has of each peer, without counters",
    "GET ping?host=&kind=disco&size=0": "one PingResult",
    "GET whois?address=": "Identity",
    "GET netcheck": "NetcheckReport",
    "GET explain?host=&port=&protocol=tcp&timeout=10": "Explanation: the way to a port, step by step, and its remedy",
    "GET capture?peer=&count=&bytes=&seconds=&snaplen=": "a pcapng stream of the packets inside the tunnel",
    "GET config": "{file, device, parts}: the settings in force, and what they started",
    "POST run": "Upgrade: pytailscale-run; a command of the command line, see frames.py",
    "POST exit": "{exit_node: name or null}: use that exit node, or none",
    "POST up, down, stop, restart": "{}: want a device; want none; end the daemon; have it begin again",
    "POST reload": "{}: read config.toml again; 400 with all its faults if it is wrong, and nothing has changed then",
}
"""Every stream is bounded: a reader that is too slow gets {event: 'Lagged', missed} in place of what it missed."""


class OwnApi:
    """The handlers."""

    def __init__(self, keeper: Keeper, log: DaemonLog, facts: dict[str, Any]) -> None:
        self._keeper = keeper
        self._log = log
        self._facts = facts
        self._since = time.time()

    def add_to(self, routes: Routes) -> None:
        for name, handler in {
            "": self._contract,
            "status": self._status,
            "events": self._events,
            "log": self._follow_log,
            "statistics": self._statistics,
            "peers": self._peers,
            "ping": self._ping,
            "whois": self._whois,
            "netcheck": self._netcheck,
            "explain": self._explain,
        }.items():
            routes.add("GET", ROOT + name, handler, writers=True)

    async def _contract(self, _: Question) -> Answer:
        return json_answer(CONTRACT)

    # One answer

    def state(self) -> str:
        """Where the daemon stands, in the words of `status().state`, or "stopped", or "failed"."""
        if self._keeper.has_device:
            return self._keeper.device.state
        if not self._keeper.wishes.is_wanted:
            return STOPPED
        return "failed" if self._keeper.problem is not None else "starting"

    def describe(self) -> dict[str, Any]:
        """The daemon, and the device if there is one."""
        keeper = self._keeper
        daemon = {
            "version": __version__,
            "pid": os.getpid(),
            "since": self._since,
            "state": self.state(),
            "is_ready": keeper.is_ready,
            "problem": str(keeper.problem) if keeper.problem is not None else "",
            "problem_kind": type(keeper.problem).__name__ if keeper.problem is not None else "",
            "login_url": keeper.login_url,
            **self._facts,
        }
        status = keeper.status()
        return {"daemon": daemon, "device": status.to_dict() if status is not None else None}

    async def _status(self, question: Question) -> Answer:
        await trio.lowlevel.checkpoint()
        interval = interval_of(question)
        if interval is None:
            return json_answer(self.describe())
        return lines_answer(every(interval, self.describe))

    async def _peers(self, _: Question) -> Answer:
        await trio.lowlevel.checkpoint()
        return json_answer([node.to_dict() for node in self._keeper.device.peers.values()])

    async def _ping(self, question: Question) -> Answer:
        query = question.query
        result = await self._keeper.usable.ping(
            query.get("host", ""), cast("PingKind", query.get("kind", "disco")), int(query.get("size", "0"))
        )
        return json_answer(result.to_dict())

    async def _whois(self, question: Question) -> Answer:
        return json_answer((await self._keeper.device.whois(question.query.get("address", ""))).to_dict())

    async def _explain(self, question: Question) -> Answer:
        query, port = question.query, int(question.query.get("port") or -1)
        if port != -1 and not 0 < port < 65536:
            raise ValueError(f"port={port} is no port")
        patience = float(query.get("timeout", "10"))
        if not 0 < patience <= LONGEST_LOOK:
            raise ValueError(f"timeout={query['timeout']} is no number of seconds up to {LONGEST_LOOK:g}")
        found = await self._keeper.device.explain(
            query.get("host", ""),
            port if port != -1 else None,
            protocol=cast('Literal["tcp", "udp"]', query.get("protocol", "tcp")),
            timeout=patience,
        )
        return json_answer(found.to_dict())

    async def _netcheck(self, _: Question) -> Answer:
        return json_answer((await self._keeper.usable.netcheck()).to_dict())

    # Streams

    async def _events(self, _: Question) -> Answer:
        await trio.lowlevel.checkpoint()
        return lines_answer(self._say_events(self._keeper.events()))

    async def _say_events(self, stream: EventStream) -> AsyncIterator[dict[str, Any]]:
        try:
            yield {"event": "Hello", "at": time.time(), "state": self.state()}
            async for event in stream:
                yield event_fields(event)
        finally:
            self._keeper.forget(stream)

    async def _follow_log(self, question: Question) -> Answer:
        await trio.lowlevel.checkpoint()
        word = question.query.get("level", "info")
        if word not in LEVELS:
            raise ValueError(f"level={word} is none of {', '.join(LEVELS)}")
        return lines_answer(self._say_log(LEVELS[word], int(question.query.get("backlog", BACKLOG))))

    async def _say_log(self, level: int, backlog: int) -> AsyncIterator[dict[str, Any]]:
        with self._log.follow(level, max(0, backlog)) as reader:
            while True:
                yield await reader.next()

    async def _statistics(self, question: Question) -> Answer:
        await trio.lowlevel.checkpoint()
        interval = interval_of(question)
        return json_answer(self._figures()) if interval is None else lines_answer(every(interval, self._figures))

    def _figures(self) -> dict[str, Any]:
        status = self._keeper.status()
        if status is None:
            return {"at": time.time(), "counters": None, "peers": {}}
        peers = {
            peer.node.name: {
                "path": str(peer.path),
                "kind": peer.path.kind,
                "latency": peer.latency,
                "received": peer.bytes_received,
                "sent": peer.bytes_sent,
            }
            for peer in status.peers
        }
        return {"at": time.time(), "counters": status.counters.to_dict(), "peers": peers}


def interval_of(question: Question) -> float | None:
    """Seconds between the lines of a stream; None where one answer is wanted."""
    text = question.query.get("watch")
    if text is None:
        return None
    interval = float(text or 1)
    if not SHORTEST_INTERVAL <= interval < math.inf:
        raise ValueError(f"watch={text} is not a number of seconds from {SHORTEST_INTERVAL} on")
    return interval


async def every(interval: float, ask: Any) -> AsyncIterator[Any]:
    """A reader that is slow gets fewer lines, each as it is then: nothing waits for it."""
    while True:
        yield ask()
        await trio.sleep(interval)


def event_fields(event: Event) -> dict[str, Any]:
    """An event as JSON: its class by name, the moment, and its fields."""
    values = {each.name: _plain(getattr(event, each.name)) for each in fields(event)}
    return {"event": type(event).__name__, "at": time.time()} | values


def _plain(value: Any) -> Any:
    if isinstance(value, Node):
        return value.to_dict()
    if isinstance(value, PathInfo):
        return str(value)
    return value.isoformat() if isinstance(value, datetime) else value
