"""The packet filter: control's rules turned into verdicts, and the flows whose replies need no rule.

Owns the decision table of the dataplane notes E.3, row by row as upstream decides. Each rule is one bit; a source, a
protocol and a destination each say which rules they satisfy, and a verdict is the AND. Refuses to know peers, tunnels
and time: whether an address is ours and which capabilities a source holds are arguments.
"""

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
from ts_dataplane.bart import Bart
from ts_dataplane.packets import FRAGMENT, UNKNOWN, Parsed, is_icmp_answer, stays_on_link

# Verdicts: the empty one admits, any other is the name of the drop counter.
ADMITTED = ""
UNKNOWN_PROTOCOL = "unknown-protocol"
MULTICAST = "multicast"
LINK_LOCAL = "link-local"
NOT_LOCAL = "not-local"
NO_RULE = "no-rule"

DEFAULT_PROTOCOLS = (TCP, UDP, ICMP, ICMP6)
EVERYTHING: tuple[Prefix, ...] = ((bytes(4), 0), (bytes(16), 0))
STEP = 2_000  # entries compiled between two pauses: about 10 ms
MAX_PROBLEMS = 32
REPLY_FLOWS = 16_384  # upstream keeps 512, which a busy resolver outlives in seconds


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

    def __init__(self, clauses: list[tuple[int, int, int]]) -> None:  # (first, last, rule bit)
        self.any_port = self.every_port = 0
        turns: dict[int, list[tuple[int, int]]] = {}
        for first, last, bit in clauses:
            self.any_port |= bit
            if first <= last:
                turns.setdefault(first, []).append((bit, 1))
                turns.setdefault(last + 1, []).append((bit, -1))
            if (first, last) == (0, 65535):
                self.every_port |= bit
        self.starts, self.masks = [-1], [0]
        depth: dict[int, int] = {}  # one rule may open a port twice
        mask = 0
        for border in sorted(turns):
            for bit, change in turns[border]:
                depth[bit] = depth.get(bit, 0) + change
                mask = mask | bit if depth[bit] else mask & ~bit
            self.starts.append(border)
            self.masks.append(mask)


