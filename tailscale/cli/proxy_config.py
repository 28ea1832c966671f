"""What `pytailscale proxy` was told, by arguments and by files: ports, exits, users.

Owns the grammar of `LISTEN=SPEC`, of a users file and of a configuration. Mistakes name the line, and the word that was
likely meant. Opens nothing but these files.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tailscale.proxy.doors import read_place
from tailscale.proxy.limits import ProxyLimits
from ts_proxy.policy import BadPolicy, nearest
from ts_proxy.spec import parse_spec

DEFAULT_LISTEN = "127.0.0.1:1080"
WORDS = ("listen", "users", "limits")
LISTEN_WORDS = ("at", "exit")
LIMITS = {one.name: one.type for one in fields(ProxyLimits)}


@dataclass(frozen=True)
class Port:
    """One place to listen at, and the exits of what comes there."""

    at: str
    exit: str


@dataclass
class Settings:
    """All that a run of the command needs."""

    ports: list[Port] = field(default_factory=list)
    users: dict[str, str] | None = field(default=None, repr=False)
    limits: ProxyLimits = field(default_factory=ProxyLimits)


class BadConfig(ValueError):
    """What was written cannot be meant."""


def read_port(text: str, exit: str, where: str = "") -> Port:
    """`127.0.0.1:1080`, or with its own exits `127.0.0.1:1081=NL`."""
    at, equals, own = text.partition("=")
    port = Port(at or DEFAULT_LISTEN, own if equals else exit)
    try:
        read_place(port.at)
        parse_spec(port.exit)
    except (BadPolicy, ValueError) as problem:
        raise BadConfig(f"{where}{problem}") from None
    return port


def read_users(path: Path) -> dict[str, str]:
    """One `name:password` in a line; `#` begins a comment."""
    users: dict[str, str] = {}
    for number, line in enumerate(_text_of(path).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, password = line.strip().partition(":")
        if not (name and colon and password):
            raise BadConfig(f"{path}, line {number}: write name:password")
        if name in users:
            raise BadConfig(f"{path}, line {number}: {name!r} has a password already")
        users[name] = password
    if not users:
        raise BadConfig(f"{path} names no user: write name:password, one in a line")
    return users


def read_config(path: Path, exit: str) -> Settings:
    """A TOML file: `[[listen]]` with `at` and `exit`, `[users]` or `users = "FILE"`, `[limits]`."""
    text = _text_of(path)
    try:
        said = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise BadConfig(f"{path}: {problem}") from None
    reader = _Reader(path, text)
    reader.check_words(said, WORDS)
    settings = Settings(limits=reader.limits(said.get("limits", {})), users=reader.users(said.get("users")))
    places = said.get("listen", [])
    if not isinstance(places, list) or not all(isinstance(place, dict) for place in places):
        raise reader.bad("listen", "begin each place to listen at with [[listen]]")
    for number, place in enumerate(places):
        where = f"{path}, line {reader.line_of('listen', number)}: "
        reader.check_words(place, LISTEN_WORDS)
        at, own = place.get("at", DEFAULT_LISTEN), place.get("exit", exit)
        if not isinstance(at, str) or not isinstance(own, str):
            raise BadConfig(f"{where}at and exit are texts in quotes")
        settings.ports.append(read_port(f"{at}={own}", exit, where))
    return settings


class _Reader:
    """One file, and where in it a word stands."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._lines = text.splitlines()

    def line_of(self, word: str, number: int = 0) -> int:
        """The line that begins with this word, or holds it as a table's name; the `number`th of such lines."""
        shape = re.compile(rf'\s*(\[+\s*)?"?{re.escape(word)}"?\s*(\]+|=|\.)')
        found = [at for at, line in enumerate(self._lines, 1) if shape.match(line)]
        return found[min(number, len(found) - 1)] if found else 1

    def bad(self, word: str, sentence: str) -> BadConfig:
        return BadConfig(f"{self._path}, line {self.line_of(word)}: {sentence}")

    def check_words(self, said: Mapping[str, Any], known: Sequence[str]) -> None:
        for word in said:
            if word not in known:
                close = nearest(word, known, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
                raise self.bad(word, f"there is no {word!r}: {hint}")

    def users(self, said: Any) -> dict[str, str] | None:
        if said is None:
            return None
        if isinstance(said, str):
            return read_users(self._path.parent / said)
        if not isinstance(said, dict) or not said or not all(isinstance(value, str) for value in said.values()):
            raise self.bad("users", 'write users = "FILE", or name = "password" under [users]')
        return dict(said)

    def limits(self, said: Any) -> ProxyLimits:
        if not isinstance(said, dict):
            raise self.bad("limits", "write clients = 100 and the like under [limits]")
        self.check_words(said, tuple(LIMITS))
        for word, value in said.items():
            is_switch = LIMITS[word] == "bool"
            fits = isinstance(value, bool) if is_switch else type(value) in (int, float) and value > 0
            if not fits:
                raise self.bad(word, f"{word} is {'true or false' if is_switch else 'a number above 0'}")
        return ProxyLimits(**said)


def _text_of(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError:
        raise BadConfig(f"{path} is not text") from None
