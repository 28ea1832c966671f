"""One sample of some packet-path rows in one fresh process, as a line of JSON: {row: [figure, unit, is lower better]}.

Run by `bench.against` as a file, with the checkout to be measured as PYTHONPATH: what it imports from `bench` is that
checkout's own, for those programs reach into rooms that differ. Only `pair.py`, which knows public verbs alone, comes
from beside this file. Refuses to compare.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

Figures = dict[str, tuple[float, str, bool]]


def beside(name: str) -> ModuleType:
    """A file of this folder, whatever package `bench` is."""
    spec = importlib.util.spec_from_file_location(f"beside_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def of_rows(rows: Iterable[Any]) -> Figures:
    """The best figure of our side of each row."""
    return {
        row.name: ((min if row.lower_is_better else max)(row.samples[row.ours]), row.unit, row.lower_is_better)
        for row in rows
    }


def cpu_per_packet(said: str) -> float:
    """The figure in `1300 bytes, window  256:  905 Mbit/s, loss 0.00 %,  8.4 us CPU/packet`."""
    found = re.search(r"([\d.]+) us CPU/packet$", said)
    if found is None:
        raise ValueError(f"no CPU per packet in {said!r}")
    return float(found[1])


@contextlib.contextmanager
def cpu_clock() -> Iterator[None]:
    """The programs' clock becomes the CPU time of this process: what others do with the machine counts less."""
    kept, time.perf_counter = time.perf_counter, time.process_time
    try:
        yield
    finally:
        time.perf_counter = kept


def aead() -> Figures:
    from bench import inside

    with cpu_clock():
        return of_rows(inside.aead(3))


def engine() -> Figures:
    from bench import inside

    with cpu_clock():
        return of_rows(inside.engines(3))


def stack() -> Figures:
    from bench import inside

    with cpu_clock():
        return of_rows(inside.stack(5))


def lookups() -> Figures:
    from bench import inside

    with cpu_clock():
        return of_rows(inside.lookups(3, 2_000))


def handshake() -> Figures:
    from bench import tunnel

    with cpu_clock():
        return {f"handshake: {name}": (figure, "us", True) for name, figure in tunnel.handshake_costs(100)}


def derp() -> Figures:
    """The codec, and packets through our relay with both clients in this process."""
    import trio

    from bench import derp as program

    packets = [bytes([n % 256]) * program.PACKET for n in range(program.BURST)]
    send, receive = program.frames.SEND_PACKET, program.frames.RECV_PACKET
    wire, reader = program.encode_packets(receive, [(bytes(32), packets)]), program.FrameReader(receive)

    async def relayed() -> str:
        async with program.our_relay(tls=True) as region:
            return str(await program.through(region, over_http=False, window=256, seconds=1.0))

    encode = program.best_of(lambda: program.encode_packets(send, [(bytes(32), packets)]))
    decode = program.best_of(lambda: reader.feed(wire))
    return {
        "derp: encode": (encode, "us/packet", True),
        "derp: decode": (decode, "us/packet", True),
        "derp: our relay, TLS": (cpu_per_packet(trio.run(relayed)), "us CPU/packet", True),
    }


GROUPS: dict[str, Callable[[], Figures]] = {
    "aead": aead,
    "engine": engine,
    "stack": stack,
    "lookups": lookups,
    "handshake": handshake,
    "derp": derp,
    "direct": lambda: dict(beside("pair").sample("direct")),
    "relay": lambda: dict(beside("pair").sample("relay")),
}

if __name__ == "__main__":
    print(json.dumps(GROUPS[sys.argv[1]]()))
