"""Bart: longest-prefix match for IPv4 and IPv6, one trie level per address octet.

Owns the table and nothing else: values are whatever the caller stores (never None). A node keeps the prefixes that end
inside its octet as one 256-bit integer in heap order (1 = the whole octet, 2i and 2i+1 = its halves), so the longest
match is the top bit of one AND. A lone route below a node is kept whole in its parent (path compression). After Knuth's
allotment routing tables and gaissmai/bart. Forks share nodes and copy only what they change.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar, cast

from ts_base.ip import Prefix

V = TypeVar("V")


def _ancestors(index: int) -> int:
    """The bit set {index, index >> 1, ..., 1}: every in-octet prefix that covers `index`."""
    bits = 0
    while index:
        bits |= 1 << index
        index >>= 1
    return bits


# By octet: which in-octet prefixes of length 0..7 cover it.
_COVERING = tuple(_ancestors(128 | octet >> 1) for octet in range(256))


class _Leaf(Generic[V]):
    """One route kept whole because nothing else lives below its octet."""

    __slots__ = ("head", "prefix", "shift", "value")

    def __init__(self, prefix: Prefix, value: V) -> None:
        address, length = prefix
        self.prefix = prefix
        self.shift = 8 * len(address) - length
        self.head = int.from_bytes(address, "big") >> self.shift
        self.value = value


class _Node(Generic[V]):
    __slots__ = ("bits", "children", "owner", "values")

    def __init__(self, owner: object) -> None:
        self.owner = owner  # the only table that may change this node in place
        self.bits = 0
        self.values: dict[int, V] = {}
        self.children: dict[int, _Node[V] | _Leaf[V]] = {}

    def copy_for(self, owner: object) -> _Node[V]:
        twin: _Node[V] = _Node(owner)
        twin.bits = self.bits
        twin.values = self.values.copy()
        twin.children = self.children.copy()
        return twin


class Bart(Generic[V]):
    """Prefixes to values. `fork()` is O(1): both sides may change afterwards without seeing each other."""

    __slots__ = ("_length", "_owner", "_root4", "_root6")

    def __init__(self) -> None:
        self._owner: object = object()
        self._root4: _Node[V] = _Node(self._owner)
        self._root6: _Node[V] = _Node(self._owner)
        self._length = 0

    def fork(self) -> Bart[V]:
        twin: Bart[V] = Bart()
        twin._root4, twin._root6, twin._length = self._root4, self._root6, self._length
        self._owner = object()  # nodes now belong to nobody: whoever writes first copies
        return twin

    def lookup(self, address: bytes) -> V | None:
        """The value of the longest prefix that contains `address`."""
        node = self._root4 if len(address) == 4 else self._root6
        best: V | None = None
        for octet in address:
            hits = node.bits & _COVERING[octet]
            if hits:
                best = node.values[hits.bit_length() - 1]
            child = node.children.get(octet)
            if child is None:
                return best
            if type(child) is _Leaf:
                return child.value if int.from_bytes(address, "big") >> child.shift == child.head else best
            node = cast("_Node[V]", child)
        return best

    def lookup_all(self, address: bytes) -> list[V]:
        """The values of all prefixes that contain `address`, the most specific first."""
        node = self._root4 if len(address) == 4 else self._root6
        found: list[V] = []
        for octet in address:
            hits = node.bits & _COVERING[octet]
            while hits:
                lowest = hits & -hits
                found.append(node.values[lowest.bit_length() - 1])
                hits ^= lowest
            child = node.children.get(octet)
            if child is None:
                break
            if type(child) is _Leaf:
                if int.from_bytes(address, "big") >> child.shift == child.head:
                    found.append(child.value)
                break
            node = cast("_Node[V]", child)
        found.reverse()
        return found

    def get(self, prefix: Prefix) -> V | None:
        """The value stored under exactly `prefix`."""
        address, length = prefix
        last, rest = divmod(length, 8)
        node = self._root4 if len(address) == 4 else self._root6
        for depth, octet in enumerate(address):
            if depth == last:
                return node.values.get(octet >> 8 - rest | 1 << rest)
            child = node.children.get(octet)
            if child is None:
                return None
            if type(child) is _Leaf:
                return child.value if child.prefix == prefix else None
            node = cast("_Node[V]", child)
        return None

    def insert(self, prefix: Prefix, value: V) -> None:
        """Store or replace. `prefix` must be masked."""
        if self.get(prefix) is None:
            self._length += 1
        node, depth = self._writable_root(prefix), 0
        address, length = prefix
        while depth != length >> 3:
            octet = address[depth]
            child = node.children.get(octet)
            if child is None or (type(child) is _Leaf and child.prefix == prefix):
                node.children[octet] = _Leaf(prefix, value)
                return
            node, depth = self._writable_child(node, octet, depth), depth + 1
        self._put(node, address[depth], length & 7, value)

    def delete(self, prefix: Prefix) -> bool:
        """Forget `prefix`; whether it was there."""
        if self.get(prefix) is None:
            return False
        self._length -= 1
        address, length = prefix
        node = self._writable_root(prefix)
        trail: list[_Node[V]] = []
        for depth in range(length >> 3):
            octet = address[depth]
            if type(node.children[octet]) is _Leaf:
                del node.children[octet]
                break
            trail.append(node)
            node = self._writable_child(node, octet, depth)
        else:
            octet, rest = address[length >> 3], length & 7
            index = octet >> 8 - rest | 1 << rest
            node.bits ^= 1 << index
            del node.values[index]
        self._fold(node, trail, address)
        return True

    def items(self) -> Iterator[tuple[Prefix, V]]:
        """Every prefix and its value, in no promised order."""
        pending: list[tuple[_Node[V], bytes, int]] = [(self._root4, b"", 4), (self._root6, b"", 16)]
        while pending:
            node, octets, size = pending.pop()
            for index, value in node.values.items():
                yield _prefix_at(octets, index, size), value
            for octet, child in node.children.items():
                if isinstance(child, _Leaf):
                    yield child.prefix, child.value
                else:
                    pending.append((child, octets + bytes([octet]), size))

    def __len__(self) -> int:
        return self._length

    def _writable_root(self, prefix: Prefix) -> _Node[V]:
        if len(prefix[0]) == 4:
            if self._root4.owner is not self._owner:
                self._root4 = self._root4.copy_for(self._owner)
            return self._root4
        if self._root6.owner is not self._owner:
            self._root6 = self._root6.copy_for(self._owner)
        return self._root6

    def _writable_child(self, node: _Node[V], octet: int, depth: int) -> _Node[V]:
        """The child below `octet`, as a node this table may change; a leaf in the way moves one level down."""
        child = node.children[octet]
        if isinstance(child, _Leaf):
            below: _Node[V] = _Node(self._owner)
            address, length = child.prefix
            if length >> 3 == depth + 1:
                self._put(below, address[depth + 1], length & 7, child.value)
            else:
                below.children[address[depth + 1]] = child
        elif child.owner is self._owner:
            return child
        else:
            below = child.copy_for(self._owner)
        node.children[octet] = below
        return below

    @staticmethod
    def _put(node: _Node[V], octet: int, rest: int, value: V) -> None:
        index = octet >> 8 - rest | 1 << rest
        node.bits |= 1 << index
        node.values[index] = value

    @staticmethod
    def _fold(node: _Node[V], trail: list[_Node[V]], address: bytes) -> None:
        """Dissolve nodes that hold a single route, from `node` upwards."""
        while trail and len(node.values) + len(node.children) <= 1:
            parent, octet = trail.pop(), address[len(trail)]
            if node.values:
                ((index, value),) = node.values.items()
                parent.children[octet] = _Leaf(_prefix_at(address[: len(trail) + 1], index, len(address)), value)
            elif node.children:
                (child,) = node.children.values()
                if not isinstance(child, _Leaf):
                    return
                parent.children[octet] = child
            else:
                del parent.children[octet]
            node = parent


def _prefix_at(octets: bytes, index: int, size: int) -> Prefix:
    """The prefix that in-octet `index` stands for below `octets`."""
    rest = index.bit_length() - 1
    last = (index - (1 << rest)) << 8 - rest
    return (octets + bytes([last])).ljust(size, b"\0"), 8 * len(octets) + rest
