"""What an ACME server says, read from JSON that anybody may have written: RFC 8555 section 7, RFC 9773 section 4.

Owns every bound on it, and which addresses may be followed. Refuses to know what is asked next.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from ts_base.errors import BadPacket

LARGEST_ANSWER = 64 << 10
LONGEST_URL = 2048
LONGEST_WORDS = 200
MOST_AUTHORIZATIONS = 16
MOST_CHALLENGES = 32
LONGEST_PAUSE = 366 * 86_400.0  # no Retry-After asks for more
TOKEN = re.compile(r"[A-Za-z0-9_-]{1,256}")
NONCE = re.compile(r"[A-Za-z0-9_-]{1,1024}")
NAME = re.compile(r"(?:\*\.)?[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
PROBLEM = "urn:ietf:params:acme:error:"


@dataclass(frozen=True, slots=True)
class Ask:
    """One HTTP request. Its body is signed, and proves who asks."""

    method: str
    url: str
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer; names of headers in lower case."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Directory:
    new_nonce: str
    new_account: str
    new_order: str
    renewal_info: str  # "" where the server has none


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something was refused: RFC 7807, as far as RFC 8555 section 6.7 uses it."""

    kind: str
    words: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.words}" if self.kind and self.words else self.kind or self.words


@dataclass(frozen=True, slots=True)
class Order:
    status: str
    authorizations: tuple[str, ...]
    finalize: str
    certificate: str
    error: Problem | None


@dataclass(frozen=True, slots=True)
class Challenge:
    kind: str
    url: str
    token: str
    status: str
    error: Problem | None


@dataclass(frozen=True, slots=True)
class Authorization:
    status: str
    name: str
    challenges: tuple[Challenge, ...]

    @property
    def error(self) -> Problem | None:
        return next((challenge.error for challenge in self.challenges if challenge.error is not None), None)


@dataclass(frozen=True, slots=True)
class Window:
    """When a certificate is to be renewed, by wall clock, and when to look again."""

    start: float
    end: float
    look_again: float


def directory_untrusted(reply: Reply, where: str) -> Directory:
    """RFC 8555 section 7.1.1. `where` is the address of the directory itself."""
    found = _object(reply)
    urls = {name: _url(found, name, where) for name in ("newNonce", "newAccount", "newOrder")}
    renewal = _url(found, "renewalInfo", where).rstrip("/") if found.get("renewalInfo") is not None else ""
    return Directory(urls["newNonce"], urls["newAccount"], urls["newOrder"], renewal)


def order_untrusted(reply: Reply, where: str) -> Order:
    """RFC 8555 section 7.1.3."""
    found = _object(reply)
    listed = _listed(found, "authorizations", MOST_AUTHORIZATIONS)
    authorizations = tuple(_checked_url(one, "authorizations", where) for one in listed)
    certificate = _url(found, "certificate", where) if found.get("certificate") is not None else ""
    return Order(
        _text(found, "status"),
        authorizations,
        _url(found, "finalize", where),
        certificate,
        _problem(found.get("error")),
    )


def authorization_untrusted(reply: Reply, where: str) -> Authorization:
    """RFC 8555 section 7.1.4; of a wildcard the name is the one below which it stands."""
    found = _object(reply)
    identifier = found.get("identifier")
    name = identifier.get("value") if isinstance(identifier, dict) and identifier.get("type") == "dns" else None
    if not isinstance(name, str) or not NAME.fullmatch(name.lower()):
        raise BadPacket("an authorization that is for no name")
    challenges = [_challenge(one, where) for one in _listed(found, "challenges", MOST_CHALLENGES)]
    return Authorization(_text(found, "status"), name.lower(), tuple(filter(None, challenges)))


def _challenge(found: Any, where: str) -> Challenge | None:
    """None for a kind without a token: others than ours may have anything."""
    if not isinstance(found, dict):
        raise BadPacket("a challenge that is no object")
    token = found.get("token")
    if not isinstance(token, str) or not TOKEN.fullmatch(token):
        return None
    kind, status = _text(found, "type"), _text(found, "status")
    return Challenge(kind, _url(found, "url", where), token, status, _problem(found.get("error")))


