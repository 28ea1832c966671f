"""Who may look: a link that works once, and the session that it becomes.

The link's secret is behind the `#`, so that it is in no request line and no log. The page trades it for the secret of
a session, which the browser keeps for that tab and that port alone: no cookie, which every other server on this
machine would be shown too. Owns both secrets; knows no socket.
"""

from __future__ import annotations

import hmac
import secrets

LINK_LIFETIME = 600.0  # seconds in which a link must be opened
SECRET_BYTES = 32


class Entry:
    """Of one server."""

    def __init__(self, now: float) -> None:
        self._link = secrets.token_urlsafe(SECRET_BYTES)
        self._session = ""
        self._link_ends = now + LINK_LIFETIME

    def __repr__(self) -> str:
        return f"<Entry {'open' if self._session else 'unused'}>"

    @property
    def fragment(self) -> str:
        """What stands behind the `#`: a secret."""
        return self._link

    def trade(self, link: str, now: float) -> str:
        """The session's secret for the link's; "" where that is wrong, was used, or is too old."""
        if not self._link or now > self._link_ends or not _same(link, self._link):
            return ""
        self._link = ""
        self._session = secrets.token_urlsafe(SECRET_BYTES)
        return self._session

    def admits(self, authorization: bytes) -> bool:
        """Whether an Authorization header is that of the session."""
        scheme, _, secret = authorization.decode("latin-1").partition(" ")
        return bool(self._session) and scheme.lower() == "bearer" and _same(secret, self._session)


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())
