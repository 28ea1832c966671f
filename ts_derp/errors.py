"""How a relay connection fails. A link makes it again; users see the health warning that says why."""

from __future__ import annotations

from ts_base.errors import TailscaleError


class RelayUnreachable(TailscaleError, ConnectionError):
    """No node of the region could be dialled, trusted and upgraded."""


class RelayLost(TailscaleError, ConnectionError):
    """The connection ended: closed, silent, or speaking nonsense."""
