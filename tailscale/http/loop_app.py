"""An app whose coroutines run in an asyncio loop, called by the server in the device's own loop.

Owns what crosses between the two: messages, each way in turn, bounded in bytes; the app's end and its errors; who is
cancelled when one side goes. The other loop is woken once for all that waits for it, however much that is. What the
messages mean is the exchange's to say: an error of its comes out of the app's next `send`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import trio

from tailscale.http1.asgi import AsgiApp, ClientDisconnected, Message, Receive, Scope, Send

log = logging.getLogger("tailscale.http")
AHEAD = 64 << 10  # bytes of one call that may be on their way to a side that has not taken them
MESSAGE_COST = 256  # what an empty message counts as against the bound
LAST_TO_COME = {"http.disconnect", "websocket.disconnect", "lifespan.shutdown"}


class Lane:
    """Calls for a loop in another thread."""

    def __init__(self, wake: Callable[[Callable[[], None]], object]) -> None:
        self._wake = wake
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._is_woken = False

    def put(self, function: Callable[..., object], *arguments: Any) -> None:
        self._calls.append((function, arguments))
        if not self._is_woken:
            self._is_woken = True
            self._wake(self._drain)

    def _drain(self) -> None:
        self._is_woken = False  # first: what is put from here on wakes again
        while self._calls:
            function, arguments = self._calls.popleft()
            function(*arguments)


class LoopApp:
    """Made in the asyncio loop; called in the device's, as an app of it."""

    def __init__(self, app: AsgiApp, to_tailnet: Callable[[Callable[[], None]], object]) -> None:
        self._app = app
        self._loop = asyncio.get_running_loop()
        context = contextvars.copy_context()

        def wake(drain: Callable[[], None]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone, and `serve` with it
                self._loop.call_soon_threadsafe(drain, context=context)

        self._to_loop = Lane(wake)
        self._to_tailnet = Lane(to_tailnet)
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _Call(self._app, scope, self._to_loop, self._to_tailnet, self._start).run(receive, send)

    def _start(self, call: _Call) -> asyncio.Task[None]:
        task = self._loop.create_task(call.run_app())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def finish(self, patience: float) -> None:
        """No call is served any more: what is left of the app's tasks has so long to end."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=patience)
            if late:
                log.warning("%d calls of the app did not end within %g s of being cancelled", len(late), patience)


class _Call:
    """One request, WebSocket or lifespan. Each attribute is written by one side only."""

    def __init__(
        self, app: AsgiApp, scope: Scope, to_loop: Lane, to_tailnet: Lane, start: Callable[[_Call], asyncio.Task[None]]
    ) -> None:
        self._app = app
        self._scope = scope
        self._to_loop, self._to_tailnet = to_loop, to_tailnet
        self._start = start
        # The asyncio side's.
        self._task: asyncio.Task[None] | None = None
        self._inbox: deque[Message] = deque()
        self._news = asyncio.Event()
        self._taken = 0  # bytes of messages that the app has been given
        self._sent = 0
        self._held: list[Message] = []  # the beginning of an answer, until there is something to send with it
        self._held_size = 0
        self._is_asking = False
        self._is_crowded = False  # it has had to wait for room
        self._problem: Exception | None = None
        # The device's side.
        self._outbox: deque[tuple[int, list[Message]]] = deque()
        self._changed = trio.Event()
        self._brought = 0
        self._written = 0
        self._is_wanted = False
        self._is_bringing = False
        self._has_ended = False
        self._error: BaseException | None = None

    # In the device's loop

    async def run(self, receive: Receive, send: Send) -> None:
        if not _has_body(self._scope):  # the first message is there; one with a body may be waited for
            message = await receive()
            self._brought = _size(message)
            self._inbox.append(message)  # before anybody else knows of this call
        self._to_loop.put(self._begin)
        try:
            async with trio.open_nursery() as nursery:
                while not (self._has_ended and not self._outbox):
                    await self._changed.wait()
                    self._changed = trio.Event()
                    if self._is_wanted and not self._is_bringing:
                        self._is_bringing = True
                        nursery.start_soon(self._bring, receive)
                    await self._write(send)
                nursery.cancel_scope.cancel()
        except BaseException:
            self._to_loop.put(self._cancel)
            raise
        if self._error is not None:
            raise self._error

    async def _bring(self, receive: Receive) -> None:
        """What comes from the client: as the app asks, and a little ahead of it."""
        try:
            while True:
                self._is_wanted = False
                message = await receive()
                self._brought += _size(message)
                self._to_loop.put(self._deliver, message)
                is_last = message["type"] in LAST_TO_COME or message.get("more_body") is False
                if is_last or self._brought - self._taken > AHEAD:
                    return
        except Exception as error:
            self._to_loop.put(self._fail, error)
        finally:
            self._is_bringing = False

    async def _write(self, send: Send) -> None:
        while self._outbox:
            size, messages = self._outbox.popleft()
            try:
                for message in messages:
                    await send(message)
            except Exception as error:
                self._fail_here(error)
            self._written += size
            if self._is_crowded:
                self._to_loop.put(self._news.set)

    def _fail_here(self, error: Exception) -> None:
        """The app hears of it by its next `send`; if there is none, its call has failed all the same."""
        if self._error is None:
            self._error = error
        self._to_loop.put(self._fail, error)

    def _on_wanted(self) -> None:
        self._is_wanted = True
        self._changed.set()

    def _on_sent(self, size: int, messages: list[Message]) -> None:
        self._outbox.append((size, messages))
        self._changed.set()

    def _on_end(self, error: BaseException | None) -> None:
        if self._error is None or isinstance(self._error, ClientDisconnected):
            self._error = error if error is not None else self._error
        self._has_ended = True
        self._changed.set()

    # In the asyncio loop

    def _begin(self) -> None:
        if self._problem is None:
            self._task = self._start(self)

    def _cancel(self) -> None:
        self._fail(ClientDisconnected("this request was given up"))
        if self._task is not None:
            self._task.cancel()

    def _deliver(self, message: Message) -> None:
        self._is_asking = False
        self._inbox.append(message)
        self._news.set()

    def _fail(self, error: Exception) -> None:
        self._is_asking = False
        self._problem = error
        self._news.set()

    async def run_app(self) -> None:
        error: BaseException | None = None
        try:
            await self._app(self._scope, self._receive, self._send)
        except asyncio.CancelledError:
            error = RuntimeError("the app's call was cancelled")
            raise
        except Exception as problem:
            error = problem
        except BaseException as problem:  # asyncio ends its loop with it
            error = RuntimeError(f"the app raised {problem!r}")
            raise
        finally:
            self._flush()
            self._to_tailnet.put(self._on_end, error)

    async def _receive(self) -> Message:
        while not self._inbox:
            if self._problem is not None:
                raise self._problem
            if not self._is_asking:
                self._is_asking = True
                self._to_tailnet.put(self._on_wanted)
            self._news.clear()
            await self._news.wait()
        message = self._inbox.popleft()
        self._taken += _size(message)
        return message

    async def _send(self, message: Message) -> None:
        if self._problem is not None:
            raise self._problem
        size = _size(message)
        self._sent += size
        self._held_size += size
        self._held.append(_copied(message))
        if message["type"] != "http.response.start":
            self._flush()
        while self._sent - self._written > AHEAD and self._problem is None:
            self._is_crowded = True  # before looking again: the other side writes, then looks at this
            self._news.clear()
            if self._sent - self._written > AHEAD:
                await self._news.wait()
        if self._problem is not None:
            raise self._problem

    def _flush(self) -> None:
        if self._held:
            self._to_tailnet.put(self._on_sent, self._held_size, self._held)
            self._held, self._held_size = [], 0


def _has_body(scope: Scope) -> bool:
    if scope["type"] != "http":
        return False
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0"))
        for name, value in scope["headers"]
    )


def _size(message: Message) -> int:
    return len(message.get("body") or message.get("bytes") or message.get("text") or b"") + MESSAGE_COST


def _copied(message: Message) -> Message:
    """As it is now: the app may use it again while it is on its way."""
    return {key: bytes(value) if isinstance(value, bytearray | memoryview) else value for key, value in message.items()}
