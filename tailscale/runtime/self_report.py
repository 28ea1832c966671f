"""What control is told of us: the newest of what others say on the bus, at once after every change that counts.

Owns: wishes, endpoints, network facts and offers; what was told last, and when to try again. Refuses to know: how a
connection comes about.
"""

from __future__ import annotations

import logging

import trio
from msgspec.structs import replace as change

from tailscale._config import Preferences
from tailscale.runtime.bus import Bus
from tailscale.runtime.control_line import ControlLine
from tailscale.runtime.hostinfo import build_hostinfo
from tailscale.runtime.messages import (
    ControlInformed,
    EndpointsChanged,
    NetInfoChanged,
    PreferencesChanged,
    ServicesOffered,
)
from tailscale.runtime.network import Network
from ts_base.keys import DiscoPublic
from ts_control.errors import ControlLost, RequestRefused
from ts_control.gojson import encode_json
from ts_control.retry import Backoff, pause_asked_for
from ts_control.session import ControlMachine
from ts_control.wire import CAPABILITY_VERSION, Hostinfo, MapRequest

log = logging.getLogger("tailscale.control")

MAP = "/machine/map"


class SelfReport:
    """Everything that goes into a map request, and the requests that ask for no map."""

    def __init__(self, preferences: Preferences, disco: DiscoPublic, home_region: int) -> None:
        self._preferences = preferences
        self._disco = disco
        self._home_region = home_region  # last run's, good until the network has been looked at
        self._endpoints: tuple[tuple[str, int], ...] = ()
        self._net_info: NetInfoChanged | None = None
        self._offered = ServicesOffered({})
        self._lock_head = ""
        self._changed = trio.Event()

    def note_lock(self, head: str) -> None:
        """How far we know the tailnet's lock."""
        if head != self._lock_head:
            self._lock_head = head
            self.look_again()

    def note(self, message: object) -> None:
        match message:
            case PreferencesChanged(preferences=preferences):
                self._preferences = preferences
            case EndpointsChanged(endpoints=endpoints):
                self._endpoints = endpoints
            case NetInfoChanged(home_region=home_region):
                self._net_info = message
                self._home_region = home_region or self._home_region
            case ServicesOffered():
                self._offered = message

    def look_again(self) -> None:
        """All that was to be noted is noted: control may have to hear of it."""
        self._changed.set()

    @property
    def preferences(self) -> Preferences:
        return self._preferences

    @property
    def home_region(self) -> int:
        return self._home_region

    def hostinfo(self) -> Hostinfo:
        return build_hostinfo(self._preferences, self._net_info, self._home_region, self._offered)

    def map_request(self, machine: ControlMachine, *, stream: bool) -> MapRequest:
        """Always complete: Headscale replaces what it knew by what it is told, a missing disco key included."""
        return MapRequest(
            version=CAPABILITY_VERSION,
            compress="zstd" if stream else "",
            keep_alive=stream,
            stream=stream,
            omit_peers=not stream,
            node_key=machine.node_key.public,
            disco_key=self._disco,
            hostinfo=machine.hostinfo,
            endpoints=tuple(endpoint for endpoint, _ in self._endpoints),
            endpoint_types=tuple(kind for _, kind in self._endpoints),
            tka_head=self._lock_head,
        )

    @trio.lowlevel.enable_ki_protection
    async def keep_told(self, line: ControlLine, machine: ControlMachine, bus: Bus, network: Network) -> None:
        """Runs as long as one map stream does; what changes during an update goes with the next one."""
        backoff = Backoff(network.entropy)
        told: object = None
        while True:
            self._changed = trio.Event()
            facts = self._worth_telling()
            if facts == told:
                await self._changed.wait()
                continue
            whereabouts = ControlInformed(self._home_region, frozenset(endpoint for endpoint, _ in self._endpoints))
            try:
                await line.ask("POST", MAP, encode_json(self.map_request(machine, stream=False)))
                told = facts
                bus.publish(whereabouts)
                backoff.succeeded()
            except ControlLost:
                return  # the map stream notices as well
            except RequestRefused as problem:
                log.info("the control server refused an update: %s", problem)
                asked = pause_asked_for(problem, network.wall_clock(), backoff)
                await trio.sleep_until(backoff.failed(trio.current_time(), asked))

    def _worth_telling(self) -> object:
        """Compares equal while control need not hear: the order of endpoints and the exact latencies do not count."""
        found = change(self._net_info, latencies={}) if self._net_info is not None else None
        hostinfo = build_hostinfo(self._preferences, found, self._home_region, self._offered)
        return frozenset(self._endpoints), hostinfo, self._lock_head
