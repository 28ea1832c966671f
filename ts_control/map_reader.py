"""Reading a map message of any size in slices, because ten thousand peers must not hold everybody else up.

Owns: where to pause. Refuses to know: what any field means.
"""

from __future__ import annotations

from collections.abc import Generator

import msgspec

from ts_control.gojson import decode_json_untrusted
from ts_control.wire import MapResponse, Node

PEERS_PER_STEP = 200  # nodes decoded between two checkpoints: some 4 ms


class _UnreadPeers(MapResponse, frozen=True):
    """The same message with its long lists left as text, so that they can be read a slice at a time."""

    peers: tuple[msgspec.Raw, ...] = ()  # type: ignore[assignment]
    peers_changed: tuple[msgspec.Raw, ...] = ()  # type: ignore[assignment]


def decode_map_response_steps(data: bytes) -> Generator[None, None, MapResponse]:
    """Read a map message of any size, yielding often enough that nobody else waits; the result is the return value."""
    unread = decode_json_untrusted(_UnreadPeers, data)
    if not unread.peers and not unread.peers_changed:
        return _with_peers(unread, (), ())
    peers = yield from _decode_nodes(unread.peers)
    peers_changed = yield from _decode_nodes(unread.peers_changed)
    return _with_peers(unread, peers, peers_changed)


def _decode_nodes(texts: tuple[msgspec.Raw, ...]) -> Generator[None, None, tuple[Node, ...]]:
    nodes: list[Node] = []
    for start in range(0, len(texts), PEERS_PER_STEP):
        yield
        piece = texts[start : start + PEERS_PER_STEP]
        nodes += [decode_json_untrusted(Node, text) for text in piece if bytes(text) != b"null"]
    return tuple(nodes)


def _with_peers(unread: _UnreadPeers, peers: tuple[Node, ...], peers_changed: tuple[Node, ...]) -> MapResponse:
    fields = {name: getattr(unread, name) for name in MapResponse.__struct_fields__}
    fields["peers"], fields["peers_changed"] = peers, peers_changed
    return MapResponse(**fields)
