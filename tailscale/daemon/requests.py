"""Asking a daemon: the bytes of a request and of an answer's head, without any way to carry them.

Owns HTTP as far as our own clients need it: they speak 1.0, so that every answer simply lasts until the connection
ends. Imports next to nothing; `client.py`, `aio_client.py` and `light.py` carry these bytes.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from ts_base.errors import TailscaleError

HOST = "local-tailscaled.sock"  # what upstream's clients call it
LONGEST_HEAD = 64 << 10
TOKEN_LIMIT = 256


class DaemonError(TailscaleError):
    """The daemon refused or failed; `kind` is the name of what it raised, `status` the HTTP status."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        self.status = status
        self.kind = kind
        super().__init__(message)


class DaemonAbsent(DaemonError, ConnectionError):
    """No daemon answers at this socket."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(0, "DaemonAbsent", f"no daemon answers at {path} ({reason}): `pytailscale up` starts one")


class Head(NamedTuple):
    """How an answer begins."""

    status: int
    headers: dict[str, str]


def request(method: str, path: str, body: Any = None, *, token: str = "", upgrade: str = "") -> bytes:
    """The bytes of a request; `body` is sent as JSON. An upgrade has to be asked for in HTTP/1.1."""
    data = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/{'1.1' if upgrade else '1.0'}", f"Host: {HOST}", f"Content-Length: {len(data)}"]
    if data:
        lines.append("Content-Type: application/json")
    if upgrade:
        lines += [f"Upgrade: {upgrade}", "Connection: upgrade"]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    return "\r\n".join([*lines, "", ""]).encode() + data


def split_head(data: bytes) -> tuple[Head, bytes] | None:
    """The head of an answer and what followed it; None while it is not whole."""
    head, found, rest = data.partition(b"\r\n\r\n")
    if not found:
        if len(data) > LONGEST_HEAD:
            raise DaemonError(0, "NotADaemon", "what answers there does not speak HTTP")
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdigit():
        raise DaemonError(0, "NotADaemon", "what answers there does not speak HTTP")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Head(int(words[1]), headers), rest


class Lines:
    """Takes the body of a stream as it comes, gives the values of its whole lines."""

    def __init__(self) -> None:
        self._waiting = b""

    def take(self, data: bytes) -> list[Any]:
        *lines, self._waiting = (self._waiting + data).split(b"\n")
        return [json.loads(line) for line in lines if line]


def check(head: Head, body: bytes) -> None:
    """Raise what an answer of 400 and more says."""
    if head.status < 400:
        return
    kind, message = "DaemonError", body.decode(errors="replace").strip()
    if head.headers.get("content-type", "").startswith("application/json"):
        try:
            error = json.loads(body)["error"]
            kind, message = error["kind"], error["message"]
        except (ValueError, KeyError, TypeError):
            pass
    raise DaemonError(head.status, kind, message)


def read_loopback_note(text: str) -> tuple[int, str]:
    """Port and token from the file that stands where a Unix socket would. ValueError for what is none."""
    note = json.loads(text)
    if not isinstance(note, dict) or type(note.get("port")) is not int or not isinstance(note.get("token"), str):
        raise ValueError("it names no port and no token")
    return note["port"], note["token"]
