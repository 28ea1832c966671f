"""One SSH connection in the thread that speaks SSH: who logs in, which sessions and forwards it opens, how they end.

Owns a connection's limits, and what the client reads when a session is ended for it. Whether somebody may come in is
decided in the device's loop (`admission.py`); what runs in a session is a `Program`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Protocol, cast

import asyncssh
import trio

from tailscale.ssh.admission import Admission, Admitted, Refused
from tailscale.ssh.forwards import Inward, Listening, is_own_place
from tailscale.ssh.host_keys import HostKey
from tailscale.ssh.loop import SshLoop
from ts_control.ssh_policy import SSHAction, accepted_environment

log = logging.getLogger("tailscale.ssh")
VERSION = "Tailscale"  # some clients know by it how to behave
PASSWORD_SUFFIX = "+password"  # noqa: S105 - a wish of clients that cannot do without: any password will do
SESSIONS_LIMIT, FORWARDS_LIMIT, LISTENERS_LIMIT = 32, 128, 16  # of one connection
SSH_FAILED = 255
# RFC 4253, 7.1: of what the client offers the first that we have is used. Most begin with chacha20-poly1305; it costs
# four times as much here; all of them have one of these as well. WireGuard keeps the bytes from everybody else anyway.
CIPHERS = ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr"]
SFTP_VERSION = 3
TIMEOUT = "Session timeout of the tailnet's policy reached."
END_PATIENCE = 5.0  # for a handler that is cancelled
FAREWELL = 2.0
NANOSECONDS = 1e9

SESSIONS_FULL, FORWARDS_FULL = "ssh.sessions_full", "ssh.forwards_full"
LOGIN_REFUSED = "ssh.login_refused"


class Program(Protocol):
    """What runs in sessions."""

    gives_shell: bool
    """Then files and forwards are given as well."""

    def sftp(self) -> Any:
        """The server of files, for a channel; None where there are none."""

    async def run(
        self, process: Any, who: Admitted, environment: Mapping[str, str], hang_up: list[Callable[[], None]]
    ) -> int:
        """One session; its exit code."""


class Connection(asyncssh.SSHServer):
    """What asyncssh asks of us."""

    def __init__(
        self, loop: SshLoop, nursery: trio.Nursery, admission: Admission, program: Program, drops: Counter[str]
    ) -> None:
        self._loop, self._nursery = loop, nursery
        self._admission = admission
        self._program = program
        self._drops = drops
        self._conn: Any = None
        self._asking: asyncio.Task[Any] | None = None
        self._forwards = self._listeners = 0
        self._ending = ""
        self.who: Admitted | None = None
        self.has_begun = self.has_logged_in = False
        self.is_decided = trio.Event()  # set in the device's loop
        self.sessions: dict[Any, OneSession] = {}

    # Logging in

    def connection_made(self, conn: Any) -> None:
        self._conn = conn

    def connection_lost(self, exc: Exception | None) -> None:
        if self._asking is not None:
            self._asking.cancel()

    async def begin_auth(self, username: str) -> bool:
        """Whether a password is to be asked for; that only clients want which cannot log in with none."""
        self.has_begun = True
        if self.who is not None:
            return False
        user = username.removesuffix(PASSWORD_SUFFIX)
        asking = asyncio.ensure_future(self._loop.ask(self._nursery, self._admission.admit, user, self._say_later))
        self._asking = asking
        try:
            self.who = await asking
        except Refused as refusal:
            self._refuse(str(refusal))
        except asyncio.CancelledError:
            raise asyncssh.ConnectionLost("the connection ended before the login was decided") from None
        finally:
            self._loop.tell(self.is_decided.set)
        return user != username

    def auth_completed(self) -> None:
        self.has_logged_in = True

    def _refuse(self, why: str) -> None:
        self._drops[LOGIN_REFUSED] += 1
        self._say(f"tailscale: {why}\n")
        raise asyncssh.PermissionDenied("the tailnet's policy decides")

    def _say_later(self, text: str) -> None:
        self._loop.call_soon(self._say, text)

    def _say(self, text: str) -> None:
        with contextlib.suppress(asyncssh.Error, OSError):
            self._conn.send_auth_banner(text)

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return self.who is not None

    def kbdint_auth_supported(self) -> bool:
        return False

    # What is opened

    def session_requested(self) -> Any:
        if self.who is None or self._ending:
            return False
        if len(self.sessions) >= SESSIONS_LIMIT:
            self._drops[SESSIONS_FULL] += 1
            return False
        process = Process(self._start, self._program.sftp(), SFTP_VERSION, False)
        one = OneSession(self, process, self.who)
        self.sessions[process] = one
        process.on_end = one.forget
        return process

    async def _start(self, process: Any) -> None:
        await self.sessions[process].run(self._program)

    def environment(self, asked: Mapping[str, str]) -> dict[str, str]:
        assert self.who is not None
        return accepted_environment(asked, self.who.accept_env, policy_counts=True)

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Any:
        connect = asyncio.get_running_loop().create_connection
        return self._forward().dial(connect, dest_host, dest_port)

    def unix_connection_requested(self, dest_path: str) -> Any:
        if not is_own_place(dest_path):
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "not a place of this user's")
        return self._forward().dial(asyncio.get_running_loop().create_unix_connection, dest_path)

    def _forward(self) -> Inward:
        if not self._may(lambda action: action.allow_local_port_forwarding):
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "forwarding is not allowed here")
        if self._forwards >= FORWARDS_LIMIT:
            self._drops[FORWARDS_FULL] += 1
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, "too many forwarded connections")
        self._forwards += 1
        return Inward(self._end_forward)

    def _end_forward(self) -> None:
        self._forwards -= 1

    def server_requested(self, listen_host: str, listen_port: int) -> Any:
        where = listen_host, listen_port
        return self._listen(partial(self._conn.forward_local_port, *where, *where))

    def unix_server_requested(self, listen_path: str) -> Any:
        if not is_own_place(listen_path) or os.path.lexists(listen_path):  # asyncio would take another's place
            return False
        return self._listen(partial(self._conn.forward_local_path, listen_path, listen_path), listen_path)

    def _listen(self, listen: Callable[[], Awaitable[Any]], path: str = "") -> Any:
        if not self._may(lambda action: action.allow_remote_port_forwarding):
            return False
        if self._listeners >= LISTENERS_LIMIT:
            self._drops[FORWARDS_FULL] += 1
            return False
        self._listeners += 1
        return Listening.begun(listen, self._end_listener, path)

    def _end_listener(self) -> None:
        self._listeners -= 1

    def may_forward_agent(self) -> bool:
        """Asked when a session wants it, which is after the login."""
        return self._may(lambda action: action.allow_agent_forwarding)

    def _may(self, allows: Callable[[SSHAction], bool]) -> bool:
        """What a shell could do as well is given with a shell alone, and where the policy says so."""
        return self.who is not None and not self._ending and self._program.gives_shell and allows(self.who.action)

    # The end

    def terminate(self, why: str) -> None:
        """End every session with a word about why, then the connection."""
        self._ending = why
        for one in list(self.sessions.values()):
            one.terminate(why)
        asyncio.ensure_future(self._close_soon())  # noqa: RUF006 - the loop of a connection outlives it

    async def _close_soon(self) -> None:
        running = [one.is_over.wait() for one in self.sessions.values()]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*running), END_PATIENCE)
        with contextlib.suppress(TimeoutError):  # a client leaves by itself once it has shown why
            await asyncio.wait_for(self._conn.wait_closed(), FAREWELL)
        self._conn.close()


class Process(asyncssh.SSHServerProcess[bytes]):
    """A session's channel: also one that asyncssh gives to its server of files, and not to `_start`."""

    on_end: Callable[[], object] = staticmethod(lambda: None)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.on_end()


