"""Which path is whose: mounts looked up as upstream does (ipnlocal/serve.go), and what is left of a path below one.

Owns no state and knows no HTTP beyond paths.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import quote, unquote_to_bytes, urlsplit

T = TypeVar("T")
UNRESERVED = "$&+,/:;=@-_.~"  # what Go leaves as it is in a path
LONGEST_PATH = 8192  # of those looked up: a longer one has more levels than any mount


def clean(path: str) -> str:
    """Without doubled slashes, `.` and `..`, as Go's path.Clean has it."""
    if not path:
        return "."
    cleaned = posixpath.normpath(path)
    return cleaned[1:] if cleaned.startswith("//") else cleaned


def find_mount(mounts: Mapping[str, T], path: str) -> tuple[str, T] | None:
    """The mount that a path belongs to: itself, else the longest above it, of which `p/` comes before `p`."""
    if path in mounts:
        return path, mounts[path]
    level = clean(path)
    if not level.startswith("/") or len(path) > LONGEST_PATH:
        return None  # "*", for one, has nothing above it
    while True:
        for candidate in (level.rstrip("/") + "/", level):
            if candidate in mounts:
                return candidate, mounts[candidate]
        if level == "/":
            return None
        level = posixpath.dirname(level)


def below(mount: str, path: str, raw_path: bytes) -> bytes | None:
    """What is left of a path below its mount, as it came. None where it leads there only by `..` or odd escapes."""
    prefix = mount.removesuffix("/")
    if path == "/" or not prefix:
        return raw_path
    if not path.startswith(prefix):
        return None
    for spelling in (quote(prefix, safe=UNRESERVED).encode(), prefix.encode("utf-8", "surrogateescape")):
        if raw_path.startswith(spelling) and unquote_to_bytes(raw_path).startswith(prefix.encode()):
            return raw_path[len(spelling) :]
    return None


def target_below(to: str, rest: bytes, query: bytes) -> bytes:
    """What a server at the URL `to` is asked for: its own path in front, and both queries."""
    url = urlsplit(to) if not to.startswith("unix:") else urlsplit("http://localhost")
    base = quote(url.path, safe=UNRESERVED + "%").encode()
    if not rest and base:
        path = base
    elif base.endswith(b"/") and rest.startswith(b"/"):
        path = base + rest[1:]
    elif not base.endswith(b"/") and not rest.startswith(b"/"):
        path = base + b"/" + rest
    else:
        path = base + rest
    queries = b"&".join(part for part in (url.query.encode(), query) if part)
    return path + (b"?" + queries if queries else b"")
