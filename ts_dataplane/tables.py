"""Tables: one snapshot of who is who: routes, source ownership, the filter, and the caches that depend on them.

Owns which peer a packet goes to and which sources a peer may speak for (dataplane notes H.2): the same eligible
prefixes for both. Refuses to know control's messages, where all is text, and which exits are in use at the moment.
"""

# Theory of operation
#
# One question in two directions. A peer's *claims* are the prefixes control gave it that we agree to use. Outbound, an
# address belongs to the peer with the longest claim; inbound, a peer may speak for what its claims cover. Because both
# read the same claims, whoever we send to may answer, and nobody else is heard (WireGuard's cryptokey routing).
#
# Claims are of two kinds. A full-length one is a *host*: it stands in a dictionary, is found by one look-up, and shuts
# everybody else out, so that no route however wide lets a subnet router or exit node speak as a node. All others are
# *routes*, in a trie of 256-way nodes (bart.py). Two peers may claim the same prefix: outbound the lowest id is taken,
# inbound both are accepted, since the routers of one subnet take over from each other.
#
# A default route is a claim only for the exit node chosen by preference. A flow may name another peer to go by (`via`),
# and any peer that offers a default route will do: `exits`, which is about what peers offer. What comes back is no
# business of claims. `accepts` still says no, and the verdict NOT_AN_ANSWER means: unless it is one. The engine looks
# whether flows use that exit now. So a verdict never depends on which exits are in use, and a flow that opens through a
# new one costs no snapshot and no cache.
#
# Two caches make the packet path one dictionary hit each: the next hop of a destination, and the verdict on a flow,
# keyed by all that a verdict reads. A cache of verdicts is only as right as what it was computed from. So nothing in a
# snapshot ever changes: the next one is another object with empty caches, assigned in one statement, and no packet sees
# half of an update. `compile_tables_steps` makes one from the whole netmap. `with_peers` makes the next one from a
# delta: the dictionaries are copied, the trie is forked (nodes are shared until written), the filter is the same
# object, and only the peers named are read anew. For 10,000 peers that is 0.15 ms (bench/tables.py).
#
# Unsigned peers are settled last. Under tailnet lock, a filter that names one as a source was not made by whoever holds
# the lock, and the whole filter is replaced by one that admits answers only.

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable
from typing import NamedTuple

from ts_base.ip import (
    CGNAT,
    TAILSCALE_ULA,
    TCP,
    Prefix,
    is_martian_source,
    is_multicast,
    parse_prefix,
    prefix_contains,
)
from ts_base.who import Hop, PeerId
from ts_dataplane.bart import Bart
from ts_dataplane.claims import DEFAULTS, ClaimReader, PeerClaims, PeerRoutes, Prefs, read_prefixes
from ts_dataplane.filter import (
    MAX_PROBLEMS,
    STEP,
    PacketFilter,
    Rule,
    compile_filter,
    compile_filter_steps,
)
from ts_dataplane.packets import SYN, Parsed, stays_on_link

NOT_OWNER = "filter.not_owner"
NOT_AN_ANSWER = "filter.not_an_answer"  # an exit speaks for what it offers to reach: heard only in flows of ours
VERDICTS = 32_768  # remembered flows; a full cache is forgotten whole, which costs each flow one cold verdict
NEXT_HOPS = 32_768
CLAIMANTS = 64  # of one prefix, the lowest ids: each one more would cost as much as all before it
NO_SUCH_PEER = -1  # an exit node that nobody knows must not mean "no exit node": packets stay here

# What an exit node never offers: "internet only" is everything else (E.5).
_NOT_INTERNET = (
    *map(parse_prefix, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "224.0.0.0/4")),
    *map(parse_prefix, ("fe80::/10", "ff00::/8")),
    CGNAT,
    TAILSCALE_ULA,
)
_SHIELDED = compile_filter(())


