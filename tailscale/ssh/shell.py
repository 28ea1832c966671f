"""A shell, a command or sftp as the user who runs this program: what `shell=True` gives.

Owns the child, its terminal and its exit code. Refuses to become anybody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any

import asyncssh

if sys.platform != "win32":
    import fcntl
    import pwd
    import termios

CHUNK = 64 << 10
TAIL_PATIENCE = 1.0  # for what a terminal still shows once the shell has ended
NOT_FOUND, FAILED = 127, 1
PATH = "/usr/local/bin:/usr/bin:/bin"
ROOT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Account:
    """The user who runs this program."""

    def __init__(self) -> None:
        self.uid = os.getuid() if hasattr(os, "getuid") else -1
        self.name = os.environ.get("USERNAME", "user")
        self.home = os.path.expanduser("~")
        self.shell = os.environ.get("COMSPEC", "cmd.exe")
        if sys.platform != "win32":
            try:
                entry = pwd.getpwuid(self.uid)
            except KeyError:  # a container may run as a number that nobody has named
                self.name, self.shell = str(self.uid), "/bin/sh"
            else:
                self.name, self.home, self.shell = entry.pw_name, entry.pw_dir, entry.pw_shell or "/bin/sh"

    def exists(self, name: str) -> bool:
        """`=` in a policy means this user and nobody else, and not root, who must be named."""
        return name == self.name and self.uid != 0

    def serves(self, name: str) -> bool:
        """Nobody else is to be had here."""
        return name == self.name

    @property
    def folder(self) -> str:
        """Where a session begins."""
        return self.home if os.path.isdir(self.home) else os.path.abspath(os.sep)

    def environment(self, accepted: Mapping[str, str]) -> dict[str, str]:
        """What a login has, with what the client may add."""
        path = ROOT_PATH if self.uid == 0 else PATH
        return {**accepted, "USER": self.name, "LOGNAME": self.name, "HOME": self.home, "SHELL": self.shell,
                "PATH": os.environ.get("TAILSCALE_SSH_DEFAULT_PATH", path)}  # fmt: skip


class SftpServer(asyncssh.SFTPServer):
    """Files of the user."""

    def open(self, path: bytes, pflags: int, attrs: Any) -> Any:
        self._check(path)
        return super().open(path, pflags, attrs)

    def open56(self, path: bytes, desired_access: int, flags: int, attrs: Any) -> Any:
        self._check(path)
        return super().open56(path, desired_access, flags, attrs)

    def _check(self, path: bytes) -> None:
        """Who opens a pipe waits for its other end, and all others of this loop would wait as well."""
        try:
            kind = os.stat(self.map_path(path)).st_mode
        except OSError:
            return  # there is none, or opening it says why not
        if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind):
            raise asyncssh.SFTPFailure("neither a file nor a folder")

    def exit(self) -> None:
        """scp takes a session without an exit status for a failed one."""
        self.channel.exit(0)


async def run_shell(
    process: Any, account: Account, environment: dict[str, str], hang_up: list[Callable[[], None]]
) -> int:
    """The user's shell, or a command in it; its exit code. `hang_up` gets what ends it early."""
    command = (
        [f"-{os.path.basename(account.shell)}"] if process.command is None else [account.shell, "-c", process.command]
    )
    if sys.platform == "win32":
        command = [account.shell] if process.command is None else [account.shell, "/c", process.command]
    options: dict[str, Any] = {"executable": account.shell, "env": environment, "cwd": account.folder}
    try:
        if process.term_type is not None and sys.platform != "win32":
            environment["TERM"] = process.term_type
            return await _in_terminal(process, command, options, hang_up)
        return await _in_pipes(process, command, options, hang_up)
    except FileNotFoundError:
        process.stderr.write(f"{account.shell}: not found\n".encode())
        return NOT_FOUND
    except (OSError, ValueError) as problem:
        process.stderr.write(f"the shell could not be started: {type(problem).__name__}\n".encode())
        return FAILED


