"""A peer that speaks the line protocol of `peers/tailscale/tsnetpeer`: commands in, events and answers out.

tsnet speaks it, and our own programs do (`line_protocol.py`); nothing here knows which of them it is.
"""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any, cast

import trio

from tests.interop.processes import Json, Process, RigError, poll_until


class TsnetPeer:
    """A tsnet node. It serves echo :7, hash :9, reset :11, generator :19, HTTP :80 and UDP echo :7."""

    def __init__(self, name: str, process: Process) -> None:
        self.name, self.process = name, process
        self.ip4 = self.ip6 = ""
        self.join_ms = 0.0
        self.events: list[Json] = []
        self._replies: dict[int, Json] = {}
        self._changed = trio.Event()
        self._next_id = 0
        self._turn = trio.Lock()

    async def listen(self) -> None:
        """Files what the peer says, until it ends."""
        assert self.process.stdout is not None
        buffer = b""
        with contextlib.suppress(trio.ClosedResourceError):
            async for chunk in self.process.stdout:
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    said = json.loads(line)
                    if "id" in said:
                        self._replies[said["id"]] = said
                    else:
                        self.events.append(said)
                self._changed.set()
                self._changed = trio.Event()
        with contextlib.suppress(Exception):
            await self.process.wait()
        self._changed.set()

    async def event(self, name: str, timeout: float = 60) -> Json:
        """The first event of this name, past or to come."""
        with trio.move_on_after(timeout):
            while True:
                for said in self.events:
                    if said["event"] == name:
                        return said
                    if said["event"] == "failed":
                        raise RigError(f"{self.name}: {said['error']}\n{self.process.tail()}")
                self.process.check()
                await self._changed.wait()
        raise RigError(f"{self.name} said no {name!r} in {timeout:g} s; it said {self.events}\n{self.process.tail()}")

    async def ask(self, cmd: str, *, check: bool = True, **arguments: Any) -> Json:
        """Sends one command and returns its reply; see peers/tailscale/tsnetpeer/commands.go."""
        assert self.process.stdin is not None
        self._next_id += 1
        number = self._next_id
        if isinstance(arguments.get("data"), bytes):
            arguments["data"] = base64.b64encode(arguments["data"]).decode()
        line = json.dumps({"id": number, "cmd": cmd, **arguments}).encode() + b"\n"
        async with self._turn:
            await self.process.stdin.send_all(line)
        while number not in self._replies:
            self.process.check()
            await self._changed.wait()
        reply = self._replies.pop(number)
        if "head" in reply:
            reply["head"] = base64.b64decode(reply["head"] or "")
        if check and not reply["ok"]:
            raise RigError(f"{self.name} {cmd} {arguments}: {reply['error']}")
        return reply

    async def dial(self, host: str, port: int, **arguments: Any) -> Json:
        """TCP: sends `bytes` of the pattern (or `data`), ends as `end` says, reads `read` bytes (-1: to EOF)."""
        return await self.ask("dial", host=host, port=port, **arguments)

    async def ping(self, host: str, kind: str = "disco", **arguments: Any) -> Json:
        """The last answer of one or more pings."""
        return cast(Json, (await self.ask("ping", host=host, kind=kind, **arguments))["pings"][-1])

    async def bench(self, host: str, kind: str, seconds: float = 5) -> Json:
        """One figure against a peer with our services: up, down, rtt or connect."""
        return await self.ask("bench", host=host, kind=kind, seconds=seconds, timeout=seconds + 30)

    async def status(self) -> Json:
        return cast(Json, (await self.ask("status"))["status"])

    async def path_to(self, host: str) -> Json:
        """The backend's view of one peer: CurAddr, Relay, RxBytes, TxBytes ..."""
        for peer in ((await self.status()).get("Peer") or {}).values():
            if host in (peer.get("TailscaleIPs") or []) or peer["HostName"] == host:
                return cast(Json, peer)
        raise RigError(f"{self.name} knows no peer {host}")

    async def wait_direct(self, host: str, timeout: float = 30) -> str:
        """Pings until the answer came over direct UDP; returns the endpoint."""

        async def probe() -> str | None:
            return cast(str, (await self.ping(host, timeout=5))["Endpoint"]) or None

        return await poll_until(f"{self.name} direct to {host}", probe, timeout)

    async def stop(self) -> None:
        await self.process.stop(6)
