"""A measurement, from our side: round trips alone, then streams that fill the path, with round trips beside them.

Owns the order and the clock. How a peer is reached is handed in (`Ways`). A peer that does not measure with us is
pinged, and the result says why there is no more.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import trio

from tailscale.errors import ConnectionReset, ConnectionTimedOut
from tailscale.measured import BenchResult, RoundTrips
from tailscale.measuring.answering import CAPABILITY, COUNT, DOWN, ECHO, GRACE, LONGEST, PATH, PIECE, UP, Span
from ts_base.errors import BadPacket
from ts_control.http1 import Http1Client, words_of

if TYPE_CHECKING:
    from tailscale.nodes import Node
    from tailscale.sockets.tcp import TcpStream
    from tailscale.status import PingResult
    from tailscale.uplinks import PathRecord, Uplink

Direction = Literal["up", "down", "both"]
PROBE = bytes(64)
ALONE = 1.0  # seconds of round trips with nothing beside them
MOST_TRIPS = 2000
PINGS, PING_PAUSE, PING_PATIENCE = 10, 0.1, 2.0
MOST_STREAMS = 16
ANSWER_PATIENCE = 10.0
READ_SIZE = 256 << 10


class Unwilling(Exception):
    """The peer does not measure with us."""


@dataclass(frozen=True, slots=True)
class Ways:
    """How the peer is reached, and what is known of the way."""

    node: Node
    peerapi: tuple[str, int] | None
    dial: Callable[[str, int], Awaitable[TcpStream]]
    ping: Callable[[], Awaitable[PingResult]]
    path: Callable[[], str]
    records: Callable[[], tuple[PathRecord, ...]]
    uplinks: Callable[[], tuple[Uplink, ...]]


class Measurement:
    """One. `tell` hears how far it has come: the phase, and the share of all that is done."""

    def __init__(
        self,
        ways: Ways,
        seconds: float,
        streams: int,
        direction: Direction,
        tell: Callable[[str, float], object],
    ) -> None:
        if not 0 < seconds <= LONGEST:
            raise ValueError(f"seconds= is more than 0 and at most {LONGEST:g}, not {seconds!r}")
        if type(streams) is not int or not 0 < streams <= MOST_STREAMS:
            raise ValueError(f"streams= is a number from 1 to {MOST_STREAMS}, not {streams!r}")
        if direction not in ("up", "down", "both"):
            raise ValueError(f'direction= is "up", "down" or "both", not {direction!r}')
        self._ways = ways
        self._seconds, self._streams = seconds, streams
        self._wanted = [way for way in (DOWN, UP) if direction in (way, "both")]
        self._tell = tell

    async def run(self) -> BenchResult:
        """Raises what a dial raises."""
        ways, began_cpu = self._ways, time.process_time()
        before = {uplink.name: uplink.bytes for uplink in ways.uplinks()}
        rates: dict[str, float] = {}
        loaded: list[float] = []
        why, lost = "", None
        try:
            idle = await self._alone()
            for number, way in enumerate(self._wanted):
                self._tell(way, (ALONE + number * self._seconds) / (ALONE + len(self._wanted) * self._seconds))
                rates[way] = await self._fill(way, loaded)
        except Unwilling as problem:
            why = str(problem)
            idle, lost = await self._pings()
        self._tell("", 1.0)
        records = ways.records()
        in_use = next((record for record in records if record.in_use), None)
        after = {uplink.name: uplink.bytes - before.get(uplink.name, 0) for uplink in ways.uplinks()}
        return BenchResult(
            peer=ways.node.hostname,
            path=ways.path(),
            seconds=self._seconds,
            streams=self._streams,
            up=rates.get(UP),
            down=rates.get(DOWN),
            idle=RoundTrips.of(idle),
            loaded=RoundTrips.of(loaded),
            loss=lost if lost is not None else in_use.loss if in_use is not None else 0.0,
            uplinks=after,
            cpu=time.process_time() - began_cpu,
            why=why,
        )

    # Its parts

    async def _alone(self) -> list[float]:
        self._tell("idle", 0.0)
        async with await self._open(ECHO, ALONE) as stream:
            return await _trips(stream, Span(ALONE))

    async def _fill(self, way: str, loaded: list[float]) -> float:
        """Bytes a second of all streams together."""
        counted: list[int] = []
        async with AsyncExitStack() as stack:
            beside, *streams = [
                await stack.enter_async_context(await self._open(each, self._seconds))
                for each in (ECHO, *[way] * self._streams)
            ]
            span = Span(self._seconds)

            async def measure_beside() -> None:
                loaded.extend(await _trips(beside, span))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(measure_beside)
                async with trio.open_nursery() as filling:
                    for stream in streams:
                        filling.start_soon(self._one, stream, way, span, counted)
                took = span.took
                nursery.cancel_scope.cancel()
        return sum(counted) / took

    async def _one(self, stream: TcpStream, way: str, span: Span, counted: list[int]) -> None:
        count = 0
        with trio.fail_after(self._seconds + GRACE):
            if way == DOWN:
                while data := await stream.receive_some(READ_SIZE):
                    count += len(data)
            else:
                while not span.is_over:
                    await stream.send_all(PIECE)
                await stream.send_eof()
                told = b""
                while len(told) < COUNT and (data := await stream.receive_some(COUNT)):
                    told += data
                count = int.from_bytes(told, "big")
        counted.append(count)

    async def _pings(self) -> tuple[list[float], float]:
        """Round trips of the path alone, and the share that was lost."""
        taken: list[float] = []
        for number in range(PINGS):
            self._tell("pings", number / PINGS)
            try:
                with trio.move_on_after(PING_PATIENCE):
                    taken.append((await self._ways.ping()).latency)
            except ConnectionTimedOut:
                continue
            await trio.sleep(PING_PAUSE)
        return taken, 1 - len(taken) / PINGS

    async def _open(self, way: str, seconds: float) -> TcpStream:
        """A connection that the peer has turned into this. Raises Unwilling, or what a dial raises."""
        node, place = self._ways.node, self._ways.peerapi
        if place is None:
            raise Unwilling(f"{node.hostname} does not measure with others: it has no peer API")
        host, port = place
        stream = await self._ways.dial(host, port)
        try:
            where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            http = Http1Client()
            headers = [("Host", where), ("Connection", "upgrade"), ("Upgrade", "measure"), ("Content-Length", "0")]
            await stream.send_all(http.request("POST", f"{PATH}?way={way}&seconds={seconds:.6g}", headers))
            with trio.fail_after(ANSWER_PATIENCE):
                while (reply := http.receive_untrusted(bytes(await stream.receive_some(READ_SIZE)))) is None:
                    pass
        except (BadPacket, ConnectionReset, trio.TooSlowError) as problem:
            stream.abort()
            raise Unwilling(
                f"{node.hostname} does not measure with others: its peer API says nothing of use"
            ) from problem
        except BaseException:
            stream.abort()
            raise
        if reply.status == 101:
            return stream
        stream.abort()
        if reply.status == 403:
            why = f"its policy grants us no {CAPABILITY}, and it is not of our user"
        elif reply.status == 404:
            why = "it is no pytailscale node, or one of before"
        else:
            why = f"it says {reply.status}{words_of(reply)}"
        raise Unwilling(f"{node.hostname} does not measure with us: {why}")


async def _trips(stream: TcpStream, span: Span) -> list[float]:
    """Round trips of a few bytes, one after the other."""
    taken: list[float] = []
    while len(taken) < MOST_TRIPS and not span.is_over:
        began, left = trio.current_time(), len(PROBE)
        await stream.send_all(PROBE)
        while left:
            data = await stream.receive_some(left)
            if not data:
                return taken
            left -= len(data)
        taken.append(trio.current_time() - began)
    return taken
