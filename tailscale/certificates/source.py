"""Where certificates come from, as a seam: the tailnet's control server by ACME, files of the user, or your own.

Owns what a source is asked, and what a device lends it. Refuses to know when certificates are wanted: `keeper.py` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import ssl

    from tailscale.certificates.shelf import Shelf
    from tailscale.certificates.value import Certificate
    from ts_control.http1 import Reply
    from ts_control.key_making import Ask


class Exchange(Protocol):
    """One HTTP request at a time to places outside."""

    async def __call__(self, ask: Ask, timeout: float) -> Reply: ...


class Ground(Protocol):
    """What a device lends to a source of certificates."""

    @property
    def name(self) -> str:
        """The device's own full name, without a dot at its end; "" where it has none."""

    @property
    def certificate_names(self) -> tuple[str, ...]:
        """Names for which the control server lets it have certificates."""

    @property
    def control_url(self) -> str: ...

    @property
    def shelf(self) -> Shelf:
        """What is kept of certificates between runs."""

    def carried(self, name: str) -> bool:
        """Whether connections from the internet to port 443 of that name arrive here."""

    def answer_tls(self, name: str, digest: bytes) -> AbstractContextManager[None]:
        """Show this digest to who asks by acme-tls/1, while the block lasts: RFC 8737."""

    def exchanging(self, tls: ssl.SSLContext | None) -> AbstractAsyncContextManager[Exchange]: ...

    async def publish_text(self, name: str, value: str) -> None:
        """A TXT record, written by the control server. Raises CertificateError."""

    def wall_clock(self) -> float: ...
    def entropy(self, length: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Renewal:
    """When to replace a certificate, and when to ask that again; both by wall clock."""

    at: float
    look_again: float


class CertificateSource(Protocol):
    """Gives certificates; a class of your own does with these."""

    remedy: str
    """What somebody can do where it does not."""
    is_scarce: bool
    """Whether it gives few of them, so that they had better outlive the program."""

    @property
    def drops(self) -> Mapping[str, int]:
        """What it counts, by names as in docs/drops.md."""

    def names(self, ground: Ground) -> Sequence[str]:
        """For which names it gives one, the usual first. Raises CertificateError where it can give none at all."""

    def load(self, name: str, ground: Ground) -> Certificate | None:
        """What is there already, from an earlier run; None where there is nothing good."""

    async def obtain(self, name: str, ground: Ground, previous: Certificate | None) -> Certificate:
        """A new one. Raises CertificateError."""

    async def renewal(self, certificate: Certificate, ground: Ground) -> Renewal:
        """When it is to be replaced. Raises CertificateError where that cannot be asked now."""
