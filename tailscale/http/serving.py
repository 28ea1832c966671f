"""`serve`, for every kind of Device and of app: which loop waits, which runs the app, and how one ends the other.

The server always runs in the device's own loop. Under trio the app runs there too; the coroutines of an app given with
a device of `tailscale.aio` or `tailscale.sync` run in an asyncio loop, and the functions of a WSGI app in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import trio

from tailscale._faces import AsyncWithOnly, wrong_face
from tailscale.device import Device
from tailscale.errors import DeviceClosed
from tailscale.http.loop_app import LoopApp
from tailscale.http.reverse import ReverseProxy
from tailscale.http.server import Serving, serve_within
from tailscale.http.wsgi import DEFAULT_THREADS, LARGEST_BODY, WsgiApp
from tailscale.http1.limits import Limits
from tailscale.http1.visits import Visits
from tailscale.threads.awaiting import ended
from tailscale.threads.face import DeviceFace, thread_of

if TYPE_CHECKING:
    from typing import Unpack

    from tailscale import aio, sync
    from tailscale.http.wsgi import Wsgi
    from tailscale.http1.asgi import AsgiApp

Tls = ssl.SSLContext | Callable[[str | None], ssl.SSLContext] | Literal["tailnet"] | None
"""A context, what gives one for the name that a client wants, or the device's own certificate."""
Shutdown = trio.Event | asyncio.Event | threading.Event
Started = Callable[[str], object]


class ServeOptions(TypedDict, total=False):
    """The keyword arguments of `serve`, for its signatures by device."""

    host: str | None
    tls: Tls
    limits: Limits | None
    shutdown: Shutdown | None
    visits: Visits | None
    announce: str
    started: Started | None
    task_status: trio.TaskStatus[str]


