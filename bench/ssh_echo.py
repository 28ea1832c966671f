"""What SSH costs on top of a stream: one byte there and back, and a file by sftp. `python -m bench.ssh_echo`.

Two devices and the client, asyncssh in a thread, in one process, over a direct path.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncssh
import trio

from tailscale import Device
from tailscale.ssh import Session, serve_ssh
from tailscale.ssh.shell import Account
from tailscale.testing import Tailnet

ROUNDS = 1000
FILE = 64 << 20
POLICY = {
    "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
    "ssh": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": [Account().name]}],
}
ME = Account().name


async def echo(session: Session) -> None:
    while data := await session.stdin.receive_some():
        await session.stdout.send_all(data)


async def bare(stream: Any) -> None:
    async with stream:
        async for data in stream:
            await stream.send_all(data)


async def swallow(stream: Any) -> None:
    async with stream:
        async for _ in stream:
            pass
        await stream.send_all(b"!")


def milliseconds(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    return f"p50 {statistics.median(ordered) * 1e3:.2f} ms, p99 {ordered[int(len(ordered) * 0.99)] * 1e3:.2f} ms"


async def connect(host: str, port: int) -> Any:
    return await asyncssh.connect(
        host, port, username=ME, known_hosts=None, client_keys=None, config=None, agent_path=None
    )


async def echo_over_ssh(host: str, port: int) -> list[float]:
    taken = []
    async with await connect(host, port) as conn:
        process = await conn.create_process("echo", encoding=None)
        for _ in range(ROUNDS):
            began = time.perf_counter()
            process.stdin.write(b"x")
            await process.stdout.read(1)
            taken.append(time.perf_counter() - began)
    return taken


async def echo_bare(host: str, port: int) -> list[float]:
    reader, writer = await asyncio.open_connection(host, port)
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        writer.write(b"x")
        await reader.read(1)
        taken.append(time.perf_counter() - began)
    writer.close()
    return taken


@contextmanager
def a_file() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "a")
        source.write_bytes(bytes(FILE))
        yield source


async def put(host: str, port: int) -> float:
    with a_file() as source:
        async with await connect(host, port) as conn, conn.start_sftp_client() as sftp:
            began = time.perf_counter()
            await sftp.put(str(source), f"{source}.copy", block_size=256 << 10, max_requests=64)
            return time.perf_counter() - began


async def put_bare(host: str, port: int) -> float:
    reader, writer = await asyncio.open_connection(host, port)
    began, piece = time.perf_counter(), bytes(256 << 10)
    for _ in range(FILE // len(piece)):
        writer.write(piece)
        await writer.drain()
    writer.write_eof()
    await reader.read(1)
    return time.perf_counter() - began


async def measure(client: Device, nursery: trio.Nursery, server: Device) -> None:
    async def over(port: int, work: Any) -> Any:
        async with client.forward("server", port) as way:
            return await trio.to_thread.run_sync(lambda: asyncio.run(work(way.host, way.port)))

    for port, handler in ((7, bare), (9, swallow)):
        listener = await server.listen(port)
        nursery.start_soon(trio.serve_listeners, handler, [listener])
    await nursery.start(serve_ssh, server, echo)
    await nursery.start(serve_ssh, server, None, 2222, True)
    plain, secure = await over(7, echo_bare), await over(22, echo_over_ssh)
    ratio = statistics.median(secure) / statistics.median(plain)
    print(f"one byte, bare: {milliseconds(plain)}; over SSH: {milliseconds(secure)}; ratio {ratio:.1f}")
    fast, slow = await over(9, put_bare), await over(2222, put)
    rates = f"bare: {FILE / fast / 1e6:.0f} MB/s; by sftp: {FILE / slow / 1e6:.0f} MB/s"
    print(f"{FILE >> 20} MiB, {rates}; ratio {fast / slow:.2f}")


async def main() -> None:
    async with Tailnet(real=True, policy=POLICY) as net, trio.open_nursery() as nursery:
        server, client = await net.device("server"), await net.device("client")
        await client.ping("server")
        await measure(client, nursery, server)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
