"""What rules may cost, whatever they say: work is counted in calls, so that a loaded machine cannot fail this."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

import pytest

from ts_base.ip import TCP, parse_address
from ts_dataplane import filter as packet_filter
from ts_dataplane.filter import ADMITTED, NO_RULE, RULES_PER_BLOCK, Grant, PacketFilter, Rule, compile_filter_steps
from ts_dataplane.packets import SYN, Parsed

US = parse_address("100.64.0.1")


def host(number: int) -> str:
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def empty_rules(size: int) -> Iterable[Rule]:
    return (Rule(()) for _ in range(size))


def rules_that_match_nothing(size: int) -> Iterable[Rule]:
    return (Rule(("*",)) for _ in range(size))


def distinct_sources_and_nested_ports(size: int) -> Iterable[Rule]:
    return (Rule((host(n),), (("*", n % 30_000, 65_535 - n % 30_000),)) for n in range(size))


def nested_sources(size: int) -> Iterable[Rule]:
    return (Rule((f"{host(n << 8)}/{8 + n % 17}" if n % 2 else "*",), (("*", 80, 80),)) for n in range(size))


def one_rule_with_every_source(size: int) -> Iterable[Rule]:
    return [Rule(tuple(map(host, range(size))), (("*", 80, 80),))]


def one_rule_with_every_port(size: int) -> Iterable[Rule]:
    return [Rule(("*",), tuple(("100.64.0.1", n, 1 << 40) for n in range(size)))]


def one_rule_with_every_destination(size: int) -> Iterable[Rule]:
    return [Rule(("*",), tuple((host(n), n & 65_535, 65_535) for n in range(size)))]


def ranges(size: int) -> Iterable[Rule]:
    return [Rule(tuple(f"{n + 1:x}::1-{n + 1:x}:ffff:ffff:ffff:ffff:ffff:ffff:fffe" for n in range(size // 254)))]


def ranges_as_destinations(size: int) -> Iterable[Rule]:
    (rule,) = ranges(size)
    return [Rule(("*",), tuple((entry, 1, 2) for entry in rule.sources))]


def grants(size: int) -> Iterable[Rule]:
    many = {str(n): ("value",) for n in range(size // 2)}
    return [Rule(("*",), (), (), (Grant(tuple(map(host, range(size // 2))), many),))]


def holders(size: int) -> Iterable[Rule]:
    return (Rule((f"cap:{n}",), (("*", 80, 80),)) for n in range(size))


SHAPES = [
    empty_rules,
    rules_that_match_nothing,
    distinct_sources_and_nested_ports,
    nested_sources,
    one_rule_with_every_source,
    one_rule_with_every_port,
    one_rule_with_every_destination,
    ranges,
    ranges_as_destinations,
    grants,
    holders,
]


def compiled(rules: Iterable[Rule]) -> tuple[PacketFilter, int, int]:
    """The filter, all the calls it took, and those of the longest step between two pauses."""
    calls = 0

    def watch(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    steps, spent, longest = compile_filter_steps(rules), 0, 0
    while True:
        calls = 0
        sys.setprofile(watch)
        try:
            next(steps)
        except StopIteration as done:
            sys.setprofile(None)
            return done.value, spent + calls, max(longest, calls)
        finally:
            sys.setprofile(None)
        spent, longest = spent + calls, max(longest, calls)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.slow
def test_compiling_costs_what_is_read_and_pauses(shape: Callable[[int], Iterable[Rule]]) -> None:
    _, few, _ = compiled(shape(6_000))
    _, many, longest = compiled(shape(24_000))
    assert many < 5 * few
    assert longest < 40 * packet_filter.STEP


@pytest.mark.parametrize("shape", SHAPES)
def test_no_mask_is_wider_than_a_block(shape: Callable[[int], Iterable[Rule]]) -> None:
    built, _, _ = compiled(shape(5_000))
    for block in built._blocks:
        assert block.rules <= RULES_PER_BLOCK
        masks = [mask for _, mask in block.sources.items()]
        masks += [mask for _, ports in block.destinations.items() for mask in ports.masks]
        assert max((mask.bit_length() for mask in masks), default=0) <= RULES_PER_BLOCK


def opens(built: PacketFilter, source: str, port: int) -> bool:
    parsed = Parsed(TCP, parse_address(source), US, 4000, port, SYN)
    verdict = built.decide(b"", parsed, is_local=True, held=frozenset())
    assert verdict in (ADMITTED, NO_RULE)
    return verdict == ADMITTED


def test_every_block_is_asked() -> None:
    built, _, _ = compiled(Rule((host(n),), (("*", n, n),)) for n in range(2 * RULES_PER_BLOCK + 5))
    assert len(built._blocks) == 3
    for n in (0, RULES_PER_BLOCK - 1, RULES_PER_BLOCK, 2 * RULES_PER_BLOCK + 4):
        assert opens(built, host(n), n)
        assert not opens(built, host(n), n + 1)


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_behind_the_limit_admits_nothing_and_is_reported(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packet_filter, "ENTRIES_LIMIT", 1_000)
    named = tuple(map(host, range(2_000)))
    rules = [Rule((source,), (("*", 80, 80),)) for source in named] if whole else [Rule(named, (("*", 80, 80),))]
    built, _, _ = compiled([Rule(("192.0.2.1",), (("*", 80, 80),)), *rules])
    assert opens(built, "192.0.2.1", 80)
    assert opens(built, host(5), 80) == whole  # a rule that is cut short within its sources has no destinations
    assert not opens(built, host(1_999), 80)
    assert built.problems == ["the filter has over 1,000 entries: the rest of it is left out"]
    assert built.entries <= 1_010


def test_ports_that_are_none_open_nothing_beyond_those_that_are() -> None:
    built, _, _ = compiled(
        [Rule(("*",), (("*", -5, 10), ("*", 65_530, 1 << 70), ("*", -9, -1), ("*", 1 << 20, 1 << 30)))]
    )
    assert [opens(built, "10.0.0.1", port) for port in (0, 10, 11, 65_529, 65_530, 65_535)] == [
        True,
        True,
        False,
        False,
        True,
        True,
    ]
