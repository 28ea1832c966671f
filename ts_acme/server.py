"""An ACME server to test against: RFC 8555 with ES256, DNS-01, and renewal information (RFC 9773).

Owns accounts, orders, nonces and their bounds. Refuses to know sockets: a request comes in, an answer goes out. Who is
asked for a name's records is handed in, and so are clock and chance. Nothing is ever validated later: a challenge is
decided when it is answered.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from ts_acme.authority import Authority, request_untrusted
from ts_acme.chains import RENEW_AT, chain_untrusted
from ts_acme.messages import NAME, PROBLEM, Reply
from ts_acme.signing import base64url, compact
from ts_acme.signing import thumbprint as thumbprint_of
from ts_base.errors import BadPacket, TailscaleError

DAY = 86_400.0
MOST_NONCES = 256
MOST_KEPT = 1024  # accounts, orders, certificates; the oldest are forgotten
MOST_NAMES = 16
LARGEST_BODY = 64 << 10


class Refused(TailscaleError):
    """What a client is told, as RFC 8555 section 6.7 writes it."""

    def __init__(self, kind: str, words: str, status: int = 400, retry_after: float | None = None) -> None:
        self.kind, self.words, self.status, self.retry_after = kind, words, status, retry_after
        super().__init__(words)


@dataclass(slots=True)
class ServedOrder:
    account: str
    names: tuple[str, ...]
    tokens: dict[str, str]  # by name; a name whose authorization is not yet valid
    invalid: str = ""  # why, for good
    chain: bytes = b""


@dataclass(slots=True)
class ServedCertificate:
    names: tuple[str, ...]
    begins: float
    expires: float
    renew_at: float
    replaced: bool = False


@dataclass(slots=True)
class Account:
    key: ec.EllipticCurvePublicKey = field(repr=False)
    thumbprint: str = ""


class AcmeServerStatistics(NamedTuple):
    requests: int
    orders: int
    certificates: int
    drops: dict[str, int]


class AcmeServer:
    """`answer` takes one request. `records(name)` are the TXT records of a name as the world sees them."""

    def __init__(
        self,
        *,
        url: str,
        records: Callable[[str], Iterable[str]],
        entropy: Callable[[int], bytes],
        wall_clock: Callable[[], float],
        lifetime: float = 90 * DAY,
    ) -> None:
        self.url = url
        self.lifetime = lifetime
        self.authority = Authority(entropy, wall_clock)
        self._refuses: Refused | None = None  # what every order is answered with
        self._records = records
        self._entropy = entropy
        self._wall_clock = wall_clock
        self._nonces: deque[str] = deque(maxlen=MOST_NONCES)
        self._accounts: OrderedDict[str, Account] = OrderedDict()
        self._orders: OrderedDict[str, ServedOrder] = OrderedDict()
        self._certificates: OrderedDict[str, ServedCertificate] = OrderedDict()
        self._requests = self._made = self._issued = 0
        self._drops = {"acme.refused": 0}

    def statistics(self) -> AcmeServerStatistics:
        return AcmeServerStatistics(self._requests, self._made, self._issued, dict(self._drops))

    def refuse_orders(self, refused: Refused | None) -> None:
        """Answer every order so from now on; None ends that."""
        self._refuses = refused

    def renew_now(self) -> None:
        """Renewal information asks for every certificate to be replaced, as after a mistake of the authority's."""
        for certificate in self._certificates.values():
            certificate.renew_at = certificate.begins

    def answer(self, method: str, path: str, body: bytes = b"") -> Reply:
        """One request of anybody's."""
        self._requests += 1
        try:
            reply = self._route(method, path, body)
        except Refused as refused:
            self._drops["acme.refused"] += 1
            wait = {} if refused.retry_after is None else {"retry-after": f"{refused.retry_after:.0f}"}
            problem = {"type": PROBLEM + refused.kind, "detail": refused.words, "status": refused.status}
            reply = Reply(refused.status, {"content-type": "application/problem+json", **wait}, compact(problem))
        nonce = base64url(self._entropy(16))
        self._nonces.append(nonce)
        return Reply(reply.status, {**reply.headers, "replay-nonce": nonce, "cache-control": "no-store"}, reply.body)

    # What is asked without a signature

    def _route(self, method: str, path: str, body: bytes) -> Reply:
        kind, _, name = path.strip("/").partition("/")
        if kind == "dir" and not name:
            return _json(200, {key: f"{self.url}/{place}" for key, place in _PLACES.items()})
        if kind == "nonce":
            return Reply(200 if method == "HEAD" else 204)
        if kind == "renewal":
            return self._renewal(name)
        if method != "POST":
            raise Refused("malformed", "this is asked for by POST", 405)
        return self._signed(path, kind, name, body)

    def _renewal(self, ari_id: str) -> Reply:
        """RFC 9773 section 4.2: the last third, but for those that are to be replaced at once."""
        found = self._certificates.get(ari_id)
        if found is None:
            raise Refused("malformed", "no such certificate", 404)
        start, end = found.renew_at, max(found.renew_at + 1, (found.renew_at + found.expires) / 2)
        window = {"start": _rfc3339(start), "end": _rfc3339(end)}
        return _json(200, {"suggestedWindow": window}, {"retry-after": f"{self.lifetime / 24:.0f}"})

    # What is signed

    def _signed(self, path: str, kind: str, name: str, body: bytes) -> Reply:
        protected, payload, account_url, account = self._checked_request(path, body)
        if kind == "account" and not name:
            return self._account(protected, payload)
        if account is None:
            raise Refused("accountDoesNotExist", "no such account", 400)
        if kind == "orders":
            return self._new_order(account_url, payload)
        number, _, which = name.partition("/")
        order = self._orders.get(number)
        if order is None or order.account != account_url:
            raise Refused("unauthorized", "no such order of this account", 404)
        if kind == "order":
            return self._shown(number, order, 200)
        if kind == "authorization" and which in order.names:
            return _json(200, self._authorization(number, order, which))
        if kind == "challenge" and which in order.names:
            return self._challenge(number, order, which, account)
        if kind == "finalize":
            return self._finalize(number, order, payload)
        if kind == "certificate" and order.chain:
            return Reply(200, {"content-type": "application/pem-certificate-chain"}, order.chain)
        raise Refused("malformed", "there is nothing here", 404)

    def _checked_request(self, path: str, body: bytes) -> tuple[dict[str, Any], Any, str, Account | None]:
        """RFC 8555 section 6: the signature, its nonce, its address and its account."""
        if len(body) > LARGEST_BODY:
            raise Refused("malformed", "a request that is too long", 413)
        try:
            outer = json.loads(body)
            text = f"{outer['protected']}.{outer['payload']}".encode()
            protected, signature = json.loads(_decoded(outer["protected"])), _decoded(outer["signature"])
            payload = json.loads(_decoded(outer["payload"])) if outer["payload"] else None
            algorithm, url, nonce = protected["alg"], protected["url"], protected["nonce"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise Refused("malformed", "no signed request") from None
        if algorithm != "ES256" or len(signature) != 64:
            raise Refused("badSignatureAlgorithm", "ES256 is spoken here")
        kid = protected.get("kid", "")
        account = self._accounts.get(kid) if isinstance(kid, str) else None
        if kid and account is None:
            raise Refused("accountDoesNotExist", "no such account")
        key = account.key if account is not None else _key_untrusted(protected.get("jwk"))
        der = encode_dss_signature(int.from_bytes(signature[:32]), int.from_bytes(signature[32:]))
        try:
            key.verify(der, text, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise Refused("malformed", "the signature is wrong") from None
        if url != f"{self.url}{path}":
            raise Refused("unauthorized", "a request that was signed for another address")
        if nonce not in self._nonces:
            raise Refused("badNonce", "a nonce that is not one of ours, or was used")
        self._nonces.remove(nonce)
        return protected, payload, kid if account is not None else "", account

    def _account(self, protected: Mapping[str, Any], payload: Any) -> Reply:
        """RFC 8555 section 7.3."""
        jwk = protected.get("jwk")
        key = _key_untrusted(jwk)
        thumbprint = thumbprint_of(jwk if isinstance(jwk, dict) else {})
        url = f"{self.url}/account/{thumbprint}"
        is_new = url not in self._accounts
        wanted = payload if isinstance(payload, dict) else {}
        if is_new and wanted.get("onlyReturnExisting") is True:
            raise Refused("accountDoesNotExist", "no such account")
        if is_new and wanted.get("termsOfServiceAgreed") is not True:
            raise Refused("userActionRequired", "the terms have to be agreed to", 403)
        _keep(self._accounts, url, Account(key, thumbprint))
        return _json(201 if is_new else 200, {"status": "valid"}, {"location": url})

    def _new_order(self, account: str, payload: Any) -> Reply:
        if self._refuses is not None:
            raise self._refuses
        wanted = payload if isinstance(payload, dict) else {}
        listed = wanted.get("identifiers")
        names = tuple(
            one["value"]
            for one in (listed if isinstance(listed, list) else ())
            if isinstance(one, dict) and one.get("type") == "dns" and isinstance(one.get("value"), str)
        )
        if not 0 < len(names) <= MOST_NAMES or not all(NAME.fullmatch(name) for name in names):
            raise Refused("rejectedIdentifier", "no names that a certificate could be for")
        replaced = wanted.get("replaces")
        if isinstance(replaced, str):
            known = self._certificates.get(replaced)
            if known is None:
                raise Refused("malformed", "replaces a certificate that nobody here has issued")
            if known.replaced:
                raise Refused("alreadyReplaced", "that certificate was replaced already", 409)
            known.replaced = True
        number = self._entropy(8).hex()
        order = ServedOrder(account, names, {name: base64url(self._entropy(16)) for name in names})
        _keep(self._orders, number, order)
        self._made += 1
        return self._shown(number, order, 201)

    def _shown(self, number: str, order: ServedOrder, status: int) -> Reply:
        """RFC 8555 section 7.1.3."""
        state = "invalid" if order.invalid else "valid" if order.chain else "pending" if order.tokens else "ready"
        shown: dict[str, Any] = {
            "status": state,
            "identifiers": [{"type": "dns", "value": name} for name in order.names],
            "authorizations": [f"{self.url}/authorization/{number}/{name}" for name in order.names],
            "finalize": f"{self.url}/finalize/{number}",
        }
        if order.chain:
            shown["certificate"] = f"{self.url}/certificate/{number}"
        if order.invalid:
            shown["error"] = {"type": f"{PROBLEM}unauthorized", "detail": order.invalid}
        return _json(status, shown, {"location": f"{self.url}/order/{number}"})

    def _authorization(self, number: str, order: ServedOrder, name: str) -> dict[str, Any]:
        """RFC 8555 section 7.1.4."""
        token = order.tokens.get(name)
        status = "invalid" if order.invalid else "pending" if token is not None else "valid"
        challenge: dict[str, Any] = {
            "type": "dns-01",
            "url": f"{self.url}/challenge/{number}/{name}",
            "token": token or base64url(b"valid already"),
            "status": status,
        }
        if order.invalid:
            challenge["error"] = {"type": f"{PROBLEM}unauthorized", "detail": order.invalid}
        wildcard = {"wildcard": True} if name.startswith("*.") else {}
        identifier = {"type": "dns", "value": name.removeprefix("*.")}
        return {"status": status, "identifier": identifier, "challenges": [challenge], **wildcard}

    def _challenge(self, number: str, order: ServedOrder, name: str, account: Account) -> Reply:
        """RFC 8555 section 8.4."""
        token = order.tokens.get(name)
        if token is None or order.invalid:
            raise Refused("malformed", "a challenge that is over")
        wanted = base64url(hashlib.sha256(f"{token}.{account.thumbprint}".encode()).digest())
        place = f"_acme-challenge.{name.removeprefix('*.')}"
        found = list(self._records(place))
        if wanted in found:
            del order.tokens[name]
        else:
            order.invalid = f"{place} has {len(found)} TXT records, and none of them is the one"
        shown: dict[str, Any] = self._authorization(number, order, name)["challenges"][0]
        return _json(200, shown)

    def _finalize(self, number: str, order: ServedOrder, payload: Any) -> Reply:
        """RFC 8555 section 7.4."""
        if order.tokens or order.invalid:
            raise Refused("orderNotReady", "the order is not ready", 403)
        text = payload.get("csr") if isinstance(payload, dict) else None
        try:
            key, names = request_untrusted(_decoded(text))
        except (BadPacket, ValueError, TypeError):
            raise Refused("badCSR", "no request that can be read") from None
        if names != frozenset(order.names):
            raise Refused("badCSR", "the request is for other names than the order")
        order.chain = self.authority.issue(key, order.names, self.lifetime)
        made = chain_untrusted(order.chain)
        wall = self._wall_clock()
        renew_at = wall + RENEW_AT * self.lifetime
        _keep(self._certificates, made.ari_id, ServedCertificate(order.names, wall, made.expires, renew_at))
        self._issued += 1
        return self._shown(number, order, 200)


_PLACES = {"newNonce": "nonce", "newAccount": "account", "newOrder": "orders", "renewalInfo": "renewal"}


def _keep(table: OrderedDict[str, Any], name: str, value: object) -> None:
    table[name] = value
    while len(table) > MOST_KEPT:
        table.popitem(last=False)


def _json(status: int, value: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, {"content-type": "application/json", **(headers or {})}, compact(value))


def _decoded(text: Any) -> bytes:
    """base64url without padding; ValueError for anything else."""
    if not isinstance(text, str) or not text.isascii():
        raise ValueError("no text")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as problem:
        raise ValueError("no base64") from problem


def _key_untrusted(jwk: Any) -> ec.EllipticCurvePublicKey:
    """RFC 7518 section 6.2.1."""
    try:
        if jwk["kty"] != "EC" or jwk["crv"] != "P-256":
            raise ValueError("another kind of key")
        x, y = (int.from_bytes(_decoded(jwk[name])) for name in ("x", "y"))
        return ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    except (KeyError, TypeError, ValueError):
        raise Refused("badPublicKey", "an EC key on P-256 is wanted, or a known account") from None


def _rfc3339(wall: float) -> str:
    return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
