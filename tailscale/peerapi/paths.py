"""Which handler answers which path of the peer API.

Owns the table. A path that ends in `/` stands for everything below it; the longest one wins. Paths are compared as they
came, percent signs and dots included, so that no two spellings mean one thing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tailscale.peerapi.request import PeerRequest

    PeerHandler = Callable[[PeerRequest], Awaitable[None]]

PATHS_LIMIT = 64  # of handlers, which are parts of the program


class PeerPaths:
    """One per device."""

    def __init__(self) -> None:
        self._handlers: dict[str, PeerHandler] = {}

    def add(self, path: str, handler: PeerHandler) -> None:
        """From now on `handler` answers `path`. ValueError where another one does, or nothing could."""
        if not path.startswith("/") or not path.isascii() or not path.isprintable() or " " in path or "?" in path:
            raise ValueError(f"{path!r} is no path of a request: it begins with a slash and has no query")
        if path in self._handlers:
            raise ValueError(f"something answers {path} on the peer API already")
        if len(self._handlers) >= PATHS_LIMIT:
            raise ValueError(f"the peer API has {PATHS_LIMIT} paths already")
        self._handlers[path] = handler

    def remove(self, path: str) -> None:
        """Nobody answers it any more."""
        self._handlers.pop(path, None)

    def find(self, path: str) -> PeerHandler | None:
        """The handler of the exact path, else of the longest folder around it."""
        if path in self._handlers:
            return self._handlers[path]
        folders = [known for known in self._handlers if known.endswith("/") and path.startswith(known) and known != "/"]
        return self._handlers[max(folders, key=len)] if folders else None
