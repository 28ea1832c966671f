"""`ssl.SSLContext`s that follow renewals: every handshake is given the certificate that is held at that moment.

Owns the choice by SNI, the answer to TLS-ALPN-01 (RFC 8737) where one is being proven, and how a key that is in memory
gets into OpenSSL. A connection that is open keeps what it was opened with. Refuses to know sockets.
"""

from __future__ import annotations

import logging
import os
import secrets
import ssl
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from tailscale.certificates.keeper import CertificateKeeper
from tailscale.foreign_text import for_terminal
from ts_acme.chains import challenge_certificate
from ts_acme.signing import ENTROPY_LENGTH, new_key
from ts_base.client_hello import BadHello, HelloReader

log = logging.getLogger("tailscale.certificates")

ACME_TLS = "acme-tls/1"
MOST_CONTEXTS = 64
UNRECOGNIZED_NAME = ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

Chooser = Callable[[str | None], ssl.SSLContext]


class FollowingObject(ssl.SSLObject):
    """One handshake. While a name is being proven, its first message is looked at before OpenSSL has it."""

    _incoming: ssl.MemoryBIO | None = None  # a context makes one without calling `__init__`
    proves = False

    def look_at(self, incoming: ssl.MemoryBIO) -> None:
        self._incoming = incoming

    def do_handshake(self) -> None:
        if self._incoming is not None:
            data = self._incoming.read()
            self._incoming.write(data)
            try:
                hello = HelloReader().receive_untrusted(data)
            except BadHello:
                protocols: tuple[bytes, ...] = ()  # OpenSSL's to refuse
            else:
                if hello is None:
                    raise ssl.SSLWantReadError("the client's first message is not here yet")
                protocols = hello.protocols
            self._incoming = None
            self.proves = protocols == (ACME_TLS.encode(),)
        super().do_handshake()


class FollowingContext(ssl.SSLContext):
    """A server's context; every certificate it shows is the keeper's. For any thread."""

    def __new__(cls, keeper: CertificateKeeper) -> FollowingContext:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, keeper: CertificateKeeper) -> None:
        self._keeper = keeper
        self._protocols: list[str] = []
        self._made: dict[bytes, ssl.SSLContext] = {}
        self.sslobject_class = FollowingObject
        self.sni_callback = self._choose

    def set_alpn_protocols(self, alpn_protocols: Iterable[str]) -> None:
        """Also for the contexts that handshakes end up with."""
        self._protocols = list(alpn_protocols)
        self._made.clear()
        super().set_alpn_protocols(self._protocols)

    def wrap_bio(self, incoming: ssl.MemoryBIO, *arguments: Any, **options: Any) -> ssl.SSLObject:
        made = super().wrap_bio(incoming, *arguments, **options)
        if self._keeper.challenges.are_open and isinstance(made, FollowingObject):
            made.look_at(incoming)
        return made

    def _choose(self, handshake: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> int | None:
        if getattr(handshake, "proves", False):
            digest = self._keeper.challenges.digest(name)
            if name is None or digest is None:
                return UNRECOGNIZED_NAME
            handshake.context = self._proving(name, digest)
            return None
        certificate = self._keeper.find(name)
        if certificate is None:
            return UNRECOGNIZED_NAME
        context = self._made.get(certificate.chain_pem)
        if context is None:
            context = server_context(certificate.chain_pem, certificate.key_pem)
            if self._protocols:
                context.set_alpn_protocols(self._protocols)
            if len(self._made) >= MOST_CONTEXTS:
                self._made.clear()
            self._made[certificate.chain_pem] = context
        handshake.context = context
        return None

    def _proving(self, name: str, digest: bytes) -> ssl.SSLContext:
        """RFC 8737 section 3: one certificate and one protocol, for this handshake."""
        entropy, wall = self._keeper.ground.entropy, self._keeper.ground.wall_clock()
        serial = 1 + int.from_bytes(entropy(8))
        pair = challenge_certificate(name.lower().rstrip("."), digest, new_key(entropy(ENTROPY_LENGTH)), serial, wall)
        context = server_context(*pair)
        context.set_alpn_protocols([ACME_TLS])
        return context


def chosen_by(choose: Chooser) -> ssl.SSLContext:
    """A server's context that asks for the one to use by the name that the client wants."""

    def pick(handshake: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> int | None:
        try:
            handshake.context = choose(name)
        except Exception:  # the program's own: it ends this handshake
            log.exception("the function behind tls= failed for a client that wants %s", for_terminal(str(name)[:253]))
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        return None

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = pick
    return context


def server_context(chain_pem: bytes, key_pem: bytes) -> ssl.SSLContext:
    """A context that shows one certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    password = secrets.token_urlsafe(24)
    key = load_pem_private_key(key_pem, None)
    # The ssl module reads keys from files only: nothing that lies on a disk may be of use to anybody.
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password.encode()))
    with _as_file(chain_pem + locked) as path:
        context.load_cert_chain(path, password=password)
    return context


@contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """In memory where the system has such files."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            yield f"/proc/self/fd/{descriptor}"
        return
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "pair.pem")
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        yield path
