"""Names of files that others send: which of them may become a path here.

Owns the rules, one component at a time. Refuses to know folders: what exists, and how it is opened, is the disk's side.
The rules are those of every system at once, so that what is sent from one can be kept on any other.
"""

from __future__ import annotations

import unicodedata

from ts_base.errors import BadPacket

LONGEST_NAME = 255  # bytes of UTF-8, for what lies on a disk
LONGEST_ENDING = 64  # what follows the last dot of a longer one says nothing of what the file is
DEEPEST = 64
PART, JOURNAL, DAMAGED = ".part", ".part.journal", ".part.journal.bad"
# Windows opens a device by these, whatever ending follows.
# https://learn.microsoft.com/windows/win32/fileio/naming-a-file
_DIGITS = "0123456789¹²³"
DEVICES = frozenset(
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"]
    + [f"{port}{digit}" for port in ("COM", "LPT") for digit in _DIGITS]
)
# They turn the text around them: a name that ends in "exe" would be shown as one that ends in "txt".
TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def decode_path_untrusted(text: str) -> tuple[str, ...]:
    """The components of a path like `tree/leaf.txt`, each safe and in NFC."""
    if len(text) > DEEPEST * (LONGEST_NAME + 1):
        raise BadPacket("a path is longer than any")
    parts = text.split("/")
    if len(parts) > DEEPEST:
        raise BadPacket(f"a path is deeper than {DEEPEST} folders")
    return tuple(decode_name_untrusted(part) for part in parts)


def decode_name_untrusted(text: str) -> str:
    """One component in NFC, or BadPacket that says what is wrong with it."""
    if objection := objection_to(text):
        raise BadPacket(f"a name {objection}")
    return unicodedata.normalize("NFC", text)


def objection_to(text: str) -> str:
    """Why a component may not be used; "" if it may."""
    if text in ("", ".", ".."):
        return "is empty or leads upwards"
    if len(text) > LONGEST_NAME:  # before the work of normalizing
        return f"has more than {LONGEST_NAME} bytes"
    try:
        length = len(unicodedata.normalize("NFC", text).encode())
    except UnicodeEncodeError:
        return "is no text"  # half of a surrogate pair
    if length > LONGEST_NAME:
        return f"has more than {LONGEST_NAME} bytes"
    if "/" in text or "\\" in text:
        return "holds a separator"
    if any(unicodedata.category(c) in ("Cc", "Zl", "Zp") or c in TURNING for c in text):
        return "holds a control character"
    if text[1:2] == ":" and text[0].isalpha():
        return "begins with a drive letter"
    if text.endswith((".", " ")):
        return "ends in a dot or a space"  # Windows drops both: two names would be one
    if text.partition(".")[0].rstrip(" ").upper() in DEVICES:
        return "is a device of Windows"
    if text.startswith(".") and text.endswith((PART, JOURNAL, DAMAGED)):
        return "is that of an unfinished file"  # ours: see `part_name`
    return ""


def part_name(name: str, key: str) -> str:
    """Where a file grows until it is whole: `.name.part`. A name too long for that gives way to `key`, plain ASCII."""
    plain = f".{name}{PART}"
    return plain if len(plain.encode()) <= LONGEST_NAME - (len(DAMAGED) - len(PART)) else f".{key}{PART}"


def renamed(name: str, attempt: int) -> str:
    """`a.txt` as `a (2).txt`: another name for a file whose own is taken. Cut where it would be too long."""
    stem, dot, ending = name.rpartition(".")
    if not stem or len(ending.encode()) > LONGEST_ENDING:
        stem, dot, ending = name, "", ""
    tail = f" ({attempt}){dot}{ending}"
    room = LONGEST_NAME - len(tail.encode())
    return stem.encode()[: max(room, 0)].decode(errors="ignore") + tail
