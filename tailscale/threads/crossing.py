"""One connection of the stack whose user lives in another thread: bytes cross by two queues, and one wake per burst.

Owns both queues, their bounds, and how an end, an error and a close cross. What is *inside* runs in the device's loop,
what is *outside* in the program's thread, and each method says which. Refuses to know how the outside waits: asyncio's
transports and blocking sockets tell it by `begin`.
"""

# How it works
#
#   inside: the stack says `wake`              outside: the program's loop or thread
#      connection.read --> arrived -----------------> reads (used), and asks for more where `is_stalled`
#      connection.write <- leaving <----------------- writes (written)
#
# There is no lock. A deque is appended to by one side and popped by the other; a counter or flag is written by one
# side. Two flags are written by both, each as a bell: who has put something there rings unless the bell is ringing
# (`is_told`, `is_asked`), and who hears it stops it before looking. So what was put there before a bell that rang
# already is seen by the look that follows it, and a burst rings once, however many pieces it has.
#
# Where one side stops for want of room it says so and looks once more, or the other side could have made room just
# before and would never say so: `is_stalled` inside, `wants_room` outside.

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from tailscale.errors import ConnectionReset, DeviceClosed
from tailscale.local_callers import CALLERS, Caller
from tailscale.sockets.socket_device import readable_address
from tailscale.sockets.tcp import TcpStream, broken

if TYPE_CHECKING:
    from tailscale.sockets.socket_device import SocketDevice
    from tailscale.threads.loop_thread import LoopThread
    from ts_netstack.tcp import TcpConnection

MOST_ARRIVED = 1 << 20  # bytes taken out of the connection and not used yet; what is beyond closes the peer's window
CHUNK = 256 << 10


