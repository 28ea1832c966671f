"""The packet filter: control's rules turned into verdicts.

Owns the decision table of the dataplane notes E.3, row by row as upstream decides. Each rule is one bit; a source, a
protocol and a destination each say which rules they satisfy, and a verdict is the AND. Refuses to know peers, tunnels
and time: whether an address is ours and which capabilities a source holds are arguments.
"""

# Compiling costs what is read, whatever it says. A mask has a bit for each rule, so that n sources of n rules would be
# n * n bits: rules therefore stand in blocks of RULES_PER_BLOCK with tables of their own, and a verdict asks each one.
# Nearly every tailnet has one. What matches nothing gets no bit, but is counted like everything that is read.

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Generator, Iterable, Mapping
from typing import NamedTuple, TypeVar

from ts_base.errors import BadPacket
from ts_base.ip import (
    ICMP,
    ICMP6,
    SCTP,
    TCP,
    TSMP,
    UDP,
    Prefix,
    is_multicast,
    parse_address,
    parse_prefix,
    prefix_contains,
)
from ts_base.who import PeerId
from ts_dataplane.bart import Bart
from ts_dataplane.packets import FRAGMENT, UNKNOWN, Parsed, is_icmp_answer, stays_on_link

# Verdicts: the empty one admits, any other is the name of the drop counter.
ADMITTED = ""
UNKNOWN_PROTOCOL = "filter.unknown_protocol"
MULTICAST = "filter.multicast"
LINK_LOCAL = "filter.link_local"
NOT_LOCAL = "filter.not_local"
NO_RULE = "filter.no_rule"

DEFAULT_PROTOCOLS = (TCP, UDP, ICMP, ICMP6)
EVERYTHING: tuple[Prefix, ...] = ((bytes(4), 0), (bytes(16), 0))
STEP = 2_000  # entries compiled between two pauses: about 10 ms
RULES_PER_BLOCK = 1_024
# Entries read of one filter: sources, destinations, protocols, grants, each prefix of a range, and one for each rule.
# What is behind them is left out, which admits less and never more, and is reported. At worst about 400 MB.
ENTRIES_LIMIT = 1 << 19
MAX_PROBLEMS = 32

Clause = tuple[int, int, int]  # first port, last port, rule bit
Built = TypeVar("Built")


class Grant(NamedTuple):
    """Capabilities a rule's sources hold towards these destinations. Values are opaque (control's JSON texts)."""

    destinations: tuple[str, ...]
    capabilities: Mapping[str, tuple[str, ...]]


class Rule(NamedTuple):
    """One FilterRule of the map response as plain text: an entry is `*`, an address, a prefix or a range `a-b`.

    A source may also be `cap:<name>`. A destination is (entry, first port, last port). No protocols: the usual four.
    """

    sources: tuple[str, ...]
    destinations: tuple[tuple[str, int, int], ...] = ()
    protocols: tuple[int, ...] = ()
    grants: tuple[Grant, ...] = ()


class _Ports:
    """Which rules open which ports of one destination prefix, as sorted borders and one bit mask between each two."""

    __slots__ = ("any_port", "every_port", "masks", "starts")

    def __init__(self) -> None:
        self.any_port = self.every_port = 0
        self.starts, self.masks = [-1], [0]

    def compile_steps(self, clauses: list[Clause], pace: _Pace) -> Generator[None, None, None]:
        turns: dict[int, list[tuple[int, int]]] = {}
        for first, last, bit in clauses:
            self.any_port |= bit
            if (first, last) == (0, 65535):
                self.every_port |= bit
            first, last = max(first, 0), min(last, 65535)
            if first <= last:
                turns.setdefault(first, []).append((bit, 1))
                turns.setdefault(last + 1, []).append((bit, -1))
            if pace.is_due(1):
                yield
        depth: dict[int, int] = {}  # one rule may open a port twice
        mask = 0
        for border in sorted(turns):
            for bit, change in turns[border]:
                depth[bit] = depth.get(bit, 0) + change
                mask = mask | bit if depth[bit] else mask & ~bit
            self.starts.append(border)
            self.masks.append(mask)
            if pace.is_due(len(turns[border])):
                yield


