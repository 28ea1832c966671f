"""What a byte from outside may cost: calls, and blocks of memory left behind, in proportion to the bytes and no more.

Every fuzz target is fed shapes that have been dear somewhere, in one size and in four times that size. No clock is
read. Calls into C count as one, however long they take: what they hold is bounded by the lengths that parsers check.
That there is a target for every parser of foreign bytes is held by `tests/fuzz/test_fuzz_smoke.py`.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator

import pytest
from test_budget import Work

from fuzz.campaign import Target, names

SIZE, TIMES = 250, 4
SLACK = 1.25  # on top of TIMES
FIXED = 3000  # calls that a target spends whatever it is fed, and little steps
CALLS_PER_BYTE = 40
# Inputs of these are recipes: one byte makes a packet, or several.
CALLS_PER_STEP = {"fragments": 80, "netstack_forwarder": 900, "paths": 80}
CRYPTOGRAPHY = 65_000  # a session or handshakes, whatever is said in it
KEPT = 200  # blocks of memory: the interpreter's own caches, nothing that grows with the input

OWN_INPUTS = 4  # of the seeds: what is longest is not first in any of them
Shape = Callable[[int], bytes]


def repeated(piece: bytes) -> Shape:
    return lambda size: (piece * (size // max(len(piece), 1) + 1))[:size]


def nested(opening: bytes, closing: bytes) -> Shape:
    return lambda size: opening * (size // 2 // len(opening)) + closing * (size // 2 // len(opening))


SHAPES: dict[str, Shape] = {
    "zeros": repeated(b"\0"),
    "ones": repeated(b"\xff"),
    "small lengths": repeated(b"\1\1"),
    "lists": nested(b"[", b"]"),
    "objects": nested(b'{"":', b"}"),
    "list of small things": lambda size: b"[" + b"{}," * (size // 3) + b"{}]",
    "peers": lambda size: b'{"Peers":[' + b"{}," * (size // 3) + b"{}]}",
    "rules": lambda size: b'{"PacketFilter":[' + b"{}," * (size // 3) + b"{}]}",
    "warnings": lambda size: b'{"Health":[' + b'"",' * (size // 3) + b'""]}',
    "commas": repeated(b","),
    "lines": repeated(b"a: b\r\n"),
    "labels": repeated(b"\1a"),
    "pointers": repeated(b"\xc0\x0c"),
    "elements": repeated(b"<a>"),
    "escapes": repeated(b"\\u0000"),
}


def inputs_of(target: Target) -> Iterator[tuple[str, bytes, bytes]]:
    """The shapes, and the target's own inputs over and over."""
    for name, make in SHAPES.items():
        yield name, make(SIZE), make(SIZE * TIMES)
    for number, seed in enumerate(target.seeds[:OWN_INPUTS]):
        little = seed * max(1, SIZE // max(len(seed), 1))
        yield f"own {number}", little, little * TIMES


def calls_of(fuzz_one: Callable[[bytes], None], data: bytes) -> int:
    work = Work()
    with work.counted():
        fuzz_one(data)
    return work.python + work.c


def blocks() -> int:
    gc.collect()
    return sys.getallocatedblocks()


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_foreign_bytes_cost_calls_in_proportion_and_leave_nothing(name: str) -> None:
    target = Target.load(name)
    inputs = list(inputs_of(target))
    per_byte = CALLS_PER_STEP.get(name, CALLS_PER_BYTE)
    for shape, little, much in inputs:
        target.fuzz_one(much)  # what is imported, compiled and cached once
        few, many = calls_of(target.fuzz_one, little), calls_of(target.fuzz_one, much)
        print(f"{name}, {shape}: {few} calls, {many} for {len(much)} bytes")
        assert many <= TIMES * SLACK * few + FIXED, shape
        assert many <= per_byte * len(much) + CRYPTOGRAPHY, shape
    before = blocks()
    for _, _, much in inputs:
        target.fuzz_one(much)
    kept = blocks() - before
    print(f"{name}: {kept} blocks kept")
    assert kept <= KEPT
