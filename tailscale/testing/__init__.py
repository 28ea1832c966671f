"""An in-process tailnet for tests: control server, relay and devices, with faults on demand.

`from tailscale.testing import Tailnet`. Importing this module loads nothing else; the names come when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tailscale._lazy import lazily

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


__getattr__ = lazily(__name__, _HOMES)
