"""The one door for text that others wrote: names, sentences, paths and URLs of peers, relays and the control server.

Such text may hold line breaks that forge a log line, escapes that command a terminal, or marks that turn text around.
Here it is made harmless for each place it is shown at. Printable text of any language passes as it is.

Logging needs no care at the call: `guard_logs` puts a filter on our loggers, and a test finds a logger without one.
"""

from __future__ import annotations

import json
import logging
import re
from typing import Any

_PARTS = (
    "certificates",
    "control",
    "daemon",
    "forward",
    "funnel",
    "http",
    "ingress",
    "link",
    "lock",
    "mesh",
    "peerapi",
    "proxy",
    "relay",
    "serve",
    "ssh",
    "state",
    "taildrop",
    "tun",
    "udp",
)
LOGGERS = ("tailscale", *(f"tailscale.{name}" for name in _PARTS))
LONGEST_IN_LOG = 2048
WEB = ("http://", "https://")
_ESCAPED = re.compile(rb"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|u....|[^u])")  # a pair is one character
_PASSES = (int, float, bool, type(None))  # formatted by number formats, and harmless


def for_log(text: str) -> str:
    """With everything unprintable written as an escape, in one line of bounded length."""
    if len(text) > LONGEST_IN_LOG:
        text = text[:LONGEST_IN_LOG] + "..."
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def for_terminal(text: str) -> str:
    """With a question mark for everything unprintable, so that columns stay columns."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def for_json(value: Any, *, indent: int | None = None, unicode: bool = True) -> str:
    """JSON that may be shown on a terminal: the same value, with what is unprintable written as an escape."""
    text = json.dumps(value, indent=indent, ensure_ascii=not unicode)
    return "".join(c if c.isprintable() or c == "\n" else _json_escape(c) for c in text)


def harmless_json(text: bytes) -> bytes:
    """ASCII JSON with a question mark for each unprintable character that it escapes: for who shows it as it comes."""
    return _ESCAPED.sub(_shown, text) if b"\\" in text else text


def _shown(found: re.Match[bytes]) -> bytes:
    character = json.loads(b'"%b"' % found[0])
    return found[0] if character.isprintable() else b"?"


def web_address(url: str) -> str:
    """A URL that a person may be asked to open; "" for one that is not of the web, or not of one piece."""
    return url if url.lower().startswith(WEB) and url.isascii() and url.isprintable() and " " not in url else ""


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _json_escape(character: str) -> str:
    return json.dumps(character)[1:-1] if ord(character) > 0x7F else f"\\u{ord(character):04x}"


class _Shown:
    """Formats as what it stands for does, harmlessly."""

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return for_log(str(self._value))

    def __repr__(self) -> str:
        return for_log(repr(self._value))


class _Guard(logging.Filter):
    """Lets every record pass, with harmless arguments. The sentences themselves are ours.

    The lines of a traceback are marked: what an exception says cannot pass for a line of the log.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and not record.exc_text:
            lines = logging.Formatter().formatException(record.exc_info).splitlines()
            record.exc_text = "\n".join(f"  | {for_log(line)}" for line in lines)
        if isinstance(record.args, tuple):
            record.args = tuple(arg if isinstance(arg, _PASSES) else _Shown(arg) for arg in record.args)
        return True


_GUARD = _Guard()


def guard_logs() -> None:
    """Once is enough; a filter of a logger does not hear its children, so each has it."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_GUARD)
