"""What can become of files on their way. Whoever carries them says it in words of its own."""

from __future__ import annotations

from collections.abc import Mapping

from tailscale.errors import TailscaleError


class TransferRefused(TailscaleError):
    """The peer does not take, or does not give, what was asked for; `reason` is its word for why."""

    def __init__(self, reason: str, sentence: str) -> None:
        self.reason = reason
        super().__init__(sentence)


class TransferFailed(TailscaleError, OSError):
    """Files did not arrive whole. `failed` says of each by its name why; what did arrive is kept and not sent again."""

    def __init__(self, sentence: str, failed: Mapping[str, str] | None = None) -> None:
        self.failed = dict(failed or {})
        super().__init__(sentence)
