"""What carries connections between the tailnet and real sockets: dials, listeners, forwarded ports."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

import trio

from tailscale.errors import TailscaleError
from tailscale.threads.pump import LOOPBACK, Pump, TailnetListener, TailnetSocket, connect_back, loopback_pair, reset

if TYPE_CHECKING:
    from tailscale.sockets.tcp import TcpListener, TcpStream
    from tailscale.threads.loop_thread import LoopThread

log = logging.getLogger("tailscale")
FORWARD_BACKLOG = 128


async def connect(
    thread: LoopThread, host: str | tuple[str, int], port: int | None, timeout: float | None
) -> TailnetSocket:
    """Dial, and hand out the near end of a pumped connection."""
    stream = await thread.device.tcp_connect(host, port, timeout=timeout)
    try:
        ours, theirs = loopback_pair()
    except BaseException:
        stream.abort()
        raise
    thread.pump(Pump(stream, ours))
    return TailnetSocket(theirs, stream.local_address, stream.remote_address)


async def listen(thread: LoopThread, port: int, host: str | None, backlog: int) -> TailnetListener:
    """A listening socket that the tailnet's connections arrive at."""
    device = thread.device
    listener = await device.listen(port, host=host, backlog=backlog)
    feeding = trio.CancelScope()

    def stop_feeding() -> None:
        with contextlib.suppress(TailscaleError):  # the loop has ended: so has the feeding
            thread.call_soon(feeding.cancel)

    door = TailnetListener(listener.port, host or device.ipv4 or device.ipv6 or "", backlog, stop_feeding)

    async def feed() -> None:
        with feeding:
            await _feed(thread, listener, door)

    thread.spawn(feed)
    return door


async def _feed(thread: LoopThread, listener: TcpListener, door: TailnetListener) -> None:
    try:
        async with listener:
            while True:
                stream = await listener.accept()
                try:
                    thread.pump(Pump(stream, await connect_back(door, stream)))
                except OSError as error:
                    stream.abort()
                    if door.fileno() < 0:
                        return
                    log.warning("a connection to port %s could not be handed over: %s", door.port, error)
                except BaseException:
                    stream.abort()
                    raise
    except trio.ClosedResourceError:
        return  # the device is closing
    finally:
        door.end()


class _Bridge:
    """A task that lets connections in."""

    _thread: LoopThread
    _carrying: trio.CancelScope

    def close(self) -> None:
        """No new connections; those that are open go on."""
        with contextlib.suppress(TailscaleError):  # the loop has ended: so has the task
            self._thread.call_soon(self._carrying.cancel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Forward(_Bridge):
    """A local port, or Unix socket, that leads to a port of the tailnet. Close it, or use it in a `with` block.

    Closing it lets no new connections in; those that are open go on.
    """

    def __init__(self, thread: LoopThread, door: socket.socket, path: str | None, host: str, port: int) -> None:
        self._thread = thread
        self._path = path
        self._target = host, port
        self.address: tuple[str, int] | str = path if path is not None else door.getsockname()[:2]
        """`("127.0.0.1", port)`, or the path."""
        self._carrying = thread.spawn(self._carry, door)

    @property
    def host(self) -> str:
        return self.address if isinstance(self.address, str) else self.address[0]

    @property
    def port(self) -> int:
        return 0 if isinstance(self.address, str) else self.address[1]

    async def _carry(self, door: socket.socket) -> None:
        with self._file():
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(door))
            await trio.serve_listeners(self._carry_one, [listener])

    @contextlib.contextmanager
    def _file(self) -> Iterator[None]:
        try:
            yield
        finally:
            if self._path is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path)

    async def _carry_one(self, accepted: trio.SocketStream) -> None:
        sock = _detached(accepted.socket)
        try:
            stream = await self._thread.device.tcp_connect(*self._target)
        except (OSError, TailscaleError) as error:
            log.info("a connection to %s could not be forwarded: %s", self.address, error)
            reset(sock)
            return
        except BaseException:
            sock.close()
            raise
        self._thread.pump(Pump(stream, sock))


async def forward(
    thread: LoopThread, host: str, port: int, local_port: int, path: str | os.PathLike[str] | None
) -> Forward:
    """Listen on loopback, or at a Unix socket only this user may open, and carry every connection to `host`."""
    await trio.lowlevel.checkpoint()
    if path is None:
        door = socket.create_server((LOOPBACK, local_port), backlog=FORWARD_BACKLOG)
    else:
        door = socket.socket(socket.AF_UNIX)
        try:
            _bind_privately(door, os.fspath(path))
        except BaseException:
            door.close()
            raise
    door.setblocking(False)
    return Forward(thread, door, None if path is None else os.fspath(path), host, port)


def _bind_privately(door: socket.socket, path: str) -> None:
    """Nobody else may connect, not even between `bind` and `chmod`: until `listen` nobody can."""
    door.bind(path)
    os.chmod(path, 0o600)
    door.listen(FORWARD_BACKLOG)


class Exposure(_Bridge):
    """A port of the tailnet that leads to a server of this machine. Close it, or use it in a `with` block."""

    def __init__(self, thread: LoopThread, listener: TcpListener, host: str, port: int) -> None:
        self._thread = thread
        self._target = host, port
        self._carrying = thread.spawn(self._carry, listener)
        self.port = listener.port
        """On the tailnet."""

    async def _carry(self, listener: TcpListener) -> None:
        with contextlib.suppress(trio.ClosedResourceError):  # the device is closing
            async with listener, trio.open_nursery() as dialling:
                while True:
                    dialling.start_soon(self._carry_one, await listener.accept())

    async def _carry_one(self, stream: TcpStream) -> None:
        try:
            server = await trio.open_tcp_stream(*self._target)
        except OSError as error:
            log.info("a connection to port %s could not be carried to %s: %s", self.port, self._target, error)
            stream.abort()
            return
        sock = _detached(server.socket)
        self._thread.pump(Pump(stream, sock))


async def expose(thread: LoopThread, port: int, host: str, local_port: int) -> Exposure:
    """Carry what the tailnet sends to `port` to a server of this machine."""
    return Exposure(thread, await thread.device.listen(port), host, local_port)


def _detached(trios: trio.socket.SocketType) -> socket.socket:
    """The plain non-blocking socket under one of trio's."""
    sock = socket.socket(trios.family, trios.type, trios.proto, fileno=trios.detach())
    sock.setblocking(False)
    return sock
