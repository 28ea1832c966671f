"""The thread in which SSH is spoken: one asyncio loop for all connections of a server, and calls into it and out of it.

asyncssh stands on asyncio; the device stands on trio. Owns the thread and the crossing. Refuses to know SSH.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Self, TypeVar

import trio

T = TypeVar("T")
GOODBYE = 2.0  # for connections to end once the server does


class SshLoop:
    """`async with SshLoop() as loop:`, entered in the device's own loop. Once it is left the thread is gone."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="tailscale-ssh", daemon=True)

    async def __aenter__(self) -> Self:
        await trio.lowlevel.checkpoint()
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._thread.join, GOODBYE + 1.0)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(lambda loop, context: None)  # what fails is reported by who waits for it
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._settle())
        finally:
            self._loop.close()

    async def _settle(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=GOODBYE)

    # From the device's loop

    def call_soon(self, function: Callable[..., object], *arguments: object) -> None:
        """Have it called in there."""
        with contextlib.suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(function, *arguments)

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do it in there, and wait for it. Cancelled, it is cancelled there."""
        done, outcome = trio.Event(), list[tuple[T | None, BaseException | None]]()

        async def settle() -> None:
            try:
                outcome.append((await work(), None))
            except BaseException as error:
                outcome.append((None, error))
            finally:
                with contextlib.suppress(trio.RunFinishedError):
                    self._token.run_sync_soon(done.set)

        task = asyncio.run_coroutine_threadsafe(settle(), self._loop)
        try:
            await done.wait()
        except trio.Cancelled:
            task.cancel()
            raise
        result, error = outcome[0]
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    # From in there

    async def ask(self, nursery: trio.Nursery, verb: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Do something in the device's loop, and wait for it. Cancelled, it is cancelled there."""
        answer: asyncio.Future[T] = self._loop.create_future()
        scope = trio.CancelScope()

        async def work() -> None:
            try:
                with scope:
                    result = await verb(*arguments)
            except Exception as error:
                self.call_soon(_fail, answer, error)
                return
            if scope.cancelled_caught:
                self.call_soon(answer.cancel)
            else:
                self.call_soon(_answer, answer, result)

        def begin() -> None:
            if nursery.cancel_scope.cancel_called:
                self.call_soon(answer.cancel)
            else:
                nursery.start_soon(work)

        try:
            self._token.run_sync_soon(begin)
            return await answer
        except trio.RunFinishedError:
            raise asyncio.CancelledError from None
        except asyncio.CancelledError:
            self.tell(scope.cancel)
            raise

    def tell(self, function: Callable[..., object], *arguments: object) -> None:
        """Have something called in the device's loop."""
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(function, *arguments)


def _answer(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
