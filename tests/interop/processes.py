"""Child processes, ports, folders and waiting for the interop rig.

Owns: that no server outlives its test run, that no two runs share a port, and that logs survive a
failure. Knows nothing about Tailscale.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

import trio

T = TypeVar("T")
Json = dict[str, Any]

PORT_RANGE = range(20000, 32000)  # below the kernel's ephemeral range, so no outgoing socket takes one
LOG_TAIL_LINES = 40


class RigError(Exception):
    """A peer did not do what the rig needed; the message says which and shows the end of its log."""


class PeerDied(RigError):
    """A child process ended when nobody asked it to."""


async def poll_until(what: str, probe: Callable[[], Awaitable[T | None]], timeout: float = 15.0) -> T:
    """Calls `probe` until it returns something other than None or False, or raises at the deadline.

    Errors of a probe (except a dead peer) count as "not yet"; the last one is shown when time is up.
    """
    last: BaseException | None = None
    with trio.move_on_after(timeout):
        pause = 0.01
        while True:
            try:
                found = await probe()
            except PeerDied:
                raise
            except (OSError, RigError) as e:
                last, found = e, None
            if found is not None and found is not False:
                return found
            await trio.sleep(pause)
            pause = min(pause * 1.5, 0.25)
    raise RigError(f"waited {timeout:g} s for {what}" + (f" (last: {last})" if last else ""))


async def finished(
    command: Sequence[str | Path],
    stdin: bytes = b"",
    *,
    patience: float = 60.0,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """What became of a command. One that does not end in time is named, with what it had printed until then."""
    words = [str(word) for word in command]
    out, err = bytearray(), bytearray()

    async def collect(stream: trio.abc.ReceiveStream, into: bytearray) -> None:
        async for piece in stream:
            into += piece

    pipe = subprocess.PIPE
    start = partial(trio.run_process, words, stdin=stdin, stdout=pipe, stderr=pipe, check=False, env=env)
    with trio.move_on_after(patience):
        async with trio.open_nursery() as nursery:
            child: trio.Process = await nursery.start(start)
            assert child.stdout is not None
            assert child.stderr is not None
            nursery.start_soon(collect, child.stdout, out)
            nursery.start_soon(collect, child.stderr, err)
        assert child.returncode is not None
        return subprocess.CompletedProcess(words, child.returncode, bytes(out), bytes(err))
    told = (out + err).decode(errors="replace").strip() or "nothing"
    raise RigError(f"waited {patience:g} s for `{shlex.join(words)}`; it had printed: {told}")


class Ports:
    """Free loopback ports, each claimed for the life of this process by a lock on a file."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.gettempdir()) / f"pytailscale-ports-{os.getuid()}"
        self._folder.mkdir(exist_ok=True)
        self._held: dict[int, IO[bytes]] = {}

    def take(self) -> int:
        """A port that is free for TCP and UDP on 127.0.0.1 and that nobody else was given."""
        for port in random.sample(PORT_RANGE, 500):
            if port in self._held:
                continue
            lock = open(self._folder / str(port), "ab")  # noqa: SIM115 (held for as long as this process)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.close()
                continue
            if _is_free(port):
                self._held[port] = lock
                return port
            lock.close()
        raise RigError(f"no free port in {PORT_RANGE}")


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError as e:
                if e.errno in (errno.EADDRINUSE, errno.EACCES):
                    return False
                raise
    return True


PORTS = Ports()


def bracketed(host: str) -> str:
    """The host as it stands before `:port`."""
    return f"[{host}]" if ":" in host else host


_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Process:
    """A running child: its log file, its end, and for talkative ones its two pipes."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        folder: Path,
        *,
        env: Mapping[str, str] | None = None,
        pipes: bool = False,
        namespace: str | None = None,
    ) -> None:
        """Starts `command` at once; stderr (and stdout without `pipes`) goes to `folder/name.log`."""
        self.name = name
        self.log_path = folder / f"{name}.log"
        argv = [str(c) for c in command]
        if namespace is not None:
            argv = ["ip", "netns", "exec", namespace, *argv]
        self._log = open(self.log_path, "ab")  # noqa: SIM115 (closed by kill)
        # Popen itself, on this thread: trio.lowlevel.open_process forks in a worker thread, and the
        # death signal below would fire when that thread retires.
        self._popen = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipes else self._log,
            stderr=self._log,
            env={**os.environ, **(env or {})},
            cwd=folder,
            process_group=0,
            preexec_fn=_die_with_parent,
        )
        self.stdin: trio.lowlevel.FdStream | None = None
        self.stdout: trio.lowlevel.FdStream | None = None
        if pipes:
            assert self._popen.stdin is not None
            assert self._popen.stdout is not None
            self.stdin = trio.lowlevel.FdStream(os.dup(self._popen.stdin.fileno()))
            self.stdout = trio.lowlevel.FdStream(os.dup(self._popen.stdout.fileno()))
            self._popen.stdin.close()
            self._popen.stdout.close()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        return self._popen.poll() is None

    def signal(self, number: int) -> None:
        if self.is_running:
            self._popen.send_signal(number)

    async def wait(self) -> int:
        """Waits for the end and returns the exit status."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return self._popen.wait()
        try:
            await trio.lowlevel.wait_readable(fd)
        finally:
            os.close(fd)
        return self._popen.wait()

    async def stop(self, grace: float = 3.0) -> None:
        """Asks, then kills the whole group; never takes much longer than `grace`."""
        with trio.CancelScope(shield=True):
            self.signal(signal.SIGTERM)
            with trio.move_on_after(grace):
                await self.wait()
            self.kill()
            for pipe in (self.stdin, self.stdout):
                if pipe is not None:
                    await pipe.aclose()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()
        self._log.close()

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def tail(self, lines: int = LOG_TAIL_LINES) -> str:
        return "\n".join(self.log().splitlines()[-lines:])

    def check(self) -> None:
        """Raises when the process is gone, with the end of its log."""
        if not self.is_running:
            raise PeerDied(f"{self.name} ended with status {self._popen.returncode}; its log ends:\n{self.tail()}")

    def memory_kb(self) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        return 0

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


KEEP = ".keep"


@contextlib.asynccontextmanager
async def work_folder(name: str = "rig", keep: bool = False) -> AsyncIterator[Path]:
    """A fresh folder with a short path (unix sockets live in it); kept and named when the body fails.

    A file named `.keep` in it, or $PYTAILSCALE_KEEP_LOGS, keeps it too.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"pyts-{name}-"))
    failed = True
    try:
        yield folder
        failed = False
    finally:
        if failed or keep or (folder / KEEP).exists() or os.environ.get("PYTAILSCALE_KEEP_LOGS"):
            print(f"\nrig logs kept: {folder}", flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
