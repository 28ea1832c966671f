"""New inputs out of seeds: bit flips, splices, truncation, tampered length fields, and JSON or text as such.

Owns randomness: the n-th input of a target depends on the run's seed, the target's name and n, and on nothing else.
Knows no protocol; what it knows of structure it reads off the seeds.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable
from typing import Any

LONGEST_INPUT = 16_384
MOST_STEPS = 6
DEEPEST = 3000  # brackets in brackets
# Integers that parsers trip over, for any width: edges of signedness, of windows, of memory.
_EDGES = (0, 1, 2, 7, 8, 127, 128, 255, 256, 1279, 1280, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
_NUMBER = re.compile(rb"-?\d+")
_WORD = re.compile(rb"[A-Za-z_]{2,}|\d+|[{}\[\]\":,/.*@\r\n-]")
_STRANGE_JSON: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**31, 2**63, 2**64, 1e308, -0.5, "", "\x00", "é", "\ud800"),
    *([], {}, [None], {"": None}, [[]], "0001-01-01T00:00:00Z", "255.255.255.255/33", "::/129", "*", "x" * 300),
)


class Mutator:
    """An endless, repeatable stream of inputs around `seeds`."""

    def __init__(self, seeds: list[bytes], name: str, seed: int) -> None:
        self._seeds = [seed_input for seed_input in seeds if seed_input] or [b"\0"]
        self._name, self._run_seed = name, seed
        self._trees = {text: tree for text in self._seeds if (tree := _maybe_tree(text)) is not None}
        self._tokens = sorted({token for text in self._seeds if text.isascii() for token in _WORD.findall(text)})
        self._dice = random.Random()
        self._bytewise: tuple[Callable[[bytearray], None], ...] = (
            *(self._flip_bit, self._set_byte, self._set_edge, self._tamper_length, self._cut_end),
            *(self._delete_piece, self._repeat_piece, self._insert_noise, self._splice, self._swap_pieces),
        )

    def input(self, number: int) -> bytes:
        """The input with this number."""
        dice = self._dice
        dice.seed(f"{self._run_seed} {self._name} {number}")
        base = dice.choice(self._seeds)
        if base in self._trees and dice.random() < 0.5:
            return self._changed_tree(base)
        data = bytearray(base)
        if dice.random() < 0.02:
            data = bytearray(dice.randbytes(dice.randrange(1, 400)))
        steps = self._bytewise
        if self._tokens and base.isascii():
            steps += (self._put_token, self._put_token, self._put_number)
            if dice.random() < 0.01:
                self._nest(data)
        for _ in range(dice.randint(1, MOST_STEPS)):
            dice.choice(steps)(data)
            if not data:
                data.append(dice.randrange(256))
        return bytes(data[:LONGEST_INPUT])

    # Bytes

    def _flip_bit(self, data: bytearray) -> None:
        data[self._dice.randrange(len(data))] ^= 1 << self._dice.randrange(8)

    def _set_byte(self, data: bytearray) -> None:
        data[self._dice.randrange(len(data))] = self._dice.randrange(256)

    def _set_edge(self, data: bytearray) -> None:
        self._write_integer(data, self._dice.choice(_EDGES))

    def _tamper_length(self, data: bytearray) -> None:
        """Some integer becomes a length that is nearly right: of the rest, or of the whole."""
        at = self._dice.randrange(len(data))
        near = self._dice.choice((len(data), len(data) - at, len(data) - at - 4, (len(data) - at) // 4))
        self._write_integer(data, max(near + self._dice.randint(-2, 2), 0), at)

    def _write_integer(self, data: bytearray, value: int, at: int | None = None) -> None:
        width = self._dice.choice((1, 2, 2, 4, 8))
        at = self._dice.randrange(len(data)) if at is None else at
        raw = (value & (1 << 8 * width) - 1).to_bytes(width, self._dice.choice(("big", "big", "little")))
        data[at : at + width] = raw

    def _piece(self, data: bytearray) -> tuple[int, int]:
        start = self._dice.randrange(len(data))
        return start, min(start + int(self._dice.expovariate(0.08)) + 1, len(data))

    def _cut_end(self, data: bytearray) -> None:
        del data[self._dice.randrange(len(data)) :]

    def _delete_piece(self, data: bytearray) -> None:
        start, end = self._piece(data)
        del data[start:end]

    def _repeat_piece(self, data: bytearray) -> None:
        start, end = self._piece(data)
        data[end:end] = data[start:end] * self._dice.choice((1, 1, 2, 17))

    def _swap_pieces(self, data: bytearray) -> None:
        (start, end), (other, other_end) = sorted((self._piece(data), self._piece(data)))
        if end <= other:
            data[start:other_end] = data[other:other_end] + data[end:other] + data[start:end]

    def _insert_noise(self, data: bytearray) -> None:
        at = self._dice.randrange(len(data) + 1)
        data[at:at] = self._dice.choice((bytes(8), b"\xff" * 4, self._dice.randbytes(self._dice.randrange(1, 20))))

    def _splice(self, data: bytearray) -> None:
        """A piece of another seed, in front of, inside or behind this one."""
        other = bytearray(self._dice.choice(self._seeds))
        start, end = (0, len(other)) if self._dice.random() < 0.5 else self._piece(other)
        at = self._dice.choice((0, len(data), self._dice.randrange(len(data) + 1)))
        data[at : at + self._dice.choice((0, end - start))] = other[start:end]

    # Text

    def _put_token(self, data: bytearray) -> None:
        start, end = self._piece(data)
        if self._dice.random() < 0.5:
            words = [match.span() for match in _WORD.finditer(data)]
            start, end = self._dice.choice(words) if words else (start, start)
        data[start:end] = self._dice.choice(self._tokens)

    def _nest(self, data: bytearray) -> None:
        start, end = self._piece(data)
        depth = self._dice.choice((20, 300, DEEPEST))
        opening, closing = self._dice.choice(((b"[", b"]"), (b'{"a":', b"}")))
        data[start:end] = opening * depth + data[start:end] + closing * depth

    def _put_number(self, data: bytearray) -> None:
        numbers = [match.span() for match in _NUMBER.finditer(data)]
        if numbers:
            start, end = self._dice.choice(numbers)
            data[start:end] = b"%d" % (self._dice.choice(_EDGES) * self._dice.choice((1, 1, -1, 2**32)))

    # JSON

    def _changed_tree(self, base: bytes) -> bytes:
        tree = json.loads(self._trees[base])
        for _ in range(self._dice.randint(1, 4)):
            tree = self._change(tree)
        return json.dumps(tree).encode()[: 2 * LONGEST_INPUT]

    def _change(self, tree: Any) -> Any:
        """`tree` with one place changed, found by walking down at random."""
        dice = self._dice
        if isinstance(tree, dict) and tree and dice.random() < 0.9:
            key = dice.choice(list(tree))
            if dice.random() < 0.1:
                del tree[key]
            elif dice.random() < 0.1:
                other = dice.choice(list(self._trees.values()))
                tree[key + dice.choice(("", "x"))] = json.loads(other)
            else:
                tree[key] = self._change(tree[key])
            return tree
        if isinstance(tree, list) and tree and dice.random() < 0.9:
            at = dice.randrange(len(tree))
            if dice.random() < 0.2:
                tree[at:at] = [copy.deepcopy(tree[at]) for _ in range(dice.choice((1, 2, 40)))]
            else:
                tree[at] = self._change(tree[at])
            return tree
        if isinstance(tree, str) and tree and dice.random() < 0.6:
            text = bytearray(tree.encode("utf-8", "replace"))
            dice.choice(self._bytewise)(text)
            return text.decode("utf-8", "replace")
        if isinstance(tree, int | float) and not isinstance(tree, bool) and dice.random() < 0.6:
            return dice.choice((*_EDGES, tree + 1, -tree, 2**63 - 1, 2**64))
        return copy.deepcopy(dice.choice(_STRANGE_JSON))


def _maybe_tree(text: bytes) -> str | None:
    """The text, if it is a JSON object or list."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return text.decode() if isinstance(found, dict | list) and found else None
