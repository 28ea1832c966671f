"""What a user name says: who it is, and by which session an exit is to be kept. `alice+session=shop+ttl=600`.

SOCKS and HTTP Basic carry one name and nothing else, so proxies put options into it. Checks no password, and knows no
exit: a session is a word here, under which an exit is kept elsewhere.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from ts_base.errors import BadPacket

LONGEST_SESSION = 64
SESSIONS_LIMIT = 4096  # with a ttl; the one that was used longest ago is begun anew
LONGEST_TTL = 30 * 86_400  # seconds


class UserName(NamedTuple):
    """`ttl` seconds after its first use a session may get another exit; 0 keeps it for as long as the exit lives."""

    user: str
    session: str = ""
    ttl: int = 0


def decode_user_untrusted(written: bytes) -> UserName:
    """The name and its options; `session=shop` alone is a session without a user. Other `+` are the name's own."""
    try:
        rest = written.decode()
    except UnicodeDecodeError:
        raise BadPacket("a user name is not UTF-8") from None
    options: dict[str, str] = {}
    while True:
        before, plus, last = rest.rpartition("+")
        key, equals, value = last.partition("=")
        if not equals or key not in ("session", "ttl") or key in options:
            break
        options[key] = value
        rest = before
        if not plus:
            break
    return UserName(rest, _session(options.get("session")), _ttl(options.get("ttl")))


def _session(value: str | None) -> str:
    if value is None:
        return ""
    if not 0 < len(value) <= LONGEST_SESSION or not value.isprintable():
        raise BadPacket(f"a session has a name of 1 to {LONGEST_SESSION} printable characters")
    return value


def _ttl(value: str | None) -> int:
    if value is None:
        return 0
    if not (value.isascii() and value.isdigit()) or len(value) > 7 or not 0 < int(value) <= LONGEST_TTL:
        raise BadPacket(f"ttl= is a number of seconds between 1 and {LONGEST_TTL}")
    return int(value)


class Sessions:
    """Under which word each session's exit is kept: one for each user, and another when its ttl has passed."""

    def __init__(self) -> None:
        self._begun: OrderedDict[str, tuple[float, int]] = OrderedDict()  # when, and how often before

    def word_for(self, who: UserName, now: float) -> str:
        """ "" for who asked for no session."""
        if not who.session:
            return ""
        word = f"{who.user}+{who.session}" if who.user else who.session
        if not who.ttl:
            return word
        begun, times = self._begun.pop(word, (now, 0))
        if now - begun >= who.ttl:
            begun, times = now, times + 1
        self._begun[word] = begun, times
        if len(self._begun) > SESSIONS_LIMIT:
            self._begun.popitem(last=False)
        return f"{word}+{times}" if times else word
