"""What programs set on a socket, as far as a connection of the tailnet has it; for those that have no kernel socket.

Owns which options mean something across the tailnet: Nagle, keep-alive, and lingering for no time, which is a reset.
All others are remembered and given back, as they would be by a socket over loopback, and change nothing.
"""

from __future__ import annotations

import socket
from struct import Struct
from typing import TYPE_CHECKING

from tailscale.threads.loopback import KEEPALIVE_OPTIONS, KEEPALIVE_TIMES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tailscale.threads.crossing import Crossing

Value = int | bytes | bytearray | memoryview
LINGER = (socket.SOL_SOCKET, socket.SO_LINGER)
NODELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY)
LINGERING = Struct("ii")  # is it on, seconds
INT = Struct("i")
USUAL = {NODELAY: 1, (socket.SOL_SOCKET, socket.SO_TYPE): int(socket.SOCK_STREAM)} | {
    (socket.IPPROTO_TCP, option): usual for option, usual in KEEPALIVE_TIMES if option is not None
}


class SocketOptions:
    """Those of one connection."""

    def __init__(self, crossing: Crossing) -> None:
        self._crossing = crossing
        self._values: dict[tuple[int, int], int | bytes] = {}

    @property
    def is_reset_by_closing(self) -> bool:
        """SO_LINGER is on, with no time."""
        value = self._values.get(LINGER)
        return isinstance(value, bytes) and len(value) == LINGERING.size and LINGERING.unpack(value) == (1, 0)

    def set(self, level: int, option: int, value: Value) -> None:
        """As `socket.setsockopt`."""
        key, number = (level, option), value if isinstance(value, int) else bytes(value)
        if isinstance(number, bytes) and len(number) == INT.size:
            (number,) = INT.unpack(number)
        self._values[key] = number
        if key == NODELAY:
            self._crossing.call(lambda connection: connection.set_nodelay(bool(number)))
        elif key in KEEPALIVE_OPTIONS:
            idle, interval, count = (self._number(one, usual) for one, usual in KEEPALIVE_TIMES)
            is_on = bool(self._values.get((socket.SOL_SOCKET, socket.SO_KEEPALIVE)))
            self.keep_alive(float(idle) if is_on else None, float(interval), count)

    def keep_alive(self, idle: float | None, interval: float, count: int) -> None:
        """Probe a silent peer across the tailnet."""
        self._crossing.call(lambda connection: connection.set_keepalive(idle, interval, count))

    def _number(self, option: int | None, usual: int) -> int:
        value = usual if option is None else self._values.get((socket.IPPROTO_TCP, option), usual)
        return value if isinstance(value, int) else usual

    def get(self, level: int, option: int, size: int = 0) -> int | bytes:
        """As `socket.getsockopt`."""
        value = self._values.get((level, option), USUAL.get((level, option), 0))
        if size:
            return (INT.pack(value) if isinstance(value, int) else value)[:size]
        return value

    def all_set(self) -> Iterable[tuple[tuple[int, int], int | bytes]]:
        """What was, for a real socket that takes the place of this."""
        return self._values.items()
