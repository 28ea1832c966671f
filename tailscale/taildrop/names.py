"""Names of files in Taildrop: which may become a file here, where one grows, and what it is called if that is taken.

Owns the rules of upstream, with those of every other system added to them (`ts_mesh/names.py`). Pure.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from urllib.parse import quote, unquote_to_bytes

from ts_base.errors import BadPacket
from ts_mesh.names import LONGEST_NAME, objection_to

PARTIAL, DELETED = ".partial", ".deleted"
FORBIDDEN = frozenset('\\/:*"<>|')
GRAPHIC = ("L", "M", "N", "P", "S")  # the categories of Unicode that show something, and plain spaces
LONGEST_ENCODED = 3 * LONGEST_NAME
BAD_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
# What may follow a name as its kind: `.tar.gz`, but not `.2026 final version`.
ENDING = re.compile(r"\.[A-Za-z0-9]{1,7}")
KEY = 16  # digits that tell senders apart in the names of what they have not finished


def decode_name_untrusted(encoded: str) -> str:
    """The name in a request's path, in NFC; percent signs are undone once. BadPacket says what is wrong with it."""
    data = encoded.encode("latin-1", "replace")
    if len(data) > LONGEST_ENCODED:
        raise BadPacket(f"a name has more than {LONGEST_NAME} bytes")
    if BAD_PERCENT.search(data):  # RFC 3986, 2.1
        raise BadPacket("a name has a percent sign that encodes nothing")
    try:
        name = unquote_to_bytes(data).decode()
    except UnicodeDecodeError:
        raise BadPacket("a name is no UTF-8") from None
    if objection := objection_to_name(name):
        raise BadPacket(f"a name {objection}")
    return unicodedata.normalize("NFC", name)


def encode_name(name: str) -> str:
    """As it stands in a request's path."""
    return quote(name, safe="")


def objection_to_name(name: str) -> str:
    """Why a file may not be called that, on this system or another; "" if it may."""
    if objection := objection_to(name):
        return objection
    if name != name.strip():
        return "begins or ends with a space"
    if FORBIDDEN & set(name):
        return f"holds one of {' '.join(sorted(FORBIDDEN))}"
    if any(unicodedata.category(c)[0] not in GRAPHIC and unicodedata.category(c) != "Zs" for c in name):
        return "holds a character that shows nothing"
    if name.lower().endswith((PARTIAL, DELETED)):
        return "is that of an unfinished file"
    return ""


def key_of(sender: str) -> str:
    """What tells a sender apart in a name. Its stable id is control's word, and never part of a path itself."""
    return hashlib.sha256(sender.encode()).hexdigest()[:KEY]


def partial_name(name: str, key: str) -> str:
    """Where a file of a sender's grows: hidden, and of a form that no name from outside has."""
    plain = f".{name}.{key}{PARTIAL}"
    if len(plain.encode()) <= LONGEST_NAME:
        return plain
    return f".{hashlib.sha256(name.encode()).hexdigest()[:32]}.{key}{PARTIAL}"


def is_partial(name: str, key: str = "") -> bool:
    """Whether a file of that name is one that grows; with a key, one of that sender's."""
    return name.startswith(".") and name.endswith(f".{key}{PARTIAL}" if key else PARTIAL)


def renamed(name: str, attempt: int) -> str:
    """`a.tar.gz` as `a (1).tar.gz`: another name for a file whose own is taken. Cut where it would be too long."""
    stem, ending = name, ""
    while (dot := stem.rfind(".")) > 0 and ENDING.fullmatch(stem, dot) and any(map(str.isalpha, stem[dot:])):
        stem, ending = stem[:dot], stem[dot:] + ending
    tail = f" ({attempt}){ending}"
    room = LONGEST_NAME - len(tail.encode())
    if room <= 0:  # all of it looks like an ending
        stem, tail = name, f" ({attempt})"
        room = LONGEST_NAME - len(tail.encode())
    return stem.encode()[:room].decode(errors="ignore") + tail
