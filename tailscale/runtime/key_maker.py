"""The auth key of one device, had when a login needs it and not before: given, read, or made by the tailnet's API.

Owns: the order of what was given, the two requests to the API, where ID tokens are found, and the key that was made and
not used yet. Refuses to know: when a key is needed, and what becomes of it (`control_actor.py`). No secret, token or
key is in what it raises.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import trio

from tailscale._config import Config
from tailscale.runtime.network import Network
from tailscale.runtime.supervision import CallbackFailed
from ts_base.errors import BadPacket
from ts_control.errors import ControlLost, KeyNotMade, NotControl, RequestRefused
from ts_control.http1 import Reply
from ts_control.key_making import (
    CLIENT_SECRET,
    Ask,
    ask_github,
    ask_google,
    github_token_of_untrusted,
    google_token_of_untrusted,
    is_safe_url,
    key_of_untrusted,
    refusal_of_untrusted,
    token_of_untrusted,
    wish_of_secret,
    wish_of_workload,
)
from ts_control.outside import Outside

API_TIMEOUT = 10.0  # of each request, as upstream
METADATA_TIMEOUT = 5.0
COMES_BACK = {408, 425, 429}  # answers that another attempt may not get, besides those of 500 and more
REDIRECTS = range(300, 400)
SECRET_REMEDY = "Check the secret, and that it may write auth keys and give these tags"  # noqa: S105
PROVIDERS = (
    "Pass id_token=, a function that returns one; by itself it is found in GitHub Actions, Google Cloud and Amazon's "
    "EC2 and ECS"
)
WORKLOAD_REMEDY = "Check client_id=, audience= and the subject that the tailnet trusts, and that it may give these tags"


T = TypeVar("T")


class KeyMaker:
    """One per device."""

    def __init__(self, config: Config, network: Network, environment: Mapping[str, str]) -> None:
        self._config = config
        self._environment = environment
        self._network = network
        self._outside = Outside(network, tls=config.tls, environment=environment)
        self._nearby = Outside(network)  # a machine's own metadata is never asked of a proxy
        self._made: tuple[tuple[str, ...], str] | None = None
        self._secrets: tuple[str, ...] = ()  # of the attempt under way: servers quote what they refuse

    async def take(self, tags: Sequence[str]) -> str | None:
        """A key for a device that asks for these tags; None without anything given. KeyNotMade when none is to be
        had, ControlLost or RequestRefused when another attempt may have one, CallbackFailed from the program's own.
        """
        given = await _ask(self._config.auth_key)
        if given and not given.startswith(CLIENT_SECRET):
            return given
        if not given and not self._config.client_id:
            return None
        wanted = tuple(tags)
        if self._made is None or self._made[0] != wanted:
            self._made = wanted, await self._make(given or "", wanted)
        return self._made[1]

    def forget(self) -> None:
        """Control has seen the key that was made: it opens nothing any more."""
        self._made = None

    async def _make(self, secret: str, tags: tuple[str, ...]) -> str:
        config = self._config
        if secret:
            wish, id_token = wish_of_secret(secret, tags), ""
        else:
            wish = wish_of_workload(config.client_id, config.control_url, tags)
            id_token = (await _ask(config.id_token) or "").strip() or await self._find_id_token()
        remedy = SECRET_REMEDY if secret else WORKLOAD_REMEDY
        self._secrets = (wish.secret, id_token)
        token = await self._answer(wish.ask_for_token(id_token), token_of_untrusted, remedy)
        self._secrets = (wish.secret, id_token, token)
        return await self._answer(wish.ask_for_key(token, tags), key_of_untrusted, remedy)

    async def _find_id_token(self) -> str:
        audience = self._config.audience
        if not audience:
            raise KeyNotMade("id_token= gave no token", "Look at where it comes from")
        github = ask_github(self._environment, audience)
        if github is not None:
            remedy = "Give the job `permissions: id-token: write`"
            if not is_safe_url(github.url):
                raise KeyNotMade("GitHub's variables lead to a place without TLS", remedy)
            return await self._answer(github, github_token_of_untrusted, remedy)
        from tailscale.runtime.aws_tokens import AwsTokens  # with signatures that few logins need

        amazon = AwsTokens(self, self._environment)
        if await amazon.is_here():
            return await amazon.take(audience, self._network.wall_clock())
        google = ask_google(self._environment, audience)
        try:
            return await self.nearby(google, google_token_of_untrusted, PROVIDERS)
        except (ControlLost, KeyNotMade) as problem:
            if amazon.is_in_a_container():
                return await amazon.take(audience, self._network.wall_clock())
            raise KeyNotMade(f"no ID token is found here: {problem}", PROVIDERS) from None

    async def nearby(self, ask: Ask, read: Callable[[Reply], T], remedy: str) -> T:
        """What the metadata of this machine says."""
        return await self._answer(ask, read, remedy, METADATA_TIMEOUT, self._nearby)

    async def afar(self, ask: Ask, read: Callable[[Reply], T], remedy: str) -> T:
        """What somebody in the internet says: by TLS, or on this machine."""
        if not is_safe_url(ask.url):
            raise KeyNotMade(f"{urlsplit(ask.url).netloc} is no place for a secret: it has no TLS", remedy)
        return await self._answer(ask, read, remedy)

    async def _answer(
        self,
        ask: Ask,
        read: Callable[[Reply], T],
        remedy: str,
        timeout: float = API_TIMEOUT,
        outside: Outside | None = None,
    ) -> T:
        """What one request was answered with. The place is named, never what it was asked."""
        parts = urlsplit(ask.url)
        where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        try:
            reply = await (outside or self._outside).fetch(ask, timeout)
        except BadPacket as problem:
            raise KeyNotMade(f"{where} answered with nonsense ({problem})", remedy) from None
        except NotControl as problem:
            raise KeyNotMade(str(problem), "Look at who stands between, or pass tls=") from None
        said = refusal_of_untrusted(reply, self._secrets)
        if reply.status in COMES_BACK or reply.status >= 500:
            raise RequestRefused(where, reply.status, said, reply.headers.get("retry-after", ""))
        if reply.status in REDIRECTS:
            raise KeyNotMade(f"{where} answered with a redirect, and secrets are carried nowhere else", remedy)
        if reply.status >= 400:
            words = f": {said}" if said else ""
            raise KeyNotMade(f"{where} refused with HTTP {reply.status}{words}", remedy)
        try:
            return read(reply)
        except BadPacket as problem:
            raise KeyNotMade(f"{where} answered with {problem}", remedy) from None


@trio.lowlevel.disable_ki_protection  # the user's code: it may be waiting for somebody at a keyboard
async def _ask(source: Any) -> str | None:
    """A text, or what the program's own function returns."""
    try:
        found = source() if callable(source) else source
        text: str | None = await found if inspect.isawaitable(found) else found
    except Exception as error:
        raise CallbackFailed from error
    return text or None
