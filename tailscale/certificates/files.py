"""Certificates from files of the user: a private CA, a company's, or what another ACME client keeps fresh.

Owns when files are read again. Refuses to renew anything: whoever writes the files does.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from tailscale.certificates.source import Ground, Renewal
from tailscale.certificates.value import Certificate
from tailscale.errors import CertificateError
from ts_base.errors import BadPacket

LOOK_EVERY = 60.0  # seconds: files that were replaced are used so soon
LARGEST_FILE = 128 << 10


class FileCertificates:
    """Pairs of files in PEM: a chain, and its private key without a password. The first pair is the usual one.

    Files that are replaced are read again within a minute; connections go on.

    ```python
    device = tailscale.Device("web", certificates=FileCertificates(("web.crt", "web.key")))
    ```
    """

    remedy = "replace the files by a certificate that is good"
    is_scarce = False

    def __init__(self, *pairs: tuple[str | os.PathLike[str], str | os.PathLike[str]]) -> None:
        if not pairs:
            raise ValueError('FileCertificates needs a pair of files: FileCertificates(("web.crt", "web.key"))')
        self._pairs = [(Path(chain), Path(key)) for chain, key in pairs]

    @property
    def drops(self) -> Mapping[str, int]:
        """Nothing is counted."""
        return {}

    def names(self, ground: Ground) -> Sequence[str]:
        """Those that the files are for."""
        return [name for pair in self._pairs for name in self._read(*pair).names]

    def load(self, name: str, ground: Ground) -> Certificate | None:
        """The newest that is for this name."""
        found = [read for pair in self._pairs if (read := self._read(*pair)).covers(name) or name in read.names]
        good = [one for one in found if one.seconds_left(ground.wall_clock()) > 0]
        return max(good, key=lambda one: one.chain.expires, default=None)

    async def obtain(self, name: str, ground: Ground, previous: Certificate | None) -> Certificate:
        """What the files say by now."""
        await trio.lowlevel.checkpoint()
        found = self.load(name, ground)
        if found is None:
            files = ", ".join(os.fspath(chain) for chain, _ in self._pairs)
            raise CertificateError(f"no certificate for {name} in {files} that is valid now: replace the file")
        return found

    async def renewal(self, certificate: Certificate, ground: Ground) -> Renewal:
        """Nothing is due, but there may be another file."""
        await trio.lowlevel.checkpoint()
        return Renewal(ground.wall_clock() + LOOK_EVERY, math.inf)

    def _read(self, chain: Path, key: Path) -> Certificate:
        texts = []
        for path in (chain, key):
            try:
                with path.open("rb") as file:
                    texts.append(file.read(LARGEST_FILE + 1))
            except OSError as error:
                raise CertificateError(f"the file {path} cannot be read: {error.strerror or error}") from None
        try:
            return Certificate.read_untrusted(*texts)
        except BadPacket as problem:
            raise CertificateError(f"{chain} and {key} are no pair that can be used: {problem}") from None