async def _in_pipes(
    process: Any, command: list[str], options: dict[str, Any], hang_up: list[Callable[[], None]]
) -> int:
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        *command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True, **options
    )
    hang_up.append(lambda: _signal(child.pid, signal.SIGTERM))
    feeding = asyncio.create_task(_feed(process, child.stdin, child.pid))
    try:
        await asyncio.gather(_copy(child.stdout, process.stdout), _copy(child.stderr, process.stderr))
        return await child.wait()
    finally:
        feeding.cancel()
        if child.returncode is None:
            _signal(child.pid, getattr(signal, "SIGHUP", signal.SIGTERM))


async def _feed(process: Any, stdin: Any, pid: int) -> None:
    """What the client types; its signals go to the child."""
    with contextlib.suppress(OSError):
        while data := await _read(process, lambda _: None, lambda name: _signal_named(pid, name)):
            stdin.write(data)
            await stdin.drain()
        stdin.close()


async def _read(process: Any, resize: Callable[[Any], object], signalled: Callable[[str], object]) -> bytes:
    """The next bytes from the client, b"" at the end; what comes between them is told."""
    while True:
        try:
            data: bytes = await process.stdin.read(CHUNK)
            return data
        except asyncssh.TerminalSizeChanged as news:
            resize(news)
        except asyncssh.SignalReceived as news:
            signalled(news.signal)
        except asyncssh.BreakReceived:
            signalled("INT")
        except (asyncssh.Error, OSError):
            return b""


async def _copy(source: Any, sink: Any) -> None:
    with contextlib.suppress(OSError, asyncssh.Error):
        while data := await source.read(CHUNK):
            sink.write(data)
            await sink.drain()


async def _in_terminal(
    process: Any, command: list[str], options: dict[str, Any], hang_up: list[Callable[[], None]]
) -> int:
    master, slave = os.openpty()
    try:
        _resize(master, process.term_size)
        options["env"]["SSH_TTY"] = os.ttyname(slave)
        child = await asyncio.create_subprocess_exec(
            *command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_own_terminal,
            **options,
        )
    except BaseException:
        os.close(master)
        raise
    finally:
        os.close(slave)
    os.set_blocking(master, False)
    hang_up.append(lambda: _signal(child.pid, signal.SIGHUP))
    feeding = asyncio.create_task(_type(process, master, child.pid))
    showing = asyncio.create_task(_show(process, master))
    try:
        code = await child.wait()
        await asyncio.wait([showing], timeout=TAIL_PATIENCE)
        return code
    finally:
        for task in (feeding, showing):
            task.cancel()
        await asyncio.gather(feeding, showing, return_exceptions=True)
        os.close(master)
        if child.returncode is None:
            _signal(child.pid, signal.SIGHUP)


def _own_terminal() -> None:
    """In the child: its terminal is the one it was given."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


async def _type(process: Any, master: int, pid: int) -> None:
    def resize(news: Any) -> None:
        _resize(master, (news.width, news.height, news.pixwidth, news.pixheight))

    with contextlib.suppress(OSError):
        while data := await _read(process, resize, lambda name: _signal_named(pid, name)):
            rest = memoryview(data)
            while rest:
                try:
                    rest = rest[os.write(master, rest) :]
                except BlockingIOError:
                    await _ready(
                        master, asyncio.get_running_loop().add_writer, asyncio.get_running_loop().remove_writer
                    )


async def _show(process: Any, master: int) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError, asyncssh.Error):  # EIO: nobody has the other end any more
        while True:
            try:
                data = os.read(master, CHUNK)
            except BlockingIOError:
                await _ready(master, loop.add_reader, loop.remove_reader)
                continue
            if not data:
                return
            process.stdout.write(data)
            await process.stdout.drain()


async def _ready(fd: int, add: Callable[..., object], remove: Callable[[int], object]) -> None:
    ready = asyncio.Event()
    add(fd, ready.set)
    try:
        await ready.wait()
    finally:
        remove(fd)


def _resize(master: int, size: tuple[int, int, int, int]) -> None:
    columns, rows, *pixels = (min(each, 0xFFFF) for each in size)
    with contextlib.suppress(OSError):
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, *pixels))


def _signal_named(pid: int, name: str) -> None:
    number = getattr(signal, f"SIG{name}", None)
    if isinstance(number, signal.Signals):
        _signal(pid, number)


def _signal(pid: int, number: int) -> None:
    """To the child and all that it has started in its session."""
    with contextlib.suppress(OSError):
        (os.killpg if hasattr(os, "killpg") else os.kill)(pid, number)
