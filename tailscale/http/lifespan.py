"""An app's own start and end (ASGI lifespan): asked for once each, waited for with patience, optional for the app."""

from __future__ import annotations

import logging
from typing import Any

import trio

from tailscale.errors import TailscaleError
from tailscale.http1.asgi import AsgiApp, Message
from tailscale.http1.wrong_loop import wrong_loop

log = logging.getLogger("tailscale.http")


class LifespanFailed(TailscaleError):
    """The app said that it could not start, or did not start in time."""


class Lifespan:
    """One app's life. `state` is what it shares with every request."""

    def __init__(self, app: AsgiApp) -> None:
        self.state: dict[str, Any] = {}
        self.failure: LifespanFailed | None = None
        self._app = app
        self._asked_to_stop = trio.Event()
        self._started, self._ended = trio.Event(), trio.Event()
        self._scope = trio.CancelScope(shield=True)  # it ends by `stop`, after the requests that need it
        self._messages = 0

    async def run(self) -> None:
        """The app's lifespan call, as long as it lasts."""
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            with self._scope:
                await self._app(scope, self._receive, self._send)
        except Exception as error:
            if (sentence := wrong_loop(error)) is not None:
                self.failure = LifespanFailed(sentence)
            elif self.failure is None and not self._started.is_set():
                log.debug("the app has no lifespan: %r", error)  # as the ASGI specification says to take it
            elif self.failure is None:
                log.exception("the app's lifespan crashed")
        finally:
            self._started.set()
            self._ended.set()

    async def start(self, timeout: float) -> bool:
        """Wait for the app to be ready; False with `failure` set when it never will be."""
        with trio.move_on_after(timeout) as waiting:
            await self._started.wait()
        if waiting.cancelled_caught:
            self.failure = LifespanFailed(f"the app did not finish starting within {timeout:g} s: see startup_timeout")
        return self.failure is None

    async def stop(self, timeout: float) -> None:
        """Let the app clean up, even while we are being cancelled."""
        if self._started.is_set() and self.failure is None:
            self._asked_to_stop.set()
            with trio.move_on_after(timeout, shield=True) as waiting:
                await self._ended.wait()
            if waiting.cancelled_caught:
                log.warning("the app did not finish stopping within %g s", timeout)
        self._scope.cancel()

    async def _receive(self) -> Message:
        self._messages += 1
        if self._messages == 1:
            return {"type": "lifespan.startup"}
        await self._asked_to_stop.wait()
        if self._messages > 2:
            await trio.sleep_forever()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "lifespan.startup.complete":
            self._started.set()
        elif kind == "lifespan.startup.failed":
            self.failure = LifespanFailed(f"the app could not start: {message.get('message') or 'it did not say why'}")
            self._started.set()
        elif kind == "lifespan.shutdown.complete":
            self._ended.set()
        elif kind == "lifespan.shutdown.failed":
            log.error("the app could not stop cleanly: %s", message.get("message", ""))
            self._ended.set()
        else:
            raise RuntimeError(f"{kind!r} is not a lifespan message")
        await trio.lowlevel.checkpoint()
