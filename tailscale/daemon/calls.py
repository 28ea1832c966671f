"""Commands that run inside the daemon for a light client: what they print and read goes over its connection.

The one seam by which every verb of the command line works through the daemon. `Run` is handed in from above: it parses
the words of a `Call` and runs the same function that the command line would run, with the daemon's Device. What a
command writes without waiting is kept up to a bound; a client that goes away, or sends a signal, cancels the command.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import trio

from tailscale.daemon import frames
from tailscale.daemon.door import Changed
from tailscale.errors import TailscaleError
from ts_base.errors import BadPacket

log = logging.getLogger("tailscale.daemon")
OUTPUT_LIMIT = 32 << 20  # waiting for a client that does not read; more than any one thing a command prints
INPUT_PIECES = 2  # asked for one at a time
FILE_ANSWERS = 3  # to its opening, to what did not fit, to its end
CALL_TIMEOUT = 10.0
CALLS_LIMIT = 64
CHUNK = 64 << 10
INTERRUPTED = 130  # a client that sent a signal knows better which


class Terminal(NamedTuple):
    """What is known of the place where one of a command's outputs is read."""

    wants_style: bool
    encoding: str


class ReaderStopped(TailscaleError):
    """Somebody who asked for output does not read it."""


class Call:
    """One command of a light client."""

    def __init__(self, argv: list[str], where: dict[str, Any], send: Callable[[bytes], Awaitable[None]]) -> None:
        self.argv = argv
        self.cwd = _text(where, "cwd", "/")
        self.out, self.err = _terminal(where.get("out")), _terminal(where.get("err"))
        self.is_input_terminal = where.get("is_input_terminal") is True
        columns = where.get("columns")
        self.columns = columns if type(columns) is int and 0 < columns < 10_000 else 80
        self._send = send
        self._waiting = bytearray()
        self._news = trio.Event()
        self._drained = trio.Condition()
        self._input_in, self._input_out = trio.open_memory_channel[bytes](INPUT_PIECES)
        self._ended_in, self._ended_out = trio.open_memory_channel[int](1)
        self._filed_in, self._filed_out = trio.open_memory_channel[dict[str, Any]](FILE_ANSWERS)
        self._reading = trio.Lock()
        self._has_ended = False

    # What a command does

    def write(self, kind: bytes, data: bytes) -> None:
        """To `frames.OUT` or `frames.ERR`, at once; it leaves when the client reads."""
        if len(self._waiting) > OUTPUT_LIMIT:
            raise ReaderStopped("the output is not read: the command was ended")
        self._waiting += frames.frames(kind, data)
        self._news.set()

    async def drain(self) -> None:
        """Wait until all that was written has left: for what carries bytes in bulk."""
        async with self._drained:
            while self._waiting:
                await self._drained.wait()

    async def read(self) -> bytes:
        """The next piece of the client's standard input; b"" at the end."""
        async with self._reading:
            if self._has_ended:
                await trio.lowlevel.checkpoint()
                return b""
            self._put(frames.WANT_INPUT)
            data = await self._input_out.receive()
            self._has_ended = not data
            return data

    async def run_program(self, argv: list[str], environment: dict[str, str]) -> int:
        """Have the client run a program, in its own terminal, folder and environment with `environment` added."""
        self._put(frames.PROGRAM, json.dumps({"argv": argv, "environment": environment}).encode())
        return await self._ended_out.receive()

    @asynccontextmanager
    async def file(self, path: Path, mode: int = 0o600) -> AsyncIterator[FileThere]:
        """A file that the client writes, for whoever typed the command. It gets its name when the block is left, if
        anything was written, and all of it; however the block is left.
        """
        self._put(frames.FILE, os.fsencode(path) + (b"" if mode == 0o600 else b"\0%o" % mode))
        file = FileThere(self, path)
        await file.answered()
        try:
            yield file
        finally:
            with trio.move_on_after(CALL_TIMEOUT, shield=True):
                if file.is_worth_keeping:
                    self._put(frames.WHOLE)
                    await file.answered()
                else:
                    self._put(frames.ABANDON)

    def _put(self, kind: bytes, payload: bytes = b"") -> None:
        self._waiting += frames.frame(kind, payload)
        self._news.set()

    async def hear_of_file(self) -> dict[str, Any]:
        """The client's answer; none of one that is gone."""
        try:
            return await self._filed_out.receive()
        except trio.EndOfChannel:
            return {}

    def has_file_failed(self) -> dict[str, Any] | None:
        """What the client said about the file without being asked."""
        with suppress(trio.WouldBlock, trio.EndOfChannel):
            return self._filed_out.receive_nowait()
        return None

    # What the connection does

    def hear_ended(self, payload: bytes) -> None:
        """A program of the client's has ended; its exit code in one byte."""
        with suppress(trio.WouldBlock):
            self._ended_in.send_nowait(payload[0] if payload else 0)

    def hear_no_more(self) -> None:
        """It is gone."""
        self._filed_in.close()

    def hear_filed_untrusted(self, payload: bytes) -> None:
        try:
            told = json.loads(payload)
        except (ValueError, RecursionError):
            raise BadPacket("an answer about a file that is not JSON") from None
        with suppress(trio.WouldBlock):  # more than anybody asked
            self._filed_in.send_nowait(told if isinstance(told, dict) else {})

    def hear_input(self, data: bytes) -> None:
        with suppress(trio.WouldBlock):  # more than was asked for
            self._input_in.send_nowait(data)

    async def run_writer(self) -> None:
        """Also while the command that was cancelled says its last words."""
        while True:
            await self._news.wait()
            self._news = trio.Event()
            while self._waiting:
                data, self._waiting = bytes(self._waiting), bytearray()
                with suppress(trio.BrokenResourceError):  # who listens to the client hears that too
                    await self._send(data)
            async with self._drained:
                self._drained.notify_all()

    async def end(self, kind: bytes, payload: bytes) -> None:
        await self._send(bytes(self._waiting) + frames.frame(kind, payload))