def window_untrusted(reply: Reply, wall: float, pause: float) -> Window:
    """RFC 9773 section 4.2; `pause` is for a server that does not say when to look again."""
    suggested = _object(reply).get("suggestedWindow")
    if not isinstance(suggested, dict):
        raise BadPacket("renewal information without a window")
    start, end = _time(suggested, "start"), _time(suggested, "end")
    if end <= start:
        raise BadPacket("a renewal window that ends before it begins")
    asked = retry_after_untrusted(reply, wall)
    return Window(start, end, wall + pause if asked is None else asked)


def retry_after_untrusted(reply: Reply, wall: float) -> float | None:
    """The moment that Retry-After names, by wall clock: seconds or a date (RFC 9110 section 10.2.3)."""
    text = reply.headers.get("retry-after", "").strip()[:64]
    if text.isascii() and text.isdigit():
        return wall + min(float(text), LONGEST_PAUSE)
    try:
        moment = parsedate_to_datetime(text)
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        return min(max(moment.timestamp(), wall), wall + LONGEST_PAUSE)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def problem_untrusted(reply: Reply) -> Problem:
    """What a refusal says; a web page and nonsense are a refusal too."""
    try:
        return _problem(_object(reply)) or Problem("", "")
    except BadPacket as bad:
        return Problem("", str(bad))


def nonce_untrusted(reply: Reply) -> str | None:
    """RFC 8555 section 6.5.1; None where there is none, or none that we could send back."""
    text = reply.headers.get("replay-nonce", "")
    return text if NONCE.fullmatch(text) else None


def location_untrusted(reply: Reply, where: str) -> str:
    return _checked_url(reply.headers.get("location"), "Location", where)


def host_of(url: str) -> str:
    """For sentences."""
    return urlsplit(url).netloc


def _object(reply: Reply) -> dict[str, Any]:
    if len(reply.body) > LARGEST_ANSWER:
        raise BadPacket(f"an answer of more than {LARGEST_ANSWER} bytes")
    try:
        found = json.loads(reply.body)
    except (ValueError, RecursionError):
        is_page = reply.body.lstrip()[:1] == b"<" or "html" in reply.headers.get("content-type", "")
        raise BadPacket("a web page" if is_page else "an answer that is no JSON") from None
    if not isinstance(found, dict):
        raise BadPacket("an answer that is no JSON object")
    return found


def _text(found: dict[str, Any], name: str) -> str:
    text = found.get(name)
    if not isinstance(text, str) or not 0 < len(text) <= 64:
        raise BadPacket(f"an answer without {name}")
    return text


def _listed(found: dict[str, Any], name: str, most: int) -> list[Any]:
    listed = found.get(name)
    if not isinstance(listed, list):
        raise BadPacket(f"an answer without {name}")
    if len(listed) > most:
        raise BadPacket(f"more than {most} {name}")
    return listed


def _url(found: dict[str, Any], name: str, where: str) -> str:
    return _checked_url(found.get(name), name, where)


def _checked_url(text: Any, name: str, where: str) -> str:
    """By TLS, unless the directory itself is without."""
    if not isinstance(text, str) or len(text) > LONGEST_URL or not text.isascii() or not text.isprintable():
        raise BadPacket(f"an answer without {name}")
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        raise BadPacket(f"{name} is no address") from None
    allowed = {"https", urlsplit(where).scheme}
    if parts.scheme not in allowed or not parts.hostname or parts.username is not None or " " in text:
        raise BadPacket(f"{name} is no address that may be followed")
    return text


def _problem(found: Any) -> Problem | None:
    if not isinstance(found, dict):
        return None
    kind, words = found.get("type"), found.get("detail")
    kind = kind.removeprefix(PROBLEM) if isinstance(kind, str) else ""
    shown = _readable(words) if isinstance(words, str) else ""
    inner = found.get("subproblems")
    if not shown and isinstance(inner, list) and inner:
        first = _problem(inner[0]) if not isinstance(inner[0], dict) or "subproblems" not in inner[0] else None
        shown = first.words if first is not None else ""
    return Problem(_readable(kind)[:64], shown)


def _readable(text: str) -> str:
    """One line of somebody else's words."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text[:LONGEST_WORDS]).split())


def _time(found: dict[str, Any], name: str) -> float:
    text = found.get(name)
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) and len(text) <= 64 else None
        if moment is not None and moment.tzinfo is not None:
            return moment.timestamp()
    except (ValueError, OverflowError):
        pass
    raise BadPacket(f"a renewal window without {name}")
