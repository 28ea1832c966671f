"""Certificates by ACME for the names that the control server gives: a conversation of `ts_acme` carried over HTTP.

Owns which server is asked, the account, and what its refusals are called. The records of DNS-01 are written by the
control server; TLS-ALPN-01 is tried first for a name whose port 443 arrives here from the internet. Refuses to know
when a certificate is wanted.
"""

from __future__ import annotations

import logging
import math
import os
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TypeVar

import trio

from tailscale.certificates.source import Exchange, Ground, Renewal
from tailscale.certificates.value import Certificate
from tailscale.errors import CertificateError, CertificateNameRefused, CertificateRateLimited, StateCorrupt
from ts_acme.chains import check_chain, new_request
from ts_acme.client import DNS_01, TLS_ALPN_01, AcmeClient, AnswerTls, Conversation, Pause, PublishText, Wanted
from ts_acme.errors import AcmeRefused
from ts_acme.messages import Ask, Reply, host_of
from ts_acme.signing import ENTROPY_LENGTH, AccountKey, key_text, key_untrusted, new_key
from ts_base.errors import BadPacket
from ts_control import key_making
from ts_control.errors import ControlLost, NotControl

log = logging.getLogger("tailscale.certificates")

LETS_ENCRYPT = "https://acme-v02.api.letsencrypt.org/directory"
DIRECTORY_VARIABLE = "TS_DEBUG_ACME_DIRECTORY_URL"  # upstream's
REQUEST_TIMEOUT = 30.0
ORDER_TIMEOUT = 300.0
RENEWAL_TIMEOUT = 5.0  # to ask when; upstream's
ASK_AGAIN = 3600.0  # after that could not be asked
SIGNED = (("Content-Type", "application/jose+json"),)  # RFC 8555 section 6.2

T = TypeVar("T")


