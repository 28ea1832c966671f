"""Files that peers pull: what they may ask for, and the GETs that fetch it.

Owns no sockets and no tickets. https://www.rfc-editor.org/rfc/rfc9110#section-14.2
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import trio

from tailscale.files.pieces import from_disk
from tailscale.mesh.arrivals import Refused
from tailscale.mesh.errors import TransferFailed
from tailscale.mesh.files_client import root_in
from tailscale.mesh.serving import Answered, Request
from tailscale.mesh.source import Source, Unreadable
from tailscale.mesh.tree import Item, Tree, scan_shared
from ts_base.errors import BadPacket
from ts_mesh.ranges import decode_range_untrusted, encode_content_range

if TYPE_CHECKING:
    from tailscale.mesh.hash_cache import HashCache

log = logging.getLogger("tailscale.mesh")
T = TypeVar("T")
BROKEN = ("Mesh-Error", "changed")  # instead of the root: what was sent is no whole file


class Departures:
    """What is shared, by name."""

    def __init__(self, share: Mapping[str, Path], cache: HashCache, threads: trio.CapacityLimiter) -> None:
        self._share = {name: Path(path).expanduser().absolute() for name, path in share.items()}
        self._cache = cache
        self._threads = threads

    async def find(self, path: str) -> Tree:
        """All that lies there. Raises Refused."""
        name, *parts = path.split("/")
        top = self._share.get(name)
        if top is None:
            raise Refused("not-allowed")
        try:
            return await self._in_thread(lambda: scan_shared(top, tuple(parts), name))
        except TransferFailed as problem:
            log.warning("cannot share %s: %s", path, problem)
            raise Refused("too-large") from problem
        except (FileNotFoundError, NotADirectoryError):
            raise Refused("not-found") from None
        except OSError as problem:
            log.warning("cannot share %s: %s", path, problem)
            raise Refused("not-allowed") from problem

    async def get(self, request: Request, item: Item) -> None:
        """Answer one GET or HEAD."""
        if item.entry.dir:
            await request.answer(Answered(404, why="not-found", text="it is a folder"))
            return
        try:
            source = await self._in_thread(lambda: Source.open(item, self._cache))
        except Unreadable:
            await request.answer(Answered(409, why="changed"))
            return
        try:
            await self._send(request, source)
        finally:
            with trio.CancelScope(shield=True):
                await self._in_thread(source.close)

    async def _send(self, request: Request, source: Source) -> None:
        size = source.size
        try:
            asked = decode_range_untrusted(request.header(b"range") or "", size)
        except BadPacket as problem:
            await request.answer(Answered(416, why="range", text=str(problem)))
            return
        start, end = asked or (0, size)
        headers = [("accept-ranges", "bytes"), ("content-type", "application/octet-stream")]
        held = root_in({b"mesh-root": (request.header(b"if-none-match") or "").encode("latin-1")})
        try:
            root = await self._in_thread(source.root) if held is not None else source.known_root()
        except Unreadable:
            await request.answer(Answered(409, why="changed"))
            return
        if root is not None:
            headers.append(("etag", f'"{root.hex()}"'))
        if held is not None and held == root:
            await self._without_body(request, 304, headers)
            return
        if asked is not None:
            headers.append(("content-range", encode_content_range(start, end, size)))
        status = 206 if asked is not None else 200
        if request.method == "HEAD":
            await self._without_body(request, status, [*headers, ("content-length", str(end - start))])
            return
        # RFC 9110, 10.1.4: only who says so is told by a trailer what the whole file hashes to.
        with_root = "trailers" in (request.header(b"te") or "")
        if with_root:
            headers += [("transfer-encoding", "chunked"), ("trailer", "Mesh-Root")]
        else:
            headers.append(("content-length", str(end - start)))
        while await request.read():
            pass
        request.begin(status, headers)
        await self._send_bytes(request, source, start, end, with_root=with_root)

    async def _without_body(self, request: Request, status: int, headers: list[tuple[str, str]]) -> None:
        while await request.read():
            pass
        request.begin(status, headers)
        await request.end()

    async def _send_bytes(self, request: Request, source: Source, start: int, end: int, *, with_root: bool) -> None:
        """What was sent of a file that changed must not look whole: it has no root, or is cut."""
        try:
            await from_disk(_checked(source, start, end), request.send, self._threads)
            root = await self._in_thread(source.root) if with_root else None
        except Unreadable:
            if not with_root:
                request.abort()
                return
            await request.end(trailers=[BROKEN])
            return
        await request.end(trailers=[("Mesh-Root", root.hex())] if root is not None else [])

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._threads)


def _checked(source: Source, start: int, end: int) -> Iterator[bytes]:
    """The last piece is kept back until it is certain that the file has not changed meanwhile."""
    held = b""
    for piece in source.read_bytes(start, end):
        if held:
            yield held
        held = piece
    source.check()
    if held:
        yield held
