"""What a user holds of TCP: trio streams and listeners over the userspace stack.

Each is a thin face over one socket of the stack. All waiting happens here; all protocol happens there. Every call is a
checkpoint, survives cancellation at it, and never holds a packet across one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import trio

from tailscale.errors import ConnectionReset
from tailscale.sockets.closing import Closable, SocketOwner
from tailscale.sockets.socket_device import readable_address
from ts_netstack.ledger import Owner
from ts_netstack.tcp import ConnectionProblem
from ts_netstack.tcp_states import CLOSED, TIME_WAIT

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailscale.nodes import Node
    from tailscale.sockets.socket_device import Address, Bytes, SocketDevice
    from tailscale.status import PathInfo
    from ts_netstack.tcp import TcpConnection
    from ts_netstack.tcp_listen import TcpListen

RECEIVE_CHUNK = 256 << 10
T = TypeVar("T", bound=Owner)


class _OneAtATime:
    """One task at a time: a second one gets BusyResourceError, as every trio stream does."""

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._taken = False

    def __enter__(self) -> None:
        if self._taken:
            raise trio.BusyResourceError(f"another task is already {self._doing} this stream")
        self._taken = True

    def __exit__(self, *_: object) -> None:
        self._taken = False


class _StreamOwner(SocketOwner):
    """The stack's end of a stream: readers and writers wait for different things."""

    __slots__ = ("connection", "is_carried", "mourners", "writers")

    def __init__(self, connection: TcpConnection, device: SocketDevice) -> None:
        super().__init__(device)
        self.connection = connection
        self.is_carried = False
        self.writers = trio.lowlevel.ParkingLot()
        self.mourners = trio.lowlevel.ParkingLot()  # who only wants to know that it broke

    def wake(self) -> None:
        connection = self.connection
        if self.waiters and (connection.readable or connection.error is not None):
            self.waiters.unpark_all()
        if self.writers and (connection.writable or connection.error is not None):
            self.writers.unpark_all()
        if connection.error is not None:
            self.mourners.unpark_all()

    def unpark_all(self) -> None:
        self.waiters.unpark_all()
        self.writers.unpark_all()
        self.mourners.unpark_all()

    def shut(self) -> None:
        if self.is_carried and not self.is_closed:
            self.abort()
        else:
            self.close()

    @trio.lowlevel.enable_ki_protection
    def abort(self) -> None:
        self.is_closed = True
        self.connection.abort(self.device.now())
        self.device.kick()
        self.unpark_all()

    def _end(self) -> None:
        self.connection.close(self.device.now())

    def _drop(self) -> None:
        if not self.is_closed:
            self.abort()

    def _is_over(self) -> bool:
        return self.connection.state in (CLOSED, TIME_WAIT)


_SEND, _RECEIVE = "`await stream.send_all(data)`", "`await stream.receive_some()`"
MEANT = {
    **dict.fromkeys(("send", "sendall", "write", "writelines", "drain"), _SEND),
    **dict.fromkeys(("recv", "read", "receive", "readline", "readexactly"), _RECEIVE),
    **dict.fromkeys(("close", "wait_closed"), "`await stream.aclose()`"),
    **dict.fromkeys(("shutdown", "write_eof"), "`await stream.send_eof()`"),
}
"""What sockets and asyncio's streams call it."""


