"""What can be wrong with an SSH server before it serves."""

from __future__ import annotations

from tailscale.errors import TailscaleError


class SshUnavailable(TailscaleError, RuntimeError):
    """There can be no SSH server here; the sentence says what to install or to change."""