class Crossing:
    """The owner of a connection, from `take` until it is closed. Outside one at a time reads, and one writes."""

    __slots__ = (
        *("accepted", "arrived", "given", "has_ended", "is_asked", "is_stalled", "is_told", "leaving", "local"),
        *("problem", "remote", "used", "wants_room", "written"),
        *("_caller", "_connection", "_device", "_is_finishing", "_is_over", "_sent_eof", "_tell", "_thread"),
        *("_wants_abort", "_wants_close", "_wants_eof"),
    )

    def __init__(self, connection: TcpConnection, device: SocketDevice, thread: LoopThread) -> None:
        self.local, self.remote = readable_address(connection.local), readable_address(connection.remote)
        # Written inside.
        self.arrived: deque[bytes] = deque()
        self.given = 0  # bytes ever put there
        self.has_ended = False  # the peer's end came, and all before it has been given
        self.is_stalled = False  # more is there than has been given
        self.problem: ConnectionReset | None = None
        self.accepted = 0  # bytes ever taken from `leaving`
        # Written outside.
        self.leaving: deque[bytes | memoryview] = deque()
        self.written = 0
        self.used = 0  # bytes ever taken from `arrived`
        self.wants_room = 0  # tell when no more than so many bytes are left to be taken; 0 is nobody
        self._wants_eof = self._wants_close = self._wants_abort = False
        # The two bells. The first rings from the beginning: who comes to hear it looks first.
        self.is_told, self.is_asked = True, False
        self._tell: Callable[[], object] = _nobody
        # Inside.
        self._connection, self._device, self._thread = connection, device, thread
        self._sent_eof = self._is_finishing = self._is_over = False
        self._caller: Caller | None = None
        thread.carry(self)

    @classmethod
    def take(cls, stream: TcpStream, thread: LoopThread) -> Crossing:
        """Of a stream that nobody has read from. Inside."""
        crossing = stream.hand_over(lambda connection, device: cls(connection, device, thread))
        crossing.wake()
        return crossing

    def stand_for(self, owner: object) -> None:
        """Who asks a device `owner` for the caller at these addresses is told, until this is closed. Inside."""
        self._caller = CALLERS.begin(owner, self.remote, self.local, self.remote)

    # Outside

    def begin(self, tell: Callable[[], object]) -> None:
        """From now on `tell` is called, inside, when something has changed; the caller looks once without."""
        self._tell = tell

    @property
    def unwritten(self) -> int:
        """Bytes that the connection has not taken yet."""
        return self.written - self.accepted

    def write(self, data: bytes) -> None:
        """To be sent, behind what was written before."""
        self.leaving.append(data)
        self.written += len(data)
        self._ask()

    def take_arrived(self) -> bytes:
        """The next piece; there must be one."""
        data = self.arrived.popleft()
        self.used += len(data)
        return data

    def put_back(self, rest: bytes) -> None:
        """What of a piece has not been used."""
        self.used -= len(rest)
        self.arrived.appendleft(rest)

    def ask_for_more(self) -> None:
        """To be called when some has been used."""
        if self.is_stalled and self.given - self.used <= MOST_ARRIVED // 2:
            self._ask()

    def write_eof(self) -> None:
        self._wants_eof = True
        self._ask()

    def close(self) -> None:
        """Send what was written, then end. Bytes that arrived and were not used make it a reset, as with sockets."""
        self._wants_close = True
        self._ask()

    def abort(self) -> None:
        """Reset it, and forget what was written."""
        self._wants_abort = True
        self._ask()

    def call(self, function: Callable[[TcpConnection], object]) -> None:
        """Set something of the connection."""

        def run() -> None:
            if not self._is_over:
                function(self._connection)
                self._device.kick()

        with contextlib.suppress(DeviceClosed):
            self._thread.call_soon(run)

    def _ask(self) -> None:
        if not self.is_asked:
            self.is_asked = True
            with contextlib.suppress(DeviceClosed):  # `shut` has said so
                self._thread.call_soon(self._on_asked)

    # Inside

    def wake(self) -> None:
        """The connection has changed, or is new."""
        if self._is_over:
            return
        self._bring_in()
        if self.leaving:
            self._bring_out()
        if self._connection.error is not None and self.problem is None:
            self.problem = broken(self._connection)
            self._ring()

    def _on_asked(self) -> None:
        self.is_asked = False
        if self._is_over:
            return
        if self._wants_abort:
            self._abort()
            return
        if self.is_stalled:
            self._bring_in()
        self._bring_out()

    def _bring_in(self) -> None:
        connection, given = self._connection, self.given
        while connection.unread:
            self.is_stalled = True
            if self.given - self.used >= MOST_ARRIVED:
                break
            data = connection.read(CHUNK)
            self.arrived.append(data)
            self.given += len(data)
        else:
            self.is_stalled = False
            if connection.at_eof and not self.has_ended:
                self.has_ended = True
                self._ring()
        if self.given != given:
            if connection.is_due:
                self._device.kick()  # the window has opened
            self._ring()

    def _bring_out(self) -> None:
        connection, leaving, accepted = self._connection, self.leaving, self.accepted
        if connection.error is not None:
            leaving.clear()  # it goes nowhere
        while leaving and not self._sent_eof:
            piece = leaving[0]
            taken = connection.write(piece)
            self.accepted += taken
            if taken < len(piece):
                if taken:
                    leaving[0] = memoryview(piece)[taken:]
                break
            leaving.popleft()
        is_due = self.accepted != accepted
        if not leaving and self._wants_eof and not self._sent_eof:
            self._sent_eof = is_due = True
            connection.send_eof(self._device.now())
        if not leaving and self._wants_close:
            self._close()
        elif is_due:
            self._device.kick()
        if (room := self.wants_room) and self.unwritten < room:
            self.wants_room = 0
            self._ring()

    def give_back(self) -> tuple[TcpStream, bytes, Caller | None]:
        """The stream again, what of it has been taken out already, and whom it stood for."""
        caller, self._caller = self._caller, None
        self._is_over = True
        self._thread.carried(self)
        return TcpStream(self._connection, self._device), b"".join(self.arrived), caller

    def finish(self) -> None:
        """The device is about to close: send what was written, then break it for the program."""
        self._is_finishing = self._wants_close = True
        self._bring_out()

    def shut(self) -> None:
        """The device ends. What would be cut off must not look whole to the peer."""
        if not self._is_over:
            self._abort()

    def _close(self) -> None:
        is_unread = self.given != self.used and not (self.has_ended and self._sent_eof) and not self._is_finishing
        if is_unread:
            self._connection.abort(self._device.now())
        else:
            self._connection.close(self._device.now())
        self._end()

    def _abort(self) -> None:
        self._connection.abort(self._device.now())
        self.leaving.clear()
        self._end()

    def _end(self) -> None:
        self._is_over = True
        self._device.kick()
        self._thread.carried(self)
        if self._caller is not None:
            CALLERS.end(self._caller)
        if self.problem is None:
            self.problem = ConnectionReset(f"the connection to {self.remote[0]} port {self.remote[1]} was closed here")
        self._ring()

    def _ring(self) -> None:
        if not self.is_told:
            self.is_told = True
            try:
                self._tell()
            except RuntimeError:  # the program's loop has been closed, and everything that used it
                self._tell = _nobody
                if not self._is_over:
                    self._abort()


def _nobody() -> None:
    """Nobody hears it yet, or any more."""