@overload
def serve(
    app: AsgiApp | ReverseProxy,
    device: Device | aio.Device,
    port: int = 80,
    **options: Unpack[ServeOptions],
) -> Coroutine[Any, Any, None]: ...
@overload
def serve(
    app: AsgiApp | ReverseProxy,
    device: sync.Device,
    port: int = 80,
    **options: Unpack[ServeOptions],
) -> None: ...
def serve(
    app: AsgiApp | ReverseProxy,
    device: Device | DeviceFace,
    port: int = 80,
    *,
    host: str | None = None,
    tls: Tls = None,
    limits: Limits | None = None,
    shutdown: Shutdown | None = None,
    visits: Visits | None = None,
    announce: str = "",
    started: Started | None = None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> Coroutine[Any, Any, None] | None:
    """Run an ASGI app for the tailnet until cancelled, or until `shutdown` is set and open requests are done.

    ```python forever=80
    await tailscale.http.serve(app, device, port=80)
    ```

    With a `tailscale.Device` the app runs under trio. With a `tailscale.aio.Device` it runs in the asyncio loop that
    awaits this, and with a `tailscale.sync.Device` in one of its own, while the call waits.

    `scope["client"]` is the caller's tailnet address, `scope["extensions"]["tailscale"]` who that is. `started` is
    called with the server's URL once it listens; under `nursery.start` that is the value. `shutdown` is an Event of
    trio, asyncio or threading. `visits=tailscale.http.Visits()` counts who is connected. `announce` is a word by which
    peers find the port: `node.announced[word]`. A `ReverseProxy` in place of an app passes requests on.

    `tls="tailnet"` shows the device's certificate (`device.tls_context`), renewed while it runs; else `tls` is an
    `ssl.SSLContext`, or a function that is called with the name a client wants (None for none) and returns one.
    """
    how = Serving(port, host, tls, limits or Limits(), visits or Visits(), announce)
    return _serve(app, device, how, shutdown, _both(started, task_status))


@overload
def serve_wsgi(
    app: Wsgi,
    device: Device | aio.Device,
    port: int = 80,
    *,
    threads: int = DEFAULT_THREADS,
    largest_body: int = LARGEST_BODY,
    **options: Unpack[ServeOptions],
) -> Coroutine[Any, Any, None]: ...
@overload
def serve_wsgi(
    app: Wsgi,
    device: sync.Device,
    port: int = 80,
    *,
    threads: int = DEFAULT_THREADS,
    largest_body: int = LARGEST_BODY,
    **options: Unpack[ServeOptions],
) -> None: ...
def serve_wsgi(
    app: Wsgi,
    device: Device | DeviceFace,
    port: int = 80,
    *,
    threads: int = DEFAULT_THREADS,
    largest_body: int = LARGEST_BODY,
    host: str | None = None,
    tls: Tls = None,
    limits: Limits | None = None,
    shutdown: Shutdown | None = None,
    visits: Visits | None = None,
    announce: str = "",
    started: Started | None = None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> Coroutine[Any, Any, None] | None:
    """Run a WSGI app (Flask, Django) for the tailnet: each request in one of so many `threads`. Else as `serve`.

    `environ["tailscale.caller"]` is who calls, `environ["tailscale.user"]` and so on its parts; for people
    `HTTP_TAILSCALE_USER_LOGIN` too. `largest_body` is the most that a request may bring.

    ```python forever=80
    def hello(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"hello {environ['tailscale.hostname']}".encode()]


    await tailscale.http.serve_wsgi(hello, device)
    ```
    """
    how = Serving(port, host, tls, limits or Limits(), visits or Visits(), announce)
    return _serve(WsgiApp(app, threads, largest_body), device, how, shutdown, _both(started, task_status))


def _both(started: Started | None, task_status: trio.TaskStatus[str]) -> Started:
    def tell(url: str) -> None:
        task_status.started(url)
        if started is not None:
            started(url)

    return tell


def _serve(
    app: AsgiApp | ReverseProxy, device: Device | DeviceFace, how: Serving, shutdown: Shutdown | None, started: Started
) -> Coroutine[Any, Any, None] | None:
    if isinstance(device, Device):
        return _under_trio(app, device, how, shutdown, started)
    if isinstance(device, AsyncWithOnly):
        return _under_asyncio(app, device, how, shutdown, started)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(_under_asyncio(app, device, how, shutdown, started))
        return None
    raise wrong_face("`serve` with a tailscale.sync.Device blocks, and this thread has a running event loop")


async def _under_trio(
    app: AsgiApp | ReverseProxy, device: Device, how: Serving, shutdown: Shutdown | None, started: Started
) -> None:
    event = trio.Event() if shutdown is None else shutdown
    if not isinstance(event, trio.Event):
        raise TypeError(f"`shutdown` is a trio.Event under trio, not a {type(event).__module__} one")
    await serve_within(app, device, how, event, started)


async def _under_asyncio(
    app: AsgiApp | ReverseProxy, device: DeviceFace, how: Serving, shutdown: Shutdown | None, started: Started
) -> None:
    """The server is a job of the device's thread; this waits for it, and lets its app run here meanwhile."""
    if isinstance(shutdown, trio.Event):
        raise TypeError("`shutdown` is an asyncio.Event or a threading.Event here: nobody would hear trio's")
    loop, thread = asyncio.get_running_loop(), thread_of(device)
    asked_to_stop, was_up = trio.Event(), threading.Event()

    def to_tailnet(drain: Callable[[], None]) -> None:
        with contextlib.suppress(DeviceClosed):  # the app's tasks are being cancelled
            thread.call_soon(drain)

    def on_started(url: str) -> None:
        was_up.set()
        with contextlib.suppress(RuntimeError):  # that loop is gone
            loop.call_soon_threadsafe(started, url)

    crossing = LoopApp(app, to_tailnet) if not isinstance(app, ReverseProxy | WsgiApp) else None
    work = partial(serve_within, crossing or app, thread.device, how, asked_to_stop, on_started)
    job = thread.submit(work)
    waiting = asyncio.create_task(_tell(shutdown, partial(thread.call_soon, asked_to_stop.set)))
    try:
        cancelled = await ended(job)
    finally:
        waiting.cancel()
        if crossing is not None:
            await crossing.finish(how.limits.shutdown_timeout)
    if cancelled is not None:
        raise cancelled
    with contextlib.suppress(*[DeviceClosed] if was_up.is_set() else []):  # as under trio: then it has served its time
        job.future.result()


async def _tell(shutdown: asyncio.Event | threading.Event | None, stop: Callable[[], object]) -> None:
    """Wait for the wish to stop."""
    if isinstance(shutdown, asyncio.Event):
        await shutdown.wait()
        stop()
    elif shutdown is not None:
        threading.Thread(target=_tell_blocking, args=(shutdown, stop), name="tailscale-shutdown", daemon=True).start()


def _tell_blocking(shutdown: threading.Event, stop: Callable[[], object]) -> None:
    """An event of threads can only be waited for in one; it ends with the process, if it is never set."""
    shutdown.wait()
    with contextlib.suppress(DeviceClosed):
        stop()
