"""Reading a map message of any size in slices, because ten thousand peers must not hold everybody else up.

Owns: where to pause, and how much of anything one message may hold. A few hundred bytes of zstd can be millions of
empty objects, and an empty object of JSON's three bytes takes half a kilobyte here: what is too many is refused before
it is made. Refuses to know: what any field means.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

import msgspec

from ts_base.errors import BadPacket
from ts_control.gojson import GoStruct, decode_json_untrusted, decode_parts_untrusted, go_name
from ts_control.wire import FilterRule, MapResponse, Node, PeerChange, UserProfile

PEERS_PER_STEP = 200  # elements decoded between two checkpoints: some 4 ms
BYTES_PER_STEP = 256 << 10
SMALL_MESSAGE = 64 << 10  # at most some 20,000 elements: read at once
LIST_LIMIT = 100_000  # elements of one list: peers, rules, profiles
OBJECT_LIMIT = 1_000_000  # objects and arrays in one message; a peer has five to ten
VALUE_LIMIT = 4_000_000  # values in one message; a peer has about forty
REST_OBJECT_LIMIT = 100_000  # in everything that is read at once: relays, DNS, SSH, warnings
REST_VALUE_LIMIT = 1_000_000

SLICED: dict[str, type[GoStruct]] = {
    "peers": Node,
    "peers_changed": Node,
    "peers_changed_patch": PeerChange,
    "packet_filter": FilterRule,
    "user_profiles": UserProfile,
}
NULL = b"null"
NOTHING = msgspec.Raw(NULL)
FILTERS = "packet_filters"  # the one map of lists

S = TypeVar("S", bound=GoStruct)
Steps = Generator[None, None, Any]


def decode_map_response_steps(data: bytes, *, at_once: int = SMALL_MESSAGE) -> Generator[None, None, MapResponse]:
    """Read a map message of any size, yielding often enough that nobody else waits; the result is the return value."""
    if len(data) <= at_once:
        return decode_json_untrusted(MapResponse, data)
    _check_count(data, OBJECT_LIMIT, VALUE_LIMIT)
    fields = decode_parts_untrusted(dict[str, msgspec.Raw], data)  # views of `data`, which is large: no copies
    read: dict[str, Any] = {}
    for name, kind in SLICED.items():
        text = fields.pop(go_name(name), NOTHING)
        if not _is_null(text):
            read[name] = yield from _decode_list(kind, text)
    text = fields.pop(go_name(FILTERS), NOTHING)
    if not _is_null(text):
        read[FILTERS] = yield from _decode_filters(text)
    rest = b",".join(msgspec.json.encode(name) + b":" + bytes(text) for name, text in fields.items())
    _check_count(rest, REST_OBJECT_LIMIT, REST_VALUE_LIMIT)
    yield
    return msgspec.structs.replace(decode_json_untrusted(MapResponse, b"{" + rest + b"}"), **read)


def _is_null(text: msgspec.Raw) -> bool:
    return memoryview(text) == NULL


def _decode_filters(text: msgspec.Raw) -> Steps:
    lists = decode_parts_untrusted(dict[str, msgspec.Raw], text)
    filters: dict[str, tuple[FilterRule, ...] | None] = {}
    count = 0
    for name, rules in lists.items():
        filters[name] = None if _is_null(rules) else (yield from _decode_list(FilterRule, rules))
        count += 1 + len(filters[name] or ())
        if count > LIST_LIMIT:
            raise BadPacket(f"a map message with more than {LIST_LIMIT} filter rules")
    return filters


def _decode_list(kind: type[S], text: msgspec.Raw) -> Generator[None, None, tuple[S, ...]]:
    parts = decode_parts_untrusted(tuple[msgspec.Raw, ...], text)
    if len(parts) > LIST_LIMIT:
        raise BadPacket(f"a map message with a list of more than {LIST_LIMIT}")
    found: list[S] = []
    size = waiting = 0
    for part in map(bytes, parts):
        size += len(part)
        waiting += 1
        if size >= BYTES_PER_STEP or waiting >= PEERS_PER_STEP:
            yield
            size = waiting = 0
        if part != NULL:
            found.append(decode_json_untrusted(kind, part))
    return tuple(found)


def _check_count(text: bytes, objects: int, values: int) -> None:
    """Count what the text holds at most, at a gigabyte a second, before anything is made of it."""
    if text.count(b"{") + text.count(b"[") > objects or text.count(b",") > values:
        raise BadPacket("a map message with more in it than any tailnet")
