"""`ingress`, for every kind of Device: where it listens, and how it is started and ended from another loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, overload

import trio

from tailscale._faces import AsyncWithOnly, wrong_face
from tailscale.device import Device
from tailscale.ingress.limits import IngressLimits
from tailscale.ingress.relay import Ingress
from tailscale.ingress.targets import Targets, To
from tailscale.proxy import doors
from tailscale.threads.awaiting import ended
from tailscale.threads.face import DeviceFace, thread_of

if TYPE_CHECKING:
    from tailscale import aio, sync

Listen = str | trio.abc.Listener[Any]


@overload
def ingress(
    device: Device | aio.Device,
    listen: Listen = "0.0.0.0:443",
    to: To = "",
    *,
    port: int = 0,
    limits: IngressLimits | None = None,
    shutdown: trio.Event | None = None,
    task_status: trio.TaskStatus[Ingress] = trio.TASK_STATUS_IGNORED,
) -> Coroutine[Any, Any, None]: ...
@overload
def ingress(
    device: sync.Device,
    listen: Listen = "0.0.0.0:443",
    to: To = "",
    *,
    port: int = 0,
    limits: IngressLimits | None = None,
    shutdown: trio.Event | None = None,
    task_status: trio.TaskStatus[Ingress] = trio.TASK_STATUS_IGNORED,
) -> None: ...
def ingress(
    device: Device | DeviceFace,
    listen: Listen = "0.0.0.0:443",
    to: To = "",
    *,
    port: int = 0,
    limits: IngressLimits | None = None,
    shutdown: trio.Event | None = None,
    task_status: trio.TaskStatus[Ingress] = trio.TASK_STATUS_IGNORED,
) -> Coroutine[Any, Any, None] | None:
    """Be a Funnel relay: carry TLS from the internet to nodes of the tailnet, until cancelled or `shutdown` is set.

    ```python forever
    from tailscale.serve import ingress

    await ingress(device, "127.0.0.1:8443", to={"web.example.com": "web"}, port=443)
    ```

    A client says in the clear which name it wants, and is carried to the node that has it. TLS ends there: this host
    sees nothing of what it protects. The node has to publish the name: by `listen_funnel`, or as `tailscale funnel`.

    - `listen`: `host:port`, or a listener; `:443` is every address of this host.
    - `to`: the node of all names, or a mapping of names, also `*.example.com`, to nodes. A node that is called for a
      name which it does not publish refuses it.
    - `port`: what targets are told that clients asked for, where that is another than the one of `listen`.
    - `limits`: how much, how many and how long, an `IngressLimits`.

    Under `nursery.start` the value is an `Ingress`: its address, its `statistics()`. With a `tailscale.aio.Device` this
    is awaited in asyncio; with a `tailscale.sync.Device` it blocks.
    """
    run = partial(_serve, listen=listen, to=to, port=port, limits=limits or IngressLimits(), shutdown=shutdown)
    if isinstance(device, Device):
        return run(device, task_status=task_status)
    if shutdown is not None:
        raise TypeError("`shutdown` is for a trio Device: cancel this, or end the device")
    if isinstance(device, AsyncWithOnly):
        return _under_asyncio(device, run)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(_under_asyncio(device, run))
        return None
    raise wrong_face("`ingress` with a tailscale.sync.Device blocks, and this thread has a running event loop")


async def _under_asyncio(device: DeviceFace, run: partial[Coroutine[Any, Any, None]]) -> None:
    thread = thread_of(device)
    job = thread.submit(partial(run, thread.device))
    cancelled = await ended(job)
    if cancelled is not None:
        raise cancelled
    job.future.result()


async def _serve(
    device: Device,
    *,
    listen: Listen,
    to: To,
    port: int,
    limits: IngressLimits,
    shutdown: trio.Event | None,
    task_status: trio.TaskStatus[Ingress] = trio.TASK_STATUS_IGNORED,
) -> None:
    targets = Targets(device, to)
    # Whoever comes needs no name and password here: targets let nobody in but to what they publish.
    listeners = await doors.open_doors(device, listen, has_users=True)
    try:
        relay = Ingress(listeners, targets, port, limits)
        with device.include("ingress", relay):
            await relay.run(trio.Event() if shutdown is None else shutdown, task_status)
    finally:
        await doors.close_all(listeners)
