"""How an asyncio loop waits for what the loop thread does. Works in any event loop, whoever entered the Device."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

from tailscale.errors import TailscaleError

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