class Tables:
    """Where packets go, whom they may come from, which are admitted."""

    __slots__ = (
        "_accept_routes",
        "_exit_node",
        "_filter",
        "_hosts",
        "_local",
        "_next_hops",
        "_next_hops_by_peer",
        "_offering",
        "_routes",
        "_rules",
        "_unsigned",
        "_verdicts",
        "exits",
        "own",
        "peers",
        "problems",
        "shields_up",
    )

    def __init__(
        self, own: tuple[bytes, ...], local: Bart[bool], rules: PacketFilter, problems: tuple[str, ...], prefs: Prefs
    ) -> None:
        self.own = own
        self.peers: dict[PeerId, PeerClaims] = {}
        self.problems = problems
        self._local = local
        self._rules = self._filter = rules
        self._accept_routes, self._exit_node, self.shields_up = prefs
        self._hosts: dict[bytes, tuple[PeerId, ...]] = {}  # full-length claims; the first claimant gets the packets
        self._routes: Bart[tuple[PeerId, ...]] = Bart()
        self._unsigned: set[PeerId] = set()
        self._offering: set[PeerId] = set()
        self._verdicts: dict[tuple[PeerId, int, bool, bytes], str] = {}
        self._next_hops: dict[bytes, PeerId | None] = {}
        self._next_hops_by_peer: dict[Hop, PeerId | None] = {}
        self.exits: frozenset[PeerId] = frozenset()  # who offers a default route and can be reached

    @classmethod
    def empty(cls) -> Tables:
        """Before the first netmap: no addresses, no peers, nothing admitted."""
        return cls((), Bart(), _SHIELDED, (), Prefs(False, None, True))

    # Outbound

    def peer_for(self, destination: bytes, via: PeerId = 0) -> PeerId | None:
        """The peer that packets to `destination` go to; None where nobody has it, or `via` does not take it there."""
        try:
            return self._next_hops_by_peer[destination, via] if via else self._next_hops[destination]
        except KeyError:
            pass
        if len(self._next_hops) + len(self._next_hops_by_peer) >= NEXT_HOPS:
            self._next_hops.clear()
            self._next_hops_by_peer.clear()
        if destination in self.own or is_multicast(destination) or stays_on_link(destination):
            peer = None
        elif via:
            peer = via if self.accepts(via, destination) or self.offers(via, destination) else None
        else:
            peer = self.owner_of(destination)
        if via:
            self._next_hops_by_peer[destination, via] = peer
        else:
            self._next_hops[destination] = peer
        return peer

    def owner_of(self, address: bytes) -> PeerId | None:
        """The peer `address` belongs to: its own address, or the longest eligible route (lowest id on a tie)."""
        claimants = self._hosts.get(address) or self._routes.lookup(address)
        return claimants[0] if claimants else None

    def is_inside(self, address: bytes) -> bool:
        """A node has `address`, or routes it otherwise than by a default route."""
        if address in self.own or address in self._hosts:
            return True
        has_default = any(len(p[0]) == len(address) and self._routes.get(p) is not None for p in DEFAULTS)
        return sum(1 for _ in self._routes.lookup_all(address)) > has_default

    @property
    def exit_is_missing(self) -> bool:
        """An exit node was chosen and cannot be used: what has no better route must not leave another way."""
        chosen = self._exit_node
        return chosen is not None and not any((self._routes.get(prefix) or (None,))[0] == chosen for prefix in DEFAULTS)

    def addresses_towards(self, peer: PeerId) -> tuple[bytes, bytes] | None:
        """Our address and the peer's, of one family: for messages of our own making."""
        known = self.peers.get(peer)
        for theirs in known.addresses if known else ():
            for ours in self.own:
                if len(ours) == len(theirs):
                    return ours, theirs
        return None

    # Inbound

    def accepts(self, peer: PeerId, source: bytes) -> bool:
        """May `peer` speak for `source`? A full-length claim excludes everybody else, even an exit node."""
        claimants = self._hosts.get(source)
        if claimants is not None:
            return peer in claimants
        if source in self.own or is_martian_source(source):
            return False
        return any(peer in claimants for claimants in self._routes.lookup_all(source))

    def offers(self, peer: PeerId, source: bytes) -> bool:
        """Would `peer`, as an exit, speak for `source`? Never for an address that a node claims."""
        if peer not in self.exits or len(source) not in self.peers[peer].defaults or source in self._hosts:
            return False
        return source not in self.own and not is_martian_source(source)

    def verdict(self, peer: PeerId, protocol: int, opening: bool, flow: bytes) -> str:
        """The remembered verdict on a whole TCP or UDP packet: everything it depends on is in the arguments.

        No rule looks at a source port, and none at any port of a TCP packet that opens nothing: remembered without
        them, a thousand connections to one service are one entry.
        """
        asked = flow[:-4] if protocol == TCP and not opening else flow[:-4] + flow[-2:]
        key = (peer, protocol, opening, asked)
        verdict = self._verdicts.get(key)
        if verdict is None:
            if len(self._verdicts) >= VERDICTS:
                self._verdicts.clear()
            size = len(flow) // 2 - 2
            source, destination, ports = flow[:size], flow[size:-4], int.from_bytes(flow[-4:], "big")
            flags = SYN if opening and protocol == TCP else 0
            parsed = Parsed(protocol, source, destination, ports >> 16, ports & 0xFFFF, flags)
            if self.accepts(peer, source):
                verdict = self.judge(peer, b"", parsed)
            elif not opening and self.is_local(destination) and self.offers(peer, source):
                verdict = NOT_AN_ANSWER
            else:
                verdict = NOT_OWNER
            self._verdicts[key] = verdict
        return verdict

    def judge(self, peer: PeerId, packet: bytes, parsed: Parsed) -> str:
        """The filter's verdict on a packet whose source was accepted; the bytes matter only for ICMP."""
        known = self.peers.get(peer)
        jailed = known is None or known.routes.jailed
        rules = _SHIELDED if jailed else self._filter
        held = self._held_by(parsed.source) if rules.has_holders else frozenset()
        return rules.decide(packet, parsed, is_local=self.is_local(parsed.destination), held=held)

    def judge_answer(self, packet: bytes, parsed: Parsed) -> str:
        """The verdict on a packet from an exit that may only answer: as if no rule admitted anything."""
        return _SHIELDED.decide(packet, parsed, is_local=self.is_local(parsed.destination), held=frozenset())

    def is_local(self, address: bytes) -> bool:
        """One of our own addresses, or behind a route we advertise."""
        return self._local.lookup(address) is True

    def capabilities(self, source: bytes, destination: bytes) -> dict[str, tuple[str, ...]]:
        """Peer capabilities that `source` holds towards our address `destination` (whois)."""
        return self._filter.capabilities(source, destination)

    def _held_by(self, source: bytes) -> frozenset[str]:
        claimants = self._hosts.get(source)
        peer = self.peers[claimants[0]] if claimants else None
        return peer.routes.capabilities if peer and source in peer.addresses else frozenset()

    def statistics(self) -> TablesStatistics:
        return TablesStatistics(
            peers=len(self.peers),
            hosts=len(self._hosts),
            routes=len(self._routes),
            exits=len(self.exits),
            filter_entries=self._filter.entries,
            verdicts=len(self._verdicts),
            next_hops=len(self._next_hops) + len(self._next_hops_by_peer),
        )

    # The next snapshot

    def with_peers(self, changed: Iterable[PeerRoutes] = (), removed: Iterable[PeerId] = ()) -> Tables:
        """The snapshot after a delta; everything not named is shared with this one."""
        prefs = Prefs(self._accept_routes, self._exit_node, self.shields_up)
        twin = Tables(self.own, self._local, self._rules, self.problems, prefs)
        twin.peers, twin._hosts, twin._routes = self.peers.copy(), self._hosts.copy(), self._routes.fork()
        twin._unsigned, twin._offering = self._unsigned.copy(), self._offering.copy()
        problems: list[str] = []
        reader = ClaimReader(self.own, prefs, problems)
        for peer in removed:
            twin._detach(peer)
        for routes in changed:
            twin._detach(routes.peer)
            twin._attach(reader.read(routes), problems)
        twin._settle((*self.problems, *problems))
        return twin

    def _attach(self, peer: PeerClaims, problems: list[str]) -> None:
        number = peer.routes.peer
        self.peers[number] = peer
        if peer.routes.unsigned:
            self._unsigned.add(number)
        if peer.defaults:
            self._offering.add(number)
        for prefix in peer.claims:
            address, length = prefix
            is_host = length == 8 * len(address)
            rivals = (self._hosts.get(address) if is_host else self._routes.get(prefix)) or ()
            claimants = tuple(sorted((*rivals, number))) if rivals else (number,)
            if len(claimants) > CLAIMANTS:
                problems.append(f"prefix of {claimants[-1]} skipped: {CLAIMANTS} peers claim it already")
                claimants = claimants[:-1]
            if is_host:
                self._hosts[address] = claimants
            else:
                self._routes.insert(prefix, claimants)

    def _detach(self, number: PeerId) -> None:
        peer = self.peers.pop(number, None)
        self._unsigned.discard(number)
        self._offering.discard(number)
        for prefix in peer.claims if peer else ():
            address, length = prefix
            if length == 8 * len(address):
                rest = tuple(rival for rival in self._hosts.get(address, ()) if rival != number)
                if rest:
                    self._hosts[address] = rest
                else:
                    self._hosts.pop(address, None)
            else:
                rest = tuple(rival for rival in self._routes.get(prefix) or () if rival != number)
                if rest:
                    self._routes.insert(prefix, rest)
                else:
                    self._routes.delete(prefix)

    def _settle(self, problems: tuple[str, ...]) -> None:
        """What depends on all peers, once they are in: the exits, and the filter in force."""
        self.exits = frozenset(self._offering)
        self._filter = _SHIELDED if self.shields_up else self._rules
        unsigned = {prefix: number for number in self._unsigned for prefix in self.peers[number].claims}
        if unsigned and (number := self._rules.source_in(unsigned)) is not None:
            self._filter = _SHIELDED
            problems += (f"the filter admits peer {number}, whose key nobody signed: it is not used",)
        self.problems = problems[-MAX_PROBLEMS:]


