"""A throw-away certificate authority, for tests: a root, an intermediate, and what they sign.

Owns its keys and how long its certificates are good for. Refuses to know who asked, and why they may have one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ts_acme.signing import ENTROPY_LENGTH, new_key
from ts_base.errors import BadPacket

# Valid wherever a test's clock stands.
BEGINS, ENDS = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
BACKDATED = 60.0  # seconds: clocks differ
_USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


class Authority:
    """`root_pem` is what has to be trusted; `issue` makes a chain under it."""

    def __init__(self, entropy: Callable[[int], bytes], wall_clock: Callable[[], float]) -> None:
        self._entropy = entropy
        self._wall_clock = wall_clock
        root_key, self._key = new_key(entropy(ENTROPY_LENGTH)), new_key(entropy(ENTROPY_LENGTH))
        root_name, self._name = _named("throw-away root"), _named("throw-away intermediate")
        root = self._builder(root_name, root_name, root_key.public_key(), BEGINS, ENDS)
        root = _for_authorities(root, root_key.public_key(), root_key.public_key())
        self._root = root.sign(root_key, hashes.SHA256())
        middle = self._builder(self._name, root_name, self._key.public_key(), BEGINS, ENDS)
        middle = _for_authorities(middle, self._key.public_key(), root_key.public_key())
        self._middle = middle.sign(root_key, hashes.SHA256())
        self.root_pem = self._root.public_bytes(Encoding.PEM)

    def issue(self, key: ec.EllipticCurvePublicKey, names: Sequence[str], lifetime: float) -> bytes:
        """A chain in PEM, without the root."""
        begins = datetime.fromtimestamp(self._wall_clock() - BACKDATED, UTC).replace(microsecond=0)
        ends = begins + timedelta(seconds=BACKDATED + lifetime)
        ours, signers = x509.SubjectKeyIdentifier.from_public_key(key), self._key.public_key()
        certificate = (
            self._builder(x509.Name([]), self._name, key, begins, ends)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(_usage("digital_signature"), critical=True)
            .add_extension(ours, critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signers), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(Encoding.PEM) + self._middle.public_bytes(Encoding.PEM)

    def _builder(
        self,
        subject: x509.Name,
        issuer: x509.Name,
        key: ec.EllipticCurvePublicKey,
        begins: datetime,
        ends: datetime,
    ) -> x509.CertificateBuilder:
        serial = 1 + int.from_bytes(self._entropy(16)) // 2
        made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
        return made.serial_number(serial).not_valid_before(begins).not_valid_after(ends)


def request_untrusted(der: bytes) -> tuple[ec.EllipticCurvePublicKey, frozenset[str]]:
    """Whose key and which names a PKCS #10 request is for."""
    try:
        request = x509.load_der_x509_csr(der)
        key = request.public_key()
        wanted = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        is_signed = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound, x509.DuplicateExtension):
        raise BadPacket("a request that cannot be read") from None
    if not is_signed or not isinstance(key, ec.EllipticCurvePublicKey):
        raise BadPacket("a request that its own key did not sign")
    return key, frozenset(name.lower() for name in wanted.get_values_for_type(x509.DNSName))


def _named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*allowed: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{usage: usage in allowed for usage in _USAGES})


def _for_authorities(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePublicKey, signers: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_usage("key_cert_sign", "crl_sign", "digital_signature"), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signers), critical=False)
    )
