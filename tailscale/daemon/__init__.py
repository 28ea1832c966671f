"""A daemon that keeps one Device, and the clients of its socket. `docs/daemon.md` is the manual.

`Client(path)` and `AsyncClient(path)` ask a running daemon; `Daemon` is what `pytailscale up` runs. Importing this
module loads nothing else; the names come when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tailscale._lazy import lazily

if TYPE_CHECKING:
    from tailscale.daemon.aio_client import AsyncClient as AsyncClient
    from tailscale.daemon.client import Client as Client
    from tailscale.daemon.daemon import Daemon as Daemon
    from tailscale.daemon.requests import DaemonError as DaemonError

__all__ = ["AsyncClient", "Client", "Daemon", "DaemonError"]

_HOMES = {
    "AsyncClient": "tailscale.daemon.aio_client",
    "Client": "tailscale.daemon.client",
    "Daemon": "tailscale.daemon.daemon",
    "DaemonError": "tailscale.daemon.requests",
}


__getattr__ = lazily(__name__, _HOMES)
