"""Tables: one snapshot of who is who: routes, source ownership, the filter, and the caches that depend on them.

Owns which peer a packet goes to and which sources a peer may speak for (dataplane notes H.2): the same eligible
prefixes for both. A snapshot is replaced, never edited: `compile_tables` makes one, `with_peers` the next one at the
price of two dict copies and a fork, and caches start empty each time. Refuses to know control's messages: all is text.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import NamedTuple

from ts_base.errors import BadPacket
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
from ts_dataplane.bart import Bart
from ts_dataplane.filter import (
    MAX_PROBLEMS,
    STEP,
    PacketFilter,
    Rule,
    compile_filter,
    compile_filter_steps,
    run_through,
)
from ts_dataplane.packets import SYN, Parsed, stays_on_link

NOT_OWNER = "not-owner"
VERDICTS = 32_768  # remembered flows; a full cache is forgotten whole, which costs each flow one cold verdict
NEXT_HOPS = 32_768
UNRESOLVED_EXIT = 0  # an exit node was chosen but nobody knows it: no node has this id

PeerId = int

_DEFAULTS: tuple[Prefix, ...] = ((bytes(4), 0), (bytes(16), 0))
_CHROME_OS: Prefix = (bytes([100, 115, 92, 0]), 23)  # inside CGNAT, but never a node's address
# What an exit node never offers: "internet only" is everything else (E.5).
_NOT_INTERNET = (
    *map(parse_prefix, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "224.0.0.0/4")),
    *map(parse_prefix, ("fe80::/10", "ff00::/8")),
    CGNAT,
    TAILSCALE_ULA,
)
_SHIELDED = compile_filter(())


class PeerRoutes(NamedTuple):
    """What control says about one peer, as far as packets are concerned. Prefixes are text."""

    peer: PeerId
    addresses: tuple[str, ...]
    allowed: tuple[str, ...] | None = None  # None: the same as addresses
    capabilities: frozenset[str] = frozenset()  # node capabilities, for `cap:` sources
    expired: bool = False
    reachable: bool = True  # has a disco key or a home relay, or speaks plain WireGuard
    jailed: bool = False  # judged as if shields were up
    masquerade4: str = ""  # the address this peer knows us by, where it is not our own
    masquerade6: str = ""
    takes_adverts: bool = True  # understands TSMP disco key advertisements (capability version >= 144)
    unsigned: bool = False  # UnsignedPeerAPIOnly: a filter that names it as a source is not to be trusted


class Peer(NamedTuple):
    """One peer, read."""

    routes: PeerRoutes
    addresses: tuple[bytes, ...]
    claims: tuple[Prefix, ...]  # eligible prefixes: where to send, and from where to accept
    masquerade: tuple[tuple[bytes, bytes], ...]  # (our address, what this peer calls it)


class Tables:
    """Where packets go, whom they may come from, which are admitted."""

    __slots__ = (
        "_accept_routes",
        "_exit_node",
        "_filter",
        "_hosts",
        "_local",
        "_next_hops",
        "_routes",
        "_rules",
        "_unsigned",
        "_verdicts",
        "own",
        "peers",
        "problems",
        "shields_up",
    )

    def __init__(
        self, own: tuple[bytes, ...], local: Bart[bool], rules: PacketFilter, problems: tuple[str, ...], prefs: _Prefs
    ) -> None:
        self.own = own
        self.peers: dict[PeerId, Peer] = {}
        self.problems = problems
        self._local = local
        self._rules = self._filter = rules
        self._accept_routes, self._exit_node, self.shields_up = prefs
        self._hosts: dict[bytes, tuple[PeerId, ...]] = {}  # full-length claims; the first claimant gets the packets
        self._routes: Bart[tuple[PeerId, ...]] = Bart()
        self._unsigned: set[PeerId] = set()
        self._verdicts: dict[tuple[PeerId, int, bool, bytes], str] = {}
        self._next_hops: dict[bytes, PeerId | None] = {}

    @classmethod
    def empty(cls) -> Tables:
        """Before the first netmap: no addresses, no peers, nothing admitted."""
        return cls((), Bart(), _SHIELDED, (), _Prefs(False, None, True))

    # Outbound

    def peer_for(self, destination: bytes) -> PeerId | None:
        """The peer packets to `destination` go to; None where nobody has it."""
        try:
            return self._next_hops[destination]
        except KeyError:
            hops = self._next_hops
            if len(hops) >= NEXT_HOPS:
                hops.clear()
            refused = destination in self.own or is_multicast(destination) or stays_on_link(destination)
            hops[destination] = peer = None if refused else self.owner_of(destination)
            return peer

    def owner_of(self, address: bytes) -> PeerId | None:
        """The peer `address` belongs to: its own address, or the longest eligible route (lowest id on a tie)."""
        claimants = self._hosts.get(address) or self._routes.lookup(address)
        return claimants[0] if claimants else None

    @property
    def exit_is_missing(self) -> bool:
        """An exit node was chosen and cannot be used: what has no better route must not leave another way."""
        chosen = self._exit_node
        return chosen is not None and not any(
            (self._routes.get(prefix) or (None,))[0] == chosen for prefix in _DEFAULTS
        )

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
            verdict = self.judge(peer, b"", parsed) if self.accepts(peer, source) else NOT_OWNER
            self._verdicts[key] = verdict
        return verdict

    def judge(self, peer: PeerId, packet: bytes, parsed: Parsed) -> str:
        """The filter's verdict on a packet whose source was accepted; the bytes matter only for ICMP."""
        known = self.peers.get(peer)
        jailed = known is None or known.routes.jailed
        rules = _SHIELDED if jailed else self._filter
        held = self._held_by(parsed.source) if rules.has_holders else frozenset()
        return rules.decide(packet, parsed, is_local=self.is_local(parsed.destination), held=held)

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

    # The next snapshot

    def with_peers(self, changed: Iterable[PeerRoutes] = (), removed: Iterable[PeerId] = ()) -> Tables:
        """The snapshot after a delta; everything not named is shared with this one."""
        prefs = _Prefs(self._accept_routes, self._exit_node, self.shields_up)
        twin = Tables(self.own, self._local, self._rules, self.problems, prefs)
        twin.peers, twin._hosts, twin._routes = self.peers.copy(), self._hosts.copy(), self._routes.fork()
        twin._unsigned = self._unsigned.copy()
        problems: list[str] = []
        for peer in removed:
            twin._detach(peer)
        for routes in changed:
            twin._detach(routes.peer)
            twin._attach(_Reader(problems).read(routes, twin))
        twin._settle((*self.problems, *problems))
        return twin

    def _attach(self, peer: Peer) -> None:
        number = peer.routes.peer
        self.peers[number] = peer
        if peer.routes.unsigned:
            self._unsigned.add(number)
        alone = (number,)
        for prefix in peer.claims:
            address, length = prefix
            if length == 8 * len(address):
                rivals = self._hosts.get(address)
                self._hosts[address] = tuple(sorted({*rivals, number})) if rivals else alone
            else:
                rivals = self._routes.get(prefix)
                self._routes.insert(prefix, tuple(sorted({*rivals, number})) if rivals else alone)

    def _detach(self, number: PeerId) -> None:
        peer = self.peers.pop(number, None)
        self._unsigned.discard(number)
        for prefix in peer.claims if peer else ():
            address, length = prefix
            if length == 8 * len(address):
                rest = tuple(rival for rival in self._hosts[address] if rival != number)
                if rest:
                    self._hosts[address] = rest
                else:
                    del self._hosts[address]
            else:
                rest = tuple(rival for rival in self._routes.get(prefix) or () if rival != number)
                if rest:
                    self._routes.insert(prefix, rest)
                else:
                    self._routes.delete(prefix)

    def _settle(self, problems: tuple[str, ...]) -> None:
        """Choose the filter in force, once all peers are in."""
        self._filter = _SHIELDED if self.shields_up else self._rules
        for number in self._unsigned:
            if self._rules.names_source_in(self.peers[number].claims):
                self._filter = _SHIELDED
                problems += (f"the filter admits peer {number}, whose key nobody signed: it is not used",)
                break
        self.problems = problems[-MAX_PROBLEMS:]


