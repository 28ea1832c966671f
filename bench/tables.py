"""Routes and filter at size: compiling for 10,000 peers, one-peer deltas, cold and remembered lookups.

Run: python bench/tables.py [peers]
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable

from ts_base.ip import UDP, mask, parse_address
from ts_dataplane.bart import Bart
from ts_dataplane.claims import PeerRoutes
from ts_dataplane.filter import Rule
from ts_dataplane.tables import Tables, compile_tables_steps

OWN = ("100.127.0.1", "fd7a:115c:a1e0::ffff:1")


def peers(number: int) -> list[PeerRoutes]:
    """Two addresses each, every third one a subnet router."""
    made = []
    for n in range(number):
        addresses = (
            f"100.{64 + (n >> 16)}.{n >> 8 & 255}.{n & 255}/32",
            f"fd7a:115c:a1e0::{n >> 16:x}:{n & 65535:x}/128",
        )
        routes = (f"10.{n >> 8 & 255}.{n & 255}.0/24",) if n % 3 == 0 else ()
        made.append(PeerRoutes(n + 1, addresses, addresses + routes))
    return made


def compile_in_steps(tailnet: list[PeerRoutes], rules: list[Rule]) -> tuple[Tables, float, float]:
    """The tables, all the seconds, and those of the longest step between two pauses."""
    steps = compile_tables_steps(own=OWN, peers=tailnet, rules=rules, accept_routes=True)
    begun = before = time.perf_counter()
    longest = 0.0
    while True:
        try:
            next(steps)
        except StopIteration as done:
            now = time.perf_counter()
            return done.value, now - begun, max(longest, now - before)
        now = time.perf_counter()
        longest, before = max(longest, now - before), now


def per_call(work: Callable[[], object], calls: int) -> float:
    """Microseconds per call, best of five."""
    spent = []
    for _ in range(5):
        begun = time.perf_counter()
        work()
        spent.append(time.perf_counter() - begun)
    return min(spent) / calls * 1e6


def routes(number: int, size: int) -> tuple[Bart[int], list[bytes]]:
    """A table of random prefixes and addresses to look up in it."""
    source = random.Random(number)
    table: Bart[int] = Bart()
    stem = bytes([10]) if size == 4 else bytes.fromhex("20010db8")
    lengths = (8, 12, 16, 20, 24, 28, 32) if size == 4 else (32, 48, 56, 64, 96, 128)
    while len(table) < number:
        length = source.choice(lengths)
        table.insert((mask(stem + source.randbytes(size - len(stem)), length), length), len(table))
    return table, [stem + source.randbytes(size - len(stem)) for _ in range(10_000)]


def cold_lookup(size: int) -> float:
    table, probes = routes(3_000, size)
    return per_call(lambda: [table.lookup(address) for address in probes], len(probes))


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    tailnet = peers(number)
    listed = [address.partition("/")[0] for peer in tailnet for address in peer.addresses]
    open_to_all = [Rule(("*",), (("*", 0, 65535),))]
    each_named = [Rule(tuple(listed[n::10]), ((OWN[0], 80 + n, 90 + n), (OWN[1], 443, 443))) for n in range(10)]
    for name, rules in (("one open rule", open_to_all), ("ten rules that name every address", each_named)):
        tables, spent, longest = compile_in_steps(tailnet, rules)
        print(f"compile {number} peers, {name}: {spent * 1e3:.0f} ms, longest step {longest * 1e3:.1f} ms")
    delta = per_call(lambda: tables.with_peers([tailnet[0]._replace(jailed=True)]), 1)
    print(f"one-peer delta: {delta / 1e3:.2f} ms")
    for family, size in (("IPv4", 4), ("IPv6", 16)):
        print(f"bart, 3,000 {family} prefixes, cold: {cold_lookup(size):.2f} us")
    hosts = [parse_address(address) for address in listed[:20_000:2]]
    for address in hosts:
        tables.peer_for(address)
    print(f"peer_for, remembered: {per_call(lambda: [tables.peer_for(a) for a in hosts], len(hosts)):.2f} us")
    flows = [address + parse_address(OWN[0]) + b"\x10\0\0\x50" for address in hosts]
    verdicts = [(n + 1, UDP, False, flow) for n, flow in enumerate(flows)]
    begun = time.perf_counter()
    for verdict in verdicts:
        tables.verdict(*verdict)
    print(f"verdict, cold: {(time.perf_counter() - begun) / len(verdicts) * 1e6:.2f} us")
    print(f"verdict, remembered: {per_call(lambda: [tables.verdict(*v) for v in verdicts], len(verdicts)):.2f} us")


if __name__ == "__main__":
    main()
