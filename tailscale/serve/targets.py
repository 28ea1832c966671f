"""What may stand behind a port or a path: values, and the words by which they are typed.

Owns the rules for those words, which are upstream's (ipn/serve.go). Opens nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

if TYPE_CHECKING:
    from tailscale.http1.asgi import AsgiApp

LOOPBACK = "127.0.0.1"
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
WEB_SCHEMES = ("http", "https", "https+insecure")
UNIX = "unix:"


@dataclass(frozen=True, slots=True)
class Proxy:
    """A web server. `to` is a URL, or `unix:` and a path."""

    to: str
    accept_caps: tuple[str, ...] = ()
    """Capabilities of the caller that it is told of."""


@dataclass(frozen=True, slots=True)
class Files:
    """A folder and all below it, or one file."""

    path: str
    is_folder: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """Always the same answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Redirect:
    """Somewhere else. `to` may begin with a status, as `301:`, and have `${HOST}` and `${REQUEST_URI}` in it."""

    to: str


@dataclass(frozen=True, slots=True, eq=False)
class App:
    """An ASGI app of this process."""

    app: AsgiApp


@dataclass(frozen=True, slots=True)
class Forward:
    """A TCP server, `HOST:PORT` or `unix:PATH`, told by a PROXY header who calls where a version is given."""

    to: str
    tls: bool = False
    proxy_protocol: int = 0


Target = Proxy | Files | Text | Redirect | App
Mounts = Mapping[str, Any]


def proxy(to: str | int, *, accept_caps: Sequence[str] = ()) -> Proxy:
    """A web server behind a path: `http://127.0.0.1:3000`, `https://`, `https+insecure://`, `unix:/path`, or a port.

    `accept_caps` are capabilities; which of them the policy gives a caller is told in `Tailscale-App-Capabilities`.

    ```python
    proxy("http://127.0.0.1:3000")
    ```
    """
    return Proxy(expand(str(to), (*WEB_SCHEMES, "unix")), tuple(accept_caps))


def files(path: str | os.PathLike[str]) -> Files:
    """A folder behind a path, or one file.

    Nothing is reached through a link, and what begins with a dot is not there.
    """
    where = os.path.abspath(path)
    return Files(where, os.path.isdir(where))


def text(words: str) -> Text:
    """A text behind a path."""
    if not words:
        raise ValueError("a text that is served has at least one letter")
    return Text(words)


def redirect(to: str) -> Redirect:
    """Another place: a URL, or `301:` and one; `${HOST}` and `${REQUEST_URI}` in it are those of the request."""
    if not to:
        raise ValueError("a redirect needs a place to go to")
    return Redirect(to)


def tcp(to: str | int, *, tls: bool = False, proxy_protocol: int = 0) -> Forward:
    """A TCP server behind a port: `HOST:PORT`, a port, or `unix:/path`.

    `tls` takes TLS off before the server sees a byte; `proxy_protocol` 1 or 2 tells it who calls.
    """
    place = expand(str(to).removeprefix("tcp://"), ("tcp", "unix"), "tcp").removeprefix("tcp://")
    if not place.startswith(UNIX) and not urlsplit(f"tcp://{place}").port:
        raise ValueError(f"{place!r} has no port: a TCP server is HOST:PORT or unix:/path")
    if proxy_protocol not in (0, 1, 2):
        raise ValueError(f"proxy_protocol is 0 for none, 1 or 2, not {proxy_protocol!r}")
    if proxy_protocol and place.startswith(UNIX):
        raise ValueError("a PROXY header names addresses, which a Unix socket does not have")
    return Forward(place, tls, proxy_protocol)


def target_of(value: Any) -> Target:
    """Whatever may stand behind a path, of a value as users give it."""
    if isinstance(value, Target):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return proxy(value)
    if isinstance(value, str):
        return read_target(value)
    if isinstance(value, os.PathLike):
        return files(value)
    if callable(value):
        return App(value)
    raise TypeError(f"{value!r} cannot be served: give proxy(...), files(...), text(...), redirect(...) or an ASGI app")


def read_target(words: str) -> Target:
    """As typed: a port, `host:port`, a URL, `unix:/path`, `text:words`, or the absolute path of a folder or file."""
    if words.startswith("text:"):
        return text(words.removeprefix("text:"))
    if os.path.isabs(words):
        return files(words)
    return proxy(words)


def expand(words: str, schemes: Sequence[str], scheme: str = "http") -> str:
    """A place in full, of what is typed for it (ExpandProxyTargetValue of upstream)."""
    if not words:
        raise ValueError("a target is missing")
    if words.isascii() and words.isdigit():
        return f"{scheme}://{LOOPBACK}:{_port(words)}"
    if words.startswith(UNIX):
        if words == UNIX:
            raise ValueError("unix: is followed by the path of a socket")
        return words
    has_scheme = "://" in words
    url = urlsplit(words if has_scheme else f"{scheme}://{words}")
    if url.scheme not in schemes:
        raise ValueError(f"{words!r} is served by none of {', '.join(schemes)}")
    _check_host(words, url, has_scheme)
    if url.port is None:
        return urlunsplit(url)
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    return urlunsplit(url._replace(netloc=f"{host}:{_port(str(url.port))}"))


def _check_host(words: str, url: SplitResult, has_scheme: bool) -> None:
    if not url.hostname or "@" in url.netloc or any(c.isspace() for c in words):
        raise ValueError(f"{words!r} names no host")
    if url.hostname in THIS_MACHINE:
        if url.port is None:
            raise ValueError(f"{words!r} needs a port, as in {url.hostname}:3000")
    elif not has_scheme:
        raise ValueError(f"{words!r} is another machine: say how to speak to it, as in http://{words}")


def _port(words: str) -> int:
    if not 0 < int(words) < 65536:
        raise ValueError(f"{words} is no port: they go from 1 to 65535")
    return int(words)
