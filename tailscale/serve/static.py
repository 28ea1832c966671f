"""Files of a folder, or one file, over HTTP: an ASGI app for a mount. RFC 9110: conditions, ranges, types.

Owns how a path becomes a file: one component at a time, never through a link, nothing that begins with a dot. Which
bytes an answer has is `ranges.py`'s. Disks are asked in worker threads.
"""

from __future__ import annotations

import html
import mimetypes
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

import trio

from tailscale.files.folders import HAS_OPENAT, Folder, walk
from tailscale.http1.asgi import AsgiApp, Receive, Scope, Send
from tailscale.serve.answers import HTML, NOT_FOUND, error, fixed, moved
from tailscale.serve.mounts import UNRESERVED, below, clean
from tailscale.serve.ranges import Facts, Piece, select

PIECE = 256 << 10  # what is read of a file at once
SNIFFED = 512
MOST_NAMES = 10_000  # in the list of a folder
INDEX = "index.html"
TYPES = mimetypes.MimeTypes().types_map[1] | {  # Python's own table: the same on every machine
    ".gz": "application/gzip",
    ".js": "text/javascript",
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
    ".webp": "image/webp",
    ".xml": "text/xml",
}


class Found(NamedTuple):
    """An open file, and its first bytes."""

    descriptor: int
    name: str
    facts: Facts
    first: bytes


class Listing(NamedTuple):
    """A folder without an index."""

    page: bytes
    changed: int


class Elsewhere(NamedTuple):
    """Where a path leads that has a slash too many, or too few."""

    status: int
    place: str


Outcome = Found | Listing | Elsewhere | None


def files_at(path: str, mount: str) -> AsgiApp:
    """What is at `path` on the disk, under `mount`."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            await error(405, "files are read with GET and HEAD")(scope, receive, send)
            return
        try:
            outcome = await trio.to_thread.run_sync(_look, Path(path), mount, scope["path"], bytes(scope["raw_path"]))
        except (OSError, ValueError):  # a link, something that may not be read, a name that can be none
            outcome = None
        if outcome is None:
            await NOT_FOUND(scope, receive, send)
        elif isinstance(outcome, Elsewhere):
            await _send_elsewhere(outcome, scope, receive, send)
        elif isinstance(outcome, Listing):
            await _send_listing(outcome, scope, send)
        else:
            try:
                await _send_file(outcome, scope, receive, send)
            finally:
                os.close(outcome.descriptor)

    return answer


# On the disk


def _look(top: Path, mount: str, path: str, raw_path: bytes) -> Outcome:
    if not HAS_OPENAT:
        raise OSError("serving files needs a system with openat")
    mode = top.stat().st_mode
    if stat.S_ISREG(mode):
        return _open_top(top, mount) if path == mount else None
    if not stat.S_ISDIR(mode):
        return None
    if path + "/" == mount:
        return Elsewhere(302, _escaped(mount))
    raw = below(mount, path, raw_path)
    if raw is None:
        return None
    rest = clean("/" + os.fsdecode(unquote_to_bytes(raw)))
    parts = [part for part in rest.split("/") if part]
    if any(part.startswith(".") or "\0" in part for part in parts):
        return None
    is_slashed = raw.endswith(b"/") or not parts
    base = _escaped(mount.removesuffix("/"))
    return _find(top, parts, is_slashed, lambda chosen: base + "/" + "/".join(map(_escaped, chosen)))


def _open_top(top: Path, mount: str) -> Found:
    """The user's own word: links on the way to it are his wish."""
    descriptor = os.open(top, os.O_RDONLY | os.O_CLOEXEC)
    name = mount.rpartition("/")[2]
    return _found(descriptor, name if Path(name).suffix else top.name)


def _find(top: Path, parts: list[str], is_slashed: bool, place: Callable[[list[str]], str]) -> Outcome:
    if not parts:
        with Folder.open(top) as folder:
            return _of_folder(folder, top.name)
    with walk(top, parts[:-1]) as above:
        here = above.look(parts[-1])
        if here is None:
            return None
        if not stat.S_ISDIR(here.st_mode):
            if not stat.S_ISREG(here.st_mode):
                return None  # a link, whatever it leads to
            if is_slashed:
                return Elsewhere(301, place(parts))
            if parts[-1] == INDEX:  # the folder is its place, as everywhere
                return Elsewhere(301, place([*parts[:-1], ""]) if parts[:-1] else place([""]))
            return _found(above.open_file(parts[-1], os.O_RDONLY), parts[-1])
        if not is_slashed:
            return Elsewhere(301, place([*parts, ""]))
        with above.enter(parts[-1]) as folder:
            return _of_folder(folder, parts[-1])


def _of_folder(folder: Folder, name: str) -> Found | Listing:
    index = folder.look(INDEX)
    if index is not None and stat.S_ISREG(index.st_mode):
        return _found(folder.open_file(INDEX, os.O_RDONLY), INDEX)
    names = list(_listed(folder))
    lines = "".join(f'<a href="{_escaped("./" + n if ":" in n else n)}">{html.escape(_shown(n))}</a>\n' for n in names)
    head = '<!doctype html>\n<meta name="viewport" content="width=device-width">\n'
    here = folder.look(".")
    changed = int(here.st_mtime) if here is not None else 0
    return Listing(f"{head}<pre>\n{lines}</pre>\n".encode(), changed)


