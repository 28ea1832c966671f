"""The path finder under arbitrary scripts; the long run of this is the fuzzer's."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fuzz import fuzz_paths


def test_seeds_pass():
    for seed in fuzz_paths.seeds():
        fuzz_paths.fuzz_one(seed)


@given(st.data())
def test_mangled_seeds_pass(data):
    script = bytearray(data.draw(st.sampled_from(fuzz_paths.seeds())))
    for position, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(script) - 1), st.integers(0, 255)), max_size=20)
    ):
        script[position] = value
    fuzz_paths.fuzz_one(bytes(script))


@given(st.binary(max_size=600))
def test_noise_passes(noise):
    fuzz_paths.fuzz_one(noise)