def compile_tables_steps(
    *,
    own: Iterable[str],
    peers: Iterable[PeerRoutes],
    rules: Iterable[Rule] = (),
    local: Iterable[str] = (),
    accept_routes: bool = False,
    exit_node: PeerId | None = None,
    shields_up: bool = False,
    near: Collection[Prefix] = (),
) -> Generator[None, None, Tables]:
    """A snapshot, pausing every ~2,000 units of work so that a shell can put a checkpoint there.

    `own`: our addresses. `local`: routes we advertise. `exit_node`: None for none, NO_SUCH_PEER for one nobody knows.
    """
    problems: list[str] = []
    ours = tuple(address for address, _ in read_prefixes(own, "this node", problems, {}))
    local_table = local_table_of(ours, read_prefixes(local, "this node", problems, {}), near)
    built = yield from compile_filter_steps(rules)
    prefs = Prefs(accept_routes, exit_node, shields_up)
    reader = ClaimReader(ours, prefs, problems)
    tables = Tables(ours, local_table, built, (), prefs)
    work = 0
    for routes in peers:
        tables._detach(routes.peer)
        tables._attach(reader.read(routes), problems)
        work += 1 + len(routes.addresses) + len(routes.allowed or ())
        if work >= STEP:
            work = 0
            yield
    tables._settle((*built.problems, *problems))
    return tables


def local_table_of(own: Iterable[bytes], advertised: Collection[Prefix], near: Collection[Prefix] = ()) -> Bart[bool]:
    """What is ours. An advertised default route means the internet only: the rest of it is carved out again.

    `near`: the networks of this machine's interfaces, which are no internet either. What another advertised route
    names is ours all the same.
    """
    local: Bart[bool] = Bart()
    named = [prefix for prefix in advertised if prefix[1]]
    for default in DEFAULTS:
        if default in advertised:
            for prefix in (*_NOT_INTERNET, *near):
                address, length = prefix
                is_named = any(wide[1] <= length and prefix_contains(wide, address) for wide in named)
                if len(address) == len(default[0]) and not is_named:
                    local.insert(prefix, False)
    for prefix in advertised:
        local.insert(prefix, True)
    for address in own:
        local.insert((address, 8 * len(address)), True)
    return local


class TablesStatistics(NamedTuple):
    peers: int
    hosts: int
    routes: int
    exits: int
    filter_entries: int
    verdicts: int  # remembered since this snapshot was made
    next_hops: int
