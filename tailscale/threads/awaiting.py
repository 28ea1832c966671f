"""How an asyncio loop waits for what the loop thread does, and is called from there. Works in any event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from tailscale.errors import DeviceClosed, TailscaleError
from tailscale.threads.face import Face, asked

if TYPE_CHECKING:
    from concurrent.futures import Future

    from tailscale.events import Event, EventStream
    from tailscale.threads.loop_thread import Job, LoopThread

P = ParamSpec("P")
T = TypeVar("T")
X = TypeVar("X")
DEFAULT_STREAM_LIMIT = 1 << 20  # asyncio's 64 KiB would pause a fast peer all the time


async def settled(future: Future[Any]) -> None:
    """Wait until it is done, however it went."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def tell(_: Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is gone: nobody waits
            loop.call_soon_threadsafe(done.set)

    future.add_done_callback(tell)
    await done.wait()


async def outcome(future: Future[T]) -> T:
    """Its result or its error. Cancelling the wait leaves what is waited for alone."""
    await settled(future)
    return future.result()


async def finished(job: Job[T]) -> T:
    """Its result or its error. Cancelling the wait cancels the job."""
    try:
        await settled(job.future)
    except asyncio.CancelledError:
        job.give_up()
        raise
    try:
        return job.future.result()
    except TailscaleError as error:  # where the program was, not the thread that did it
        raise error.with_traceback(None) from error.__cause__


async def ended(job: Job[Any]) -> asyncio.CancelledError | None:
    """Wait until it has ended. Who is cancelled meanwhile gives it up and waits on: then that is what is returned."""
    cancelled: asyncio.CancelledError | None = None
    while not job.future.done():
        try:
            await settled(job.future)
        except asyncio.CancelledError as error:
            cancelled = error
            job.give_up()
    return cancelled


def awaited(
    verb: Callable[Concatenate[X, P], Awaitable[T]],
) -> Callable[Concatenate[Face[X], P], Coroutine[Any, Any, T]]:
    """The same verb for this face: done in the device's own loop, awaited in this one."""

    @functools.wraps(verb)
    async def call(face: Face[X], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await finished(asked(face, verb, *args, **kwargs))

    return call


async def events_of(thread: LoopThread, subscribing: Job[EventStream]) -> AsyncIterator[Event]:
    """What a stream inside yields, until it or the Device ends."""
    stream = await finished(subscribing)
    while True:
        try:
            yield await finished(thread.submit(stream.__anext__))
        except (StopAsyncIteration, DeviceClosed):
            return


def in_loop(loop: asyncio.AbstractEventLoop, function: Callable[..., Any]) -> Callable[..., Any]:
    """The program's function, called by the device's thread but run by the program's event loop."""

    async def call(*arguments: Any) -> Any:
        import trio

        async def run() -> Any:
            result = function(*arguments)
            return await result if inspect.isawaitable(result) else result

        answer = asyncio.run_coroutine_threadsafe(run(), loop)
        arrived = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def tell(_: Future[Any]) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(arrived.set)

        answer.add_done_callback(tell)
        try:
            await arrived.wait()
        except trio.Cancelled:
            answer.cancel()
            raise
        return answer.result()

    return call
