"""The clients of a server's listeners, from their coming to their end. What goes wrong with one ends nobody else.

Owns the loops that accept, and the ways in which a client's stream ends. Refuses to know what is said with a client.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from tailscale.carry import LOST, reset
from tailscale.proxy import doors

OUT_OF_SOMETHING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
PAUSE = 0.1  # seconds until there may be some of it again


class Attending:
    """`attend` is called for each client; `server` is what sentences call whoever listens, as in "the proxy"."""

    def __init__(
        self,
        listeners: list[doors.Listener],
        attend: Callable[[doors.Caller], Awaitable[None]],
        server: str,
        log: logging.Logger,
        say: Callable[..., object],
        gone: Sequence[type[Exception]] = (),
    ) -> None:
        """`say` tells its words in the log, but not again and again. `gone`: the errors of clients that went away."""
        self._listeners, self._attend = listeners, attend
        self._who = f"{server} at port {doors.address_of(listeners[0])[1]}"
        self._log, self._say = log, say
        self._gone: tuple[type[Exception], ...] = (*gone, *LOST)

    async def run(
        self, shutdown: trio.Event, grace: float, started: Callable[[], object], stopping: Callable[[], object]
    ) -> None:
        """Until cancelled, or until `shutdown` is set and what is open has ended or had `grace` seconds."""
        async with trio.open_nursery() as clients:
            async with trio.open_nursery() as accepting:
                for listener in self._listeners:
                    accepting.start_soon(self._accept, listener, clients, accepting.cancel_scope)
                started()
                await shutdown.wait()
                accepting.cancel_scope.cancel()
            await doors.close_all(self._listeners)
            stopping()
            clients.cancel_scope.deadline = trio.current_time() + grace

    async def _accept(self, listener: doors.Listener, clients: trio.Nursery, accepting: trio.CancelScope) -> None:
        while True:
            try:
                accepted = await listener.accept()
            except trio.ClosedResourceError:
                accepting.cancel()  # the device is closing: nobody can come any more
                return
            except OSError as problem:
                if problem.errno not in OUT_OF_SOMETHING:
                    raise
                self._say("%s cannot take more clients: %s", self._who, problem)
                await trio.sleep(PAUSE)
            else:
                clients.start_soon(self._see_to, accepted)

    @trio.lowlevel.enable_ki_protection
    async def _see_to(self, accepted: Any) -> None:
        try:
            caller = doors.let_in(accepted)
        except OSError:  # it was gone before it was seen
            await trio.aclose_forcefully(accepted)
            return
        stream = caller.stream
        try:
            await self._attend(caller)
            await stream.aclose()
            return
        except self._gone as problem:  # what could be told has been told; a tunnel that broke has been reset
            self._log.debug("a client of %s went away: %r", self._who, problem)
            await stream.aclose()
            return
        except Exception:
            self._log.exception("a client of %s failed", self._who)
        except BaseException:
            await reset(stream)
            raise
        await reset(stream)
