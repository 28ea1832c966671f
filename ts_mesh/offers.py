"""What is said before and after the bytes of files: the words of the namespace `_f` and their shapes.

The initiator says `offer` (it pushes) or `want` (it pulls); the other answers `accept` or `found`, or `reject`; the
initiator then asks for or sends bytes over HTTP with the ticket, and says `end`. Owns the shapes and their bounds.
Refuses to know sessions: a word and its JSON come and go elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from ts_base.errors import BadPacket
from ts_mesh.blocks import LARGEST_FILE, Hashes, count_blocks, decode_hash_untrusted
from ts_mesh.names import DEEPEST, LONGEST_NAME, decode_path_untrusted

NAMESPACE = "_f"
ENTRIES_A_MESSAGE = 4096
ENTRIES_LIMIT = 1 << 18  # of one offer
TEXT_A_MESSAGE = 512 << 10  # characters of paths
HASHES_A_MESSAGE = 8192
LONGEST_PATH = DEEPEST * (LONGEST_NAME + 1)
SKIPPED_TOLD = 256
REASONS = ("declined", "exists", "too-large", "no-space", "busy", "not-allowed", "not-found", "unsupported")

Token = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[!-~]+$")]
Ticket = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
Path = Annotated[str, msgspec.Meta(max_length=LONGEST_PATH)]
Skip = Annotated[str, msgspec.Meta(max_length=LONGEST_PATH)]
Nanoseconds = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


class Entry(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A file or folder that is offered. `path` has `/` between its components, on every system."""

    path: Path
    size: Annotated[int, msgspec.Meta(ge=0, le=LARGEST_FILE)] = 0
    mtime_ns: Nanoseconds = 0
    mode: Annotated[int, msgspec.Meta(ge=0, le=0o7777)] = 0o644
    dir: bool = False


class Offer(msgspec.Struct, frozen=True, omit_defaults=True):
    """`more`: the entries go on in the next message with the same token. `total` is of all of them, in bytes."""

    token: Token
    entries: list[Entry]
    total: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] = 0
    more: bool = False


class Accept(msgspec.Struct, frozen=True, omit_defaults=True):
    """`have`: of entry n, the hashes of the blocks that are there already, "" for one that is not.

    Of a large file they go on in the next message where this one ends. `many`: one PUT may bring several small files.
    """

    token: Token
    ticket: Ticket
    have: dict[int, list[str]] = {}
    more: bool = False
    many: bool = False


class Reject(msgspec.Struct, frozen=True, omit_defaults=True):
    token: Token
    why: Annotated[str, msgspec.Meta(max_length=64)]


