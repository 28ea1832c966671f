"""Auth keys made when they are needed: what an OAuth client's secret or a workload's identity asks of the API.

Owns: the two requests and their answers, the attributes behind a `?`, what may be told to whom (no secret over plain
HTTP but to this machine), and where GitHub Actions and Google Cloud hand out ID tokens. Refuses to know: sockets, the
environment, when a key is needed. Order, defaults and quirks: feature/oauthkey, feature/identityfederation, wif.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, urlencode, urlsplit

from ts_base.errors import BadPacket
from ts_control.errors import KeyNotMade
from ts_control.http1 import Reply, is_web_page

CLIENT_SECRET = "tskey-client-"  # noqa: S105 - how one begins
DEFAULT_BASE = "https://api.tailscale.com"
METADATA_HOST = "metadata.google.internal"
LONGEST_ANSWER_TEXT = 8192  # of a token or a key
WORDS_LIMIT = 200
AMAZONS_CODE = re.compile(rb"<Code>([A-Za-z.]{1,80})</Code>")  # the one word of its refusals that quotes nothing
SHORTEST_SECRET = 8
TRUE, FALSE = ("1", "t", "T", "TRUE", "true", "True"), ("0", "f", "F", "FALSE", "false", "False")  # Go's ParseBool
FORM = ("Content-Type", "application/x-www-form-urlencoded")
GITHUB_URL, GITHUB_TOKEN = "ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"


@dataclass(frozen=True, slots=True)
class Ask:
    """One HTTP request. What it carries is secret."""

    method: str
    url: str = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class KeyWish:
    """The key that is wanted, where it is made, and by whom: an OAuth client, or a workload."""

    base: str
    ephemeral: bool
    preauthorized: bool
    secret: str = field(default="", repr=False)
    client_id: str = ""

    def ask_for_token(self, id_token: str = "") -> Ask:
        """The first request; `id_token` is a workload's."""
        if self.secret:
            form = {"grant_type": "client_credentials"}
            # Upstream's word: the API reads the client's id out of the secret.
            login = ("Authorization", _basic("some-client-id", quote_plus(self.secret)))
            return Ask("POST", f"{self.base}/api/v2/oauth/token", (login, FORM), urlencode(form).encode())
        form = {"client_id": self.client_id, "code": "", "grant_type": "authorization_code", "jwt": id_token}
        login = ("Authorization", _basic("", ""))
        return Ask("POST", f"{self.base}/api/v2/oauth/token-exchange", (login, FORM), urlencode(form).encode())

    def ask_for_key(self, token: str, tags: Sequence[str]) -> Ask:
        """The second request: one key for one device."""
        create = {"reusable": False, "ephemeral": self.ephemeral, "preauthorized": self.preauthorized}
        wanted = {"capabilities": {"devices": {"create": {**create, "tags": list(tags)}}}}
        login = f"Bearer {token}" if self.secret else _basic(token, "")
        body = json.dumps(wanted, separators=(",", ":")).encode()
        return Ask("POST", f"{self.base}/api/v2/tailnet/-/keys", (("Authorization", login),), body)


def wish_of_secret(text: str, tags: Sequence[str]) -> KeyWish:
    """What `tskey-client-...?ephemeral=false&preauthorized=true&baseURL=...` means. KeyNotMade says what is wrong."""
    secret, _, attributes = text.partition("?")
    found = _attributes(attributes, {"ephemeral", "preauthorized", "baseURL"}, "an OAuth client secret")
    if not secret.isascii() or not secret.isprintable() or " " in secret:
        raise KeyNotMade("the OAuth client secret is damaged", "Copy it again into auth_key= (or TS_CLIENT_SECRET)")
    _need_tags(tags, "an OAuth client secret")
    base = _safe_base(found.get("baseURL") or DEFAULT_BASE)
    return KeyWish(base, _truth(found, "ephemeral", True), _truth(found, "preauthorized", False), secret=secret)


def wish_of_workload(client_id: str, control_url: str, tags: Sequence[str]) -> KeyWish:
    """What `client_id=` means; a `?` without `ephemeral=` asks for a lasting key, as it does upstream."""
    name, mark, attributes = client_id.partition("?")
    found = _attributes(attributes, {"ephemeral", "preauthorized"}, "a client id")
    _need_tags(tags, "a workload identity")
    base = _safe_base(control_url)
    return KeyWish(base, _truth(found, "ephemeral", not mark), _truth(found, "preauthorized", False), client_id=name)


# Answers


