"""Which Device is for which kind of program, said where the wrong one is used, and errors without our own frames.

Owns those sentences. Refuses to know what a Device does.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, Self, TypeVar

from tailscale.errors import NameNotFound, TailscaleError, WrongFace

if TYPE_CHECKING:
    from tailscale.nodes import Peers

log = logging.getLogger("tailscale")
P = ParamSpec("P")
T = TypeVar("T")
WHICH = (
    "tailscale.Device is for trio, tailscale.aio.Device for asyncio (Jupyter too), and tailscale.sync.Device for "
    "programs without an event loop"
)


def wrong_face(what: str) -> WrongFace:
    """The error that says which Device to use instead."""
    return WrongFace(f"{what}: {WHICH}")


class _OfOneProcess:
    """A Device is of the process that made it: another one gets what is needed to make its own."""

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {_name(self)} is not pickled or copied, it has keys, sockets and a thread: pass its arguments on, and "
            "make one in each process, under a name of its own"
        )


class ClosedByLeaving:
    """Closed by `close()`, and by leaving a `with` or an `async with` block: neither waits for anything."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


class AsyncWithOnly(_OfOneProcess):
    """A Device for an event loop, in a plain `with`."""

    def __enter__(self) -> NoReturn:
        raise wrong_face(f"{_name(self)} is entered with `async with`, not with `with`")

    def __exit__(self, *_: object) -> None:
        """Never reached; Python looks for it first."""


class WithOnly(_OfOneProcess):
    """A Device for threads, in an `async with`."""

    async def __aenter__(self) -> NoReturn:
        raise wrong_face(f"{_name(self)} is entered with `with`, not with `async with`")

    async def __aexit__(self, *_: object) -> None:
        """Never reached; Python looks for it first."""


def _name(device: object) -> str:
    module = type(device).__module__
    return f"{'tailscale' if module == 'tailscale.device' else module}.{type(device).__name__}"


def nor_here(host: str, peers: Peers) -> NameNotFound | None:
    """The error for a name that this machine's network does not know either, where a peer has one like it."""
    close = [] if "." in host else peers.close_to(host)
    return NameNotFound(host, close, detail="nor could this machine's network reach it") if close else None


def brief(error: TailscaleError) -> TailscaleError:
    """The error without the way it came, to be raised `from error.__cause__`; the way is in the log at DEBUG."""
    log.debug("the program gets: %s", error, exc_info=error)
    return error.with_traceback(None)


def briefly(verb: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """An error that a program may meet says where the program was, not through which files of ours it came."""

    @functools.wraps(verb)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await verb(*args, **kwargs)
        except TailscaleError as error:
            raise brief(error) from error.__cause__

    return call
