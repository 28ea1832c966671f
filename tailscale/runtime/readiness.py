"""When a Device is usable: registered, its netmap folded into tables, some way to send packets, and findable by peers.

Owns the patience for each, and the error that says what stood in the way.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from tailscale.errors import ControlUnreachable, LoginRequired, TailscaleError
from tailscale.runtime.messages import (
    ControlInformed,
    ControlStateChanged,
    EndpointsChanged,
    NetInfoChanged,
    NetMapChanged,
    RelaysChanged,
    TablesChanged,
)
from ts_control.session import Phase

if TYPE_CHECKING:
    from tailscale._config import Config
    from tailscale.runtime.bus import Bus
    from ts_dataplane.engine import Engine

FINDABLE_PATIENCE = 0.5  # readiness waits this long for control to have heard where we are
ECHO_PATIENCE = 0.1  # and this much for its showing us so
REMEMBERED_PATIENCE = 3.0  # that control gets to answer before the netmap of the last run will do
ECHO_LEAD = 0.01  # the same news on its way to peers: one that dials before it came waits 5 s for its next handshake
NOT_JOINED = (Phase.CONNECTING, Phase.REGISTERING, Phase.OFFLINE)


class Readiness:
    """One entering of one Device."""

    def __init__(self, config: Config, bus: Bus, engine: Engine) -> None:
        self._config = config
        self._bus = bus
        self._engine = engine
        self._began = -math.inf

    async def wait(self) -> None:
        """Return once usable; raise what stands in the way. A login that somebody must do has its own patience."""
        began = self._began = trio.current_time()
        deadline, login_deadline = began + self._config.ready_timeout, began + self._config.login_timeout
        kinds = (ControlStateChanged, NetMapChanged, TablesChanged, RelaysChanged, NetInfoChanged)
        with self._bus.subscribe(*kinds, name="readiness") as inbox:
            while not self._is_usable():
                state = self._bus.latest(ControlStateChanged)
                if state is not None and state.error is not None:
                    raise state.error
                waits_for_login = state is not None and state.state in (Phase.NEEDS_LOGIN, Phase.NEEDS_APPROVAL)
                with trio.move_on_at(login_deadline if waits_for_login else deadline) as waiting:
                    with trio.move_on_at(self._next_look()):
                        await inbox.receive()
                if waiting.cancelled_caught:
                    raise self._not_ready_in_time(state)
                if waits_for_login:  # the time it took somebody is not the time we may take afterwards
                    deadline = max(deadline, trio.current_time() + self._config.ready_timeout)
        await self._until_findable()

    async def _until_findable(self) -> None:
        """A peer that dials us first has to know where we are; a slow control server only costs so much.

        Peers hear of us when we do: our own node with what we reported. Not every server shows us that.
        """
        kinds = (ControlInformed, NetInfoChanged, EndpointsChanged, NetMapChanged)
        with self._bus.subscribe(*kinds, name="findable") as inbox:
            with trio.move_on_after(FINDABLE_PATIENCE):
                while not self._control_knows_where_we_are():
                    await inbox.receive()
            with trio.move_on_after(ECHO_PATIENCE):
                while not self._peers_know_where_we_are():
                    await inbox.receive()
        await trio.sleep(ECHO_LEAD)

    def _control_knows_where_we_are(self) -> bool:
        told, found = self._bus.latest(ControlInformed), self._bus.latest(NetInfoChanged)
        endpoints = self._bus.latest(EndpointsChanged)
        here = {endpoint for endpoint, _ in endpoints.endpoints} if endpoints is not None else set()
        return bool(told and found and told.home_region == found.home_region and told.endpoints == here)

    def _peers_know_where_we_are(self) -> bool:
        told, shown = self._bus.latest(ControlInformed), self._bus.latest(NetMapChanged)
        if told is None or shown is None:
            return False
        ourselves = shown.netmap.self_node
        return ourselves.home_derp == told.home_region and told.endpoints <= set(ourselves.endpoints)

    def _is_usable(self) -> bool:
        """Registered, netmap folded into tables, and some way to send packets."""
        shown = self._bus.latest(NetMapChanged)
        if shown is None or not self._engine.tables.own:
            return False
        state = self._bus.latest(ControlStateChanged)
        if shown.is_remembered and (state is None or state.state is not Phase.OFFLINE):
            if trio.current_time() < self._began + REMEMBERED_PATIENCE:
                return False  # control may have better
        if state is not None and state.state is Phase.NEEDS_APPROVAL:
            return False
        relays, found = self._bus.latest(RelaysChanged), self._bus.latest(NetInfoChanged)
        return bool((relays and relays.home_connected) or (found and found.working_udp))

    def _next_look(self) -> float:
        """When something changes by time alone."""
        shown, at = self._bus.latest(NetMapChanged), self._began + REMEMBERED_PATIENCE
        is_waiting = shown is not None and shown.is_remembered and trio.current_time() < at
        return at if is_waiting else math.inf

    def _not_ready_in_time(self, state: ControlStateChanged | None) -> TailscaleError:
        config = self._config
        if state is not None and state.url:
            return LoginRequired(state.url)
        if state is not None and state.state is Phase.NEEDS_APPROVAL:
            return LoginRequired(
                config.control_url,
                "this device waits for an administrator to approve it: do so on "
                f"{config.control_url}; login_timeout= sets the patience",
            )
        if state is None or state.state in NOT_JOINED:
            why = f": {state.detail}" if state is not None and state.detail else ""
            return ControlUnreachable(
                f"the control server {config.control_url} did not let us in within {config.ready_timeout:g} s{why}. "
                "Check control_url= (or TS_CONTROL_URL) and the network; ready_timeout= sets the patience"
            )
        return ControlUnreachable(
            f"joined {config.control_url}, but no relay and no direct path came up within {config.ready_timeout:g} s. "
            "Check that TCP to the tailnet's relays is allowed, and that tls= (or SSL_CERT_FILE) knows their CA"
        )
