from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from golden.bart import SlowBart
from ts_base.ip import Prefix, mask, parse_address, parse_prefix
from ts_dataplane.bart import Bart


def prefixes() -> st.SearchStrategy[Prefix]:
    # Few distinct octets, so that prefixes nest, collide and share nodes.
    octets = st.sampled_from([0, 1, 2, 127, 128, 129, 254, 255])

    def of(size: int) -> st.SearchStrategy[Prefix]:
        address = st.lists(octets, min_size=size, max_size=size).map(bytes)
        return st.tuples(address, st.integers(0, 8 * size)).map(lambda p: (mask(*p), p[1]))

    return of(4) | of(16)


operations = st.lists(st.tuples(st.sampled_from(["insert", "insert", "delete", "fork"]), prefixes()), max_size=40)


@settings(max_examples=100, deadline=None)
@given(operations, st.lists(prefixes(), max_size=10))
def test_bart_agrees_with_the_slow_list_through_inserts_deletes_and_forks(steps, probes):
    table, slow = Bart[int](), SlowBart()
    frozen: list[tuple[Bart[int], dict[Prefix, int]]] = []
    for number, (step, prefix) in enumerate(steps):
        if step == "insert":
            table.insert(prefix, number)
            slow.insert(prefix, number)
        elif step == "delete":
            assert table.delete(prefix) == slow.delete(prefix)
        else:
            frozen.append((table, dict(slow.routes)))
            table = table.fork()
    assert dict(table.items()) == slow.routes
    assert len(table) == len(slow.routes)
    for address, length in probes + [prefix for _, prefix in steps]:
        assert table.lookup(address) == slow.lookup(address)
        assert table.lookup_all(address) == slow.lookup_all(address)
        assert table.get((address, length)) == slow.get((address, length))
    for old, routes in frozen:
        assert dict(old.items()) == routes


def test_bart_deleting_everything_leaves_an_empty_root():
    random_source, table = random.Random(1), Bart[int]()
    chosen = {
        (mask(random_source.randbytes(size), length), length)
        for size in (4, 16)
        for length in [random_source.randint(0, 8 * size) for _ in range(500)]
    }
    for prefix in chosen:
        table.insert(prefix, 1)
    for prefix in chosen:
        assert table.delete(prefix)
    assert len(table) == 0
    assert not table._root4.children
    assert not table._root6.children


@pytest.mark.parametrize(
    ("address", "best"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("10.1.2.4", "10.1.2.0/24"),
        ("10.1.3.1", "10.1.0.0/16"),
        ("10.200.0.1", "10.128.0.0/9"),
        ("11.0.0.1", "0.0.0.0/0"),
        ("fd7a::1", "fd7a::/16"),
        ("2001:db8::1", "::/0"),
    ],
)
def test_bart_picks_the_longest_prefix(address, best):
    table = Bart[str]()
    v4 = ["0.0.0.0/0", "10.0.0.0/8", "10.128.0.0/9", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3"]
    for text in [*v4, "::/0", "fd7a::/16", "fd7a:1::/32"]:
        table.insert(parse_prefix(text), text)
    assert table.lookup(parse_address(address)) == best


def test_bart_agrees_with_the_slow_list_at_scale():
    random_source = random.Random(7)
    table, slow = Bart[int](), SlowBart()
    for number in range(1000):
        length = random_source.choice([8, 10, 12, 16, 20, 24, 28, 32])
        prefix = mask(bytes([10 + number % 4]) + random_source.randbytes(3), length), length
        table.insert(prefix, number)
        slow.insert(prefix, number)
    for _ in range(300):
        address = bytes([10 + random_source.randrange(5)]) + random_source.randbytes(3)
        assert table.lookup(address) == slow.lookup(address)
