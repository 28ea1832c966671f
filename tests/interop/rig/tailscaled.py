"""A running tailscaled: its command line tool and its SOCKS5 proxy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import trio

from tests.interop.processes import Json, Process, RigError, finished


class Tailscaled:
    """A userspace tailscaled; whatever listens on 127.0.0.1:N here is its service on port N."""

    def __init__(self, name: str, process: Process, socket: Path, cli_binary: Path, socks_port: int) -> None:
        self.name, self.process, self.socket, self.socks_port = name, process, socket, socks_port
        self._cli = cli_binary
        self.ip4 = self.ip6 = ""

    async def cli(self, *arguments: str, check: bool = True, stdin: bytes = b"", timeout: float = 60) -> str:
        """Runs the tailscale command against this daemon and returns what it printed."""
        command = [str(self._cli), f"--socket={self.socket}", *arguments]
        done = await finished(command, stdin, patience=timeout)
        if check and done.returncode != 0:
            raise RigError(f"{self.name}: tailscale {' '.join(arguments)}: {(done.stdout + done.stderr).decode()}")
        return done.stdout.decode()

    async def status(self) -> Json:
        return cast(Json, json.loads(await self.cli("status", "--json")))

    async def connect(self, host: str, port: int) -> trio.SocketStream:
        """A TCP connection through the daemon's SOCKS5 proxy; a refusal raises ConnectionRefusedError."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.socks_port)
        name = host.encode()
        await stream.send_all(b"\5\1\0")
        await _read_exactly(stream, 2)
        await stream.send_all(b"\5\1\0\3" + bytes([len(name)]) + name + port.to_bytes(2, "big"))
        answer = await _read_exactly(stream, 4)
        await _read_exactly(stream, {1: 4, 4: 16}[answer[3]] + 2)
        if answer[1] != 0:
            await stream.aclose()
            raise ConnectionRefusedError(f"{self.name}: no connection to {host}:{port} (SOCKS answer {answer[1]})")
        return stream

    async def up(self, control: str, auth_key: str, *arguments: str) -> None:
        options = [f"--login-server={control}", f"--auth-key={auth_key}", f"--hostname={self.name}"]
        options += ["--accept-dns=false", "--timeout=40s", *arguments]
        try:
            await self.cli("up", *options)
        except RigError as problem:
            # What counts is that the daemon runs, not that its command line was told so.
            state = (await self.status())["BackendState"]
            if state != "Running":
                raise RigError(f"{problem}; it is {state}; its log ends:\n{self.process.tail()}") from problem
        for ip in (await self.cli("ip")).split():
            if ":" in ip:
                self.ip6 = ip
            else:
                self.ip4 = ip

    async def stop(self) -> None:
        await self.process.stop()


async def _read_exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    got = b""
    while len(got) < count:
        chunk = await stream.receive_some(count - len(got))
        if not chunk:
            raise ConnectionResetError("the stream ended early")
        got += chunk
    return got
