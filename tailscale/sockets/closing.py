"""How a socket of a device ends: closed by the program, with its device, or forgotten by the program.

Owns what the stack holds of a socket: whom to wake, and how to end it. The stack never holds the socket itself, so that
one which nobody else holds any more is noticed, warned of and ended, as Python's own sockets are.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from tailscale.sockets.socket_device import SocketDevice


class SocketOwner:
    """The stack's end of one socket. `waiters` are the tasks that wait on it."""

    __slots__ = ("_token", "device", "is_closed", "waiters")

    def __init__(self, device: SocketDevice) -> None:
        self.device = device
        self.is_closed = False
        self.waiters = trio.lowlevel.ParkingLot()
        self._token = trio.lowlevel.current_trio_token()

    def wake(self) -> None:
        """The stack says something changed."""
        self.waiters.unpark_all()

    def shut(self) -> None:
        """The device ends, and its sockets with it."""
        self.close()

    @trio.lowlevel.enable_ki_protection
    def close(self) -> None:
        """The program is done with it."""
        if not self.is_closed:
            self.is_closed = True
            self._end()
            self.device.kick()
            self.unpark_all()

    def unpark_all(self) -> None:
        self.waiters.unpark_all()

    def forget(self, socket: Closable[Any]) -> None:
        """The program lost its socket without closing it.

        The collector may call this in any thread and in the middle of anything, so only the loop itself ends it.
        """
        if self.is_closed or self._is_over():
            return
        name = repr(socket)
        try:
            self._token.run_sync_soon(self._drop)
        except trio.RunFinishedError:
            return  # the loop has ended, and the stack with it
        warnings.warn(f"unclosed {name}", ResourceWarning, stacklevel=3, source=socket)

    def _is_over(self) -> bool:
        """Whether nothing is left that would have to be ended."""
        return False

    def _drop(self) -> None:
        self.close()

    def _end(self) -> None:
        """Tell the stack."""
        raise NotImplementedError


H = TypeVar("H", bound=SocketOwner)


class Closable(trio.abc.AsyncResource, Generic[H]):
    """A socket, as far as it can be closed."""

    def __init__(self, owner: H) -> None:
        self._owner = owner

    async def aclose(self) -> None:
        """Close it; whoever waits on it hears so."""
        self._owner.close()
        await trio.lowlevel.checkpoint()

    def shut(self) -> None:
        """Close without being able to wait."""
        self._owner.close()

    def __del__(self) -> None:
        owner = getattr(self, "_owner", None)  # one that was never finished has none
        if owner is not None:
            owner.forget(self)
