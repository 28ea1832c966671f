"""The key by which clients know an SSH server again: made once, kept in the device's state.

Ed25519 only: every client since 2014 takes it, and it is made in no time.
"""

from __future__ import annotations

import base64
from typing import Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tailscale.ssh.errors import SshUnavailable


class HostKey:
    """A private key whose secret shows nowhere."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private

    @classmethod
    def generate(cls) -> Self:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def parse(cls, text: bytes | str) -> Self:
        """PEM, as OpenSSH or PKCS#8 has it, without a passphrase. Raises SshUnavailable."""
        data = text.encode() if isinstance(text, str) else text
        load = serialization.load_pem_private_key
        if b"OPENSSH PRIVATE KEY" in data:
            load = serialization.load_ssh_private_key
        try:
            key = load(data, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise SshUnavailable("host_key is no private key in PEM without a passphrase") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise SshUnavailable("host_key is not an Ed25519 key: make one with ssh-keygen -t ed25519 -N ''")
        return cls(key)

    def private_text(self) -> bytes:
        """For the state and the server, in OpenSSH's form."""
        return self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )

    @property
    def public_text(self) -> str:
        """As peers are told, and as known_hosts has it: `ssh-ed25519 AAAA...`."""
        form = serialization.PublicFormat.OpenSSH
        return self._private.public_key().public_bytes(serialization.Encoding.OpenSSH, form).decode()

    def __repr__(self) -> str:
        return f"<HostKey {base64.b64decode(self.public_text.split()[1])[-32:].hex()[:16]}>"
