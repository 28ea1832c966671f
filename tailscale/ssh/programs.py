"""What runs in sessions: the user's shell, or a handler under trio, asyncio or in a thread.

Owns who calls the handler, and what its end means: its exit code is what `session.exit` was told, else what it
returns, else 0, and 1 when it raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import asyncssh
import trio

from tailscale.ssh.admission import Admitted
from tailscale.ssh.loop import SshLoop
from tailscale.ssh.pipes import Pipe, Reader, SyncReader, SyncWriter, Writer
from tailscale.ssh.session import Session, SessionFacts, SyncSession, Terminal
from tailscale.ssh.shell import Account, SftpServer, run_shell

log = logging.getLogger("tailscale.ssh")
CHUNK = 64 << 10
HANDLER_FAILED = 1
Handler = Callable[[Any], Any]


class TrioWaiter:
    """Waits in the loop it is made in."""

    def __init__(self) -> None:
        self._event = trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    def set(self) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._event.set)

    def wait(self) -> Awaitable[object]:
        return self._event.wait()


class LoopWaiter:
    """Waits in the asyncio loop it is made in."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def set(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._event.set)

    def wait(self) -> Awaitable[object]:
        return self._event.wait()


class Call(Protocol):
    """Calls the handler where it belongs, from the loop that speaks SSH. Cancelled, so is the handler."""

    async def __call__(self, facts: tuple[Any, ...], streams: tuple[Pipe, Pipe, Pipe]) -> int: ...


class ShellProgram:
    """The shell, files and forwards of the user who runs this."""

    gives_shell = True

    def __init__(self, account: Account) -> None:
        self._account = account

    def sftp(self) -> Any:
        return SftpServer

    async def run(
        self, process: Any, who: Admitted, environment: Mapping[str, str], hang_up: list[Callable[[], None]]
    ) -> int:
        (remote, remote_port), (local, local_port) = who.remote, who.local
        of_connection = {
            "SSH_CLIENT": f"{remote} {remote_port} {local_port}",
            "SSH_CONNECTION": f"{remote} {remote_port} {local} {local_port}",
        }
        if (agent := process.channel.get_agent_path()) is not None:
            of_connection["SSH_AUTH_SOCK"] = agent
        return await run_shell(process, self._account, self._account.environment(environment) | of_connection, hang_up)


class HandlerProgram:
    """A function of the program's."""

    gives_shell = False

    def __init__(self, call: Call) -> None:
        self._call = call

    def sftp(self) -> Any:
        return None

    async def run(
        self, process: Any, who: Admitted, environment: Mapping[str, str], hang_up: list[Callable[[], None]]
    ) -> int:
        stdin, stdout = Pipe(), Pipe()
        terminal = None
        if process.term_type is not None:
            columns, rows, *_ = process.term_size
            terminal = Terminal(process.term_type, columns, rows)
        stderr = Pipe() if terminal is None else stdout
        outgoing = [asyncio.create_task(_carry(stdout, process.stdout))]
        if terminal is None:
            outgoing.append(asyncio.create_task(_carry(stderr, process.stderr)))
        feeding = asyncio.create_task(_feed(process, stdin, terminal))
        try:
            facts = (who.node, who.local_user, process.command, environment, terminal)
            code = await self._call(facts, (stdin, stdout, stderr))
            for pipe in (stdout, stderr):
                pipe.end()
            await asyncio.gather(*outgoing)
            return code
        finally:
            for pipe in (stdin, stdout, stderr):
                pipe.fail(BrokenPipeError("this session is over"))
            for task in (feeding, *outgoing):
                task.cancel()


async def _feed(process: Any, stdin: Pipe, terminal: Terminal | None) -> None:
    """What the client sends; a window that changes its size says so in between."""
    writer = Writer(stdin, LoopWaiter)
    with contextlib.suppress(OSError, asyncssh.Error):
        while True:
            try:
                data = await process.stdin.read(CHUNK)
            except asyncssh.TerminalSizeChanged as news:
                if terminal is not None:
                    terminal.columns, terminal.rows = news.width, news.height
                continue
            except (asyncssh.SignalReceived, asyncssh.BreakReceived):
                continue
            if not data:
                break
            await writer.send_all(data)
    stdin.end()


async def _carry(pipe: Pipe, sink: Any) -> None:
    reader = Reader(pipe, LoopWaiter)
    try:
        while data := await reader.receive_some(CHUNK):
            sink.write(data)
            await sink.drain()
    except (OSError, asyncssh.Error):
        pipe.fail(BrokenPipeError("the client has gone"))


def _code_of(session: SessionFacts, returned: object) -> int:
    if session.exit_code is not None:
        return session.exit_code
    return returned & 0xFF if isinstance(returned, int) and not isinstance(returned, bool) else 0


def _failed(problem: Exception, streams: tuple[Pipe, Pipe, Pipe]) -> int:
    if isinstance(problem, BrokenPipeError):
        return HANDLER_FAILED  # the client went while it was written to
    log.warning("the handler of a session failed", exc_info=problem)
    with contextlib.suppress(OSError):
        streams[2].put(b"the handler of this session failed\n")
    return HANDLER_FAILED


async def _call_async(handler: Handler, facts: tuple[Any, ...], streams: tuple[Pipe, Pipe, Pipe], waiter: Any) -> int:
    stdin, stdout, stderr = streams
    session = Session(*facts, stdin=Reader(stdin, waiter), stdout=Writer(stdout, waiter), stderr=Writer(stderr, waiter))
    try:
        return _code_of(session, await handler(session))
    except Exception as problem:
        return _failed(problem, streams)


def under_trio(handler: Handler, loop: SshLoop, nursery: trio.Nursery) -> Call:
    """The handler runs in the device's own loop."""

    async def call(facts: tuple[Any, ...], streams: tuple[Pipe, Pipe, Pipe]) -> int:
        return await loop.ask(nursery, _call_async, handler, facts, streams, TrioWaiter)

    return call


def under_asyncio(handler: Handler, home: asyncio.AbstractEventLoop) -> Call:
    """The handler runs in the program's loop."""

    async def call(facts: tuple[Any, ...], streams: tuple[Pipe, Pipe, Pipe]) -> int:
        work = _call_async(handler, facts, streams, LoopWaiter)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, home))

    return call


def in_threads(handler: Handler) -> Call:
    """The handler runs in a thread for each session; it ends when it next reads or writes after the client has gone."""

    async def call(facts: tuple[Any, ...], streams: tuple[Pipe, Pipe, Pipe]) -> int:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[int] = loop.create_future()
        stdin, stdout, stderr = streams
        session = SyncSession(*facts, stdin=SyncReader(stdin), stdout=SyncWriter(stdout), stderr=SyncWriter(stderr))

        def settle(code: int) -> None:
            if not answer.done():
                answer.set_result(code)

        def work() -> None:
            try:
                code = _code_of(session, handler(session))
            except Exception as problem:
                code = _failed(problem, streams)
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, code)

        threading.Thread(target=work, name="tailscale-ssh-session", daemon=True).start()
        return await answer

    return call
