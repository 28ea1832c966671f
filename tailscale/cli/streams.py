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
from tailscale.local_ports import UNREACHED, Target

if TYPE_CHECKING:
    from tailscale.device import Device
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
    if options.to is None and (options.http or options.proxy_protocol):
        raise ValueError("--http and --proxy-protocol tell a server who calls: say which one with --to HOST:PORT")
    if options.http and options.once:
        raise ValueError("--http serves requests, of which a connection may bring many: leave --once out")
    async with joined(options, screen) as device:
        if options.http:
            await pass_requests(device, options, screen)
            return OK
        listener = await device.listen(options.port)
        async with listener:
            where = f"{device.hostname} port {listener.port} ({', '.join(device.node.addresses)})"
            screen.note(("listening on ", "dim"), where)
            await Doorman(device, options, screen).serve(listener)
    return OK


async def pass_requests(device: Device, options: argparse.Namespace, screen: Screen) -> None:
    """To a web server of this machine, which is told who calls."""
    from tailscale.http import ReverseProxy, serve  # few listeners do

    host, port = options.to
    proxy = ReverseProxy(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    def started(url: str) -> None:
        screen.note(("serving ", "dim"), url)

    await serve(proxy, device, options.port, started=started)


class Doorman:
    """Lets callers in, says who they are, and gives each to what was asked for."""

    def __init__(self, device: Device, options: argparse.Namespace, screen: Screen) -> None:
        self._options, self._screen = options, screen
        host, port = options.to or ("", 0)
        self._target = Target(host, port, device, options.proxy_protocol) if host else None
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
        except (*UNREACHED, trio.BrokenResourceError) as problem:
            self._screen.note((f"{caller}: {problem}", "yellow"))
        else:
            self._screen.note((f"{caller} is done", "dim"))
        finally:
            self._places.release()

    async def _handle(self, stream: TcpStream) -> None:
        if self._target is not None:
            try:
                local = await self._target.dial(stream)
            except UNREACHED:
                stream.abort()  # a caller should see a refusal, not an empty answer
                raise
            await splice(stream, local)
            return
        async for data in stream:
            if self._options.echo:
                await stream.send_all(data)
            else:
                await self._sink.send(data)
