"""What comes from the internet by way of Funnel relays: `Device.listen_funnel` and `answer_funnel` stand on this."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tailscale._lazy import lazily, names_of

if TYPE_CHECKING:
    from tailscale.funnel.listening import FunnelListener as FunnelListener
    from tailscale.funnel.streams import FunnelStream as FunnelStream

_HOMES = {
    "tailscale.funnel.listening": ("FunnelListener",),
    "tailscale.funnel.streams": ("FunnelStream",),
}
_HOME_OF = names_of(_HOMES)

__all__ = list(_HOME_OF)  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__ = lazily(__name__, _HOME_OF)
