"""Answers that need nobody: a text, a redirect, a refusal. ASGI apps, in the words of Go's net/http.

What stock nodes answer is what browsers and scripts of a tailnet have met; so is this.
"""

from __future__ import annotations

import html
import posixpath
from http import HTTPStatus
from urllib.parse import quote, urlsplit

from tailscale.http1.asgi import AsgiApp, Receive, Scope, Send

PLAIN = (b"content-type", b"text/plain; charset=utf-8")
HTML = (b"content-type", b"text/html; charset=utf-8")
NO_SNIFF = (b"x-content-type-options", b"nosniff")
ANY_ASCII = "".join(map(chr, range(0x21, 0x7F)))


def fixed(status: int, body: bytes, *headers: tuple[bytes, bytes]) -> AsgiApp:
    """Always this answer."""

    async def answer(_: Scope, receive: Receive, send: Send) -> None:
        all_headers = [*headers, (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": all_headers})
        await send({"type": "http.response.body", "body": body})

    return answer


def of_text(text: str) -> AsgiApp:
    return fixed(200, text.encode(), PLAIN)


def error(status: int, sentence: str, *headers: tuple[bytes, bytes]) -> AsgiApp:
    """A refusal, and why."""
    return fixed(status, sentence.encode() + b"\n", *headers, PLAIN, NO_SNIFF)


NOT_FOUND = error(404, "404 page not found")
FORBIDDEN = error(403, "this device's owner lets others in here, not you")


def redirect_to(to: str) -> AsgiApp:
    """Elsewhere: `301:` in front says how, and `${HOST}` and `${REQUEST_URI}` are the request's."""
    status = 302
    if to[3:4] == ":" and to[:3].isascii() and to[:3].isdigit() and 300 <= int(to[:3]) < 400:
        status, to = int(to[:3]), to[4:]

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
        query = scope["query_string"]
        asked = (scope["raw_path"] + (b"?" + query if query else b"")).decode("latin-1")
        place = to.replace("${HOST}", host).replace("${REQUEST_URI}", asked)
        await moved(status, place)(scope, receive, send)

    return answer


def moved(status: int, place: str) -> AsgiApp:
    """http.Redirect of Go: a place without a scheme or a first slash is beside the path that was asked for."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        where = quote(_absolute(place, scope["path"]), safe=ANY_ASCII)
        words = HTTPStatus(status).phrase if status in set(HTTPStatus) else ""
        body = f'<a href="{html.escape(where)}">{words}</a>.\n\n' if scope["method"] in ("GET", "HEAD") else ""
        kind = [HTML] if body else []
        await fixed(status, body.encode(), (b"location", where.encode()), *kind)(scope, receive, send)

    return answer


def _absolute(place: str, path: str) -> str:
    if place.startswith("/") or urlsplit(place).scheme:
        return place
    place, mark, query = (posixpath.dirname(path).rstrip("/") + "/" + place).partition("?")
    ending = "/" if place.endswith("/") else ""
    return posixpath.normpath(place).replace("//", "/").rstrip("/") + ending + mark + query