class _Prefs(NamedTuple):
    accept_routes: bool
    exit_node: PeerId | None
    shields_up: bool


class _Reader:
    """Turns PeerRoutes into Peer; the same text is parsed once."""

    def __init__(self, problems: list[str]) -> None:
        self._problems = problems
        self._known: dict[str, Prefix | None] = {}

    def prefixes(self, texts: Iterable[str], whose: object) -> list[Prefix]:
        found = []
        for text in texts:
            if text not in self._known:
                try:
                    self._known[text] = parse_prefix(text)
                except BadPacket as problem:
                    self._known[text] = None
                    self._problems.append(f"prefix of {whose} skipped: {problem}")
            prefix = self._known[text]
            if prefix is not None:
                found.append(prefix)
        return found

    def read(self, routes: PeerRoutes, tables: Tables) -> Peer:
        addresses = self.prefixes(routes.addresses, routes.peer)
        allowed = addresses if routes.allowed is None else self.prefixes(routes.allowed, routes.peer)
        claims = [
            prefix
            for prefix in (allowed if routes.reachable and not routes.expired else ())
            if _is_eligible(prefix, routes.peer, addresses, tables) and prefix[0] not in tables.own
        ]
        masquerade = []
        for text in (routes.masquerade4, routes.masquerade6):
            for theirs, _ in self.prefixes([text] if text else [], routes.peer):
                masquerade += [(ours, theirs) for ours in tables.own if len(ours) == len(theirs)][:1]
        hosts = tuple(address for address, length in addresses if length == 8 * len(address))
        return Peer(routes, hosts, tuple(dict.fromkeys(claims)), tuple(masquerade))


