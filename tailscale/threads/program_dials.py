"""A program's own dials: whether one is the tailnet's, and how a device carries it.

Owns the decision, and how the program's socket becomes the near end of a connection of the device: after the dial,
whose error is thus the program's, it is connected over loopback to nobody but us. Refuses to know how dials get here:
that is `taking.py`. What a device dials for itself is never the program's.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from tailscale._faces import nor_here
from tailscale.carry import LOST, Splice
from tailscale.errors import DeviceClosed, NameNotFound, NotCarried
from tailscale.local_ports import UNREACHED
from tailscale.nodes import clean_name
from tailscale.sockets.local import LocalStream
from tailscale.threads.awaiting import finished
from tailscale.threads.bridges import far_end
from tailscale.threads.face import thread_of
from tailscale.threads.loop_thread import IN_LOOP_THREAD
from tailscale.threads.loopback import MAPPED, Door, FarEnd, keepalive_of
from ts_base.ip import is_tailscale_address, maybe_address

if TYPE_CHECKING:
    from tailscale.device import Device
    from tailscale.sockets.tcp import TcpStream
    from tailscale.threads.face import DeviceFace

log = logging.getLogger("tailscale")
RECORDS = {socket.AF_INET: ("A",), socket.AF_INET6: ("AAAA",)}
Connect = Callable[[socket.socket, Any], object]
Place = tuple[str, int]
Dialled = tuple["TcpStream", FarEnd]


class ProgramDials:
    """Those of one program, by one device."""

    def __init__(self, face: DeviceFace) -> None:
        self.face = face
        self.name = face.hostname
        self.is_on = True
        self._thread = thread_of(face)
        self._peers = face.peers
        self._ends: dict[object, FarEnd] = {}  # by the loopback address that stands for the peer; ends with the splice

    # Whether it is ours

    @property
    def _is_asked(self) -> bool:
        return self.is_on and not IN_LOOP_THREAD.get()

    def place_of(self, sock: socket.socket, address: Any) -> Place | None:
        """Where in the tailnet a socket shall be connected to; None where that is not ours to do."""
        if sock.family not in RECORDS or not isinstance(address, tuple) or len(address) < 2:
            return None
        host, port = text_of(address[0]), address[1]
        if not host or not isinstance(port, int) or not 0 <= port < 65536 or not self.takes(host):
            return None
        if sock.type == socket.SOCK_DGRAM:
            raise _no_datagrams(host)
        if sock.type != socket.SOCK_STREAM:
            return None
        if _is_connected(sock):
            raise OSError(errno.EISCONN, os.strerror(errno.EISCONN))
        return host.removeprefix(MAPPED), port

    def takes(self, host: str) -> bool:
        """Whether a name or address is the tailnet's. What was, stays so when the device has been closed."""
        if not self._is_asked or "%" in host:  # a zone is of this machine's links
            return False
        host = host.removeprefix(MAPPED)
        try:
            known = self.face.known_way(host)
            self._peers = self.face.peers
            return self._way_to(host)[0] if known is None else known
        except DeviceClosed:
            address = maybe_address(host)
            return is_tailscale_address(address) if address is not None else host in self._peers

    def _way_to(self, host: str) -> tuple[bool, str]:
        return self._thread.submit(lambda: self._thread.device.way_to(host)).wait()

    # Names

    def addresses_of(self, host: object, family: int, kind: int) -> list[str] | None:
        """The tailnet's addresses of a name that is the tailnet's: IPv4, or IPv6 where that is asked for or all it has.

        A peer has one of each and both lead there, so a program shall not try it twice.
        """
        name = text_of(host)
        if not is_name(host) or not self.takes(name):
            return None
        if kind == socket.SOCK_DGRAM:
            raise _no_datagrams(name)
        with self._while_open():
            return self._thread.submit(lambda: _look_up(self._thread.device, name, family)).wait()

    def nor_here(self, host: object) -> NameNotFound | None:
        """The error for a name that this machine does not know either, where a peer has one like it."""
        name = text_of(host)
        return nor_here(name, self._peers) if name and self._is_asked else None

    # Connections

    def connect(self, connect: Connect, sock: socket.socket, place: Place) -> None:
        """Give a socket to the device; `connect` is the kernel's. Raises what the dial raised."""
        if sock.gettimeout() == 0:
            self._connect_behind(connect, sock, place)
            return
        dial = self._dial(sock, place)
        with self._while_open():
            dialled = self._thread.submit(dial, self._discard).wait()
            with self._joining(sock, dialled) as door:
                connect(sock, door.address)

    async def connect_in_loop(
        self, connect: Callable[[Any], Awaitable[object]], sock: socket.socket, place: Place
    ) -> None:
        """The same in an asyncio loop; `connect` is that loop's."""
        dial = self._dial(sock, place)
        with self._while_open():
            dialled = await finished(self._thread.submit(dial, self._discard))
            with self._joining(sock, dialled) as door:
                await connect(door.address)

    def _connect_behind(self, connect: Connect, sock: socket.socket, place: Place) -> None:
        """For who does not wait: connected to us at once, and reset if the dial fails, which is then in the log."""
        dial = self._dial(sock, place)
        waits: BlockingIOError | None = None
        with self._while_open(), Door(sock.family) as door:
            try:
                connect(sock, door.address)
            except BlockingIOError as in_progress:
                waits = in_progress
            ours, peer = door.admit(sock.getsockname()), sock.getpeername()
            self._hand_over(ours, partial(self._dial_and_carry, dial, ours, place, peer))
        if waits is not None:
            raise waits

    def _dial(self, sock: socket.socket, place: Place) -> Callable[[], Awaitable[Dialled]]:
        timeout, local_port, keepalive = sock.gettimeout() or None, _local_port(sock), keepalive_of(sock)

        async def dial() -> Dialled:
            stream = await self._thread.device.tcp_connect(*place, timeout=timeout, local_port=local_port)
            if keepalive[0] is not None:
                stream.set_keepalive(*keepalive)
            return stream, far_end(self._thread, stream)

        return dial

    def _discard(self, dialled: Dialled) -> None:
        with contextlib.suppress(DeviceClosed):
            self._thread.call_soon(dialled[0].abort)

    @contextlib.contextmanager
    def _while_open(self) -> Iterator[None]:
        """A device that has been closed takes these dials still: they shall not go by another way unnoticed."""
        try:
            yield
        except DeviceClosed as closed:
            raise NotCarried(f"{self.name!r} takes this program's dials to its tailnet: {closed}") from None

    # Carrying

    @contextlib.contextmanager
    def _joining(self, sock: socket.socket, dialled: Dialled) -> Iterator[Door]:
        """A door that the block connects a socket to: from then on it is the near end of what was dialled."""
        try:
            with Door(sock.family) as door:
                yield door
                ours, peer = door.admit(sock.getsockname()), sock.getpeername()
                self._ends[peer] = dialled[1]
                self._hand_over(ours, partial(self._carry, ours, *dialled, peer))
        except BaseException:
            self._discard(dialled)
            raise

    def _hand_over(self, ours: socket.socket, carry: Callable[[], Awaitable[None]]) -> None:
        try:
            self._thread.call_soon(self._spawn, ours, carry)
        except BaseException:
            ours.close()
            raise

    def _spawn(self, ours: socket.socket, carry: Callable[[], Awaitable[None]]) -> None:
        """In the loop, where nobody hears of an error."""
        try:
            self._thread.spawn(carry)
        except DeviceClosed:
            LocalStream(ours).abort()

    async def _carry(self, ours: socket.socket, stream: TcpStream, far: FarEnd, peer: object) -> None:
        try:
            with contextlib.suppress(*LOST):  # told to both sides
                await self._thread.run_splice(Splice(LocalStream(ours), stream))
        finally:
            if self._ends.get(peer) is far:
                del self._ends[peer]

    async def _dial_and_carry(
        self, dial: Callable[[], Awaitable[Dialled]], ours: socket.socket, place: Place, peer: object
    ) -> None:
        try:
            dialled = await dial()
        except UNREACHED as problem:
            log.warning("a socket that did not wait is reset, %s port %s could not be reached: %s", *place, problem)
            LocalStream(ours).abort()
            return
        except BaseException:
            LocalStream(ours).abort()
            raise
        self._ends[peer] = dialled[1]
        await self._carry(ours, *dialled, peer)

    @property
    def are_carried(self) -> bool:
        """Whether some connection is open."""
        return bool(self._ends)

    def far_end_of(self, peer: object) -> FarEnd | None:
        """What a loopback address that some socket is connected to stands for."""
        return self._ends.get(peer)