def _listed(folder: Folder) -> Iterator[str]:
    """What a visitor can follow: files and folders, no links, nothing that begins with a dot."""
    for name in folder.names()[:MOST_NAMES]:
        here = folder.look(name) if not name.startswith(".") else None
        if here is not None and stat.S_ISDIR(here.st_mode):
            yield name + "/"
        elif here is not None and stat.S_ISREG(here.st_mode):
            yield name


def _found(descriptor: int, name: str) -> Found:
    try:
        here = os.fstat(descriptor)
        etag = f'"{here.st_mtime_ns:x}-{here.st_size:x}"'
        return Found(descriptor, name, Facts(here.st_size, etag, int(here.st_mtime)), os.pread(descriptor, PIECE, 0))
    except BaseException:
        os.close(descriptor)
        raise


def _escaped(name: str) -> str:
    return quote(os.fsencode(name), safe=UNRESERVED)


def _shown(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "replace")


def type_of(name: str, first: bytes) -> str:
    """By its name; where that says nothing, by how it begins."""
    kind = TYPES.get(os.path.splitext(name)[1].lower())
    if kind is None:
        kind = _sniffed(first[:SNIFFED])
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def _sniffed(first: bytes) -> str:
    if any(byte < 0x20 and byte not in b"\t\n\f\r\x1b" for byte in first):
        return "application/octet-stream"
    begins = first.lstrip().lower()
    return "text/html" if begins.startswith((b"<!doctype html", b"<html")) else "text/plain"


# Answered


async def _send_elsewhere(where: Elsewhere, scope: Scope, receive: Receive, send: Send) -> None:
    query = scope["query_string"].decode("latin-1")
    place = where.place + ("?" + query if query else "")
    if where.status == 302:
        await moved(302, place)(scope, receive, send)
    else:
        await fixed(where.status, b"", (b"location", place.encode()))(scope, receive, send)


async def _send_listing(listing: Listing, scope: Scope, send: Send) -> None:
    changed = (b"last-modified", formatdate(listing.changed, usegmt=True).encode())
    length = (b"content-length", b"%d" % len(listing.page))
    await send({"type": "http.response.start", "status": 200, "headers": [HTML, changed, length]})
    await send({"type": "http.response.body", "body": listing.page})


async def _send_file(found: Found, scope: Scope, receive: Receive, send: Send) -> None:
    facts = found.facts
    asked = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    status, pieces = select(scope["method"], asked, facts)
    kind = type_of(found.name, found.first).encode()
    headers = [
        (b"accept-ranges", b"bytes"),
        (b"etag", facts.etag.encode()),
        (b"last-modified", formatdate(facts.changed, usegmt=True).encode()),
    ]
    if status == 304:
        await _send_empty(send, status, headers[1:])
    elif status == 412:
        await _send_empty(send, status, [*headers[1:], (b"content-length", b"0")])
    elif status == 416:
        unsatisfied = (b"content-range", b"bytes */%d" % facts.size)
        await error(416, "invalid range: failed to overlap", unsatisfied)(scope, receive, send)
    elif len(pieces) > 1:
        await _send_pieces(found, pieces, kind, headers, send)
    else:
        piece = pieces[0] if pieces else Piece(0, facts.size)
        if pieces:
            headers.append((b"content-range", piece.header(facts.size).encode()))
        headers += [(b"content-type", kind), (b"content-length", b"%d" % (piece.end - piece.start))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if scope["method"] == "GET":
            await _send_bytes(found, piece, send)
        await send({"type": "http.response.body", "body": b""})


async def _send_empty(send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _send_pieces(
    found: Found, pieces: tuple[Piece, ...], kind: bytes, headers: list[tuple[bytes, bytes]], send: Send
) -> None:
    """RFC 9110, 14.6."""
    boundary = secrets.token_hex(16).encode()
    heads = [
        b"\r\n--%s\r\nContent-Type: %s\r\nContent-Range: %s\r\n\r\n"
        % (boundary, kind, piece.header(found.facts.size).encode())
        for piece in pieces
    ]
    end = b"\r\n--%s--\r\n" % boundary
    length = sum(map(len, heads)) + sum(piece.end - piece.start for piece in pieces) + len(end)
    headers = [
        *headers,
        (b"content-type", b"multipart/byteranges; boundary=" + boundary),
        (b"content-length", b"%d" % length),
    ]
    await send({"type": "http.response.start", "status": 206, "headers": headers})
    for head, piece in zip(heads, pieces, strict=True):
        await send({"type": "http.response.body", "body": head, "more_body": True})
        await _send_bytes(found, piece, send)
    await send({"type": "http.response.body", "body": end})


async def _send_bytes(found: Found, piece: Piece, send: Send) -> None:
    at = piece.start
    while at < piece.end:
        size = min(PIECE, piece.end - at)
        if at + size <= len(found.first):
            data = found.first[at : at + size]
        else:
            data = await trio.to_thread.run_sync(os.pread, found.descriptor, size, at)
        if not data:
            raise OSError("the file became shorter while it was sent")
        await send({"type": "http.response.body", "body": data, "more_body": True})
        at += len(data)
