"""What is told of UDP sockets, and how a write is counted: the values beside `udp.py`. Knows no socket."""

from __future__ import annotations

import errno
from struct import Struct
from typing import NamedTuple

SEGMENT_SIZE = Struct("=H")


class HostUdpStatistics(NamedTuple):
    """`offloads`: does the kernel batch for us, on every socket? `kept`: runs that wait for room in its buffer."""

    sockets: int
    offloads: dict[str, bool]
    kept: int
    drops: dict[str, int]


class Offloads(NamedTuple):
    """What the kernel may do with many datagrams at once."""

    segmentation: bool = True
    coalescing: bool = True
    equal_tail: bool = True
    """Also one write of datagrams that all have one length, which some kernels damage."""


ALL_OFFLOADS = Offloads()


def datagrams_in(data: bytes, options: list[tuple[int, int, bytes]]) -> int:
    """How many the kernel would have made of one write."""
    return -(-len(data) // SEGMENT_SIZE.unpack(options[0][2])[0]) if options else 1


def name_of(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "error").lower()