class PacketFilter:
    """Compiled rules. Immutable once built; made by `compile_filter`."""

    __slots__ = ("_destinations", "_families", "_granting", "_holders", "_protocols", "_sources", "problems")

    def __init__(self) -> None:
        self.problems: list[str] = []  # entries that were skipped, for a health warning
        self._sources: Bart[int] = Bart()  # each value already holds the bits of every wider prefix
        self._holders: dict[str, int] = {}  # capability -> rules it is a source of
        self._protocols: dict[int, int] = {}
        self._destinations: Bart[_Ports] = Bart()
        self._families: dict[int, int] = {4: 0, 16: 0}  # rules with a destination in that family
        self._granting: dict[int, tuple[tuple[Prefix, str, tuple[str, ...]], ...]] = {}

    def decide(self, packet: bytes, parsed: Parsed, *, is_local: bool, held: frozenset[str]) -> str:
        """The verdict on one inbound packet. Replies to our own UDP and SCTP come back as NO_RULE: see ReplyFlows."""
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
        if protocol == TCP:
            admitted = not parsed.is_opening or self.opens(parsed, held)
        elif protocol in (UDP, SCTP):
            admitted = self.opens(parsed, held)
        elif protocol == (ICMP if len(destination) == 4 else ICMP6):
            admitted = is_icmp_answer(packet, parsed) or self._opens_any_port(parsed, held)
        else:
            admitted = protocol == TSMP or self._opens_every_port(parsed)
        return ADMITTED if admitted else NO_RULE

    def opens(self, parsed: Parsed, held: frozenset[str]) -> bool:
        """Some rule names this source (by address or capability), protocol, destination and port."""
        mask = (self._sources.lookup(parsed.source) or 0) | self._rules_for_holder(held, len(parsed.destination))
        mask &= self._protocols.get(parsed.protocol, 0)
        if not mask:
            return False
        port = parsed.destination_port
        for ports in self._destinations.lookup_all(parsed.destination):
            if ports.masks[bisect_right(ports.starts, port) - 1] & mask:
                return True
        return False

    def _opens_any_port(self, parsed: Parsed, held: frozenset[str]) -> bool:
        """Row 9: some rule lets this source reach this address at all; a capability named anywhere is enough."""
        if self._rules_for_holder(held, len(parsed.destination)):
            return True
        mask = self._sources.lookup(parsed.source) or 0
        return any(ports.any_port & mask for ports in self._destinations.lookup_all(parsed.destination))

    def _opens_every_port(self, parsed: Parsed) -> bool:
        """Row 14: a rule that names the protocol and all ports; sources by address only."""
        mask = (self._sources.lookup(parsed.source) or 0) & self._protocols.get(parsed.protocol, 0)
        return any(ports.every_port & mask for ports in self._destinations.lookup_all(parsed.destination))

    @property
    def has_holders(self) -> bool:
        """Whether any rule names a capability as its source; if not, `held` need not be looked up."""
        return bool(self._holders)

    def names_source_in(self, prefixes: Iterable[Prefix]) -> bool:
        """Whether a rule with a destination has a source that overlaps one of `prefixes`."""
        mask = self._families[4] | self._families[16]
        table: Bart[bool] = Bart()
        for prefix in prefixes:
            if (self._sources.lookup(prefix[0]) or 0) & mask:
                return True
            table.insert(prefix, True)
        return any(rules & mask and table.lookup(prefix[0]) for prefix, rules in self._sources.items())

    def _rules_for_holder(self, held: frozenset[str], family: int) -> int:
        mask = 0
        if held and self._holders:
            for capability in held:
                mask |= self._holders.get(capability, 0)
        return mask & self._families[family]

    def capabilities(self, source: bytes, destination: bytes) -> dict[str, tuple[str, ...]]:
        """What `source` may do towards our address `destination`: capability -> values, over all grants."""
        granted: dict[str, tuple[str, ...]] = {}
        mask = self._sources.lookup(source) or 0
        for index, grants in self._granting.items():
            if mask >> index & 1:
                for prefix, capability, values in grants:
                    if prefix_contains(prefix, destination):
                        granted[capability] = granted.get(capability, ()) + values
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
    built = PacketFilter()
    sources: dict[Prefix, int] = {}
    clauses: dict[Prefix, list[tuple[int, int, int]]] = {}
    known: dict[str, tuple[Prefix, ...]] = {}
    work = 0
    for index, (rule_sources, destinations, protocols, grants) in enumerate(rules):
        bit = 1 << index
        for protocol in protocols or DEFAULT_PROTOCOLS:
            built._protocols[protocol] = built._protocols.get(protocol, 0) | bit
        for entry in rule_sources:
            work += 1
            if work % STEP == 0:
                yield
            if entry.startswith("cap:"):
                built._holders[entry[4:]] = built._holders.get(entry[4:], 0) | bit
                continue
            for prefix in _expand(built, entry, known):
                sources[prefix] = sources.get(prefix, 0) | bit
        for entry, first, last in destinations:
            work += 1
            if work % STEP == 0:
                yield
            for prefix in _expand(built, entry, known):
                clauses.setdefault(prefix, []).append((first, last, bit))
                built._families[len(prefix[0])] |= bit
        if granted := _read_grants(built, grants):
            built._granting[index] = granted
    # Wider prefixes first, so that what covers a prefix is known when it is stored: one lookup then answers for all.
    for prefix in sorted(sources, key=_length):
        built._sources.insert(prefix, sources[prefix] | (built._sources.lookup(prefix[0]) or 0))
        work += 1
        if work % STEP == 0:
            yield
    for prefix, opened in clauses.items():
        built._destinations.insert(prefix, _Ports(opened))
        work += 1 + len(opened)
        if work % STEP <= len(opened):
            yield
    return built


def _length(prefix: Prefix) -> int:
    return prefix[1]


def _expand(built: PacketFilter, entry: str, known: dict[str, tuple[Prefix, ...]]) -> tuple[Prefix, ...]:
    prefixes = known.get(entry)
    if prefixes is None:
        try:
            prefixes = prefixes_untrusted(entry)
        except BadPacket as problem:
            prefixes = ()
            built._skip(entry, problem)
        known[entry] = prefixes
    return prefixes


def _read_grants(built: PacketFilter, grants: tuple[Grant, ...]) -> tuple[tuple[Prefix, str, tuple[str, ...]], ...]:
    read: list[tuple[Prefix, str, tuple[str, ...]]] = []
    for destinations, capabilities in grants:
        for entry in destinations:
            try:
                prefix = parse_prefix(entry)
            except BadPacket as problem:
                built._skip(entry, problem)
                continue
            read += [(prefix, name, tuple(values)) for name, values in capabilities.items() if name]
    return tuple(read)


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


class ReplyFlows:
    """UDP and SCTP flows we have sent on, least recently used first; an answer on one needs no rule (E.4)."""

    __slots__ = ("_flows", "_limit", "forgotten")

    def __init__(self, limit: int = REPLY_FLOWS) -> None:
        self._flows: dict[tuple[int, bytes], None] = {}
        self._limit = limit
        self.forgotten = 0

    def record(self, flow: tuple[int, bytes]) -> None:
        """Remember (protocol, flow bytes of the answer)."""
        flows = self._flows
        if flow in flows:
            del flows[flow]
        elif len(flows) >= self._limit:
            del flows[next(iter(flows))]
            self.forgotten += 1
        flows[flow] = None

    def admits(self, flow: tuple[int, bytes]) -> bool:
        """Whether this inbound flow answers one of ours; asking keeps it fresh."""
        if flow not in self._flows:
            return False
        del self._flows[flow]
        self._flows[flow] = None
        return True

    def __len__(self) -> int:
        return len(self._flows)
