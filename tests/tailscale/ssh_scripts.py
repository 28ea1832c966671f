"""What tests of SSH share: a policy, a server that is up, a client in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import trio

from tailscale import Device
from tailscale.ssh import serve_ssh
from tailscale.testing import Tailnet

asyncssh: Any = __import__("pytest").importorskip("asyncssh")

T = TypeVar("T")
OPEN = {"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}


def policy(
    action: str = "accept", users: tuple[str, ...] = ("autogroup:nonroot", "root"), **more: Any
) -> dict[str, Any]:
    """Everybody reaches everything, and logs in to devices of their own."""
    entry = {"action": action, "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": list(users), **more}
    return {**OPEN, "ssh": [entry]}


@dataclass
class Outcome:
    """What came of a command."""

    code: int | None = None
    out: bytes = b""
    err: bytes = b""
    banner: str = ""
    problem: Exception | None = None


class Client(asyncssh.SSHClient):
    def __init__(self, banners: list[str]) -> None:
        self._banners = banners

    def auth_banner_received(self, msg: str, lang: str) -> None:
        self._banners.append(msg)


@dataclass
class Way:
    """To an SSH server, over a port of this machine."""

    host: str
    port: int
    banners: list[str] = field(default_factory=list)

    async def do(self, work: Callable[[Any], Awaitable[T]], user: str = "dev", **options: Any) -> T:
        """Something with a connection, in an asyncio loop of its own."""
        return await trio.to_thread.run_sync(asyncio.run, self.connected(work, user, **options))

    async def connected(self, work: Callable[[Any], Awaitable[T]], user: str, **options: Any) -> T:
        async with asyncio.timeout(30):
            conn, _ = await asyncssh.create_connection(
                lambda: Client(self.banners), self.host, self.port, username=user, known_hosts=None,
                client_keys=None, config=None, agent_path=None, **options
            )  # fmt: skip
            async with conn:
                return await work(conn)

    async def in_this_loop(self, command: str, stdin: bytes) -> Outcome:
        """`run`, where asyncio runs already."""
        return await self.connected(partial(self._run, command, stdin, {}), "dev")

    async def _run(self, command: str | None, stdin: bytes, options: dict[str, Any], conn: Any) -> Outcome:
        process = await conn.create_process(command, encoding=None, **options)
        with contextlib.suppress(BrokenPipeError):  # it has ended already
            process.stdin.write(stdin)
            process.stdin.write_eof()
        out, err = await process.communicate()
        return Outcome(process.exit_status, out, err, "".join(self.banners))

    async def run(self, command: str | None, stdin: bytes = b"", user: str = "dev", **options: Any) -> Outcome:
        """A command, and what came of it; a refused login is an outcome too."""

        try:
            return await self.do(partial(self._run, command, stdin, options), user)
        except (asyncssh.Error, OSError) as problem:
            return Outcome(banner="".join(self.banners), problem=problem)


@asynccontextmanager
async def served(
    told: Any, handler: Callable[..., Any] | None = None, **options: Any
) -> AsyncIterator[tuple[Tailnet, Device, Way]]:
    """Two devices of one user; the first is an SSH server."""
    async with Tailnet(policy=told) as net:
        server, client = await net.device("server"), await net.device("client")
        async with trio.open_nursery() as nursery:
            port = await nursery.start(serve_ssh, server, handler, 22, handler is None)
            assert port == 22
            async with client.forward("server", 22) as way:
                yield net, server, Way(way.host, way.port)
            nursery.cancel_scope.cancel()
