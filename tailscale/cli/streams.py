"""The commands that carry bytes: `nc` and `listen`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import trio

from tailscale.carry import splice
from tailscale.cli.exit_codes import OK
from tailscale.cli.pipes import StandardInput, StandardOutput
from tailscale.cli.screen import Screen
from tailscale.cli.session import joined

if TYPE_CHECKING:
    from tailscale.sockets.tcp import TcpListener, TcpStream

CONNECTIONS_LIMIT = 256  # served at once; more wait in the listener's backlog


async def nc(options: argparse.Namespace, screen: Screen) -> int:
    async with joined(options, screen) as device:
        stream = await device.tcp_connect(options.host, options.port, timeout=options.timeout)
        async with stream:
            if options.verbose:
                screen.note((f"connected to {options.host} port {options.port} by {stream.path}", "dim"))
            await exchange(stream)
    return OK


async def exchange(stream: TcpStream) -> None:
    """Standard input there, what comes back to standard output; each way ends by itself."""
    source, sink = StandardInput(), StandardOutput()

    async def upload(scope: trio.CancelScope) -> None:
        with scope:
            while data := await source.receive():
                await stream.send_all(data)
            await stream.send_eof()

    sending = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(upload, sending)
        async for data in stream:
            await sink.send(data)
        if source.is_terminal:
            sending.cancel()  # nobody would think of pressing Ctrl-D for a peer that has said goodbye


async def listen(options: argparse.Namespace, screen: Screen) -> int:
    async with joined(options, screen) as device:
        listener = await device.listen(options.port)
        async with listener:
            where = f"{device.hostname} port {listener.port} ({', '.join(device.node.addresses)})"
            screen.note(("listening on ", "dim"), where)
            await Doorman(options, screen).serve(listener)
    return OK


class Doorman:
    """Lets callers in, says who they are, and gives each to what was asked for."""

    def __init__(self, options: argparse.Namespace, screen: Screen) -> None:
        self._options, self._screen = options, screen
        self._places = trio.Semaphore(CONNECTIONS_LIMIT)
        self._sink = StandardOutput()

    async def serve(self, listener: TcpListener) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                await self._places.acquire()
                stream = await listener.accept()
                nursery.start_soon(self._attend, stream)
                if self._options.once:
                    return

    async def _attend(self, stream: TcpStream) -> None:
        """One caller; what goes wrong with it is said, and ends nothing else."""
        host, port = stream.remote_address
        caller = f"{stream.peer.hostname if stream.peer else 'somebody'} ({host} port {port})"
        self._screen.note((f"{caller} connected", "dim"))
        try:
            async with stream:
                await self._handle(stream)
        except (OSError, trio.BrokenResourceError) as problem:
            self._screen.note((f"{caller}: {problem}", "yellow"))
        else:
            self._screen.note((f"{caller} is done", "dim"))
        finally:
            self._places.release()

    async def _handle(self, stream: TcpStream) -> None:
        if self._options.to is not None:
            try:
                local = await trio.open_tcp_stream(*self._options.to)
            except OSError:
                stream.abort()  # a caller should see a refusal, not an empty answer
                raise
            await splice(stream, local)
            return
        async for data in stream:
            if self._options.echo:
                await stream.send_all(data)
            else:
                await self._sink.send(data)
