"""Which interfaces the device reaches its peers by: as wished, as they come and go, and what is told of them.

Owns the wish, what the user set of each uplink, and the comparison of what is with what was. Sockets are those of
`udp.py`; what becomes of paths is decided by the path finder.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import trio

from tailscale._config import MAX_UPLINKS, WantedUplinks
from tailscale.errors import NoSuchUplink
from tailscale.runtime.bus import Bus
from tailscale.runtime.dataplane import Dataplane
from tailscale.runtime.messages import NetworkChanged, TablesChanged, UplinkMoved, UplinksWished
from tailscale.runtime.network import Interface, Network, Reader, UdpUnderlay
from tailscale.uplinks import PathRecord, Uplink
from ts_base.who import Path, PeerId, host_of, is_direct, is_relayed, uplink_of
from ts_dataplane.candidates import format_endpoint
from ts_dataplane.path_states import PathState
from ts_dataplane.paths import PathFinder
from ts_dataplane.strategies import Wishes

STATES = tuple(state.value for state in PathState)
POLL = 3.0
SETTLE = 0.05  # changes come in flurries; what is gone is known at once

log = logging.getLogger("tailscale.link")


def names_of(wanted: WantedUplinks, there: Sequence[Interface]) -> tuple[str, ...]:
    """The uplinks that a wish means on this machine; NoSuchUplink for one that it does not have."""
    if wanted is None:
        return ()
    if wanted == "all":
        return tuple(one.name for one in there if one.is_up and one.addresses)[:MAX_UPLINKS]
    known = [one.name for one in there]
    for name in wanted:
        if name not in known:
            raise NoSuchUplink(name, known)
    return wanted


class UplinkCount(NamedTuple):
    """Bytes are the tunnel's; `paths`: how many there are through it, by state.

    `rtt`, microseconds, and `loss`, of a million, are the means of those that were measured.
    """

    up: bool
    sent: int
    received: int
    rtt: int
    loss: int
    paths: Mapping[str, int]


class UplinksStatistics(NamedTuple):
    """`switches`: of the paths in use, by reason; `silent`: milliseconds without a word before them, in all.

    `fallbacks`: how often streams were divided no longer, by reason.
    """

    each: Mapping[str, UplinkCount]
    switches: Mapping[str, int]
    silent: int
    copies: int
    fallbacks: Mapping[str, int]


class Uplinks:
    """One per Device; without uplinks it only waits to be given some."""

    def __init__(
        self,
        network: Network,
        udp: UdpUnderlay | None,
        dataplane: Dataplane,
        bus: Bus,
        wanted: WantedUplinks,
        paths: Wishes,
    ) -> None:
        self.wanted = wanted
        self.paths = paths
        self._is_wanted = trio.Event()
        self._network = network
        self._udp = udp
        self._dataplane = dataplane
        self._finder = dataplane.finder
        self._bus = bus
        self._there: dict[str, Interface] = {}
        self._external: dict[str, str] = {}
        if wanted is not None:
            self._remember(network.interfaces())
            self._is_wanted.set()
        for name, facts in self._finder.many.facts.items():
            facts.up = self._is_up(name)
        dataplane.follow_uplinks()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._finder.many.names)

    def _remember(self, interfaces: Sequence[Interface]) -> None:
        self._there = {one.name: one for one in interfaces}

    # ---- what users say

    def use(self, wanted: WantedUplinks) -> None:
        """Have these from now on; live connections go on by what is left or new."""
        interfaces = self._network.interfaces()
        names = names_of(wanted, interfaces)
        self.wanted = wanted
        self._remember(interfaces)
        self._apply(names)
        if wanted is not None:
            self._is_wanted.set()
        else:
            self._is_wanted = trio.Event()

    async def until_wanted(self) -> None:
        await self._is_wanted.wait()

    def lay(self, paths: Wishes) -> None:
        """Lay datagrams on paths so from now on."""
        self.paths = paths
        self._bus.publish(UplinksWished())

    def follow_names(self, peer_named: Callable[[str], PeerId | None]) -> None:
        """Who is meant by the names of wishes, as of now."""
        by_peer = {peer: one for name, one in self.paths.by_name.items() if (peer := peer_named(name)) is not None}
        now = trio.current_time()
        self._finder.set_strategies(self.paths.default, by_peer, now)
        self._dataplane.flush(now)

    def _apply(self, names: tuple[str, ...]) -> None:
        before = self.names
        if names == before or self._udp is None:
            return
        now = trio.current_time()
        self._udp.use_uplinks(names)
        self._finder.set_uplinks(names, now)
        self._dataplane.follow_uplinks()
        for name in names:
            self._finder.many.facts[name].up = self._is_up(name)
            if name not in before:
                self._bus.publish(UplinkMoved(name, up=self._is_up(name), why="it is used from now on"))
        for name in before:
            if name not in names:
                self._bus.publish(UplinkMoved(name, up=False, why="it is used no more"))
        self._bus.publish(NetworkChanged(rebound=False))
        self._dataplane.flush(now)

    def change(
        self, name: str, *, enabled: bool | None = None, metered: bool | None = None, weight: float | None = None
    ) -> None:
        """What the user wants of one uplink; NoSuchUplink where it is none."""
        facts = self._finder.many.facts.get(name)
        if facts is None:
            raise NoSuchUplink(name, self.names)
        if weight is not None and not 0 <= weight <= 1000:
            raise ValueError(f"the weight of an uplink is a number from 0 to 1000, not {weight!r}")
        facts.want(enabled, metered, weight)
        if enabled is not None:
            why = "it was switched on" if enabled else "it was switched off"
            self._bus.publish(UplinkMoved(name, up=enabled and facts.up, why=why))
        self._tell_finder()

    def _tell_finder(self) -> None:
        now = trio.current_time()
        self._finder.on_uplinks_changed(now)
        self._dataplane.flush(now)

    # ---- what the machine does

    def look(self) -> bool:
        """Compare interfaces with what they were; whether any uplink came, went, or has other addresses."""
        if self.wanted is None or self._udp is None:
            return False
        before = self._there
        self._remember(self._network.interfaces())
        if self.wanted == "all" and (names := names_of("all", list(self._there.values()))) != self.names:
            kept = tuple(name for name in self.names if name in names)
            self._apply((*kept, *(name for name in names if name not in kept)))
        changed = False
        for name in self.names:
            was, facts = before.get(name), self._finder.many.facts[name]
            is_up, now_there = self._is_up(name), self._there.get(name)
            if is_up != facts.up:
                facts.up = is_up
                why = "it is there again" if is_up else "it is down" if now_there is not None else "it is gone"
                log.info("uplink %s is %s: %s", name, "up" if is_up else "down", why)
                self._bus.publish(UplinkMoved(name, up=is_up, why=why))
                changed = True
            elif is_up and was is not None and now_there is not None and set(was.addresses) != set(now_there.addresses):
                self._bus.publish(UplinkMoved(name, up=True, why="its addresses changed"))
                self._finder.on_uplink_readdressed(name, trio.current_time())
                changed = True
        if changed:
            try:
                self._udp.rebind()
            except OSError as error:
                log.warning(
                    "no UDP socket can be bound to any uplink (%s): relays carry everything until one can", error
                )
            self._tell_finder()
        return changed

    def _is_up(self, name: str) -> bool:
        found = self._there.get(name)
        return found is not None and found.is_up and bool(found.addresses)

    def heard_external(self, uplink: str, endpoint: str) -> None:
        """A STUN server saw us there."""
        self._external[uplink] = endpoint

    # ---- what is told

    def statistics(self) -> UplinksStatistics:
        many = self._finder.many
        standings, qualities = many.standings(), many.qualities()
        each = {
            name: UplinkCount(
                up=many.facts[name].is_usable,
                sent=many.spread.sent[name],
                received=many.heard.received[name],
                rtt=round(qualities.get(name, (0.0, 0.0))[0] * 1_000_000),
                loss=round(qualities.get(name, (0.0, 0.0))[1] * 1_000_000),
                paths={state: standings[name, state] for state in STATES},
            )
            for name in self.names
        }
        return UplinksStatistics(
            each, dict(many.switches), round(1000 * many.gaps), many.spread.copies, dict(many.spread.striping.fallbacks)
        )

    def list(self) -> tuple[Uplink, ...]:
        many = self._finder.many
        found = []
        for name in self.names:
            facts, interface = many.facts[name], self._there.get(name)
            found.append(
                Uplink(
                    name=name,
                    addresses=interface.addresses if interface is not None else (),
                    up=facts.up,
                    enabled=facts.enabled,
                    bound=self._udp.bound_by(name) if self._udp is not None else "",
                    metered=facts.metered,
                    weight=facts.weight,
                    sent=many.spread.sent[name],
                    received=many.heard.received[name],
                    external=self._external.get(name),
                )
            )
        return tuple(found)


def path_records(finder: PathFinder, peer: PeerId, region_code: Callable[[int], str]) -> tuple[PathRecord, ...]:
    """Every path to a peer that is known, the one in use first."""
    now = trio.current_time()
    used = finder.paths.get(peer, ())
    facts = [replace(one, in_use=path in used) for path, one in _records(finder, peer, region_code, now).items()]
    return tuple(sorted(facts, key=lambda one: (not one.in_use, one.kind == "relay", one.uplink, one.address)))


def _records(
    finder: PathFinder, peer: PeerId, region_code: Callable[[int], str], now: float
) -> Mapping[Path, PathRecord]:
    found: dict[Path, PathRecord] = {}
    for facts in finder.path_facts(peer, now):
        path = facts.path
        if is_relayed(path):
            where, kind = region_code(path[0]), "relay"
        else:
            where, kind = format_endpoint((host_of(path), path[1])), "direct" if is_direct(path) else "peer relay"
        found[path] = PathRecord(
            uplink="" if is_relayed(path) else uplink_of(path),
            address=where,
            kind=kind,  # type: ignore[arg-type]
            state=facts.state,
            rtt=facts.rtt,
            rtt_var=facts.rtt_var,
            rtt_min=facts.rtt_min,
            loss=facts.loss,
            rate=facts.rate,
            mtu=facts.mtu,
            sent=facts.sent,
            received=facts.received,
            since=facts.since,
            why=facts.why,
        )
    return found


@trio.lowlevel.enable_ki_protection
async def run_uplinks(
    bus: Bus,
    uplinks: Uplinks,
    network: Network,
    peer_named: Callable[[str], PeerId | None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Follow the interfaces while there are uplinks, and the names by which strategies are wished.

    Owns: the comparison. Hears: TablesChanged, UplinksWished. Says: UplinkMoved, NetworkChanged.
    """
    with bus.subscribe(TablesChanged, UplinksWished, name="uplinks") as inbox:
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_follow_links, uplinks, network)
            while True:
                await inbox.receive()
                uplinks.follow_names(peer_named)


@trio.lowlevel.enable_ki_protection
async def _follow_links(uplinks: Uplinks, network: Network) -> None:
    while True:
        await uplinks.until_wanted()
        with trio.move_on_after(POLL):
            await network.link_changed()
            await trio.sleep(SETTLE)
        uplinks.look()


@trio.lowlevel.enable_ki_protection
async def run_readers(
    udp: UdpUnderlay,
    read_for_ever: Callable[[Reader], Awaitable[None]],
    start: Callable[[Callable[[], Awaitable[None]]], None],
) -> None:
    """A task for each socket of a port; with uplinks there may be others later."""
    running: set[Reader] = set()
    while True:
        readers = set(udp.readers())
        for read in readers - running:
            start(partial(read_for_ever, read))
        running = readers
        await udp.more_readers()
