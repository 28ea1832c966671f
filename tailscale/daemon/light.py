"""A command through the daemon, before anything heavy is imported: `pytailscale status` in some 50 ms.

Sends what was typed, and where, to the daemon that runs for the state in question; then it is a pair of pipes until
the daemon says the exit code. Standard input is read only when the command asks for it. Gives None where there is no
daemon or where it declines: then the command joins the tailnet by itself. Knows no command but those that are not for
a daemon.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from tailscale.daemon import frames
from tailscale.daemon.client import connect
from tailscale.daemon.places import places
from tailscale.daemon.requests import DaemonAbsent, DaemonError, request, split_head

if TYPE_CHECKING:
    from tailscale.daemon.file_here import FileHere

NOT_FOR_A_DAEMON = frozenset(("completion", "config", "demo", "down", "schema", "up", "version"))
TAKES_A_VALUE = frozenset(("--auth-key", "--control-url", "--hostname", "--socket", "--state", "--timeout"))
ALONE = frozenset(("--ephemeral", "--help", "--version", "-h"))
RUN = "/pytailscale/v1/run"
CHUNK = 64 << 10
FAILED, NOT_EXECUTABLE, NO_SUCH_COMMAND = 1, 126, 127
INTERRUPTED = 130  # what the daemon says of a command that was cut off


class Wanted(NamedTuple):
    """What can be seen of a command line without parsing it."""

    command: str
    state: str | None
    socket: str | None
    is_alone: bool
    """It is not for a daemon, whatever it is."""


def look_at(argv: Sequence[str]) -> Wanted:
    """The command and whose device it means. What is misread here is declined by the daemon, which parses it."""
    command, is_alone = "", False
    values: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        if word == "--":
            break
        name, equals, value = word.partition("=")
        if name in TAKES_A_VALUE:
            values[name] = value if equals else next(words, "")
        elif word in ALONE:
            is_alone = True
        elif not command and not word.startswith("-"):
            command = word
    is_alone = is_alone or not command or command in NOT_FOR_A_DAEMON
    return Wanted(command, values.get("--state"), values.get("--socket"), is_alone)


def run_through_daemon(argv: Sequence[str]) -> int | None:
    """The exit code, or None where this process has to do it itself."""
    wanted = look_at(argv)
    if wanted.is_alone:
        return None
    path = wanted.socket or places(wanted.state).socket
    if not os.path.exists(path):
        return None
    try:
        door, token = connect(path)
    except DaemonAbsent:
        return None  # left behind by one that was killed
    with door:
        try:
            return _Call(door, token, argv).run()
        except (BrokenPipeError, ConnectionResetError) as error:
            print(f"pytailscale: the daemon at {path} went away: {error}", file=sys.stderr)
            return FAILED
        except DaemonError as error:
            print(f"pytailscale: {error}", file=sys.stderr)
            return FAILED


class _Call:
    """One command while the daemon runs it."""

    def __init__(self, door: socket.socket, token: str, argv: Sequence[str]) -> None:
        self._door = door
        self._hello = request("POST", RUN, token=token, upgrade=frames.PROTOCOL)
        self._argv = list(argv)
        self._frames = frames.Frames()
        self._wants_input = False
        self._file: FileHere | None = None
        self._signals = 0
        self._last_signal = 0

    def run(self) -> int | None:
        self._door.sendall(self._hello)
        rest = self._change_to_frames()
        self._door.sendall(frames.frame(frames.CALL, json.dumps(self._what_and_where()).encode()))
        wake, woken = socket.socketpair()
        with wake, woken:
            for end in (wake, woken):
                end.setblocking(False)
            before = signal.set_wakeup_fd(woken.fileno())
            handlers = [(number, signal.signal(number, self._on_signal)) for number in _caught()]
            try:
                return self._carry(rest, wake)
            finally:
                if self._file is not None:
                    self._file.abandon()
                for number, handler in handlers:
                    signal.signal(number, handler)
                signal.set_wakeup_fd(before)

    def _change_to_frames(self) -> bytes:
        data = b""
        while (found := split_head(data)) is None:
            piece = self._door.recv(CHUNK)
            if not piece:
                raise ConnectionResetError(errno.ECONNRESET, "it hung up")
            data += piece
        head, rest = found
        if head.status != 101:
            raise DaemonError(head.status, "Refused", f"the daemon answered {head.status}: {rest.decode().strip()}")
        return rest

    def _what_and_where(self) -> dict[str, object]:
        return {
            "argv": self._argv,
            "cwd": os.getcwd(),
            "out": _describe(sys.stdout),
            "err": _describe(sys.stderr),
            "is_input_terminal": sys.stdin is not None and sys.stdin.isatty(),
            "columns": _columns(),
            "environment": {name: os.environ[name] for name in ("LANG", "LC_ALL", "TZ") if name in os.environ},
        }

    def _carry(self, rest: bytes, wake: socket.socket) -> int | None:
        for kind, payload in self._frames.take_untrusted(rest):
            if (code := self._heed(kind, payload)) is not CONTINUES:
                return code
        while True:
            waiting: list[Any] = [self._door, wake]
            if self._wants_input:
                waiting.append(sys.stdin.fileno())
            ready, _, _ = select.select(waiting, [], [])
            if wake in ready:
                self._pass_signals_on(wake)
            if self._door in ready:
                data = self._door.recv(CHUNK)
                if not data:
                    raise ConnectionResetError(errno.ECONNRESET, "it ended in the middle of the command")
                for kind, payload in self._frames.take_untrusted(data):
                    if (code := self._heed(kind, payload)) is not CONTINUES:
                        return code
            elif self._wants_input and sys.stdin.fileno() in ready:
                self._wants_input = False
                self._door.sendall(frames.frame(frames.INPUT, os.read(sys.stdin.fileno(), CHUNK)))

    def _heed(self, kind: bytes, payload: bytes) -> int | None:
        if kind == frames.OUT:
            try:
                _write(1, payload)
            except BrokenPipeError:  # `pytailscale status | head -1`: not an error worth a word
                with suppress(OSError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                return FAILED
        elif kind == frames.ERR:
            _write(2, payload)
        elif kind == frames.WANT_INPUT:
            self._wants_input = True
        elif kind in frames.OF_A_FILE:
            self._heed_file(kind, payload)
        elif kind == frames.PROGRAM:
            told = json.loads(payload)
            code = self._run_program(told["argv"], told["environment"])
            self._door.sendall(frames.frame(frames.ENDED, bytes([code])))
        elif kind == frames.DECLINED:
            return None
        elif kind == frames.EXIT:
            code = json.loads(payload)["code"]
            return 128 + self._last_signal if self._signals and code == INTERRUPTED else int(code)
        return CONTINUES

    def _heed_file(self, kind: bytes, payload: bytes) -> None:
        if self._file is None:
            from tailscale.daemon.file_here import FileHere  # few commands write one

            self._file = FileHere(self._argv)
        answer = self._file.heed(kind, payload)
        if answer is not None:
            self._door.sendall(answer)

    def _run_program(self, argv: list[str], environment: dict[str, str]) -> int:
        """In this terminal, which gives it Ctrl-C itself; its exit code as shells say it."""
        import subprocess

        if not _is_of_this_user(self._door):  # root may ask anybody's daemon, which may not command root
            print("pytailscale: another user's daemon may run no program here", file=sys.stderr)
            return NOT_EXECUTABLE
        before = [(number, signal.signal(number, signal.SIG_IGN)) for number in _caught()]
        try:
            with subprocess.Popen(argv, env=os.environ | environment, preexec_fn=_hear_signals_again) as program:  # noqa: S603
                code = program.wait()
        except OSError as error:
            print(f"pytailscale: {argv[0]}: {error.strerror}", file=sys.stderr)
            return NO_SUCH_COMMAND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        finally:
            for number, handler in before:
                signal.signal(number, handler)
        return code if code >= 0 else 128 - code

    def _pass_signals_on(self, wake: socket.socket) -> None:
        with suppress(BlockingIOError):
            wake.recv(CHUNK)
        if self._signals == 1:
            self._door.sendall(frames.frame(frames.SIGNAL, bytes([self._last_signal])))

    def _on_signal(self, number: int, _: object) -> None:
        self._signals += 1
        self._last_signal = number
        if self._signals > 1:
            os._exit(128 + number)  # asked twice: the goodbye is not wanted


CONTINUES = -1


def _is_of_this_user(door: socket.socket) -> bool:
    """Whether the daemon at the other end is root's or this user's; on loopback its private file has said so."""
    if door.family == getattr(socket, "AF_UNIX", None) and hasattr(socket, "SO_PEERCRED"):
        uid = int.from_bytes(door.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[4:8], sys.byteorder)
        return uid in (0, os.geteuid())
    return True


def _hear_signals_again() -> None:
    for number in _caught():
        signal.signal(number, signal.SIG_DFL)


def _caught() -> list[int]:
    return [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def _describe(stream: object) -> dict[str, object]:
    """What a command has to know of where its words go."""
    is_terminal = bool(getattr(stream, "isatty", bool)())
    wants_style = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return {"wants_style": wants_style, "encoding": getattr(stream, "encoding", None) or "utf-8"}


def _columns() -> int:
    with suppress(ValueError):
        return int(os.environ.get("COLUMNS", "")) or 80
    with suppress(OSError, ValueError, AttributeError):
        return os.get_terminal_size(sys.__stdout__.fileno()).columns  # type: ignore[union-attr]
    return 80


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
