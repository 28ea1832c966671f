"""Proving a name by TLS (RFC 8737): for which names that is possible here, and what is shown meanwhile.

Owns both tables. Refuses to know who validates, and by which way their connections arrive.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tailscale.errors import CertificateError

MOST_CHALLENGES = 16


class Challenges:
    """`carried` are names whose port 443 arrives here from the internet: whoever carries them fills it."""

    def __init__(self) -> None:
        self.carried: set[str] = set()
        self._shown: dict[str, bytes] = {}

    @property
    def are_open(self) -> bool:
        """Whether anything is being proven."""
        return bool(self._shown)

    def is_carried(self, name: str) -> bool:
        return name in self.carried

    def digest(self, name: str | None) -> bytes | None:
        """What to show to who asks for this name by acme-tls/1."""
        return self._shown.get((name or "").lower().rstrip("."))

    @contextmanager
    def answering(self, name: str, digest: bytes) -> Iterator[None]:
        """Show this to who asks, while the block lasts."""
        if len(self._shown) >= MOST_CHALLENGES:
            raise CertificateError(f"no certificate for {name}: {MOST_CHALLENGES} others are being proven right now")
        self._shown[name] = digest
        try:
            yield
        finally:
            self._shown.pop(name, None)
