"""Why there is no certificate, in words for the user: what the ACME server said, and when to ask again."""

from __future__ import annotations

from ts_base.errors import TailscaleError

RATE_LIMITED, BAD_NONCE, ALREADY_REPLACED = "rateLimited", "badNonce", "alreadyReplaced"
NO_ACCOUNT = "accountDoesNotExist"


class AcmeRefused(TailscaleError):
    """The server does not do what was asked. `kind` is the last part of the problem's type (RFC 8555 section 6.7)."""

    def __init__(self, sentence: str, *, kind: str = "", status: int = 0, retry_at: float | None = None) -> None:
        self.kind = kind
        self.status = status
        self.retry_at = retry_at  # wall clock; None where the server said nothing of it
        super().__init__(sentence)

    @property
    def is_rate_limit(self) -> bool:
        return self.kind == RATE_LIMITED or self.status == 429
