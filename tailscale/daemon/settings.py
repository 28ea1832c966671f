"""`config.toml`: what a daemon is and what it carries, checked as a whole before any of it is used.

Owns the sections and their keys, what each may be, and how a fault is told: by line, and with the nearest word that is
right. Reads text and gives values; opens nothing and starts nothing.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tailscale._spelling import DEFAULT_TUN_NAME, clean_routes
from tailscale.tun_options import NAME, RESERVED, SMALLEST_MTU
from tailscale.uplinks import STRATEGY_WORDS, strategy_from_text
from ts_base.errors import TailscaleError
from ts_base.ip import TUNNEL_MTU
from ts_control.services import label_of

LONGEST_SETTINGS = 1 << 20
LEVELS = ("debug", "info", "warning", "error")
HEADER = re.compile(r"\s*\[(\[?)\s*([^\[\]]+?)\s*\]\]?\s*(#.*)?")
KEY = re.compile(r"\s*([A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')\s*(?:=|\.)")


class Fault(NamedTuple):
    """One thing that is wrong, and where."""

    line: int
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        return {"line": self.line, "sentence": self.sentence}


class BadSettings(TailscaleError, ValueError):
    """A config.toml that cannot be used; `faults` has all that is wrong with it."""

    def __init__(self, path: str, faults: list[Fault]) -> None:
        self.path = path
        self.faults = tuple(faults)
        super().__init__("\n".join(f"{path}:{fault.line}: {fault.sentence}" for fault in faults))


Check = Callable[[Any], str]
"""What a value should be, if it is not that; "" if it is."""


def _kind(kind: type, words: str) -> Check:
    return lambda value: "" if type(value) is kind else words


def _number(lowest: int, highest: int) -> Check:
    words = f"a whole number from {lowest} to {highest}"
    return lambda value: "" if type(value) is int and lowest <= value <= highest else words


def _texts(value: Any) -> str:
    is_right = isinstance(value, list) and all(isinstance(each, str) for each in value)
    return "" if is_right else "a list of texts"


def _routes(value: Any) -> str:
    if not _texts(value):
        try:
            clean_routes(value)
            return ""
        except ValueError:
            pass
    return 'a list of prefixes such as "192.168.7.0/24"'


def _uplinks(value: Any) -> str:
    return "" if value == "all" else _texts(value) and 'a list of interfaces such as "wlan0", or "all"'


def _strategies(value: Any) -> str:
    for text in value.values() if isinstance(value, dict) else [value]:
        try:
            strategy_from_text(text)
        except (ValueError, AttributeError):
            return f"a strategy, or a table of peers and strategies: {STRATEGY_WORDS}"
    return ""


def _choice(*words: str) -> Check:
    def check(value: Any) -> str:
        return "" if value in words else f"one of {', '.join(words)}{_nearest(value, words)}"

    return check


def _place(*, unix: bool) -> Check:
    words = "host:port" + (" or unix:/path" if unix else "")

    def check(value: Any) -> str:
        if isinstance(value, str) and unix and value.startswith("unix:/"):
            return ""
        host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
        return "" if host and port.isdigit() and int(port) < 65536 else f'"{words}"'

    return check


def _service(value: Any) -> str:
    try:
        label_of(value)
        return ""
    except (ValueError, AttributeError):
        return 'the name of a Service, such as "svc:web"'


def _tun_name(value: Any) -> str:
    is_right = isinstance(value, str) and NAME.fullmatch(value) is not None and value not in RESERVED
    return "" if is_right else f'the name of an interface, such as "{DEFAULT_TUN_NAME}"'


def _passwords(value: Any) -> str:
    is_right = isinstance(value, dict) and all(isinstance(each, str) for each in value.values())
    return "" if is_right else "a table of names and passwords"


def _nodes(value: Any) -> str:
    is_right = isinstance(value, dict) and value and all(isinstance(each, str) and each for each in value.values())
    return "" if is_right else "a table of names and the nodes that have them"


TEXT = _kind(str, "a text")
YES_OR_NO = _kind(bool, "true or false")
PORT = _number(1, 65535)


@dataclass(frozen=True, slots=True)
class Section:
    """One kind of section: its keys, and whether there may be several of it."""

    keys: Mapping[str, Check]
    required: tuple[str, ...] = ()
    is_list: bool = False


SECTIONS: dict[str, Section] = {
    "device": Section(
        {
            "hostname": TEXT,
            "control_url": TEXT,
            "auth_key_file": TEXT,
            "client_id": TEXT,
            "audience": TEXT,
            "id_token_file": TEXT,
            "tags": _texts,
            "accept_routes": YES_OR_NO,
            "exit_node": TEXT,
            "advertise_routes": _routes,
            "advertise_exit_node": YES_OR_NO,
            "shields_up": YES_OR_NO,
            "udp_port": _number(0, 65535),
            "uplinks": _uplinks,
            "paths": _strategies,
            "hard_nats": YES_OR_NO,
        }
    ),
    "log": Section({"level": _choice(*LEVELS), "size": _number(4096, 1 << 30), "files": _number(0, 100)}),
    "forward": Section({"listen": _place(unix=True), "to": _place(unix=False)}, ("listen", "to"), is_list=True),
    "metrics": Section({"listen": _place(unix=False), "peers": YES_OR_NO}, ("listen",)),
    "proxy": Section({"listen": _place(unix=False), "exit": TEXT, "users": _passwords}, ("listen",), is_list=True),
    "mesh": Section({"app": TEXT}, ("app",), is_list=True),
    "ssh": Section({"port": PORT}),
    "certificate": Section({"name": TEXT, "cert_file": TEXT, "key_file": TEXT}, is_list=True),
    "taildrop": Section(
        {
            "accept": YES_OR_NO,
            "folder": TEXT,
            "largest": _number(0, 1 << 62),
            "quota": _number(0, 1 << 62),
            "exists": _choice("rename", "replace", "refuse"),
        }
    ),
    "tun": Section(
        {
            "name": _tun_name,
            "mtu": _number(SMALLEST_MTU, TUNNEL_MTU),
            "split": YES_OR_NO,
            "exclude": _routes,
            "dns": lambda value: "" if value in (True, False, "auto") else 'true, false or "auto"',
        }
    ),
    "serve": Section(
        {
            **dict.fromkeys(("http", "https", "tcp", "tls_terminated_tcp"), PORT),
            "path": TEXT,
            "to": TEXT,
            "proxy_protocol": _number(0, 2),
            "service": _service,
        },
        ("to",),
        is_list=True,
    ),
    "ingress": Section(
        {
            "listen": _place(unix=False),
            "to": TEXT,
            "names": _nodes,
            "port": PORT,
            **dict.fromkeys(("connections", "per_name", "per_source"), _number(1, 1 << 20)),
            "proxy_protocol": YES_OR_NO,
        },
        ("listen",),
    ),
    "expose": Section(
        {"port": PORT, "to": _place(unix=False), "proxy_protocol": _number(0, 2)}, ("port", "to"), is_list=True
    ),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """A config.toml that is right."""

    path: str = ""
    device: dict[str, Any] = field(default_factory=dict)
    log: dict[str, Any] = field(default_factory=dict)
    parts: tuple[tuple[str, dict[str, Any]], ...] = ()
    """What runs beside the device: the kind of each, and its keys."""


def read_settings(text: str, path: str) -> Settings:
    """The settings in a text. Raises BadSettings with everything that is wrong."""
    try:
        told = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        sentence, line = _split_syntax(str(problem), text)
        raise BadSettings(path, [Fault(line, sentence)]) from None
    lines = _Lines(text)
    faults: list[Fault] = []
    parts: list[tuple[str, dict[str, Any]]] = []
    for name, value in told.items():
        section = SECTIONS.get(name)
        if section is None:
            faults.append(Fault(lines.section(name, 0), f"there is no [{name}]{_nearest(name, SECTIONS)}"))
            continue
        tables = value if section.is_list and isinstance(value, list) else [value]
        brackets = f"[[{name}]]" if section.is_list else f"[{name}]"
        if any(not isinstance(table, dict) for table in tables) or (section.is_list and not isinstance(value, list)):
            faults.append(Fault(lines.section(name, 0), f"{name} is a section: {brackets}"))
            continue
        for number, table in enumerate(tables):
            faults += _faults_of(name, brackets, section, table, number, lines)
            if name not in ("device", "log"):
                parts.append((name, table))
    if faults:
        raise BadSettings(path, sorted(faults))
    return Settings(path, dict(told.get("device", {})), dict(told.get("log", {})), tuple(parts))


def _faults_of(
    name: str, brackets: str, section: Section, table: dict[str, Any], number: int, lines: _Lines
) -> list[Fault]:
    faults = []
    for key, value in table.items():
        where = lines.key(name, number, key)
        check = section.keys.get(key)
        if check is None:
            faults.append(Fault(where, f"{brackets} has no {key}{_nearest(key, section.keys)}"))
        elif wanted := check(value):
            faults.append(Fault(where, f"{key} must be {wanted}"))
    if table.get("exit_node") and table.get("advertise_exit_node") is True:
        where = lines.key(name, number, "advertise_exit_node")
        faults.append(Fault(where, "a device uses an exit node or is one: leave exit_node or advertise_exit_node out"))
    missing = [key for key in section.required if key not in table]
    if missing:
        faults.append(Fault(lines.section(name, number), f"{brackets} needs {' and '.join(missing)}"))
    return faults


def _nearest(word: Any, known: Any) -> str:
    close = difflib.get_close_matches(str(word), list(known), 1)
    return f"; did you mean {close[0]}?" if close else f" (known: {', '.join(known)})"


def _split_syntax(problem: str, text: str) -> tuple[str, int]:
    """tomllib says `Invalid value (at line 3, column 7)`, or `(at end of document)`."""
    sentence, _, place = problem.partition(" (at ")
    found = re.match(r"line (\d+), column (\d+)", place)
    if found is None:
        return f"{sentence} at the end", text.count("\n") + 1
    return f"{sentence} at column {found[2]}", int(found[1])


class _Lines:
    """Where sections and keys stand. TOML's parser does not tell, and what it took is well-formed: the first fits."""

    def __init__(self, text: str) -> None:
        self._sections: dict[tuple[str, int], int] = {}
        self._keys: dict[tuple[str, int, str], int] = {}
        counts: dict[str, int] = {}
        name, number = "", 0
        for line, content in enumerate(text.splitlines(), 1):
            header = HEADER.fullmatch(content)
            key = KEY.match(content)
            if header is not None:
                name = header[2].strip("\"'")
                number = counts.get(name, 0)
                counts[name] = number + 1
                self._sections[name, number] = line
            elif key is not None:
                word = key[1].strip("\"'")
                self._keys.setdefault((name, number, word), line)
                if not name:
                    self._sections.setdefault((word, 0), line)

    def section(self, name: str, number: int) -> int:
        return self._sections.get((name, number), 1)

    def key(self, name: str, number: int, key: str) -> int:
        return self._keys.get((name, number, key), self.section(name, number))