def _is_eligible(prefix: Prefix, peer: PeerId, addresses: Sequence[Prefix], tables: Tables) -> bool:
    if prefix in addresses or _is_node_address(prefix):
        return True
    if prefix in _DEFAULTS:
        return peer == tables._exit_node
    return tables._accept_routes


def _is_node_address(prefix: Prefix) -> bool:
    """A single address of Tailscale's ranges is a node or a service, never a subnet."""
    address, length = prefix
    if length != 8 * len(address):
        return False
    if length == 32:
        return prefix_contains(CGNAT, address) and not prefix_contains(_CHROME_OS, address)
    return address[:6] == TAILSCALE_ULA[0][:6]


def compile_tables(
    *,
    own: Iterable[str],
    peers: Iterable[PeerRoutes],
    rules: Iterable[Rule] = (),
    local: Iterable[str] = (),
    accept_routes: bool = False,
    exit_node: PeerId | None = None,
    shields_up: bool = False,
) -> Tables:
    """A snapshot, all at once. `own`: our addresses. `local`: routes we advertise. `exit_node`: None for none."""
    return run_through(
        compile_tables_steps(
            own=own,
            peers=peers,
            rules=rules,
            local=local,
            accept_routes=accept_routes,
            exit_node=exit_node,
            shields_up=shields_up,
        )
    )


def compile_tables_steps(
    *,
    own: Iterable[str],
    peers: Iterable[PeerRoutes],
    rules: Iterable[Rule] = (),
    local: Iterable[str] = (),
    accept_routes: bool = False,
    exit_node: PeerId | None = None,
    shields_up: bool = False,
) -> Generator[None, None, Tables]:
    """As `compile_tables`, pausing every ~2,000 units of work so that a shell can put a checkpoint there."""
    problems: list[str] = []
    reader = _Reader(problems)
    ours = tuple(address for address, _ in reader.prefixes(own, "this node"))
    local_table = _local_table(ours, reader.prefixes(local, "this node"))
    built = yield from compile_filter_steps(rules)
    prefs = _Prefs(accept_routes, exit_node, shields_up)
    tables = Tables(ours, local_table, built, (), prefs)
    work = 0
    for routes in peers:
        tables._detach(routes.peer)
        tables._attach(reader.read(routes, tables))
        work += 1 + len(routes.addresses) + len(routes.allowed or ())
        if work >= STEP:
            work = 0
            yield
    tables._settle((*built.problems, *problems))
    return tables


def _local_table(own: tuple[bytes, ...], advertised: list[Prefix]) -> Bart[bool]:
    """What is ours. An advertised default route means the internet only: the rest of it is carved out again."""
    local: Bart[bool] = Bart()
    for default in _DEFAULTS:
        if default in advertised:
            for prefix in _NOT_INTERNET:
                if len(prefix[0]) == len(default[0]):
                    local.insert(prefix, False)
    for prefix in advertised:
        local.insert(prefix, True)
    for address in own:
        local.insert((address, 8 * len(address)), True)
    return local
