"""Which requests reach a handler at all: none that a web page could have made a browser send.

A browser of a peer's user stands inside the tailnet. A page from elsewhere could make it speak to us (Origin, Referer),
and a name of the page's own could lead here (Host). Pure.
"""

from __future__ import annotations

from collections.abc import Collection

from tailscale.http1.asgi import Headers

INVALID = "invalid peerapi request"
FOR_BROWSERS: Headers = [
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; script-src 'none'; base-uri 'none'"),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
]
BROWSER_WORDS = 2  # programs name themselves in fewer words than browsers do


def may_be_answered(headers: Headers, names_of_us: Collection[str]) -> bool:
    """Whether a handler may see a request with these headers."""
    hosts = [value.decode("latin-1").strip().lower() for name, value in headers if name == b"host"]
    if len(hosts) != 1 or hosts[0] not in names_of_us:
        return False
    return not any(name == b"origin" or (name == b"referer" and value.strip()) for name, value in headers)


def looks_like_a_browser(headers: Headers) -> bool:
    """Whether what we answer could end up on somebody's screen."""
    for name, value in headers:
        if name == b"accept-language" or (name == b"accept-encoding" and b"deflate" in value.lower()):
            return True
        if name == b"user-agent" and (value.startswith(b"Mozilla/") or value.count(b" ") > BROWSER_WORDS):
            return True
    return False