async def _look_up(device: Device, name: str, family: int) -> list[str]:
    _, destination = await device.way_to(name)
    if maybe_address(destination) is not None:
        return [destination]
    for kind in RECORDS.get(socket.AddressFamily(family), ("A", "AAAA")):
        found = await device.resolve_all(name, kind)
        if found:
            return found
    raise socket.gaierror(socket.EAI_NONAME, f"{name} has no address of that family in the tailnet")


def text_of(host: object) -> str:
    """As `socket` takes hosts; "" for what is none of ours."""
    if isinstance(host, bytes | bytearray):
        return host.decode("ascii", "replace")
    return clean_name(host) if isinstance(host, str) else ""


def is_name(host: object) -> bool:
    """Whether somebody has to be asked what address it is."""
    text = text_of(host)
    return bool(text) and maybe_address(text) is None


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _local_port(sock: socket.socket) -> int:
    """The port that the program has chosen, 0 for none."""
    try:
        host, port = sock.getsockname()[:2]
    except OSError:  # Windows, of a socket that is not bound
        return 0
    if port and host.removeprefix(MAPPED) not in ("0.0.0.0", "::", "127.0.0.1", "::1"):
        raise NotCarried(f"a socket that is bound to {host} cannot be carried into the tailnet: bind it to a port only")
    return int(port)


def _no_datagrams(host: str) -> NotCarried:
    return NotCarried(f"datagrams to {host} are not carried by take_dials: use device.udp()")