class _Block:
    """A few rules, each one bit of every mask in here."""

    __slots__ = ("destinations", "families", "granting", "holders", "protocols", "rules", "sources")

    def __init__(self) -> None:
        self.rules = 0
        self.sources: Bart[int] = Bart()  # each value already holds the bits of every wider prefix
        self.holders: dict[str, int] = {}  # capability -> rules it is a source of
        self.protocols: dict[int, int] = {}
        self.destinations: Bart[_Ports] = Bart()
        self.families: dict[int, int] = {4: 0, 16: 0}  # rules with a destination in that family
        self.granting: dict[int, list[tuple[Prefix, Mapping[str, tuple[str, ...]]]]] = {}

    def opens(self, parsed: Parsed, held: frozenset[str]) -> bool:
        """Some rule names this source (by address or capability), protocol, destination and port."""
        mask = (self.sources.lookup(parsed.source) or 0) | self._rules_for_holder(held, len(parsed.destination))
        mask &= self.protocols.get(parsed.protocol, 0)
        if not mask:
            return False
        port = parsed.destination_port
        for ports in self.destinations.lookup_all(parsed.destination):
            if ports.masks[bisect_right(ports.starts, port) - 1] & mask:
                return True
        return False

    def opens_any_port(self, parsed: Parsed, held: frozenset[str]) -> bool:
        """Row 9: some rule lets this source reach this address at all; a capability named anywhere is enough."""
        if self._rules_for_holder(held, len(parsed.destination)):
            return True
        mask = self.sources.lookup(parsed.source) or 0
        return any(ports.any_port & mask for ports in self.destinations.lookup_all(parsed.destination))

    def opens_every_port(self, parsed: Parsed) -> bool:
        """Row 14: a rule that names the protocol and all ports; sources by address only."""
        mask = (self.sources.lookup(parsed.source) or 0) & self.protocols.get(parsed.protocol, 0)
        return any(ports.every_port & mask for ports in self.destinations.lookup_all(parsed.destination))

    def _rules_for_holder(self, held: frozenset[str], family: int) -> int:
        mask = 0
        if held and self.holders:
            for capability in held:
                mask |= self.holders.get(capability, 0)
        return mask & self.families[family]

    def source_in(self, owners: Mapping[Prefix, PeerId], table: Bart[PeerId]) -> PeerId | None:
        """Whose prefix overlaps a source of a rule with a destination; both arguments hold the same."""
        mask = self.families[4] | self.families[16]
        for prefix, owner in owners.items():
            if (self.sources.lookup(prefix[0]) or 0) & mask:
                return owner
        for prefix, rules in self.sources.items():
            if rules & mask and (found := table.lookup(prefix[0])) is not None:
                return found
        return None

    def add_capabilities(self, granted: dict[str, tuple[str, ...]], source: bytes, destination: bytes) -> None:
        mask = self.sources.lookup(source) or 0
        for bit, grants in self.granting.items():
            if mask & bit:
                for prefix, capabilities in grants:
                    if prefix_contains(prefix, destination):
                        for name, values in capabilities.items():
                            granted[name] = granted.get(name, ()) + values


