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
    from tailscale.sockets.udp import UdpSocket

DATAGRAM = 16 << 10  # of a file or a pipe, which have no datagrams of their own: as other programs called nc cut them
CONNECTIONS_LIMIT = 256  # served at once; more wait in the listener's backlog


async def nc(options: argparse.Namespace, screen: Screen) -> int:
    async with joined(options, screen) as device:
        if options.udp:
            async with await device.udp() as socket:
                await socket.connect((options.host, options.port))
                await exchange_datagrams(socket, options.wait)
            return OK
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


async def exchange_datagrams(socket: UdpSocket, patience: float) -> None:
    """Each piece of standard input is a datagram, and each answer is written out. Nobody says that a peer has no more
    to say: after the input's end, who is silent for `patience` seconds has ended.
    """
    source, sink = StandardInput(), StandardOutput()
    scope, is_over = trio.CancelScope(), False

    async def upload() -> None:
        nonlocal is_over
        while data := await source.receive():
            for start in range(0, len(data), DATAGRAM):
                await socket.send(data[start : start + DATAGRAM])
        is_over = True
        scope.deadline = trio.current_time() + patience

    with scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload)
            while True:
                await sink.send(await socket.receive())
                if is_over:
                    scope.deadline = trio.current_time() + patience


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