class FileThere:
    """A file at the client."""

    def __init__(self, call: Call, path: Path) -> None:
        self._call = call
        self._path = path
        self._has_failed = False
        self._is_empty = True

    @property
    def is_worth_keeping(self) -> bool:
        return not (self._has_failed or self._is_empty)

    async def send(self, data: bytes) -> None:
        """Returns when it has left. OSError where an earlier piece could not be written."""
        if (told := self._call.has_file_failed()) is not None:
            self._check(told)
        self._is_empty = False
        self._call.write(frames.DATA, data)
        await self._call.drain()

    async def answered(self) -> None:
        self._check(await self._call.hear_of_file())

    def _check(self, told: dict[str, Any]) -> None:
        problem = told.get("problem")
        if isinstance(problem, str):
            self._has_failed = True
            code = told.get("errno")
            raise OSError(code, problem, str(self._path)) if type(code) is int else ValueError(problem)


Run = Callable[[Call], Awaitable["int | None"]]
"""Runs a command and gives its exit code; None where it is not for this daemon."""


def _terminal(told: object) -> Terminal:
    known = told if isinstance(told, dict) else {}
    return Terminal(known.get("wants_style") is True, _text(known, "encoding", "utf-8"))


def _text(told: dict[str, Any], name: str, otherwise: str) -> str:
    value = told.get(name)
    return value if isinstance(value, str) else otherwise


class Calls:
    """The commands under way."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._places = trio.CapacityLimiter(CALLS_LIMIT)

    @property
    def under_way(self) -> int:
        return int(self._places.borrowed_tokens)

    async def serve(self, changed: Changed) -> None:
        """One connection, from its upgrade to its end."""
        if self._places.available_tokens < 1:
            raise TailscaleError(f"{CALLS_LIMIT} commands run already")
        async with self._places:
            await changed.switch({})
            incoming = _Incoming(changed)
            with trio.move_on_after(CALL_TIMEOUT):
                kind, payload = await incoming.next()
                if kind == frames.CALL:
                    call = read_call_untrusted(payload, changed.stream.send_all)
            if kind == frames.CALL:
                await self._carry(call, incoming)

    async def _carry(self, call: Call, incoming: _Incoming) -> None:
        code: int | None = INTERRUPTED
        command, writing, listening = trio.CancelScope(), trio.CancelScope(shield=True), trio.CancelScope(shield=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_within, writing, call.run_writer)
            nursery.start_soon(_within, listening, _listen, call, incoming, command)
            try:
                with command:
                    code = await self._run(call)
                    await call.drain()
                with trio.move_on_after(CALL_TIMEOUT):
                    await call.drain()
            finally:
                writing.cancel()
                listening.cancel()
        with trio.move_on_after(CALL_TIMEOUT):
            if code is None:
                await call.end(frames.DECLINED, b"")
            else:
                await call.end(frames.EXIT, json.dumps({"code": code}).encode())


async def _within(scope: trio.CancelScope, run: Callable[..., Awaitable[None]], *arguments: Any) -> None:
    """A shielded one lets the command end properly when the whole daemon does."""
    with scope:
        await run(*arguments)


async def _listen(call: Call, incoming: _Incoming, command: trio.CancelScope) -> None:
    """Pass input on; a signal, and the end of the connection, end the command."""
    try:
        while True:
            kind, payload = await incoming.next()
            if kind == frames.INPUT:
                call.hear_input(payload)
            elif kind == frames.ENDED:
                call.hear_ended(payload)
            elif kind == frames.FILED:
                call.hear_filed_untrusted(payload)
            elif kind == frames.SIGNAL:
                command.cancel()
    except (trio.BrokenResourceError, trio.EndOfChannel, BadPacket) as gone:
        log.debug("a client is gone: %r", gone)
    call.hear_no_more()
    command.cancel()


class _Incoming:
    """Frames of one client."""

    def __init__(self, changed: Changed) -> None:
        self._stream = changed.stream
        self._frames = frames.Frames()
        self._ready = self._frames.take_untrusted(changed.first)
        self._ready.reverse()

    async def next(self) -> tuple[bytes, bytes]:
        while not self._ready:
            data = await self._stream.receive_some(CHUNK)
            if not data:
                raise trio.EndOfChannel
            self._ready = self._frames.take_untrusted(bytes(data))
            self._ready.reverse()
        return self._ready.pop()


def read_call_untrusted(payload: bytes, send: Callable[[Any], Awaitable[None]]) -> Call:
    try:
        told = json.loads(payload)
    except (ValueError, RecursionError):
        raise BadPacket("a call that is not JSON") from None
    argv = told.get("argv") if isinstance(told, dict) else None
    if not isinstance(argv, list) or not all(isinstance(word, str) for word in argv):
        raise BadPacket("a call without words")
    return Call(argv, told, send)
