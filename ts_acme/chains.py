"""Certificates themselves: the request for one, what a chain must be before it is believed, and its renewal.

Owns what is asked of X.509 here (RFC 5280), the name of a certificate in ARI (RFC 9773 section 4.1) and the certificate
of TLS-ALPN-01 (RFC 8737 section 3). Refuses to know who issued a chain, and whether anybody trusts them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID, ObjectIdentifier

from ts_acme.signing import LARGEST_KEY, base64url
from ts_base.errors import BadPacket

LARGEST_CHAIN = 64 << 10
LONGEST_CHAIN = 8  # certificates
MOST_NAMES = 100
CLOCKS_DIFFER = 3600.0  # a certificate that begins so soon was made by a clock ahead of ours
RENEW_AT = 2 / 3  # of the lifetime, where no server says better
ACME_IDENTIFIER = ObjectIdentifier("1.3.6.1.5.5.7.1.31")
BEGIN, END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
_PEM = re.compile(re.escape(BEGIN) + rb".*?" + re.escape(END), re.DOTALL)
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    Warning,  # of what cryptography will refuse one day, where the program made warnings errors
)


@dataclass(frozen=True, slots=True)
class Chain:
    """What a chain says of itself, its own certificate first."""

    pem: bytes = field(repr=False)
    names: tuple[str, ...]
    begins: float
    expires: float
    ari_id: str  # "" where its issuer left out what that is made of
    public_key: bytes = field(repr=False)

    @property
    def renew_at(self) -> float:
        return self.begins + RENEW_AT * (self.expires - self.begins)

    def covers(self, name: str) -> bool:
        """Whether it is for this name: RFC 9525 section 6.3."""
        return name in self.names or f"*.{name.partition('.')[2]}" in self.names


def new_request(key: ec.EllipticCurvePrivateKey, names: Sequence[str]) -> bytes:
    """A PKCS #10 request in DER: RFC 8555 section 7.4."""
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, names[0])] if len(names[0]) <= 64 else []
    wanted = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject)).add_extension(wanted, False)
    return request.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def chain_untrusted(pem: bytes) -> Chain:
    """A chain in PEM: bounded, each certificate issued by the next, none of them twice."""
    if len(pem) > LARGEST_CHAIN:
        raise BadPacket(f"a certificate chain of more than {LARGEST_CHAIN} bytes")
    blocks = _PEM.findall(pem)
    if not 0 < len(blocks) <= LONGEST_CHAIN:
        raise BadPacket("no certificate" if not blocks else f"a chain of more than {LONGEST_CHAIN} certificates")
    try:
        certificates = [x509.load_pem_x509_certificate(block) for block in blocks]
        own = certificates[0]
        names = _names(own)
        public = own.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        begins, expires = own.not_valid_before_utc.timestamp(), own.not_valid_after_utc.timestamp()
        if own.serial_number <= 0 or begins > expires:
            raise BadPacket("a certificate without a positive number, or that ends before it begins")
        ari_id = _ari_id(own)
        _check_order(certificates)
    except UNREADABLE as problem:
        if isinstance(problem, BadPacket):
            raise
        raise BadPacket("a certificate that cannot be read") from None
    return Chain(b"\n".join(blocks) + b"\n", names, begins, expires, ari_id, public)


def check_chain(chain: Chain, key: ec.EllipticCurvePublicKey, names: Iterable[str], wall: float) -> None:
    """BadPacket unless it is for these names, for this key, and for now."""
    if chain.public_key != key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo):
        raise BadPacket("a certificate for another key than ours")
    missing = sorted(name for name in names if not chain.covers(name))
    if missing:
        raise BadPacket(f"a certificate that is not for {missing[0]}")
    if wall >= chain.expires:
        raise BadPacket("a certificate that has expired")
    if chain.begins > wall + CLOCKS_DIFFER:
        raise BadPacket("a certificate that is not valid yet: one of the two clocks is wrong")


def matching_key_untrusted(pem: bytes, chain: Chain) -> bytes:
    """A private key of any kind in PEM, as PKCS #8 without a password, if it is the chain's. Secret."""
    try:
        key = load_pem_private_key(pem, None) if len(pem) <= LARGEST_KEY else None
        if key is None:
            raise BadPacket(f"a private key of more than {LARGEST_KEY} bytes")
        public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    except TypeError:
        raise BadPacket("a private key with a password") from None
    except (ValueError, UnsupportedAlgorithm, AttributeError) as problem:
        if isinstance(problem, BadPacket):
            raise
        raise BadPacket("no private key in PEM") from None
    if public != chain.public_key:
        raise BadPacket("a private key that is not the certificate's")
    return text


def challenge_certificate(
    name: str, digest: bytes, key: ec.EllipticCurvePrivateKey, serial: int, wall: float
) -> tuple[bytes, bytes]:
    """Certificate and key, both PEM, that answer a TLS-ALPN-01 challenge: RFC 8737 section 3."""
    today = datetime.fromtimestamp(wall, UTC).replace(microsecond=0)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "acme challenge")])
    identifier = x509.UnrecognizedExtension(ACME_IDENTIFIER, b"\x04\x20" + digest)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(identifier, critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM), private


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise BadPacket("a certificate for no name") from None
    names = tuple(name.lower() for name in found.get_values_for_type(x509.DNSName))
    if not 0 < len(names) <= MOST_NAMES:
        raise BadPacket("a certificate for no name" if not names else "a certificate for too many names")
    return names


def _check_order(certificates: Sequence[x509.Certificate]) -> None:
    """A chain that leads back to itself has a certificate twice."""
    if len({certificate.public_bytes(Encoding.DER) for certificate in certificates}) < len(certificates):
        raise BadPacket("a chain in which a certificate stands twice")
    for issued, issuer in pairwise(certificates):
        try:
            issued.verify_directly_issued_by(issuer)
        except InvalidSignature:
            raise BadPacket("a chain whose certificates did not sign each other") from None
        except (ValueError, TypeError):
            raise BadPacket("a chain whose certificates did not issue each other") from None


def _ari_id(certificate: x509.Certificate) -> str:
    """RFC 9773 section 4.1: the issuer's key identifier and the serial number as DER has it."""
    try:
        authority = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except x509.ExtensionNotFound:
        return ""
    if authority.key_identifier is None:
        return ""
    serial = certificate.serial_number
    return f"{base64url(authority.key_identifier)}.{base64url(serial.to_bytes(serial.bit_length() // 8 + 1))}"