class Want(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file or folder to be pulled: the name it is shared under, and what is below that."""

    token: Token
    path: Path


class Found(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a `want` found: an offer with its ticket. `skipped`: paths that cannot be sent, each with the reason."""

    token: Token
    ticket: Ticket
    entries: list[Entry]
    more: bool = False
    skipped: Annotated[list[tuple[Skip, Skip]], msgspec.Meta(max_length=SKIPPED_TOLD)] = []


class End(msgspec.Struct, frozen=True, omit_defaults=True):
    """The initiator is done with a ticket; `failed` counts the files that are not whole at its end."""

    token: Token
    failed: Annotated[int, msgspec.Meta(ge=0, le=ENTRIES_LIMIT)] = 0


class Still(msgspec.Struct, frozen=True, omit_defaults=True):
    """The initiator still waits for an answer. Who does not know the question says `reject` with "gone"."""

    token: Token


Word = Offer | Accept | Reject | Want | Found | End | Still
SHAPES: dict[str, type[Word]] = {
    "offer": Offer,
    "accept": Accept,
    "reject": Reject,
    "want": Want,
    "found": Found,
    "end": End,
    "still": Still,
}
WORDS = {shape: word for word, shape in SHAPES.items()}


def word_of(message: Word) -> str:
    return WORDS[type(message)]


def to_json(message: Word) -> bytes:
    return msgspec.json.encode(message)


def decode_word_untrusted(word: str, payload: Any) -> Word:
    """The message of that word, from its JSON as Python reads it. Paths are safe and in NFC."""
    if word not in SHAPES:
        raise BadPacket("no such word")
    try:
        message: Word = msgspec.convert(payload, SHAPES[word], str_keys=True)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise BadPacket(f"what came as {word!r} is not of its shape") from None
    if isinstance(message, Offer | Found):
        return msgspec.structs.replace(message, entries=_cleaned(message.entries))
    if isinstance(message, Accept):
        if len(message.have) > ENTRIES_A_MESSAGE or min(message.have, default=0) < 0:
            raise BadPacket("an accept speaks of more entries than were offered")
        if sum(map(len, message.have.values())) > HASHES_A_MESSAGE:
            raise BadPacket("an accept has more hashes than a message may")
        return message
    if isinstance(message, Want):
        return Want(message.token, "/".join(decode_path_untrusted(message.path)))
    return message


def _cleaned(entries: list[Entry]) -> list[Entry]:
    if len(entries) > ENTRIES_A_MESSAGE:
        raise BadPacket(f"more than {ENTRIES_A_MESSAGE} entries came in one message")
    cleaned = [msgspec.structs.replace(entry, path="/".join(decode_path_untrusted(entry.path))) for entry in entries]
    if any(entry.dir and entry.size for entry in cleaned):
        raise BadPacket("a folder has a size")
    return cleaned


def check_tree(entries: Sequence[Entry]) -> None:
    """Of all entries of an offer: none twice (also not after NFC), and nothing inside what is a file."""
    if len(entries) > ENTRIES_LIMIT:
        raise BadPacket(f"more than {ENTRIES_LIMIT} entries were offered")
    files: set[str] = set()
    folders: set[str] = set()
    inside: set[str] = set()
    for entry in entries:
        taken = folders if entry.dir else files
        if entry.path in taken:
            raise BadPacket("two entries have the same name")
        taken.add(entry.path)
        parent = entry.path.rpartition("/")[0]
        while parent and parent not in inside:
            inside.add(parent)
            parent = parent.rpartition("/")[0]
    if files & folders or files & inside:
        raise BadPacket("an entry is both a file and a folder")


def decode_have_untrusted(texts: Sequence[str], size: int) -> list[bytes | None]:
    """The hashes of one entry, as they came in an `accept`."""
    if len(texts) > count_blocks(size):
        raise BadPacket("there are hashes of blocks beyond the end")
    return [decode_hash_untrusted(text) if text else None for text in texts]


def encode_have(hashes: Hashes) -> list[str]:
    known = len(hashes)
    while known and hashes[known - 1] is None:
        known -= 1
    return ["" if each is None else each.hex() for each in hashes[:known]]


def offers_of(token: str, entries: Sequence[Entry]) -> list[Offer]:
    """One offer as the messages that carry it."""
    total = sum(entry.size for entry in entries)
    parts = _portions(entries)
    return [Offer(token, part, total, more=part is not parts[-1]) for part in parts]


def founds_of(token: str, ticket: str, entries: Sequence[Entry], skipped: Sequence[tuple[str, str]]) -> list[Found]:
    """What was found as the messages that carry it. Of what stays, so many are named as one message may name."""
    parts = _portions(entries)
    told = [(path[:LONGEST_PATH], why) for path, why in skipped[:SKIPPED_TOLD]]
    return [Found(token, ticket, part, part is not parts[-1], told if part is parts[0] else []) for part in parts]


def accepts_of(token: str, ticket: str, have: dict[int, Hashes]) -> list[Accept]:
    """An accept as the messages that carry it."""
    parts: list[dict[int, list[str]]] = [{}]
    room = HASHES_A_MESSAGE
    for number, hashes in have.items():
        texts = encode_have(hashes)
        while texts:
            if not room or len(parts[-1]) >= ENTRIES_A_MESSAGE:
                parts.append({})
                room = HASHES_A_MESSAGE
            parts[-1][number], texts = texts[:room], texts[room:]
            room -= len(parts[-1][number])
    return [Accept(token, ticket, part, more=part is not parts[-1], many=True) for part in parts]


def _portions(entries: Sequence[Entry]) -> list[list[Entry]]:
    """As many as a message may carry; one, empty, when there is none."""
    portions: list[list[Entry]] = [[]]
    text = 0
    for entry in entries:
        if len(portions[-1]) == ENTRIES_A_MESSAGE or text + len(entry.path) > TEXT_A_MESSAGE:
            portions.append([])
            text = 0
        portions[-1].append(entry)
        text += len(entry.path)
    return portions
