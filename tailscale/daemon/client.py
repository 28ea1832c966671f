"""Asks a running daemon from plain blocking code; the contract of `/pytailscale/v1/` is in `own_api.py`.

Owns one connection per question. Needs no trio: it may be used in a thread, a REPL or a cron job.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tailscale.daemon.places import places
from tailscale.daemon.requests import DaemonAbsent, Head, Lines, check, read_loopback_note, request, split_head

API = "/pytailscale/v1"
CHUNK = 64 << 10


def connect(path: str) -> tuple[socket.socket, str]:
    """A connection to the daemon at `path`, and the token to show it ("" on a Unix socket). DaemonAbsent if none."""
    try:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            door = socket.socket(socket.AF_UNIX)
            try:
                door.connect(path)
            except BaseException:
                door.close()
                raise
            return door, ""
        with open(path, encoding="utf-8") as note:
            port, token = read_loopback_note(note.read(4096))
        return socket.create_connection(("127.0.0.1", port)), token
    except (OSError, ValueError) as error:
        raise DaemonAbsent(path, getattr(error, "strerror", None) or str(error)) from None


class Client:
    """One daemon, by its socket; without a path, that of this user's default device.

    ```python no-run: needs a daemon
    daemon = tailscale.daemon.Client()
    print(daemon.get("status")["device"]["state"])
    for event in daemon.stream("events"):
        print(event["event"], event)
    ```

    `get` and `post` return the JSON of the answer, `stream` an iterator of the JSON lines. What the daemon refuses is
    raised as `DaemonError`; `DaemonAbsent`, a ConnectionError too, where none runs.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = os.fspath(path) if path is not None else places().socket

    def get(self, what: str) -> Any:
        """Ask for `status`, `config`, ...: a path below `/pytailscale/v1/`, or a whole one."""
        return self.ask("GET", what)

    def post(self, what: str, body: Any = None) -> Any:
        """Have something done."""
        return self.ask("POST", what, body)

    def ask(self, method: str, what: str, body: Any = None) -> Any:
        """Any request; None where the answer is empty."""
        with self._asked(method, what, body) as (door, head, data):
            text = bytearray(data)
            # What has come whole is believed, however the daemon ends behind it.
            while str(len(text)) != head.headers.get("content-length") and (piece := self._receive(door)):
                text += piece
        check(head, bytes(text))
        return json.loads(text) if text else None

    def stream(self, what: str) -> Iterator[Any]:
        """The lines of a stream, until it ends or the iterator is closed."""
        with self._asked("GET", what, None) as (door, head, data):
            if head.status >= 400:
                while piece := self._receive(door):
                    data += piece
                check(head, data)
            lines = Lines()
            yield from lines.take(data)
            while piece := self._receive(door):
                yield from lines.take(piece)

    @contextmanager
    def _asked(self, method: str, what: str, body: Any) -> Iterator[tuple[socket.socket, Head, bytes]]:
        door, token = connect(self.path)
        with door:
            path = what if what.startswith("/") else f"{API}/{what}"
            with contextlib.suppress(BrokenPipeError):  # it is ending: what it said before is heard below
                door.sendall(request(method, path, body, token=token))
            data = b""
            while (found := split_head(data)) is None:
                piece = self._receive(door)
                if not piece:
                    raise DaemonAbsent(self.path, "it hung up")
                data += piece
            yield door, *found

    def _receive(self, door: socket.socket) -> bytes:
        try:
            return door.recv(CHUNK)
        except ConnectionResetError:  # also when it was never accepted, by a daemon that was ending
            raise DaemonAbsent(self.path, "it hung up") from None