class TcpStream(Closable[_StreamOwner], trio.abc.HalfCloseableStream):
    """A TCP connection across the tailnet. Passes trio's conformance suite; a reset is `ConnectionReset`.

    Closing it delivers what was sent; unread data means a reset, as on a kernel socket. One that is lost without being
    closed is reset, with a `ResourceWarning`.

    ```python
    async with await device.tcp_connect("db", 5432) as stream:
        await stream.send_all(b"hello")
        await stream.send_eof()
        print(b"".join([data async for data in stream]), stream.peer.hostname, stream.path)
    ```
    """

    if not TYPE_CHECKING:  # or a checker would take every name for one we have

        def __getattr__(self, name: str) -> object:
            said = f"{type(self).__name__!r} object has no attribute {name!r}"
            meant = MEANT.get(name)
            raise AttributeError(f"{said}: it is a trio stream, use {meant}" if meant else said)

    def __init__(self, connection: TcpConnection, device: SocketDevice) -> None:
        owner = connection.owner = _StreamOwner(connection, device)
        super().__init__(owner)
        self._connection = connection
        self._device = device
        self._sent_eof = False
        self._receiving = _OneAtATime("receiving from")
        self._sending = _OneAtATime("sending to")
        self._readers = owner.waiters
        self._writers = owner.writers

    async def wait_connected(self) -> None:
        """Wait until the handshake has succeeded or failed; which, the connection knows."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._connection.writable and self._connection.error is None:
            await self._writers.park()

    @trio.lowlevel.enable_ki_protection
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """At least one byte, or b"" when the other side has finished sending."""
        if max_bytes is None:
            max_bytes = RECEIVE_CHUNK
        elif not isinstance(max_bytes, int):
            raise TypeError("max_bytes must be an integer")
        elif max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        with self._receiving:
            await trio.lowlevel.checkpoint_if_cancelled()
            connection = self._connection
            waited = False  # parking is a checkpoint: a second one would cost every round trip a turn of the loop
            while not self._owner.is_closed:
                if connection.unread:
                    data: bytes = connection.read(max_bytes)
                    if connection.is_due:
                        self._device.kick()  # the window has opened
                elif connection.at_eof:  # whole, whatever came after its end
                    data = b""
                else:
                    self._raise_if_broken()
                    await self._readers.park()
                    waited = True
                    continue
                if not waited:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                return data
            raise trio.ClosedResourceError("this stream was closed")

    @trio.lowlevel.enable_ki_protection
    async def send_all(self, data: Bytes) -> None:
        """Hand all of `data` to the connection, waiting while its buffer is full."""
        with self._sending:
            self._check_can_send()
            await trio.lowlevel.checkpoint_if_cancelled()
            rest = data if type(data) is bytes else memoryview(data)
            waited = False
            while True:
                self._check_can_send()
                accepted = self._connection.write(rest) if rest else 0
                if accepted:
                    self._device.kick()
                    if accepted == len(rest):
                        break
                    rest = memoryview(rest)[accepted:]
                elif not rest:
                    break
                if not accepted or not self._connection.writable:
                    await self._writers.park()
                    waited = True
            if not waited:
                # Only now, not before writing: what was written leaves during this turn of the loop.
                await trio.lowlevel.cancel_shielded_checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the connection's send buffer has room."""
        with self._sending:
            self._check_can_send()
            await trio.lowlevel.checkpoint()
            while not self._connection.writable:
                self._check_can_send()
                await self._writers.park()
            self._check_can_send()

    @trio.lowlevel.enable_ki_protection
    async def send_eof(self) -> None:
        """Say that nothing more will be sent; receiving goes on."""
        with self._sending:
            if self._owner.is_closed:
                raise trio.ClosedResourceError("this stream was closed")
            await trio.lowlevel.checkpoint()
            if self._sent_eof:
                return
            self._raise_if_broken()
            self._sent_eof = True
            self._connection.send_eof(self._device.now())
            self._device.kick()

    def abort(self) -> None:
        """Reset the connection at once and drop what is buffered."""
        self._owner.abort()

    async def wait_broken(self) -> None:
        """Return once it broke or was closed, whatever is still unread; never where it ends in order."""
        await trio.lowlevel.checkpoint()
        while self._connection.error is None and not self._owner.is_closed:
            await self._owner.mourners.park()

    def reset_with_device(self) -> None:
        """A device that closes before this stream does resets it.

        For whoever passes on what others send: bytes that were cut off must not look whole to the other side.
        """
        self._owner.is_carried = True

    def give_up(self) -> None:
        """Break it as if its way were known to be gone: whoever reads or writes gets ConnectionReset at once."""
        self._connection.fail(ConnectionProblem.NO_ROUTE)
        self._device.kick()
        self._owner.unpark_all()

    def _check_can_send(self) -> None:
        if self._owner.is_closed or self._sent_eof:
            raise trio.ClosedResourceError("this stream was closed for sending")
        self._raise_if_broken()

    def _raise_if_broken(self) -> None:
        if self._connection.error is not None:
            raise broken(self._connection)

    def hand_over(self, take: Callable[[TcpConnection, SocketDevice], T]) -> T:
        """Let the connection be somebody else's: this stream is closed then, and the connection is not."""
        owner = self._connection.owner = take(self._connection, self._device)
        self._owner.is_closed = True
        self._owner.unpark_all()
        return owner

    def set_nodelay(self, enabled: bool) -> None:
        """On by default: small writes leave at once."""
        self._connection.set_nodelay(enabled)

    def set_keepalive(self, idle: float | None, interval: float = 75.0, count: int = 9) -> None:
        """Probe a silent peer after `idle` seconds; None turns probing off."""
        self._connection.set_keepalive(idle, interval, count)
        self._device.kick()

    @property
    def is_readable(self) -> bool:
        """Whether `receive_some` would return (or raise) at once; on an idle connection: the other side is done."""
        return self._owner.is_closed or bool(self._connection.readable)

    @property
    def is_writable(self) -> bool:
        """Whether a little more can be sent without waiting."""
        return not self._owner.is_closed and bool(self._connection.writable)

    @property
    def local_address(self) -> Address:
        """Our `(ip, port)`."""
        return readable_address(self._connection.local)

    @property
    def remote_address(self) -> Address:
        """The other side's `(ip, port)`."""
        return readable_address(self._connection.remote)

    @property
    def peer(self) -> Node | None:
        """The node on the other side, as the tailnet knows it."""
        return self._device.identify(self._connection.remote[0])

    @property
    def path(self) -> PathInfo:
        """How bytes travel right now: `direct 192.0.2.7:41641` or `relay fra`."""
        return self._device.describe_path(self._connection.remote[0], self._connection.via)

    @property
    def exit(self) -> Node | None:
        """The node named by `via=` when it was opened; None without, and once that has left the tailnet."""
        return self._device.exit_node(self._connection.via)

    def __repr__(self) -> str:
        host, port = self.remote_address
        return f"<TcpStream to {host} port {port}{' closed' if self._owner.is_closed else ''}>"