def token_of_untrusted(reply: Reply) -> str:
    """The token that the first request is answered with."""
    return _text_of_untrusted(reply, "access_token")


def key_of_untrusted(reply: Reply) -> str:
    """The auth key that the second request is answered with."""
    return _text_of_untrusted(reply, "key")


def refusal_of_untrusted(reply: Reply, secrets: Sequence[str] = ()) -> str:
    """What an API says when it refuses, in one short line without these secrets; "" when nothing fit for people."""
    if (code := AMAZONS_CODE.search(reply.body)) is not None:
        return code[1].decode()
    if is_web_page(reply):
        return "a web page"
    said = reply.body.decode("utf-8", "replace")
    try:
        answer = json.loads(said)
    except (ValueError, RecursionError):
        answer = None
    if answer is not None:
        found = answer if isinstance(answer, dict) else {}
        texts = (found.get(name) for name in ("error_description", "message", "error"))
        said = next((text for text in texts if isinstance(text, str)), "")
    for secret in secrets:
        if len(secret) >= SHORTEST_SECRET:
            said = said.replace(secret, "[redacted]")
    return " ".join("".join(c if c.isprintable() else " " for c in said[:WORDS_LIMIT]).split())


# Where ID tokens come from


def ask_github(environment: Mapping[str, str], audience: str) -> Ask | None:
    """In a workflow of GitHub Actions with `permissions: id-token: write`; None anywhere else."""
    url, token = environment.get(GITHUB_URL), environment.get(GITHUB_TOKEN)
    if not url or not token:
        return None
    headers = (("Authorization", f"Bearer {token}"), ("Accept", "application/json"))
    return Ask("GET", f"{url}{'&' if '?' in url else '?'}audience={quote(audience, safe='')}", headers)


def ask_google(environment: Mapping[str, str], audience: str) -> Ask:
    """On a machine of Google Cloud; elsewhere the name does not exist. `GCE_METADATA_HOST` is Google's own variable."""
    host = environment.get("GCE_METADATA_HOST") or METADATA_HOST
    path = "/computeMetadata/v1/instance/service-accounts/default/identity"
    query = urlencode({"audience": audience, "format": "full"})
    return Ask("GET", f"http://{host}{path}?{query}", (("Metadata-Flavor", "Google"),))


def github_token_of_untrusted(reply: Reply) -> str:
    return _text_of_untrusted(reply, "value")


def google_token_of_untrusted(reply: Reply) -> str:
    text = reply.body.strip().decode("latin-1")
    if is_web_page(reply) or not is_token(text):
        raise BadPacket("no ID token")
    return text


# Rules


def is_safe_url(url: str) -> bool:
    """Whether a secret may be sent there: by TLS, or to this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        return False
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and _is_this_machine(host)))


def _safe_base(url: str) -> str:
    if not is_safe_url(url):
        raise KeyNotMade(
            f"{url.partition('?')[0]} is no place for a secret: plain HTTP is for 127.0.0.1 only",
            "Use an https:// address as baseURL (or control_url=)",
        )
    return url.rstrip("/")


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _need_tags(tags: Sequence[str], what: str) -> None:
    if not tags:
        raise KeyNotMade(f"{what} makes keys for tagged devices only", 'Pass tags=["tag:ci"], tags that it may give')


def _attributes(text: str, known: set[str], what: str) -> dict[str, str]:
    found = dict(parse_qsl(text, keep_blank_values=True, strict_parsing=False))
    unknown = sorted(found.keys() - known)
    if unknown:
        raise KeyNotMade(
            f"{what} has no attribute {unknown[0][:40]!a}", f"Behind the ? stand {', '.join(sorted(known))}"
        )
    return found


def _truth(found: Mapping[str, str], name: str, default: bool) -> bool:
    text = found.get(name)
    if text is None:
        return default
    if text not in (*TRUE, *FALSE):
        raise KeyNotMade(f"{name}={text[:20]!a} is neither true nor false", f"Write {name}=true or {name}=false")
    return text in TRUE


def _text_of_untrusted(reply: Reply, name: str) -> str:
    try:
        answer: Any = json.loads(reply.body)
    except (ValueError, RecursionError):
        answer = None
    text = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(text, str) or not is_token(text):
        raise BadPacket("a web page" if is_web_page(reply) else f"no {name.replace('_', ' ')}")
    return text


def is_token(text: str) -> bool:
    return 0 < len(text) <= LONGEST_ANSWER_TEXT and text.isascii() and text.isprintable() and " " not in text


def _basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()
