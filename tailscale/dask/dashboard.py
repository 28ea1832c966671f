"""The dashboard of a scheduler or worker for the tailnet: `dask scheduler --preload tailscale.dask`.

Owns the port it is exposed at, as long as the server runs. dask calls both functions by their names.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from tailscale.dask.process_device import PROCESS_DEVICE
from tailscale.threads import bridges
from tailscale.threads.awaiting import finished
from tailscale.threads.bridges import Exposure

if TYPE_CHECKING:
    from distributed.node import ServerNode

EVERYWHERE = {"", "0.0.0.0", "::"}
_exposed: WeakKeyDictionary[Any, Exposure] = WeakKeyDictionary()


async def dask_setup(server: ServerNode) -> None:
    """Let the tailnet reach the HTTP server of `server` at the port it has on this machine."""
    http = (server.services or {}).get("dashboard")  # a nanny has none
    if http is None:
        return
    thread = await PROCESS_DEVICE.joined()
    host = "127.0.0.1" if http.address in EVERYWHERE else http.address
    exposing = partial(bridges.expose, thread, http.port, host, http.port)
    _exposed[server] = await finished(thread.submit(exposing, Exposure.close))


async def dask_teardown(server: ServerNode) -> None:
    """Let it be reached no longer."""
    exposure = _exposed.pop(server, None)
    if exposure is not None:
        exposure.close()
