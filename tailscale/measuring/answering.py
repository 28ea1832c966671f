"""The other end of a measurement, as every device with a peer API is: it sends, takes or gives back meaningless bytes.

Who may have it is a node of our own user, or whom the policy grants `CAPABILITY`: it costs this machine's line and
processor. Owns how many there are at once and how long each lasts.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from tailscale.peerapi.callers import PeerCaller
    from tailscale.peerapi.request import PeerRequest

PATH = "/v0/pytailscale/measure"
CAPABILITY = "pytailscale.dev/cap/measure"
DOWN, UP, ECHO = "down", "up", "echo"
LONGEST = 60.0  # seconds of one stream
GRACE = 10.0  # for what is still on its way
MOST_STREAMS = 32
MOST_OF_ONE = 17  # 16 streams, and one whose round trips are measured beside them
PIECE = bytes(256 << 10)
ECHO_SIZE = 4 << 10
COUNT = 8  # bytes in which the other side is told how much came


class Span:
    """So many seconds from now on. Under a mock clock, which may stand still for ever, no more real ones either."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began, self._really = trio.current_time(), time.monotonic()

    @property
    def is_over(self) -> bool:
        return trio.current_time() - self._began >= self._seconds or time.monotonic() - self._really >= self._seconds

    @property
    def took(self) -> float:
        """So far; never nothing."""
        return trio.current_time() - self._began or time.monotonic() - self._really or self._seconds


class Measured:
    """The requests of one device's peers."""

    def __init__(self, drops: Counter[str]) -> None:
        self._running: Counter[int] = Counter()
        self._drops = drops

    def may_ask(self, caller: PeerCaller) -> bool:
        return not caller.is_unsigned and (caller.is_same_user or CAPABILITY in caller.capabilities)

    async def __call__(self, request: PeerRequest) -> None:
        caller = request.caller.node.id
        way, seconds = request.parameter("way"), _seconds(request.parameter("seconds"))
        if request.method != "POST":
            await request.answer(405, "only POST\n", headers=[("allow", "POST")])
        elif not self.may_ask(request.caller):
            await request.answer(403, f"the policy grants {CAPABILITY} to nobody of yours\n")
        elif way not in (DOWN, UP, ECHO) or seconds is None:
            await request.answer(400, "way= is down, up or echo, and seconds= a number up to 60\n")
        elif self._running[caller] >= MOST_OF_ONE or self._running.total() >= MOST_STREAMS:
            self._drops["peerapi.measurements_full"] += 1
            await request.answer(503, "this node measures with others already\n")
        else:
            self._running[caller] += 1
            try:
                with trio.move_on_after(seconds + GRACE):
                    await _exchange(await request.take_over(), way, seconds)
            finally:
                self._running[caller] -= 1
                if not self._running[caller]:
                    del self._running[caller]


async def _exchange(stream: trio.abc.HalfCloseableStream, way: str, seconds: float) -> None:
    if way == ECHO:
        while data := await stream.receive_some(ECHO_SIZE):
            await stream.send_all(data)
    elif way == UP:
        count = 0
        while data := await stream.receive_some(len(PIECE)):
            count += len(data)
        await stream.send_all(count.to_bytes(COUNT, "big"))
    else:
        span = Span(seconds)
        while not span.is_over:
            await stream.send_all(PIECE)
    await stream.send_eof()
    await stream.receive_some(1)  # the other side closes first: it has all


def _seconds(text: str) -> float | None:
    """None for what is no such number."""
    if not text.isascii() or not text.replace(".", "", 1).isdigit() or len(text) > 8:
        return None
    seconds = float(text)
    return seconds if 0 < seconds <= LONGEST else None
