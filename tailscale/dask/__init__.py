"""Dask over the tailnet: addresses `ts://name:port` for schedulers, workers and clients, without a VPN on any host.

`distributed` finds this module by itself; `dask scheduler --protocol ts` is all it takes. `use(device)` lends dask a
Device that the program has made. Importing this module loads nothing else; the names come when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tailscale._lazy import lazily
from ts_base.optional import optional

if TYPE_CHECKING:
    from tailscale.dask.comm import Backend as Backend
    from tailscale.dask.dashboard import dask_setup as dask_setup
    from tailscale.dask.dashboard import dask_teardown as dask_teardown
    from tailscale.dask.process_device import close as close
    from tailscale.dask.process_device import use as use

__all__ = ["Backend", "close", "dask_setup", "dask_teardown", "use"]

_HOMES = {
    "Backend": "tailscale.dask.comm",
    "close": "tailscale.dask.process_device",
    "dask_setup": "tailscale.dask.dashboard",
    "dask_teardown": "tailscale.dask.dashboard",
    "use": "tailscale.dask.process_device",
}


_load = lazily(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES and optional("distributed", "Client") is None:
        raise ImportError("tailscale.dask needs distributed: pip install 'pytailscale[dask]'")
    return _load(name)