class PacketFilter:
    """Compiled rules. Immutable once built; made by `compile_filter`."""

    __slots__ = ("_blocks", "entries", "has_holders", "problems")

    def __init__(self) -> None:
        self.problems: list[str] = []  # entries that were skipped, for a health warning
        self.entries = 0
        self.has_holders = False  # whether a rule names a capability as its source; if not, `held` plays no part
        self._blocks: list[_Block] = []

    def decide(self, packet: bytes, parsed: Parsed, *, is_local: bool, held: frozenset[str]) -> str:
        """The verdict on one inbound packet. Answers to our own UDP and SCTP are NO_RULE here: see reply_flows.py."""
        protocol, destination = parsed.protocol, parsed.destination
        if protocol == UNKNOWN:
            return UNKNOWN_PROTOCOL
        if is_multicast(destination):
            return MULTICAST
        if stays_on_link(destination):
            return LINK_LOCAL
        if protocol == FRAGMENT:
            return ADMITTED
        if not is_local:
            return NOT_LOCAL
        blocks = self._blocks
        if protocol == TCP:
            admitted = not parsed.is_opening or any(block.opens(parsed, held) for block in blocks)
        elif protocol in (UDP, SCTP):
            admitted = any(block.opens(parsed, held) for block in blocks)
        elif protocol == (ICMP if len(destination) == 4 else ICMP6):
            admitted = is_icmp_answer(packet, parsed) or any(block.opens_any_port(parsed, held) for block in blocks)
        else:
            admitted = protocol == TSMP or any(block.opens_every_port(parsed) for block in blocks)
        return ADMITTED if admitted else NO_RULE

    def source_in(self, owners: Mapping[Prefix, PeerId]) -> PeerId | None:
        """Who owns a prefix that overlaps a source of a rule with a destination, if anybody."""
        table: Bart[PeerId] = Bart()
        for prefix, owner in owners.items():
            table.insert(prefix, owner)
        found = (block.source_in(owners, table) for block in self._blocks)
        return next((owner for owner in found if owner is not None), None)

    def capabilities(self, source: bytes, destination: bytes) -> dict[str, tuple[str, ...]]:
        """What `source` may do towards our address `destination`: capability -> values, over all grants."""
        granted: dict[str, tuple[str, ...]] = {}
        for block in self._blocks:
            block.add_capabilities(granted, source, destination)
        return granted

    def _skip(self, entry: object, problem: object) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(f"filter entry {str(entry)[:64]!r} skipped: {problem}")


def compile_filter(rules: Iterable[Rule]) -> PacketFilter:
    """Rules to a filter, all at once."""
    return run_through(compile_filter_steps(rules))


