"""One Noise handshake (Noise specification, revision 34), for the tunnel's IKpsk2 and the control channel's IK.

Owns the dealings with the `noiseprotocol` package: explicit ephemerals, and one error for whatever does not verify.
Refuses to know transport messages: both users count their nonces differently, so the keys are handed out instead.
"""

from __future__ import annotations

from typing import Any

from cryptography.exceptions import InvalidTag
from noise.connection import Keypair, NoiseConnection
from noise.exceptions import NoiseValueError

from ts_base.errors import BadPacket

TAG_LENGTH = 16


class Handshake:
    """One side of one handshake. A message that fails to verify spoils it: make a new one from the same keys."""

    __slots__ = ("_noise", "_state")

    def __init__(
        self,
        name: bytes,
        *,
        prologue: bytes,
        static: bytes,
        remote_static: bytes | None = None,
        psk: bytes | None = None,
    ) -> None:
        """Keys are 32 raw bytes. Knowing `remote_static` beforehand makes us the initiator, as in every IK pattern."""
        self._noise: Any = NoiseConnection.from_name(name)
        self._noise.set_prologue(prologue)
        if psk is not None:
            self._noise.set_psks(psks=[psk])
        self._noise.set_keypair_from_private_bytes(Keypair.STATIC, static)
        if remote_static is None:
            self._noise.set_as_responder()
        else:
            try:
                self._noise.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, remote_static)
            except (ValueError, NoiseValueError):
                raise BadPacket("not a public key") from None
            self._noise.set_as_initiator()
        self._noise.start_handshake()
        self._state: Any = self._noise.noise_protocol.handshake_state

    def write(self, payload: bytes = b"", *, ephemeral: bytes) -> bytes:
        """Our one message, `payload` sealed inside it. A peer key that gives no shared secret is BadPacket."""
        # Set behind the package's back: its own way to preset an ephemeral warns on every handshake.
        self._state.e = self._noise.noise_protocol.dh_fn.klass.from_private_bytes(ephemeral)
        try:
            return bytes(self._noise.write_message(payload))
        except ValueError:
            raise BadPacket("public key gives no shared secret") from None

    def read_untrusted(self, message: bytes) -> bytes:
        """The payload of the peer's one message."""
        try:
            return bytes(self._noise.read_message(message))
        except (InvalidTag, ValueError, NoiseValueError):
            raise BadPacket("handshake message does not verify") from None

    @property
    def remote_static(self) -> bytes:
        """Who the peer proved to be; known to a responder after the first message."""
        return bytes(self._state.rs.public_bytes)

    @property
    def digest(self) -> bytes:
        """The handshake hash, once both messages have passed."""
        return bytes(self._noise.get_handshake_hash())

    def keys(self) -> tuple[bytes, bytes]:
        """What we seal with and what we open with, once both messages have passed."""
        protocol = self._noise.noise_protocol
        return bytes(protocol.cipher_state_encrypt.k), bytes(protocol.cipher_state_decrypt.k)

    def __repr__(self) -> str:
        return "Handshake([redacted])"
