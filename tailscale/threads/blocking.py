"""How a plain thread waits for what the loop thread does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from tailscale.errors import DeviceClosed
from tailscale.threads.face import Face, asked

if TYPE_CHECKING:
    from tailscale.events import Event, EventStream
    from tailscale.threads.loop_thread import LoopThread

P = ParamSpec("P")
T = TypeVar("T")
X = TypeVar("X")


def blocking(verb: Callable[Concatenate[X, P], Awaitable[T]]) -> Callable[Concatenate[Face[X], P], T]:
    """The same verb for this face: done in the loop, and waited for."""

    @wraps(verb)
    def call(face: Face[X], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return asked(face, verb, *args, **kwargs).wait()

    call.__doc__ = (verb.__doc__ or "").partition("```")[0].rstrip()  # the example behind it awaits
    return call


def events_of(thread: LoopThread, stream: EventStream) -> Iterator[Event]:
    """What a stream inside yields, until it or the Device ends."""
    while True:
        try:
            yield thread.submit(stream.__anext__).wait()
        except (StopAsyncIteration, DeviceClosed):
            return
