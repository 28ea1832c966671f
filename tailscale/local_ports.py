"""Ports that lead somewhere else: one of this machine into the tailnet, one of the tailnet to this machine.

Owns who is let in and what is counted of it. What goes wrong with one connection ends that connection only. How bytes
are carried is `carry.py`; who runs the tasks is handed in, for the faces run them in a loop of their own.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, Self, TypeVar

import trio

from tailscale.carry import LOST, Carried, Splice
from tailscale.errors import TailscaleError
from tailscale.local_callers import CALLERS
from tailscale.sockets.local import LocalStream

if TYPE_CHECKING:
    from types import TracebackType

    from tailscale.sockets.tcp import TcpListener, TcpStream

log = logging.getLogger("tailscale")
LOOPBACK = "127.0.0.1"
BACKLOG = 128
FLOWS_LIMIT = 1024  # of one port at once
FLOWS_PER_PEER = 256  # of those of an exposed port, so that no peer shuts the others out
DIAL_PATIENCE = 30.0  # for a server of this machine
ADDRESS_ATTEMPTS = 8
UNREACHED = (OSError, TailscaleError, trio.TooSlowError, UnicodeError)  # the last: a host that can be no name

B = TypeVar("B")
Spawn = Callable[..., object]
Run = Callable[[Splice], Awaitable[None]]


class Opening(Coroutine[Any, Any, B], Generic[B]):
    """Something that is being opened: `await` it, or use it in `async with`, or both."""

    def __init__(self, opening: Coroutine[Any, Any, B]) -> None:
        self._opening = opening
        self._opened: Any = None

    def __await__(self) -> Generator[Any, Any, B]:
        return self._opening.__await__()

    def send(self, value: Any) -> Any:
        return self._opening.send(value)

    def throw(self, *error: Any) -> Any:
        return self._opening.throw(*error)

    def close(self) -> None:
        self._opening.close()

    async def __aenter__(self) -> B:
        self._opened = await self._opening
        entered: B = await self._opened.__aenter__()
        return entered

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._opened.__aexit__(kind, error, traceback)


class Ends(Protocol):
    """A connection that was accepted from the tailnet, as far as its addresses tell of it."""

    @property
    def remote_address(self) -> tuple[str, int]: ...

    @property
    def local_address(self) -> tuple[str, int]: ...


class Target:
    """A server of this machine, for callers of the device `owner`, and what it is told of each in front of all else."""

    def __init__(self, host: str, port: int, owner: object, proxy_protocol: int = 0) -> None:
        if proxy_protocol not in (0, 1, 2):
            raise ValueError(f"proxy_protocol is 0 for none, 1 or 2, not {proxy_protocol!r}")
        self.host, self.port = host, port
        self._owner = owner
        self._proxy_protocol = proxy_protocol

    async def dial(self, caller: Ends | None) -> LocalStream:
        """A connection to it for what a caller says; None is nobody of the tailnet. Errors are of `UNREACHED`."""
        with trio.fail_after(DIAL_PATIENCE):
            for _ in range(ADDRESS_ATTEMPTS):
                connected = await trio.open_tcp_stream(self.host, self.port)
                if caller is None:
                    return LocalStream.adopt(connected)
                source, door = connected.socket.getsockname(), connected.socket.getpeername()
                try:
                    known = CALLERS.begin(self._owner, source, door, caller.remote_address)
                except OSError:  # stood for somebody else not long ago
                    await connected.aclose()
                    continue
                server = LocalStream.adopt(connected, partial(CALLERS.end, known))
                await self._introduce(caller, server)
                return server
        raise OSError(errno.EADDRNOTAVAIL, "this machine has no fresh ports left")

    async def _introduce(self, caller: Ends, server: LocalStream) -> None:
        if not self._proxy_protocol:
            return
        try:
            from ts_proxy.proxy_header import encode_proxy_header  # few say who calls

            header = encode_proxy_header(self._proxy_protocol, caller.remote_address, caller.local_address)
            await server.send_all(header)
        except BaseException:
            server.abort()
            raise


class PortStatistics(NamedTuple):
    """What one forwarded or exposed port has done."""

    flows: int
    """Connections let in since it was opened."""
    open: int
    """Of those, still there."""
    refused: int
    """Turned away because too many were open, of all or of one peer."""
    failed: int
    """Whose other side could not be reached, or that broke."""
    bytes_sent: int
    """Into the tailnet."""
    bytes_received: int
    """Out of it."""


class _Port:
    """A task that lets connections in, and the tasks that carry them."""

    def __init__(self, spawn: Spawn, run: Run) -> None:
        self._spawn = spawn
        self._run = run
        self._accepting = trio.CancelScope()
        self._is_shut = trio.Event()
        self._flows: Counter[str] = Counter()  # open ones, by who opened them
        self._let_in = self._refused = self._failed = 0
        self._is_failing = False
        self._carried = Carried()

    def close(self) -> None:
        """No new connections; those that are open go on."""
        self._accepting.cancel()

    async def aclose(self) -> None:
        """`close`, and wait until nobody can connect any more."""
        self.close()
        await self._is_shut.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def statistics(self) -> PortStatistics:
        """Connections and bytes so far."""
        return PortStatistics(
            flows=self._let_in,
            open=self._flows.total(),
            refused=self._refused,
            failed=self._failed,
            bytes_sent=self._carried.sent,
            bytes_received=self._carried.received,
        )

    @trio.lowlevel.enable_ki_protection
    async def _serve(self, listener: trio.abc.Listener[Any]) -> None:
        async with trio.open_nursery() as flows:
            try:
                with self._accepting:
                    await trio.serve_listeners(self._attend_one, [listener], handler_nursery=flows)
            except* trio.ClosedResourceError:
                pass  # the device is closing
            finally:
                self._on_shut()
                self._is_shut.set()

    def _on_shut(self) -> None:
        """Nobody can connect any more."""

    @trio.lowlevel.enable_ki_protection
    async def _attend_one(self, accepted: Any) -> None:
        try:
            await self._attend(accepted)
        except Exception:  # a mistake of ours costs this connection, not the others
            self._failed += 1
            log.exception("a connection to %s failed", self._name)

    async def _attend(self, accepted: Any) -> None:
        raise NotImplementedError

    @contextlib.contextmanager
    def _place(self, who: str, limit: int) -> Generator[bool, None, None]:
        """Whether one more may come from there; its place is kept for as long as the block lasts."""
        if self._flows[who] >= limit or self._flows.total() >= FLOWS_LIMIT:
            self._refused += 1
            self._say("a connection to %s was turned away: %d are open", self._name, self._flows.total())
            yield False
            return
        self._flows[who] += 1
        self._let_in += 1
        try:
            yield True
        finally:
            self._flows[who] -= 1
            if not self._flows[who]:
                del self._flows[who]

    async def _carry(self, local: LocalStream, stream: TcpStream) -> None:
        self._is_failing = False
        try:
            await self._run(Splice(local, stream, self._carried))
        except LOST as problem:
            self._failed += 1
            log.debug("a connection to %s broke: %s", self._name, problem)

    def _on_unreached(self, target: object, problem: BaseException) -> None:
        self._failed += 1
        self._say("a connection to %s could not be carried to %s: %s", self._name, target, problem)

    def _say(self, sentence: str, *facts: object) -> None:
        """Said once, until a connection gets through again."""
        log.log(logging.DEBUG if self._is_failing else logging.WARNING, sentence, *facts)
        self._is_failing = True

    @property
    def _name(self) -> str:
        raise NotImplementedError


class Forward(_Port):
    """A local port, or Unix socket, that leads to a port of the tailnet. Use it in an `async with` block.

    `close()`, or `await aclose()`, lets no new connections in; those that are open go on, and end with the device.
    `statistics()` counts connections and bytes.
    """

    def __init__(
        self, dial: Callable[[], Awaitable[TcpStream]], door: socket.socket, path: str | None, spawn: Spawn, run: Run
    ) -> None:
        super().__init__(spawn, run)
        self._dial = dial
        self._path = path
        self._file = _file_at(path) if path is not None else None
        self.address: tuple[str, int] | str = path if path is not None else door.getsockname()[:2]
        """`("127.0.0.1", port)`, or the path."""
        spawn(self._serve, trio.SocketListener(trio.socket.from_stdlib_socket(door)))

    @property
    def host(self) -> str:
        """`127.0.0.1`, or the path."""
        return self.address if isinstance(self.address, str) else self.address[0]

    @property
    def port(self) -> int:
        """The local port; 0 for a Unix socket."""
        return 0 if isinstance(self.address, str) else self.address[1]

    @property
    def _name(self) -> str:
        return str(self.address)

    def _on_shut(self) -> None:
        if self._path is not None:
            with contextlib.suppress(OSError):  # its folder is gone, or is ours no longer
                if _file_at(self._path) == self._file:  # or another program has the place by now
                    os.unlink(self._path)

    @trio.lowlevel.enable_ki_protection
    async def _attend(self, accepted: trio.SocketStream) -> None:
        local = LocalStream.adopt(accepted)
        with self._place("", FLOWS_LIMIT) as has_place:
            try:
                if not has_place:
                    local.abort()
                    return
                stream = await self._dial()
            except UNREACHED as problem:
                local.abort()
                self._on_unreached("the tailnet", problem)
                return
            except BaseException:
                local.abort()
                raise
            await self._carry(local, stream)


class Exposure(_Port):
    """A port of the tailnet that leads to a server of this machine. Use it in an `async with` block.

    `close()`, or `await aclose()`, lets no new connections in; those that are open go on, and end with the device.
    `statistics()` counts connections and bytes.
    """

    def __init__(self, listener: TcpListener, target: Target, spawn: Spawn, run: Run) -> None:
        super().__init__(spawn, run)
        self._target = target
        self.port = listener.port
        """On the tailnet."""
        spawn(self._serve, listener)

    @property
    def _name(self) -> str:
        return f"port {self.port}"

    @trio.lowlevel.enable_ki_protection
    async def _attend(self, stream: TcpStream) -> None:
        peer = stream.peer
        with self._place(peer.stable_id if peer is not None else stream.remote_address[0], FLOWS_PER_PEER) as has_place:
            try:
                if not has_place:
                    stream.abort()
                    return
                server = await self._target.dial(stream)
            except UNREACHED as problem:
                stream.abort()
                self._on_unreached(f"{self._target.host}:{self._target.port}", problem)
                return
            except BaseException:
                stream.abort()
                raise
            await self._carry(server, stream)


async def open_forward(
    dial: Callable[[], Awaitable[TcpStream]],
    local_port: int,
    path: str | os.PathLike[str] | None,
    spawn: Spawn,
    run: Run = Splice.run,
) -> Forward:
    """Listen on loopback, or at a Unix socket only this user may open; each connection goes to what `dial` dials."""
    await trio.lowlevel.checkpoint()
    if path is None:
        door = socket.create_server((LOOPBACK, local_port), backlog=BACKLOG)
    else:
        door = socket.socket(socket.AF_UNIX)
    try:
        if path is not None:
            _bind_privately(door, os.fspath(path))
        door.setblocking(False)
        return Forward(dial, door, None if path is None else os.fspath(path), spawn, run)
    except BaseException:
        door.close()
        raise


def _file_at(path: str) -> tuple[int, int, int]:
    """Which file that is, told apart from another that took its place and even its number."""
    status = os.lstat(path)
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _bind_privately(door: socket.socket, path: str) -> None:
    """Nobody else may connect, not even between `bind` and `chmod`: until `listen` nobody can."""
    door.bind(path)
    os.chmod(path, 0o600)
    door.listen(BACKLOG)


async def open_exposure(
    listening: Awaitable[TcpListener], target: Target, spawn: Spawn, run: Run = Splice.run
) -> Exposure:
    """Carry what the tailnet sends to a listener to a server of this machine."""
    listener = await listening
    try:
        return Exposure(listener, target, spawn, run)
    except BaseException:
        listener.shut()
        raise
