"""Where a client may go, and the way there: rules first, then the exits.

Owns what no rule of the user can undo: a proxy does not lead to itself, nor to what only this machine may reach. How a
connection is made is the exits' business.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import trio

from tailscale.carry import reset
from tailscale.errors import ConnectionTimedOut
from tailscale.proxy.doors import Listener, address_of
from tailscale.proxy.ends import remote_host
from tailscale.proxy.outcomes import ProxyLoop, RequestDenied
from ts_base.ip import is_tailscale_address, maybe_address
from ts_proxy.local_places import is_local, is_local_name
from ts_proxy.user_names import Sessions, UserName

if TYPE_CHECKING:
    from tailscale.carry import Stream
    from tailscale.device import Device
    from tailscale.proxy.exits import Exits
    from tailscale.proxy.limits import ProxyLimits
    from tailscale.proxy.requests import Request

log = logging.getLogger("tailscale.proxy")
Allow = Callable[["Request"], bool | Awaitable[bool]]


class Gate:
    """One proxy's, which is reached by `listeners`."""

    def __init__(
        self,
        device: Device,
        exits: Exits,
        allow: Allow | None,
        limits: ProxyLimits,
        listeners: Sequence[Listener],
    ) -> None:
        self.device = device
        self.exits = exits
        self._allow = allow
        self._limits = limits
        self._doors = frozenset(map(address_of, listeners))
        self._ports = {port for _, port in self._doors}
        self._sessions = Sessions()

    async def check(self, request: Request) -> None:
        """Raises for what this client may not reach."""
        if request.port in self._ports and self._is_own(request.host):
            raise ProxyLoop(f"{request.host} port {request.port} is this proxy itself")
        address = maybe_address(request.host)
        if address is None:
            self._check_local(request.host, is_local_name(request.host))
        else:  # one that a node of the tailnet may have is no neighbour's
            self._check_local(request.host, is_local(address) and not is_tailscale_address(address))
        if self._allow is not None and not await self._asked(self._allow, request):
            raise RequestDenied(f"the rules of this proxy do not allow {request.host} port {request.port}")

    def _check_local(self, host: str, is_there: bool) -> None:
        if is_there and not self._limits.allow_local:
            raise RequestDenied(
                f"{host} belongs to the machine that runs this proxy: its operator may set allow_local=True"
            )

    def check_outside(self, host: str) -> None:
        """The address that a name has led to: it may be one of this machine too."""
        address = maybe_address(host)
        self._check_local(host, address is not None and is_local(address))

    async def _asked(self, allow: Allow, request: Request) -> bool:
        try:
            answer = allow(request)
            return bool(await answer if inspect.isawaitable(answer) else answer)
        except Exception:
            log.exception("allow= failed, so %s was not allowed", request)
            return False

    def _is_own(self, host: str) -> bool:
        """Whether one of our doors is there, by whatever name."""
        address = maybe_address(host)
        node = self.device.node
        if address is None:
            return is_local_name(host) or host.lower() in (node.name.lower(), node.hostname.lower())
        return is_local(address) or host in node.addresses or any(host == door for door, _ in self._doors)

    async def connect(self, request: Request) -> Stream:
        """An open stream to where the request leads, or the error that says why there is none."""
        await self.check(request)
        host, port, patience = request.host, request.port, self._limits.dial
        if self.is_tailnets(host):
            return await self.device.tcp_connect(host, port, timeout=patience)
        if self.exits.kind != "policy":
            stream = await self.exits.connect_anywhere(host, port, timeout=patience)
            if self.exits.kind == "direct":
                try:
                    self.check_outside(remote_host(stream))  # before a byte has been passed on
                except RequestDenied:
                    await reset(stream)
                    raise
            return stream
        with trio.move_on_after(patience + self._limits.exit_wait):
            return await self.exits.tcp_connect(host, port, timeout=patience, session=self.session_of(request))
        raise ConnectionTimedOut(f"{host} port {port} could not be reached within {patience:g} s by any exit")

    def is_tailnets(self, host: str) -> bool:
        """Whether nobody but the tailnet can know this name: one without a dot, unless this machine is asked too."""
        return self.exits.kind != "direct" and "." not in host and ":" not in host

    def session_of(self, request: Request) -> str:
        who = UserName(request.user, request.session, request.ttl)
        return self._sessions.word_for(who, trio.current_time())
