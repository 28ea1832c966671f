"""Who is believed to be a relay node: by the usual chain, by another name, or by the hash the DERP map pins.

Owns the TLS contexts and what is checked of a certificate after the handshake. Refuses to know streams and dialling.
Rules: net/tlsdial/tlsdial.go.
"""

from __future__ import annotations

import hashlib
import hmac
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ts_base.ip import maybe_address
from ts_derp.errors import RelayUnreachable
from ts_derp.regions import RelayNode

if TYPE_CHECKING:
    from cryptography import x509  # 15 ms of import that only a node with a CertName needs

PIN_PREFIX = "sha256-raw:"


class Trust:
    """Which certificates are good enough for a relay node. Contexts are costly and made when first needed."""

    def __init__(self, tls: ssl.SSLContext | None = None, *, allow_insecure: bool = False) -> None:
        self._given = tls
        self._allow_insecure = allow_insecure  # obey InsecureForTests: for test rigs only
        self._made: dict[str, ssl.SSLContext] = {}

    def context(self, node: RelayNode) -> ssl.SSLContext:
        if self._ignores_chain(node):
            return self._cached("unverified", _unverified_context)
        if node.cert_name:
            return self._cached("other name", self._other_name_context)
        return self._cached("verified", lambda: self._given or ssl.create_default_context())

    def check(self, node: RelayNode, certificate: bytes, wall_clock: float) -> None:
        """What the TLS library was not asked to check. Raises RelayUnreachable."""
        if not node.cert_name or self._obeys_insecure(node):
            return
        if not node.cert_name.startswith(PIN_PREFIX):
            if not _names_match(_parse(certificate), node.cert_name):
                raise RelayUnreachable(f"the certificate of relay {node.host_name} is not for {node.cert_name}")
            return
        pin = node.cert_name.removeprefix(PIN_PREFIX).lower()
        if not hmac.compare_digest(hashlib.sha256(certificate).hexdigest().encode(), pin.encode()):
            raise RelayUnreachable(f"the certificate of relay {node.host_name} is not the pinned one")
        parsed = _parse(certificate)
        if not _names_match(parsed, node.host_name):
            raise RelayUnreachable(f"the pinned certificate of relay {node.host_name} is for another name")
        now = datetime.fromtimestamp(wall_clock, UTC)
        if not parsed.not_valid_before_utc <= now <= parsed.not_valid_after_utc:
            raise RelayUnreachable(f"the pinned certificate of relay {node.host_name} has expired or is not valid yet")

    def _obeys_insecure(self, node: RelayNode) -> bool:
        return node.insecure_for_tests and self._allow_insecure

    def _ignores_chain(self, node: RelayNode) -> bool:
        return self._obeys_insecure(node) or node.cert_name.startswith(PIN_PREFIX)

    def _cached(self, name: str, make: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _other_name_context(self) -> ssl.SSLContext:
        # SNI stays the host name while the certificate is for CertName, so the name is checked by `check`.
        if self._given is None:
            context = ssl.create_default_context()
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            for authority in self._given.get_ca_certs(binary_form=True):
                context.load_verify_locations(cadata=authority)
        context.check_hostname = False
        return context


def _unverified_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _parse(certificate: bytes) -> x509.Certificate:
    from cryptography import x509

    return x509.load_der_x509_certificate(certificate)


def _names_match(certificate: x509.Certificate, name: str) -> bool:
    """RFC 6125 as browsers keep it: subject alternative names only, a wildcard is one whole leftmost label."""
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    address = maybe_address(name)
    if address is not None:
        return any(ip.packed == address for ip in names.get_values_for_type(x509.IPAddress) if hasattr(ip, "packed"))
    wanted = name.lower().rstrip(".")
    offered = {offer.lower() for offer in names.get_values_for_type(x509.DNSName)}
    return wanted in offered or ("." in wanted and "*." + wanted.partition(".")[2] in offered)
