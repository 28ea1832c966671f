"""The fuzz targets, driven by hypothesis for a moment: enough to keep them alive and to catch the shallow."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz import fuzz_netstack_packet, fuzz_netstack_stack

TARGETS = (fuzz_netstack_packet, fuzz_netstack_stack)


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_and_their_mutations_hold(target):
    dice = random.Random(1)
    for seed in target.seeds():
        target.fuzz_one(seed)
        for cut in range(0, len(seed), 7):
            target.fuzz_one(seed[:cut])
        for _ in range(100):
            mutated = bytearray(seed)
            for _ in range(dice.randint(1, 6)):
                mutated[dice.randrange(len(mutated))] = dice.randrange(256)
            target.fuzz_one(bytes(mutated))


@settings(max_examples=100)
@given(st.binary(max_size=400))
def test_any_bytes_are_a_script(data):
    fuzz_netstack_stack.fuzz_one(data)
    fuzz_netstack_packet.fuzz_one(data)