PROBLEMS = {
    ConnectionProblem.RESET: "the other side reset it",
    ConnectionProblem.REFUSED: "the other side refused it",
    ConnectionProblem.TIMED_OUT: "the other side stopped answering",
    ConnectionProblem.UNREACHABLE: "the network says it is unreachable",
    ConnectionProblem.NO_ROUTE: "its exit node left the tailnet, or takes nothing there any more",
    ConnectionProblem.ABORTED: "it was aborted here",
}


def broken(connection: TcpConnection) -> ConnectionReset:
    """What whoever uses a connection that has broken is told."""
    assert connection.error is not None
    host, port = readable_address(connection.remote)
    return ConnectionReset(f"the connection to {host} port {port} broke: {PROBLEMS[connection.error]}")


class _ListenerOwner(SocketOwner):
    """The stack's end of a listener."""

    __slots__ = ("_listens", "_on_end")

    def __init__(self, listens: list[TcpListen], device: SocketDevice, on_end: Callable[[], None]) -> None:
        super().__init__(device)
        self._listens = listens
        self._on_end = on_end

    def _end(self) -> None:
        for listen in self._listens:
            listen.close()
        self._on_end()


class TcpListener(Closable[_ListenerOwner], trio.abc.Listener[TcpStream]):
    """Accepts connections from the tailnet; works with `trio.serve_listeners`.

    Closing it refuses new connections; accepted ones go on.

    ```python
    async def handle(stream):
        async with stream:
            await stream.send_all(f"hello {stream.peer.hostname}\\n".encode())


    async with await device.listen(8080) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, [listener])
        async with await device.tcp_connect(device.ipv4, listener.port) as stream:
            print(await stream.receive_some())
        nursery.cancel_scope.cancel()
    ```
    """

    def __init__(
        self, listens: list[TcpListen], device: SocketDevice, *, on_end: Callable[[], None] = lambda: None
    ) -> None:
        owner = _ListenerOwner(listens, device, on_end)
        super().__init__(owner)
        self._listens = listens
        self._device = device
        for listen in listens:
            listen.owner = owner

    @trio.lowlevel.enable_ki_protection
    async def accept(self) -> TcpStream:
        """The next connection."""
        await trio.lowlevel.checkpoint()
        while True:
            if self._owner.is_closed:
                raise trio.ClosedResourceError("this listener was closed")
            for listen in self._listens:
                connection = listen.accept()
                if connection is not None:
                    return TcpStream(connection, self._device)
            await self._owner.waiters.park()

    @property
    def port(self) -> int:
        """The port, also when 0 was asked for."""
        return self._listens[0].port

    def __repr__(self) -> str:
        return f"<TcpListener on port {self.port}{' closed' if self._owner.is_closed else ''}>"
