"""One's-complement sums of a burst of equal payloads, the dearest thing left on the send path (RFC 1071).

Two forms that agree: big-integer folding, and one numpy pass over the burst where numpy is installed, which is imported
only once so much was sent that it pays. Sums are plain ints, congruent modulo 65535 to the 16-bit sum; whoever builds
the header reduces them together with its own fields.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ts_base.optional import optional

# Importing numpy takes some 85 ms and 15 MB, and it saves 0.7 us for a thousand bytes. A process that has sent so many
# will likely send as many again: then it has cost at most twice what the better choice would have.
NUMPY_PAYS_AFTER = 128 << 20

_numpy: Any = None
_left = NUMPY_PAYS_AFTER

# Below this the fixed cost of a numpy call exceeds what it saves.
VECTOR_MINIMUM = 4

from_bytes = int.from_bytes


def _folds(size: int) -> list[tuple[int, int]]:
    """Shifts and masks that halve a `size`-byte integer until one modulo is cheap; shifts are whole 16-bit words."""
    steps = []
    bits = 8 * (size + (size & 1))
    while bits > 1600:
        half = (bits // 2 + 15) // 16 * 16
        steps.append((half, (1 << half) - 1))
        bits = half + 16
    return steps


SLICE = 2048
_SLICE_FOLDS = _folds(SLICE)
_FOLDS_BY_SIZE: dict[int, list[tuple[int, int]]] = {}
_FOLDS_LIMIT = 2048


def payload_sum(payload: bytes) -> int:
    """The sum of one payload of any length, odd ones padded with a zero byte, reduced modulo 65535."""
    number = from_bytes(payload, "big")
    if len(payload) & 1:
        number <<= 8
    return number % 0xFFFF


def _sum_of_slices(payload: bytes) -> int:
    """Large payloads: adding slices of a size that folds well costs half of folding the whole."""
    number = sum([from_bytes(payload[at : at + SLICE], "big") for at in range(0, len(payload), SLICE)])
    for shift, mask in _SLICE_FOLDS:
        number = (number >> shift) + (number & mask)
    return number % 0xFFFF


def burst_sums_by_folding(payloads: list[bytes]) -> list[int]:
    """Sums of payloads that all have the first one's length."""
    size = len(payloads[0])
    folds = _FOLDS_BY_SIZE.get(size)
    if folds is None:
        if len(_FOLDS_BY_SIZE) >= _FOLDS_LIMIT:
            _FOLDS_BY_SIZE.clear()
        folds = _FOLDS_BY_SIZE[size] = _folds(size)
    if size & 1:
        return [payload_sum(payload) for payload in payloads]
    if len(folds) != 3:
        return [_sum_of_slices(payload) for payload in payloads]
    # Full segments of a 1280-byte tunnel take three folds; unrolled: bench/netstack.py shows 2.3 us against 3.1 us.
    (a, mask_a), (b, mask_b), (c, mask_c) = folds
    sums = []
    for payload in payloads:
        n = from_bytes(payload, "big")
        n = (n >> a) + (n & mask_a)
        n = (n >> b) + (n & mask_b)
        n = (n >> c) + (n & mask_c)
        sums.append(n % 0xFFFF)
    return sums


def burst_sums_by_numpy(payloads: list[bytes]) -> list[int]:
    """The same by one pass over the joined burst; byte order is settled on the result (RFC 1071 section 2B)."""
    size = len(payloads[0])
    if size & 1 or len(payloads) < VECTOR_MINIMUM:
        return burst_sums_by_folding(payloads)
    words = _numpy.frombuffer(b"".join(payloads), dtype=">u2").reshape(len(payloads), size // 2)
    sums: list[int] = words.sum(axis=1, dtype=_numpy.uint64).tolist()
    return sums


def fastest_burst_sums() -> Callable[[list[bytes]], list[int]]:
    """The numpy form where numpy can be imported, which is done here."""
    global _numpy
    _numpy = optional("numpy", "frombuffer", "uint64")
    return burst_sums_by_folding if _numpy is None else burst_sums_by_numpy


def burst_sums_until_numpy_pays(payloads: list[bytes]) -> list[int]:
    """By folding, and once it was enough, by whatever is fastest from the next burst on."""
    global _left, burst_sums
    _left -= len(payloads) * len(payloads[0])
    if _left < 0:
        burst_sums = fastest_burst_sums()
    return burst_sums_by_folding(payloads)


burst_sums: Callable[[list[bytes]], list[int]] = burst_sums_until_numpy_pays
