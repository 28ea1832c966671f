"""From bus messages to public events and active warnings, in the words of `tailscale.events`.

Owns the last netmap that readers were told about. Unchanged peers are the same objects in two netmaps,
so telling what changed costs what changed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import trio

from tailscale.event_readers import Readers
from tailscale.events import (
    Event,
    HealthChanged,
    KeyExpiring,
    LoginNeeded,
    NetworkChecked,
    PathChanged,
    PeerChanged,
    PeerDown,
    PeerUp,
    RelayChanged,
    StateChanged,
    UplinkChanged,
)
from tailscale.nodes import node_from_wire
from tailscale.runtime.bus import Bus, Message
from tailscale.runtime.health import readable
from tailscale.runtime.messages import (
    ControlStateChanged,
    NetInfoChanged,
    PeerPathChanged,
    RelaysChanged,
    TablesChanged,
    UplinkMoved,
    WarningsChanged,
)
from tailscale.status import HealthWarning
from ts_control.netmap import NetMap

if TYPE_CHECKING:
    from tailscale.runtime.directory import Directory
    from tailscale.runtime.reach import Reach

log = logging.getLogger("tailscale")
EXPIRY_NOTICE = timedelta(days=7)
HEARD = (
    TablesChanged,
    ControlStateChanged,
    PeerPathChanged,
    RelaysChanged,
    NetInfoChanged,
    WarningsChanged,
    UplinkMoved,
)


@trio.lowlevel.enable_ki_protection
async def run_watch(bus: Bus, watch: Watch, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Tell the user's event readers. Owns: the readers. Hears: nearly all facts. Says: nothing."""
    with bus.subscribe(*HEARD, name="watch") as inbox:
        task_status.started()
        while True:
            watch.hear(await inbox.receive())


class Watch:
    """What the readers are told."""

    def __init__(self, directory: Directory, reach: Reach, readers: Readers) -> None:
        self._directory = directory
        self._reach = reach
        self._readers = readers
        self._warnings: Mapping[str, HealthWarning] = {}
        self._netmap: NetMap | None = None
        self._state = ("", "")
        self._relay = ("", False)
        self._udp: bool | None = None
        self._announced_expiry: datetime | None = None

    def hear(self, message: Message) -> None:
        for event in self._events_of(message):
            self._readers.put(event)

    def _events_of(self, message: Message) -> list[Event]:
        if isinstance(message, TablesChanged):
            before, self._netmap = self._netmap, message.netmap
            return self._netmap_events(before, message.netmap)
        if isinstance(message, ControlStateChanged):
            return self._state_events(message)
        if isinstance(message, PeerPathChanged):
            return self._path_events(message)
        if isinstance(message, RelaysChanged | NetInfoChanged):
            return self._network_events(message)
        if isinstance(message, UplinkMoved):
            return [UplinkChanged(message.uplink, message.up, message.why)]
        if isinstance(message, WarningsChanged):
            return self._health_events(message.warnings)
        return []

    def _health_events(self, after: Mapping[str, HealthWarning]) -> list[Event]:
        before, self._warnings = self._warnings, after
        changed = [warning for code, warning in after.items() if before.get(code) != warning]
        for warning in changed:
            log.warning("%s (%s)", warning.sentence, warning.remedy or warning.code)
        over = [HealthChanged(code, active=False) for code in before if code not in after]
        return [*over, *(HealthChanged(warning.code, active=True) for warning in changed)]

    def _netmap_events(self, before: NetMap | None, after: NetMap) -> list[Event]:
        events = events_between(before, after) if self._readers else []
        expiry = after.self_node.key_expiry
        if expiry.year > 1 and expiry != self._announced_expiry:
            soon = datetime.fromtimestamp(self._directory.wall_clock(), UTC) + EXPIRY_NOTICE
            if expiry <= soon:
                self._announced_expiry = expiry
                events.append(KeyExpiring(expiry))
        return events

    def _state_events(self, message: ControlStateChanged) -> list[Event]:
        events: list[Event] = []
        if (message.state, message.detail) != self._state:
            self._state = message.state, message.detail
            log.info("control: %s%s", message.state.value, f" ({readable(message.detail)})" if message.detail else "")
            events.append(StateChanged(message.state.value, message.detail))
        if message.url:
            events.append(LoginNeeded(message.url))
        return events

    def _network_events(self, message: RelaysChanged | NetInfoChanged) -> list[Event]:
        events: list[Event] = []
        if isinstance(message, RelaysChanged):
            relay = self._directory.home_relay(), message.home_connected
            if relay != self._relay:
                self._relay = relay
                events.append(RelayChanged(*relay))
        elif message.working_udp is not None and message.working_udp is not self._udp:
            self._udp = message.working_udp
            events.append(NetworkChecked(self._udp))
        return events

    def _path_events(self, message: PeerPathChanged) -> list[Event]:
        netmap = self._netmap
        peer = netmap.peers.get(message.peer) if netmap is not None else None
        if peer is None or netmap is None:
            return []
        path = self._reach.describe(message.path) or self._reach.path_of(message.peer)
        node = node_from_wire(peer, netmap)
        if log.isEnabledFor(logging.INFO):
            log.info("peer %s is reached %s", readable(node.hostname), path or "no more: it is silent")
        return [PathChanged(node, path, message.latency, message.reason, message.gap)]


def events_between(before: NetMap | None, after: NetMap) -> list[Event]:
    """What a user could notice between two netmaps."""
    events: list[Event] = []
    old_peers = before.peers if before is not None else {}
    for number, peer in after.peers.items():
        old = old_peers.get(number)
        if old is peer:
            continue
        node = node_from_wire(peer, after)
        if old is None or before is None:
            events.append(PeerUp(node))
            continue
        previous = node_from_wire(old, before)
        if previous.online is not node.online and node.online is not None:
            events.append(PeerUp(node) if node.online else PeerDown(node))
        elif previous != node:
            events.append(PeerChanged(previous, node))
    for number, peer in old_peers.items():
        if number not in after.peers and before is not None:
            events.append(PeerDown(node_from_wire(peer, before)))
    return events
