"""From the first byte to the last: what one proxy carries, how much, and until when.

Owns the connections that are being carried, their count and their end. How bytes are carried is `tailscale/carry.py`.
"""

from __future__ import annotations

import trio

from tailscale.carry import LOST, Carried, Splice, Stream, reset
from tailscale.proxy.ends import local_address

LOOKS_PER_IDLE = 8  # how often within `limits.idle` it is looked who has carried nothing
LINGER = 1.0
LINGER_BYTES = 1 << 20


class _Session:
    """One connection that is carried."""

    __slots__ = ("before", "carried", "early", "is_idle", "scope", "since")

    def __init__(self, now: float) -> None:
        self.carried = Carried()
        self.early = 0  # bytes sent before it began
        self.scope = trio.CancelScope()
        self.since = now
        self.before = 0  # bytes, at `since`
        self.is_idle = False


class Relay:
    """All that one proxy carries."""

    def __init__(self, idle: float) -> None:
        self._idle = idle
        self._sessions: set[_Session] = set()
        self._dialled: set[tuple[str, int] | None] = set()
        self._sent = self._received = 0  # by those that have ended
        self.timed_out = 0

    @property
    def open(self) -> int:
        return len(self._sessions)

    @property
    def sent(self) -> int:
        """Bytes towards the destinations."""
        return self._sent + sum(one.early + one.carried.sent for one in tuple(self._sessions))

    @property
    def received(self) -> int:
        return self._received + sum(one.carried.received for one in tuple(self._sessions))

    def count(self, *, sent: int = 0, received: int = 0) -> None:
        """Bytes that others have carried."""
        self._sent += sent
        self._received += received

    def has_dialled(self, address: tuple[str, int]) -> bool:
        """Whether that is our end of a connection that is carried: who comes from there comes from ourselves."""
        return address in self._dialled

    async def carry(self, near: Stream, far: Stream, early: bytes = b"") -> None:
        """Until both sides are done. `early` is what the client has sent already. Errors are of `LOST`."""
        session = _Session(trio.current_time())
        self._sessions.add(session)
        here = local_address(far)
        self._dialled.add(here)
        try:
            with session.scope:
                if early:
                    await _send_early(near, far, early)
                    session.early = len(early)
                await Splice(near, far, session.carried).run()
        finally:
            self._sessions.discard(session)
            self._dialled.discard(here)
            self.count(sent=session.early + session.carried.sent, received=session.carried.received)

    async def end_the_idle(self) -> None:
        """Runs until cancelled. One task for all, so that an idle connection costs no timer of its own."""
        while True:
            await trio.sleep(self._idle / LOOKS_PER_IDLE)
            now = trio.current_time()
            for session in self._sessions:
                bytes_now = session.carried.sent + session.carried.received
                if bytes_now != session.before:
                    session.before, session.since = bytes_now, now
                elif now - session.since >= self._idle and not session.is_idle:
                    session.is_idle = True
                    self.timed_out += 1
                    session.scope.cancel()


async def _send_early(near: Stream, far: Stream, early: bytes) -> None:
    """What came ahead leaves first; a way that breaks meanwhile breaks both sides, as it does later."""
    try:
        await far.send_all(early)
    except BaseException:
        await reset(far)
        await reset(near)
        raise


async def say_goodbye(stream: Stream) -> None:
    """Close so that the last answer arrives: what the client still sends is read away first, up to a point."""
    with trio.move_on_after(LINGER):
        try:
            await stream.send_eof()
            left = LINGER_BYTES
            while left > 0 and (data := await stream.receive_some(LINGER_BYTES)):
                left -= len(data)
        except LOST:
            return
