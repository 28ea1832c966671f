"""A Funnel relay of one's own: a public host carries TLS connections by the name they want to nodes of the tailnet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tailscale._lazy import lazily, names_of

if TYPE_CHECKING:
    from tailscale.ingress.limits import IngressLimits as IngressLimits
    from tailscale.ingress.relay import Ingress as Ingress
    from tailscale.ingress.relay import IngressStatistics as IngressStatistics
    from tailscale.ingress.serving import ingress as ingress

_HOMES = {
    "tailscale.ingress.limits": ("IngressLimits",),
    "tailscale.ingress.relay": ("Ingress", "IngressStatistics"),
    "tailscale.ingress.serving": ("ingress",),
}
_HOME_OF = names_of(_HOMES)

__all__ = list(_HOME_OF)  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__ = lazily(__name__, _HOME_OF)