def run_through(steps: Generator[None, None, Built]) -> Built:
    """Compile without pausing."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            built: Built = done.value
            return built


def compile_filter_steps(rules: Iterable[Rule]) -> Generator[None, None, PacketFilter]:
    """Rules to a filter, pausing every STEP entries. A bad entry is skipped and reported, the rest is used."""
    built, pace = PacketFilter(), _Pace()
    known: dict[str, tuple[Prefix, ...]] = {}
    draft = _Draft(built, pace, known)
    for rule in rules:
        yield from draft.read_steps(rule)
        if draft.block.rules == RULES_PER_BLOCK:
            yield from draft.finish_steps()
            draft = _Draft(built, pace, known)
        if pace.is_spent:
            built.problems.insert(0, f"the filter has over {ENTRIES_LIMIT:,} entries: the rest of it is left out")
            break
    yield from draft.finish_steps()
    built.entries = pace.entries
    return built


class _Pace:
    """How much was read, and when to pause."""

    __slots__ = ("_since_pause", "entries")

    def __init__(self) -> None:
        self.entries = self._since_pause = 0

    def is_due(self, work: int) -> bool:
        """Count `work`; is it time to pause?"""
        self._since_pause += work
        if self._since_pause < STEP:
            return False
        self._since_pause = 0
        return True

    def read(self, entries: int) -> bool:
        """As `is_due`, of what is read for the first time."""
        self.entries += entries
        return self.is_due(entries)

    @property
    def is_spent(self) -> bool:
        return self.entries > ENTRIES_LIMIT


class _Draft:
    """A block while its rules are read."""

    def __init__(self, built: PacketFilter, pace: _Pace, known: dict[str, tuple[Prefix, ...]]) -> None:
        self.block = _Block()
        self._built, self._pace, self._known = built, pace, known
        self._sources: dict[int, dict[Prefix, int]] = {}  # by length
        self._clauses: dict[Prefix, list[Clause]] = {}

    def read_steps(self, rule: Rule) -> Generator[None, None, None]:
        block, pace = self.block, self._pace
        if pace.read(1 + len(rule.protocols)):
            yield
        if not rule.sources or not (rule.destinations or rule.grants):
            return
        bit = 1 << block.rules
        block.rules += 1
        for protocol in rule.protocols or DEFAULT_PROTOCOLS:
            if 0 <= protocol <= 255:
                block.protocols[protocol] = block.protocols.get(protocol, 0) | bit
        for entry in rule.sources:
            if entry.startswith("cap:"):
                self._built.has_holders = True
                block.holders[entry[4:]] = block.holders.get(entry[4:], 0) | bit
                prefixes: tuple[Prefix, ...] = ()
            else:
                prefixes = self._expand(entry)
            for prefix in prefixes:
                alike = self._sources.setdefault(prefix[1], {})
                alike[prefix] = alike.get(prefix, 0) | bit
            if pace.read(1 + len(prefixes)):
                yield
            if pace.is_spent:
                return
        for entry, first, last in rule.destinations:
            prefixes = self._expand(entry)
            for prefix in prefixes:
                self._clauses.setdefault(prefix, []).append((first, last, bit))
                block.families[len(prefix[0])] |= bit
            if pace.read(1 + len(prefixes)):
                yield
            if pace.is_spent:
                return
        yield from self._read_grants(rule.grants, bit)

    def _read_grants(self, grants: tuple[Grant, ...], bit: int) -> Generator[None, None, None]:
        read = self.block.granting.setdefault(bit, []) if grants else []
        for grant in grants:
            named: dict[str, tuple[str, ...]] = {}
            for name, values in grant.capabilities.items():
                if name:
                    named[name] = tuple(values)
                if self._pace.read(1 + len(values)):
                    yield
                if self._pace.is_spent:
                    return
            for entry in grant.destinations:
                try:
                    read.append((parse_prefix(entry), named))
                except BadPacket as problem:
                    self._built._skip(entry, problem)
                if self._pace.read(1):
                    yield
                if self._pace.is_spent:
                    return

    def _expand(self, entry: str) -> tuple[Prefix, ...]:
        prefixes = self._known.get(entry)
        if prefixes is None:
            try:
                prefixes = prefixes_untrusted(entry)
            except BadPacket as problem:
                prefixes = ()
                self._built._skip(entry, problem)
            self._known[entry] = prefixes
        return prefixes

    def finish_steps(self) -> Generator[None, None, None]:
        """The block's tables, out of what was read."""
        block, pace = self.block, self._pace
        # Wider prefixes first, so that what covers one is known when it is stored: one look-up then answers for all.
        for length in sorted(self._sources):
            for prefix, bits in self._sources[length].items():
                block.sources.insert(prefix, bits | (block.sources.lookup(prefix[0]) or 0))
                if pace.is_due(1):
                    yield
        for prefix, clauses in self._clauses.items():
            ports = _Ports()
            yield from ports.compile_steps(clauses, pace)
            block.destinations.insert(prefix, ports)
        if block.rules:
            self._built._blocks.append(block)


def prefixes_untrusted(entry: str) -> tuple[Prefix, ...]:
    """`*`, an address, a prefix or an inclusive range `a-b` as prefixes."""
    if entry == "*":
        return EVERYTHING
    if "-" not in entry or "/" in entry:
        return (parse_prefix(entry),)
    first, _, last = entry.partition("-")
    low, high = parse_address(first), parse_address(last)
    if len(low) != len(high) or low > high:
        raise BadPacket(f"not a range: {entry[:80]!r}")
    blocks = ipaddress.summarize_address_range(ipaddress.ip_address(low), ipaddress.ip_address(high))
    return tuple((block.network_address.packed, block.prefixlen) for block in blocks)
