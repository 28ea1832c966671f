"""What control should know of us right now, gathered from what others say on the bus.

Owns: the newest wishes, endpoints and network facts. Refuses to know: when and how control is told.
"""

from __future__ import annotations

from dataclasses import replace

from tailscale._config import Preferences
from tailscale.runtime.hostinfo import build_hostinfo
from tailscale.runtime.messages import ControlInformed, EndpointsChanged, NetInfoChanged, PreferencesChanged
from ts_base.keys import DiscoPublic, NodePublic
from ts_control.wire import CAPABILITY_VERSION, Hostinfo, MapRequest, Service


class SelfReport:
    """Everything that goes into a map request."""

    def __init__(self, preferences: Preferences, disco: DiscoPublic, home_region: int) -> None:
        self.services: tuple[Service, ...] = ()
        self._preferences = preferences
        self._disco = disco
        self._home_region = home_region  # last run's, good until the network has been looked at
        self._endpoints: tuple[tuple[str, int], ...] = ()
        self._net_info: NetInfoChanged | None = None

    def note(self, message: object) -> None:
        match message:
            case PreferencesChanged(preferences=preferences):
                self._preferences = preferences
            case EndpointsChanged(endpoints=endpoints):
                self._endpoints = endpoints
            case NetInfoChanged(home_region=home_region):
                self._net_info = message
                self._home_region = home_region or self._home_region

    @property
    def home_region(self) -> int:
        return self._home_region

    def hostinfo(self) -> Hostinfo:
        return build_hostinfo(self._preferences, self._net_info, self._home_region, self.services)

    def map_request(self, node_key: NodePublic, hostinfo: Hostinfo, *, stream: bool) -> MapRequest:
        """Always complete: Headscale replaces what it knew by what it is told, a missing disco key included."""
        return MapRequest(
            version=CAPABILITY_VERSION,
            compress="zstd" if stream else "",
            keep_alive=stream,
            stream=stream,
            omit_peers=not stream,
            node_key=node_key,
            disco_key=self._disco,
            hostinfo=hostinfo,
            endpoints=tuple(endpoint for endpoint, _ in self._endpoints),
            endpoint_types=tuple(kind for _, kind in self._endpoints),
        )

    def whereabouts(self) -> ControlInformed:
        """Where we ask to be looked for, for the moment when control has heard it."""
        return ControlInformed(self._home_region, frozenset(endpoint for endpoint, _ in self._endpoints))

    def worth_telling(self) -> object:
        """Compares equal while control need not hear: the order of endpoints and the exact latencies do not count."""
        found = replace(self._net_info, latencies={}) if self._net_info is not None else None
        hostinfo = build_hostinfo(self._preferences, found, self._home_region, self.services)
        return frozenset(self._endpoints), hostinfo
