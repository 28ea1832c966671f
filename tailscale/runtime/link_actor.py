"""Notices that the machine's network changed, or that the machine slept, and gets the sockets out of the past.

Polls: an address list costs 0.2 ms, and no two systems tell of changes the same way. A wall clock that ran ahead of the
monotonic one means suspension: sessions and NAT mappings are older than they seem.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from tailscale.runtime.bus import Bus
from tailscale.runtime.messages import NetworkChanged
from tailscale.runtime.network import Network, UdpUnderlay

POLL = 3.0
SETTLE = 1.0  # changes come in flurries: a lease, then a route, then IPv6
SLEPT = 22.5  # seconds the wall clock ran ahead that mean suspension, not a clock correction of NTP
MAJOR_SLEEP = 600.0

log = logging.getLogger("tailscale.link")


class LinkWatch:
    """Compares what is with what was."""

    def __init__(self, addresses: list[str], wall: float, now: float) -> None:
        self._addresses = set(addresses)
        self._ahead = wall - now

    def look(self, addresses: list[str], wall: float, now: float) -> tuple[bool, float]:
        """Whether our addresses changed, and for how long we slept."""
        changed = set(addresses) != self._addresses
        slept = wall - now - self._ahead
        self._addresses, self._ahead = set(addresses), wall - now
        return changed, slept if slept > SLEPT else 0.0

    def forget(self) -> None:
        """What was seen could not be told: whoever looks next sees a change."""
        self._addresses = set()


@trio.lowlevel.enable_ki_protection
async def run_link(
    bus: Bus,
    network: Network,
    udp: UdpUnderlay | None,
    on_wake: Callable[[float], None],
    *,
    watch: LinkWatch | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Watch addresses and clocks. Owns: the comparison. Hears: nothing. Says: NetworkChanged.

    `watch` outlives a failure, so that what changed meanwhile is noticed.
    """
    watch = watch or LinkWatch(network.interface_addresses(), network.wall_clock(), trio.current_time())
    task_status.started()
    while True:
        await trio.sleep(POLL)
        now = trio.current_time()
        changed, slept = watch.look(network.interface_addresses(), network.wall_clock(), now)
        if not changed and not slept:
            continue
        try:
            await trio.sleep(SETTLE)
            more, _ = watch.look(network.interface_addresses(), network.wall_clock(), trio.current_time())
            of_uplinks = udp is not None and bool(udp.uplinks)  # each is looked after by itself (`uplink_actor.py`)
            rebound = slept >= MAJOR_SLEEP or (not of_uplinks and (changed or more))
            log.info("the network changed%s", f" while we slept for {slept:.0f} s" if slept else "")
            if rebound and udp is not None:
                _rebind(udp)
            if slept:
                on_wake(trio.current_time())
            bus.publish(NetworkChanged(rebound))
        except Exception:
            watch.forget()
            raise


def _rebind(udp: UdpUnderlay) -> None:
    try:
        udp.rebind()
    except OSError as error:
        log.warning("no new UDP socket could be opened (%s): relays carry everything until one can", error)
