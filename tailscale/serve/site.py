"""Who answers a request: the host it asks for, the mount its path belongs to, and whether its caller is let in.

Looks into the plan of the moment, so that a change counts from the next request on. Carries nothing itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import h11

from tailscale.http.arrival import Arrival
from tailscale.http.caller import describe_caller
from tailscale.http.choice import ByApp, ByServer, scope_of, upgraded
from tailscale.http1.asgi import AsgiApp, Scope
from tailscale.serve.answers import FORBIDDEN, NOT_FOUND, error, of_text, redirect_to
from tailscale.serve.headers import head_for_server
from tailscale.serve.mounts import below, find_mount, target_below
from tailscale.serve.plan import Mount, Plan
from tailscale.serve.static import files_at
from tailscale.serve.targets import UNIX, App, Files, Proxy, Redirect, Text

if TYPE_CHECKING:
    from tailscale.device import Device

EMPTY = error(500, "empty handler")


class Site:
    """Of one device; `states` is what apps share with their requests."""

    def __init__(
        self, device: Device, plan: Callable[[], Plan], states: Mapping[App, dict[str, Any]], own_socket: str
    ) -> None:
        self._own_socket = own_socket
        self._device = device
        self._plan = plan
        self._states = states

    @property
    def own_name(self) -> str:
        return self._device.name.rstrip(".").lower()

    def is_own(self, to: str) -> bool:
        """Whether that is the socket by which this program takes orders, by whatever links: looked at each time."""
        return is_socket(to, self._own_socket)

    def serves(self, name: str, arrival: Arrival) -> bool:
        """Whether a TLS client may ask for that name."""
        if arrival.service and name != service_name(arrival.service, self.own_name):
            return False
        return self._mounts(name, arrival) is not None

    def _mounts(self, host: str, arrival: Arrival) -> Mapping[str, Mount] | None:
        """Of a host; at the address of a service, of that service, whatever the host."""
        plan, port = self._plan(), arrival.local_address[1]
        if arrival.service:
            return plan.service_web.get((arrival.service, port))
        return plan.mounts(host, port, self.own_name)

    async def choose(self, request: h11.Request, arrival: Arrival) -> ByApp | ByServer:
        """For each request; an upgrade is one."""
        is_tailnets = arrival.is_tailnets
        caller = await describe_caller(self._device, arrival.remote_address) if is_tailnets else None
        scope = scope_of(request, arrival, caller, {})
        plan = self._plan()
        if not plan.allow.lets_in(caller):
            return ByApp(FORBIDDEN, scope)
        mounts = self._mounts(self._host(scope, arrival), arrival)
        found = find_mount(mounts, scope["path"]) if mounts is not None else None
        if found is None:
            return ByApp(NOT_FOUND, scope)
        mount, behind = found
        if isinstance(behind.target, Proxy):
            return self._by_server(mount, behind, behind.target, scope, arrival)
        if isinstance(behind.target, App):
            return self._by_app(mount, behind.target, request, scope)
        return ByApp(_app_of(behind.target, mount), scope)

    def _host(self, scope: Scope, arrival: Arrival) -> str:
        """By the name that TLS was asked for; without TLS by the Host header, with the tailnet's suffix."""
        if arrival.is_secure:
            return arrival.name
        asked: bytes = next((value for name, value in scope["headers"] if name == b"host"), b"")
        host = asked.decode("latin-1").lower()
        name, colon, port = host.rpartition(":")
        host = name if colon and port.isdigit() else host
        suffix = "." + self.own_name.partition(".")[2]
        return host if host.endswith(suffix) else host.rstrip(".") + suffix

    def _by_app(self, mount: str, app: App, request: h11.Request, scope: Scope) -> ByApp:
        """`root_path` is what the mount takes of the path, as ASGI has it."""
        scope["state"] = self._states.get(app, {}).copy()
        scope["root_path"] = mount.removesuffix("/")
        return ByApp(app.app, upgraded(request, scope))

    def _by_server(self, mount: str, behind: Mount, target: Proxy, scope: Scope, arrival: Arrival) -> ByApp | ByServer:
        rest = below(mount, scope["path"], bytes(scope["raw_path"]))
        if rest is None or behind.server is None or self.is_own(target.to):
            return ByApp(NOT_FOUND, scope)
        head = head_for_server(
            scope["headers"],
            host=b"localhost" if target.to.startswith(UNIX) else b"",
            is_modern=scope["http_version"] == "1.1",
            is_secure=arrival.is_secure,
            client=arrival.remote_address[0],
            caller=scope["extensions"].get("tailscale"),
            is_funnel=not arrival.is_tailnets,
            accept_caps=target.accept_caps,
        )
        return ByServer(behind.server, target_below(target.to, rest, scope["query_string"]), head)


def service_name(service: str, own_name: str) -> str:
    """`svc:web` by its name in the tailnet of this device."""
    return f"{service.removeprefix('svc:')}.{own_name.partition('.')[2]}"


def _app_of(target: Files | Text | Redirect | Any, mount: str) -> AsgiApp:
    if isinstance(target, Files):
        return files_at(target.path, mount)
    if isinstance(target, Redirect):
        return redirect_to(target.to)
    return of_text(target.text) if target.text else EMPTY


def is_socket(to: str, path: str) -> bool:
    """Whether a target is the Unix socket at `path`, by whatever links."""
    if not path or not to.startswith(UNIX):
        return False
    try:
        return os.path.samefile(to.removeprefix(UNIX), path)
    except OSError:
        return False
