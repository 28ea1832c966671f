"""What is served at one moment: a config, its apps and who is let in, made ready to be looked up for each request.

A plan does not change: another config is another plan. Knows neither streams nor sockets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tailscale.http.caller import Caller
from tailscale.http.reverse import ReverseProxy
from tailscale.serve.config import Json, ServeConfig, target_in
from tailscale.serve.targets import UNIX, App, Proxy, Target


@dataclass(frozen=True, slots=True)
class Allow:
    """Who is let in: one of these is enough. Nothing said lets in whomever the packet filter lets in."""

    users: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    capability: str | None = None

    def lets_in(self, caller: Caller | None) -> bool:
        if not self.users and not self.tags and self.capability is None:
            return True
        if caller is None:  # also whoever comes from the internet: an address there is nobody's
            return False
        return (
            caller["user"] in self.users
            or not self.tags.isdisjoint(caller["tags"])
            or (self.capability is not None and self.capability in caller["capabilities"])
        )


@dataclass(frozen=True, slots=True)
class Mount:
    """What stands behind a path."""

    target: Target
    server: ReverseProxy | None
    """Where the target is one of this machine's web servers."""


Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """Ports as the config has them; mounts by host and port, where the host "" is this device."""

    ports: Mapping[int, Json] = field(default_factory=dict)
    web: Mapping[Place, Mapping[str, Mount]] = field(default_factory=dict)
    allow: Allow = Allow()
    funnels: Mapping[Place, bool] = field(default_factory=dict)
    """What the internet is to reach, or not now."""
    services: Mapping[Place, Json] = field(default_factory=dict)
    """Ports of services, by service and port; and the mounts of those that are web servers."""
    service_web: Mapping[Place, Mapping[str, Mount]] = field(default_factory=dict)
    draining: frozenset[str] = frozenset()
    """Services that want nobody new."""

    @property
    def places(self) -> dict[Place, Json]:
        """All that is listened at: by service, "" for this device's own addresses, and port."""
        return {("", port): handler for port, handler in self.ports.items()} | dict(self.services)

    def handler(self, place: Place) -> Json:
        """What a port does; nothing where it is served no more."""
        service, port = place
        return (self.services.get(place) if service else self.ports.get(port)) or {}

    def mounts(self, host: str, port: int, own_name: str) -> Mapping[str, Mount] | None:
        """Those of a host, in lower case and in full."""
        found = self.web.get((host, port))
        return self.web.get(("", port)) if found is None and host == own_name else found


Apps = Mapping[tuple[int, str], App]
"""Of this process, by port and mount: a config has no words for them."""


def plan_of(
    config: ServeConfig, apps: Apps, allow: Allow, servers: dict[str, ReverseProxy], draining: frozenset[str]
) -> Plan:
    """The plan; `servers` keeps those that are known, with what they have open."""
    web, of_services = (
        {place: {m: _mount(handler, servers) for m, handler in handlers.items()} for place, handlers in told.items()}
        for told in (config.web(), config.service_web())
    )
    for (port, mount), app in apps.items():
        web.setdefault(("", port), {})[mount] = Mount(app, None)
    return Plan(config.ports(), web, allow, config.funnel_wishes(), config.service_ports(), of_services, draining)


def _mount(handler: Json, servers: dict[str, ReverseProxy]) -> Mount:
    target = target_in(handler)
    if not isinstance(target, Proxy):
        return Mount(target, None)
    origin = _origin(target.to)
    if origin not in servers:
        servers[origin] = ReverseProxy(origin)
    return Mount(target, servers[origin])


def _origin(to: str) -> str:
    """A URL without its path."""
    if to.startswith(UNIX):
        return to
    scheme, _, rest = to.partition("://")
    return f"{scheme}://{rest.partition('/')[0].partition('?')[0]}"
