"""An in-process tailnet for tests: control server, relay and devices, with faults on demand.

`from tailscale.testing import Tailnet`. Importing this module loads nothing else; the names come when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tailscale.testing.exits import PlayedExit as PlayedExit
    from tailscale.testing.network import VirtualNetwork as VirtualNetwork
    from tailscale.testing.tailnet import Tailnet as Tailnet

_HOMES = {
    "PlayedExit": "tailscale.testing.exits",
    "Tailnet": "tailscale.testing.tailnet",
    "VirtualNetwork": "tailscale.testing.network",
}
__all__ = ["PlayedExit", "Tailnet", "VirtualNetwork"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