class OneSession:
    """A session from its request to its exit code."""

    def __init__(self, connection: Connection, process: Any, who: Admitted) -> None:
        self._connection, self._process, self._who = connection, process, who
        self._task: asyncio.Future[int] | None = None
        self._hang_up: list[Callable[[], None]] = []
        self._why = ""
        self.is_over = asyncio.Event()

        self._timer: asyncio.TimerHandle | None = None
        if who.action.session_duration > 0:
            seconds = who.action.session_duration / NANOSECONDS
            self._timer = asyncio.get_running_loop().call_later(seconds, self.terminate, TIMEOUT)

    def forget(self) -> None:
        """Its channel is closed."""
        self.is_over.set()
        if self._timer is not None:
            self._timer.cancel()
        self._connection.sessions.pop(self._process, None)

    async def run(self, program: Program) -> None:
        process, who = self._process, self._who
        if process.subsystem is not None:
            process.stderr.write(f"no subsystem {process.subsystem!a} here\n".encode())
            process.exit(1)
            return
        environment = self._connection.environment(process.env)
        self._task = asyncio.ensure_future(program.run(process, who, environment, self._hang_up))
        if self._why:  # it was ended before it had begun
            self._end()
        closed = asyncio.ensure_future(process.channel.wait_closed())
        try:
            await asyncio.wait([self._task, closed], return_when=asyncio.FIRST_COMPLETED)
            if not self._task.done():  # nobody is there to see the rest
                self._end()
                await asyncio.wait([self._task], timeout=END_PATIENCE)
            self._leave()
        finally:
            closed.cancel()

    def _leave(self) -> None:
        """The exit code, by whatever way it came about."""
        task, process = self._task, self._process
        assert task is not None
        code = SSH_FAILED
        if self._why:
            process.stderr.write(f"\r\n\r\n{self._why}\r\n\r\n".encode())
        elif task.done() and not task.cancelled() and task.exception() is None:
            code = task.result()
        elif task.done() and not task.cancelled():
            log.warning("a session failed: %r", task.exception())
        with contextlib.suppress(asyncssh.Error, OSError):
            if code < 0:
                process.exit_with_signal(signal_name(-code))
            else:
                process.exit(code)

    def terminate(self, why: str) -> None:
        self._why = why
        self._end()

    def _end(self) -> None:
        for end in self._hang_up:
            end()
        if self._task is not None:
            self._task.cancel()
        elif self._process.subsystem is not None:  # files, which asyncssh serves; what has not begun ends when it does
            with contextlib.suppress(asyncssh.Error, OSError):
                self._process.channel.write_stderr(f"\r\n\r\n{self._why}\r\n\r\n".encode())
                self._process.channel.exit(SSH_FAILED)


def signal_name(number: int) -> str:
    """The name by which SSH knows a signal."""
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:
        return "TERM"


class Asked:
    """An answer that asyncssh takes when it begins, and looks at when it is needed."""

    def __init__(self, question: Callable[[], bool]) -> None:
        self._question = question

    def __bool__(self) -> bool:
        return self._question()


async def speak(sock: socket.socket, key: HostKey, connection: Connection) -> None:
    """SSH on a connected socket, until it is over."""
    try:
        conn = await asyncssh.run_server(
            sock,
            server_factory=lambda: connection,
            server_host_keys=[asyncssh.import_private_key(key.private_text())],
            server_version=VERSION,
            encoding=None,
            line_editor=False,
            login_timeout=0,  # a login may be held for half an hour; who does not begin one is timed elsewhere
            encryption_algs=CIPHERS,
            compression_algs=None,
            agent_forwarding=cast("bool", Asked(connection.may_forward_agent)),
            x11_forwarding=False,
            gss_host=None,
        )
        try:
            await conn.wait_closed()
        finally:
            conn.abort()
    except (OSError, asyncssh.Error) as problem:
        log.debug("a connection ended: %s", problem)
    finally:
        sock.close()
