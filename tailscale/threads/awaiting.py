"""Waiting in an asyncio loop for what the loop thread does, and calling back from there into it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

    from tailscale.threads.loop_thread import Job

T = TypeVar("T")


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
    """Its result or its error, whatever becomes of the wait."""
    await settled(future)
    return future.result()


async def finished(job: Job[T]) -> T:
    """Its result or its error. Cancelling the wait cancels the job."""
    try:
        await settled(job.future)
    except asyncio.CancelledError:
        job.give_up()
        raise
    return job.future.result()


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
