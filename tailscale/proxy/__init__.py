"""Ways out of the tailnet: exit nodes chosen by policy, several at once, each connection by its own.

`from tailscale.proxy import Exits`. Importing this module loads nothing else; the names come when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tailscale._lazy import lazily, names_of

if TYPE_CHECKING:
    from tailscale.proxy.errors import NoExit as NoExit
    from tailscale.proxy.events import ExitBroken as ExitBroken
    from tailscale.proxy.events import ExitChosen as ExitChosen
    from tailscale.proxy.events import ExitLost as ExitLost
    from tailscale.proxy.events import ExitRecovered as ExitRecovered
    from tailscale.proxy.exits import DIRECT as DIRECT
    from tailscale.proxy.exits import NO_EXIT as NO_EXIT
    from tailscale.proxy.exits import Exits as Exits
    from tailscale.proxy.exits_status import ExitsStatus as ExitsStatus
    from tailscale.proxy.exits_status import ExitStanding as ExitStanding
    from tailscale.proxy.hosted import HostedProxy as HostedProxy
    from tailscale.proxy.limits import ProxyLimits as ProxyLimits
    from tailscale.proxy.requests import Request as Request
    from tailscale.proxy.server import Proxy as Proxy
    from tailscale.proxy.server import serve as serve
    from tailscale.proxy.service import ProxyStatistics as ProxyStatistics
    from ts_proxy.breaker import Breaker as Breaker
    from ts_proxy.policy import BadPolicy as BadPolicy

_HOMES = {
    "tailscale.proxy.errors": ("NoExit",),
    "tailscale.proxy.events": ("ExitBroken", "ExitChosen", "ExitLost", "ExitRecovered"),
    "tailscale.proxy.exits": ("DIRECT", "NO_EXIT", "Exits"),
    "tailscale.proxy.exits_status": ("ExitStanding", "ExitsStatus"),
    "tailscale.proxy.hosted": ("HostedProxy",),
    "tailscale.proxy.limits": ("ProxyLimits",),
    "tailscale.proxy.requests": ("Request",),
    "tailscale.proxy.server": ("Proxy", "serve"),
    "tailscale.proxy.service": ("ProxyStatistics",),
    "ts_proxy.breaker": ("Breaker",),
    "ts_proxy.policy": ("BadPolicy",),
}
_HOME_OF = names_of(_HOMES)

__all__ = list(_HOME_OF)  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__ = lazily(__name__, _HOME_OF)
