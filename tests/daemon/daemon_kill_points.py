"""A daemon that is killed at a chosen call: `python daemon_kill_points.py FOLDER CONTROL_URL`. One line per life.

Life n starts, joins, is told to change a preference, reads its settings again and ends; in place of its n-th call that
changes the disk, binds a socket or sends to a server it dies by SIGKILL. Then another one starts from what is left, and
says which node it is. Each is a fork of a process that has imported everything, so that nothing is cleaned up, and that
a life takes a quarter of a second. First every daemon begins with nothing; then with a state that has joined before.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from tailscale.cli.arguments import parse
from tailscale.cli.up import daemon_for
from tailscale.daemon.daemon import Daemon
from tailscale.state_file import FileStore

CALLS = ("open", "write", "fsync", "replace", "unlink", "ftruncate", "mkdir", "chmod")
CHANGED = {"ShieldsUp": True, "ShieldsUpSet": True}
PATIENCE, MANY = 20.0, 1000


class Deadly:
    """Counts calls; at the chosen one the process ends."""

    def __init__(self, count: int) -> None:
        self._left = count

    def strike(self) -> bool:
        self._left -= 1
        return self._left == 0

    def lay(self) -> None:
        for name in CALLS:
            setattr(os, name, self._instead(name, getattr(os, name)))
        for name in ("bind", "listen"):
            setattr(socket.socket, name, self._instead(name, getattr(socket.socket, name)))
        send_all = trio.SocketStream.send_all

        async def send(stream: trio.SocketStream, data: bytes) -> None:
            if self.strike():
                os.kill(os.getpid(), signal.SIGKILL)
            await send_all(stream, data)

        trio.SocketStream.send_all = send  # type: ignore[method-assign]

    def _instead(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any, **options: Any) -> Any:
            if name == "open" and not arguments[1] & os.O_CREAT:
                return call(*arguments, **options)
            if self.strike():
                if name == "write":  # torn: half of it is there
                    call(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return instead


async def live(words: list[str], within: Callable[[Daemon], Awaitable[None]]) -> None:
    """A daemon as `up --foreground` makes it, until what is done within it is over."""
    daemon = daemon_for(parse(["up", "--foreground", *words]))
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(daemon.run)
            await daemon.keeper.settle()
            assert daemon.keeper.is_ready, daemon.keeper.problem
            await within(daemon)
            daemon.end()


async def be_used(daemon: Daemon) -> None:
    await daemon.prefs.apply(CHANGED)
    await daemon.reload()


def in_a_fork(words: list[str], within: Callable[[Daemon], Awaitable[None]], *, dying_at: int = 0) -> int:
    """How it ended, as os.waitpid says it."""
    child = os.fork()
    if not child:
        try:
            if dying_at:
                Deadly(dying_at).lay()
            trio.run(live, words, within)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def key_in(folder: Path) -> str:
    """Of the node whose state this is; "" while it is nobody's. Half a state raises."""
    state = FileStore(folder).load()
    return str(state.node_key.public) if state is not None else ""


def one(folder: Path, url: str, name: str, count: int) -> bool:
    """Whether the life was long enough to be killed."""
    told: dict[str, Any] = {"name": name, "count": count, "before": key_in(folder)}
    words = ["--state", str(folder), "--hostname", name, "--control-url", url]
    ended = in_a_fork(words, be_used, dying_at=count)
    told |= {"ended": ended, "left": key_in(folder)}
    into, out = os.pipe()

    async def say_who(daemon: Daemon) -> None:
        await trio.lowlevel.checkpoint()
        node = daemon.keeper.device.node
        os.write(out, json.dumps({"id": node.stable_id, "addresses": list(node.addresses)}).encode())

    told["then"] = in_a_fork(words, say_who)
    os.close(out)
    with os.fdopen(into) as said:
        told["who"] = json.loads(said.read() or "null")
    told |= {"after": key_in(folder), "files": sorted(path.name for path in folder.iterdir())}
    print(json.dumps(told), flush=True)
    return ended != 0


def main(root: Path, url: str) -> None:
    for count in range(1, MANY):
        folder = root / "first"
        shutil.rmtree(folder, ignore_errors=True)
        if not one(folder, url, f"first-{count}", count):
            break
    for count in range(1, MANY):
        if not one(root / "again", url, "again", count):
            break


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
