"""An ACME account as conversations: RFC 8555 as its client, with RFC 9773 (when to renew) and RFC 8737 (TLS-ALPN-01).

A conversation is a generator. It yields what is to be done (an `Ask` over HTTP, a `Pause`, a record, a certificate to
answer by) and is sent the `Reply` to an Ask; what it returns is the result. Owns nonces, polling and how often anything
is tried. Refuses to know sockets and where results are kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from ts_acme.errors import ALREADY_REPLACED, BAD_NONCE, NO_ACCOUNT, AcmeRefused
from ts_acme.messages import (
    Ask,
    Authorization,
    Challenge,
    Directory,
    Order,
    Reply,
    Window,
    authorization_untrusted,
    directory_untrusted,
    host_of,
    location_untrusted,
    nonce_untrusted,
    order_untrusted,
    problem_untrusted,
    retry_after_untrusted,
    window_untrusted,
)
from ts_acme.signing import AccountKey, base64url
from ts_base.errors import BadPacket

DNS_01, TLS_ALPN_01 = "dns-01", "tls-alpn-01"
MOST_NONCES = 16
MOST_BAD_NONCES = 24  # in a row for one request: a server that refuses half of them on purpose gets through
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # between looks at an order, where the server does not say
LONGEST_ASKED_PAUSE = 60.0
PATIENCE = 120.0  # seconds of pauses for one authorization, and for one order
LOOK_AGAIN = 6 * 3600.0  # at renewal information: RFC 9773 section 4.3.3

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pause:
    """Go on after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class PublishText:
    """A TXT record that the name's own DNS has to show: RFC 8555 section 8.4."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class AnswerTls:
    """Who asks for `name` by the protocol acme-tls/1 is shown this digest until the conversation ends: RFC 8737."""

    name: str
    digest: bytes


Step = Ask | Pause | PublishText | AnswerTls
Conversation = Generator[Step, Reply | None, T]


class AcmeStatistics(NamedTuple):
    requests: int
    orders: int
    drops: dict[str, int]


@dataclass(slots=True)
class Wanted:
    """A certificate that is wanted. `kinds` are the challenges that may be answered, the best first."""

    names: Sequence[str]
    request: bytes = field(repr=False)
    kinds: Sequence[str] = (DNS_01,)
    replaces: str = ""


class AcmeClient:
    """One account at one server. Several conversations may go on at a time."""

    def __init__(self, directory_url: str, key: AccountKey, *, wall_clock: Callable[[], float]) -> None:
        self._where = directory_url
        self._key = key
        self._wall_clock = wall_clock
        self._directory: Directory | None = None
        self._account = ""
        self._nonces: deque[str] = deque(maxlen=MOST_NONCES)
        self._requests = self._orders = 0
        self._drops = {"acme.bad_nonce": 0, "acme.replaces_refused": 0, "acme.challenge_failed": 0}

    def statistics(self) -> AcmeStatistics:
        return AcmeStatistics(self._requests, self._orders, dict(self._drops))

    # Conversations

    def certificate(self, wanted: Wanted) -> Conversation[bytes]:
        """The chain in PEM, as the server sent it. Raises AcmeRefused and BadPacket."""
        yield from self._log_in()
        for number, kind in enumerate(wanted.kinds):
            try:
                return (yield from self._order(wanted, kind))
            except AcmeRefused as problem:
                if number + 1 == len(wanted.kinds) or problem.is_rate_limit:
                    raise
                self._drops["acme.challenge_failed"] += 1
        raise ValueError("a certificate needs a kind of challenge")

    def window(self, ari_id: str) -> Conversation[Window | None]:
        """When the server wants this certificate renewed; None where it says nothing of that."""
        yield from self._look_up()
        assert self._directory is not None
        if not self._directory.renewal_info:
            return None
        reply = yield from self._send(Ask("GET", f"{self._directory.renewal_info}/{ari_id}"))
        if reply.status != 200:
            raise self._refusal(reply, "renewal information")
        return window_untrusted(reply, self._wall_clock(), LOOK_AGAIN)

    # Its parts

    def _look_up(self) -> Conversation[None]:
        """RFC 8555 section 7.1.1. Not followed elsewhere: who redirects is not who was named."""
        if self._directory is None:
            reply = yield from self._send(Ask("GET", self._where))
            if reply.status != 200:
                raise self._refusal(reply, "its directory")
            self._directory = directory_untrusted(reply, self._where)

    def _log_in(self) -> Conversation[None]:
        """RFC 8555 section 7.3: the same request finds an account and makes one."""
        yield from self._look_up()
        assert self._directory is not None
        if not self._account:
            reply = yield from self._post(self._directory.new_account, {"termsOfServiceAgreed": True})
            if reply.status not in (200, 201):
                raise self._refusal(reply, "an account")
            self._account = location_untrusted(reply, self._where)

    def _order(self, wanted: Wanted, kind: str) -> Conversation[bytes]:
        """RFC 8555 section 7.4."""
        url, order = yield from self._new_order(wanted)
        for one in order.authorizations if order.status == "pending" else ():
            yield from self._authorize(one, wanted.names, kind)
        order = yield from self._until_past(url, order, {"pending"})
        if order.status == "ready":
            payload = {"csr": base64url(wanted.request)}
            order = yield from self._order_by(order.finalize, payload)
        order = yield from self._until_past(url, order, {"ready", "processing"})
        if order.status != "valid" or not order.certificate:
            raise AcmeRefused(self._sentence("ended the order as", order.status, order.error))
        reply = yield from self._post(order.certificate, None)
        if reply.status != 200:
            raise self._refusal(reply, "the certificate")
        return reply.body

    def _new_order(self, wanted: Wanted) -> Conversation[tuple[str, Order]]:
        """RFC 9773 section 5: a certificate is replaced once. An order that was made has used that up."""
        assert self._directory is not None
        payload: dict[str, Any] = {"identifiers": [{"type": "dns", "value": name} for name in wanted.names]}
        replaces, wanted.replaces = wanted.replaces, ""
        first = {**payload, "replaces": replaces} if replaces else payload
        reply = yield from self._post(self._directory.new_order, first)
        if (
            reply.status == 400 and problem_untrusted(reply).kind == NO_ACCOUNT
        ):  # it has forgotten us, or lost its state
            self._account = ""
            yield from self._log_in()
            reply = yield from self._post(self._directory.new_order, first)
        if replaces and 400 <= reply.status < 500:
            refusal = self._refusal(reply, "an order")
            # Said of the certificate and not of the order: replaced already, or by an account that is lost.
            if reply.status == 409 or refusal.kind in {ALREADY_REPLACED, "malformed", "unauthorized", "serverInternal"}:
                self._drops["acme.replaces_refused"] += 1
                reply = yield from self._post(self._directory.new_order, payload)
        if reply.status != 201:
            raise self._refusal(reply, "an order")
        self._orders += 1
        return location_untrusted(reply, self._where), order_untrusted(reply, self._where)

    def _authorize(self, url: str, names: Sequence[str], kind: str) -> Conversation[None]:
        """RFC 8555 section 7.5. One that is valid from an earlier order is left alone: answering it is an error."""
        found, _ = yield from self._authorization(url)
        if found.status == "valid":
            return
        if found.name not in {name.removeprefix("*.") for name in names}:
            raise BadPacket(f"an authorization for {found.name}, which nobody asked for")
        challenge = self._challenge(found, kind)
        digest = self._key.authorize(challenge.token)
        if kind == DNS_01:
            yield PublishText(f"_acme-challenge.{found.name}", base64url(digest))
        else:
            yield AnswerTls(found.name, digest)
        if challenge.status == "pending":
            reply = yield from self._post(challenge.url, {})
            if reply.status != 200:
                raise self._refusal(reply, f"the challenge for {found.name}")
        pauses = Pauses()
        while found.status == "pending":
            found, retry_at = yield from self._authorization(url)
            if found.status == "pending":
                yield self._paused(pauses, retry_at, f"has not looked at {found.name}")
        if found.status != "valid":
            raise AcmeRefused(self._sentence(f"does not believe that {found.name} is ours:", found.status, found.error))

    def _challenge(self, found: Authorization, kind: str) -> Challenge:
        if found.status != "pending":
            raise AcmeRefused(self._sentence(f"ended the authorization of {found.name} as", found.status, found.error))
        for challenge in found.challenges:
            if challenge.kind == kind:
                return challenge
        raise AcmeRefused(f"the ACME server {host_of(self._where)} offers no {kind} for {found.name}")

    def _authorization(self, url: str) -> Conversation[tuple[Authorization, float | None]]:
        reply = yield from self._post(url, None)
        if reply.status != 200:
            raise self._refusal(reply, "an authorization")
        return authorization_untrusted(reply, self._where), retry_after_untrusted(reply, self._wall_clock())

    def _order_by(self, url: str, payload: dict[str, Any] | None) -> Conversation[Order]:
        reply = yield from self._post(url, payload)
        if reply.status != 200:
            raise self._refusal(reply, "the order")
        return order_untrusted(reply, self._where)

    def _until_past(self, url: str, order: Order, statuses: set[str]) -> Conversation[Order]:
        pauses = Pauses()
        while order.status in statuses:
            reply = yield from self._post(url, None)
            if reply.status != 200:
                raise self._refusal(reply, "the order")
            order = order_untrusted(reply, self._where)
            if order.status in statuses:
                retry_at = retry_after_untrusted(reply, self._wall_clock())
                yield self._paused(pauses, retry_at, f"left the order {order.status}")
        return order

    def _paused(self, pauses: Pauses, retry_at: float | None, what: str) -> Pause:
        seconds = pauses.take(None if retry_at is None else retry_at - self._wall_clock())
        if seconds is None:
            raise AcmeRefused(f"the ACME server {host_of(self._where)} {what} for {PATIENCE:.0f} s")
        return Pause(seconds)

    # Requests

    def _post(self, url: str, payload: dict[str, Any] | None) -> Conversation[Reply]:
        """RFC 8555 section 6.5: a nonce that was refused comes with the next one."""
        assert self._directory is not None
        for _ in range(MOST_BAD_NONCES):
            nonce = self._nonces.popleft() if self._nonces else (yield from self._new_nonce())
            reply = yield from self._send(Ask("POST", url, self._key.sign(url, nonce, payload, self._account)))
            if reply.status != 400 or problem_untrusted(reply).kind != BAD_NONCE:
                return reply
            self._drops["acme.bad_nonce"] += 1
        raise AcmeRefused(f"the ACME server {host_of(self._where)} refused {MOST_BAD_NONCES} of its own nonces")

    def _new_nonce(self) -> Conversation[str]:
        assert self._directory is not None
        reply = yield from self._send(Ask("HEAD", self._directory.new_nonce))
        if not self._nonces:
            raise self._refusal(reply, "a nonce")
        return self._nonces.popleft()

    def _send(self, ask: Ask) -> Conversation[Reply]:
        self._requests += 1
        reply = yield ask
        assert reply is not None, "an Ask is answered"
        nonce = nonce_untrusted(reply)
        if nonce is not None:
            self._nonces.append(nonce)
        return reply

    # Sentences

    def _refusal(self, reply: Reply, what: str) -> AcmeRefused:
        problem = problem_untrusted(reply)
        retry_at = retry_after_untrusted(reply, self._wall_clock())
        said = f"HTTP {reply.status}" + (f", {problem}" if str(problem) else "")
        sentence = f"the ACME server {host_of(self._where)} gives no answer that {what} could be: {said}"
        if reply.status >= 400:
            sentence = f"the ACME server {host_of(self._where)} refused {what}: {said}"
        return AcmeRefused(sentence, kind=problem.kind, status=reply.status, retry_at=retry_at)

    def _sentence(self, what: str, status: str, error: object) -> str:
        return f"the ACME server {host_of(self._where)} {what} {status}" + (f" ({error})" if error else "")


class Pauses:
    """Ever longer ones between looks at the same thing, and an end to them."""

    def __init__(self) -> None:
        self._next = FIRST_PAUSE
        self._left = PATIENCE

    def take(self, asked: float | None) -> float | None:
        """Seconds; `asked` is the server's own wish. None when patience is at its end."""
        seconds = self._next if asked is None else min(max(asked, FIRST_PAUSE), LONGEST_ASKED_PAUSE)
        self._next = min(2 * self._next, LONGEST_PAUSE)
        if self._left <= 0:
            return None
        self._left -= seconds
        return seconds