class ControlCertificates:
    """From Let's Encrypt, or another ACME server, for the names that the control server lets this device have.

    `directory` is the server's address, `$TS_DEBUG_ACME_DIRECTORY_URL` unless given; `tls` an `ssl.SSLContext` for one
    with a private CA.

    ```python
    source = ControlCertificates("https://ca.example.com/acme/directory")
    device = tailscale.Device("web", certificates=source)
    ```
    """

    remedy = "see that the control server and the ACME server can be reached; it is tried again"
    is_scarce = True

    def __init__(self, directory: str = "", *, tls: ssl.SSLContext | None = None) -> None:
        self.directory = directory or os.environ.get(DIRECTORY_VARIABLE) or LETS_ENCRYPT
        self._tls = tls
        self._clients: dict[str, AcmeClient] = {}  # by the thumbprint of their account
        self._fractions: dict[str, float] = {}  # where in its renewal window each certificate is replaced

    @property
    def drops(self) -> Mapping[str, int]:
        """What the conversations had to do twice."""
        return {name: count for client in self._clients.values() for name, count in client.statistics().drops.items()}

    def names(self, ground: Ground) -> Sequence[str]:
        """What control says, and names that lead here from the internet."""
        names = ground.certificate_names
        if not names:
            raise CertificateNameRefused(
                f"the control server {ground.control_url} gives this device no name for a certificate (CertDomains is "
                "empty). On Tailscale, enable HTTPS at https://login.tailscale.com/admin/dns. Headscale gives none: "
                "use a certificate of your own, Device(certificates=FileCertificates(...)); see docs/certificates.md"
            )
        return names

    def load(self, name: str, ground: Ground) -> Certificate | None:
        """What is kept, if it is whole and for this name."""
        kept = ground.shelf.pair(name)
        if kept is None:
            return None
        try:
            found = Certificate.read_untrusted(*kept)
        except BadPacket as problem:
            log.warning("the certificate for %s that is kept cannot be used: %s", name, problem)
            return None
        return found if found.covers(name) and found.seconds_left(ground.wall_clock()) > 0 else None

    async def obtain(self, name: str, ground: Ground, previous: Certificate | None) -> Certificate:
        """One order, for one name, of one process at a time."""
        try:
            with trio.fail_after(ORDER_TIMEOUT):
                async with ground.shelf.ordering(name):
                    found = await on_shelf(ground, lambda: self.load(name, ground))
                    if found is not None and (previous is None or found.chain.expires > previous.chain.expires):
                        return found  # by another process, while we waited for it
                    return await self._order(name, ground, previous)
        except StateCorrupt as problem:
            raise CertificateError(f"no certificate for {name}: {problem}") from problem
        except trio.TooSlowError:
            raise self._error(f"did not finish the order for {name} within {ORDER_TIMEOUT:.0f} s") from None

    async def renewal(self, certificate: Certificate, ground: Ground) -> Renewal:
        """RFC 9773 section 4.2: a random moment in the window that the server suggests, else at two thirds."""
        chain, wall = certificate.chain, ground.wall_clock()
        fallback = Renewal(chain.renew_at, wall + ASK_AGAIN)
        if not chain.ari_id:
            return fallback
        with trio.move_on_after(RENEWAL_TIMEOUT):
            try:
                async with ground.exchanging(self._tls) as exchange:
                    client = await self._client(ground)
                    window = await self._hold(client.window(chain.ari_id), ground, exchange)
            except (CertificateError, StateCorrupt) as problem:
                log.info("when to renew %s is not known: %s", certificate.names[0], problem)
                return fallback
            if window is None:
                return Renewal(chain.renew_at, math.inf)
            fraction = self._fractions.setdefault(chain.ari_id, int.from_bytes(ground.entropy(4)) / 2**32)
            return Renewal(window.start + fraction * (window.end - window.start), window.look_again)
        return fallback

    async def _order(self, name: str, ground: Ground, previous: Certificate | None) -> Certificate:
        # Upstream's way with wildcards: one certificate for what is below a name, and for the name.
        names = [name, name[2:]] if name.startswith("*.") else [name]
        key = new_key(ground.entropy(ENTROPY_LENGTH))
        replaces = previous.chain.ari_id if previous is not None else ""
        wanted = Wanted(names, new_request(key, names), self._kinds(name, ground), replaces)
        async with ground.exchanging(self._tls) as exchange:
            client = await self._client(ground)
            chain_pem = await self._hold(client.certificate(wanted), ground, exchange)
        try:
            made = Certificate.read_untrusted(chain_pem, key_text(key))
            check_chain(made.chain, key.public_key(), names, ground.wall_clock())
        except BadPacket as problem:
            raise self._error(f"issued what is refused here: {problem}") from None
        await on_shelf(ground, lambda: ground.shelf.keep_pair(name, made.chain_pem, key_text(key)))
        log.info("a certificate for %s was issued, until %s", name, f"{made.expires:%Y-%m-%d %H:%M} UTC")
        return made

    def _kinds(self, name: str, ground: Ground) -> tuple[str, ...]:
        is_ours = name in ground.certificate_names or name.startswith("*.")
        if ground.carried(name):
            return (TLS_ALPN_01, DNS_01) if is_ours else (TLS_ALPN_01,)
        return (DNS_01,)

    async def _client(self, ground: Ground) -> AcmeClient:
        text = await on_shelf(ground, ground.shelf.account)
        key = None
        if text is not None:
            try:
                key = key_untrusted(text)
            except BadPacket as problem:
                log.warning("the ACME account's key that is kept cannot be used, another is made: %s", problem)
        if key is None:
            made = key = new_key(ground.entropy(ENTROPY_LENGTH))
            await on_shelf(ground, lambda: ground.shelf.keep_account(key_text(made)))
        account = AccountKey(key)
        known = self._clients.get(account.thumbprint)
        if known is None:
            known = AcmeClient(self.directory, account, wall_clock=ground.wall_clock)
            self._clients = {account.thumbprint: known}
        return known

    async def _hold(self, conversation: Conversation[T], ground: Ground, exchange: Exchange) -> T:
        """Do what it says until it has its result."""
        reply: Reply | None = None
        with ExitStack() as answered:
            while True:
                try:
                    step = conversation.send(reply)
                except StopIteration as end:
                    result: T = end.value
                    return result
                except AcmeRefused as problem:
                    raise self._refusal(problem) from None
                except BadPacket as problem:
                    raise self._error(f"answered with what is no answer: {problem}") from None
                reply = None
                if isinstance(step, Ask):
                    reply = await self._ask(step, exchange)
                elif isinstance(step, Pause):
                    await trio.sleep(step.seconds)
                elif isinstance(step, PublishText):
                    await ground.publish_text(step.name, step.value)
                elif isinstance(step, AnswerTls):
                    answered.enter_context(ground.answer_tls(step.name, step.digest))

    async def _ask(self, ask: Ask, exchange: Exchange) -> Reply:
        headers = SIGNED if ask.method == "POST" else ()
        try:
            reply = await exchange(key_making.Ask(ask.method, ask.url, headers, ask.body), REQUEST_TIMEOUT)
        except (ControlLost, NotControl) as problem:
            raise self._error(f"cannot be asked: {problem}") from None
        except BadPacket as problem:
            raise self._error(f"answered with what is no answer: {problem}") from None
        return Reply(reply.status, reply.headers, reply.body)

    def _error(self, what: str) -> CertificateError:
        return CertificateError(f"no certificate: the ACME server {host_of(self.directory)} {what}")

    def _refusal(self, problem: AcmeRefused) -> CertificateError:
        if not problem.is_rate_limit:
            return CertificateError(f"no certificate: {problem}", problem.retry_at)
        when = f" until {datetime.fromtimestamp(problem.retry_at, UTC):%Y-%m-%d %H:%M} UTC" if problem.retry_at else ""
        sentence = f"no certificate{when}: {problem}. Keep the state between runs, so that one certificate is enough"
        return CertificateRateLimited(sentence, problem.retry_at)


async def on_shelf(ground: Ground, deed: Callable[[], T]) -> T:
    """What may wait for a disk is done by a thread."""
    return deed() if ground.shelf.forgets else await trio.to_thread.run_sync(deed)
