"""Renewing our node key before it runs out, beside the conversation with control, which goes on under the old key.

Owns: when it is time, and what is told of it. A new key becomes ours when control accepts it; where it does not, the
old one stays ours for as long as it is good. Refuses to know: where auth keys come from, and what a new key means.
Hears: NetMapChanged. Says: health.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Protocol

import trio

from tailscale.errors import StateCorrupt
from tailscale.runtime.bus import Bus
from tailscale.runtime.health import Health
from tailscale.runtime.key_maker import KeyMaker
from tailscale.runtime.messages import NetMapChanged
from tailscale.runtime.saved_state import SavedState
from tailscale.runtime.supervision import CallbackFailed
from ts_base.errors import BadPacket
from ts_control.errors import ControlLost, KeyNotMade, RequestRefused
from ts_control.gojson import decode_json_untrusted, encode_json, unix_time
from ts_control.session import ControlMachine
from ts_control.wire_register import RegisterResponse

log = logging.getLogger("tailscale.control")

REGISTER = "/machine/register"
LONGEST_LEAD = 86_400.0  # so long before the end at most ...
SHARE = 0.1  # ... and this share of what was left when we first saw it
SHORTEST_PAUSE = 60.0  # between two attempts; else half of what is left
LONGEST_SLEEP = 3600.0  # wall clocks jump
EXPIRES_SOON = "key-expires-soon"


class Ask(Protocol):
    async def __call__(self, method: str, path: str, body: bytes = b"") -> bytes: ...


async def renew_key(
    machine: ControlMachine, keys: KeyMaker, saved: SavedState, ask: Ask, tell: Callable[[], None]
) -> str:
    """One attempt; "" when the new key is ours, else why not. `tell` passes on what the machine has to say."""
    key = await keys.take(machine.hostinfo.request_tags)
    request = machine.begin_renewal(key) if key else None
    if request is None:
        return "this is no time for it"
    tell()
    await saved.write()  # a node key that control knows and we forget is a node lost
    try:
        answer = decode_json_untrusted(RegisterResponse, await ask("POST", REGISTER, encode_json(request)))
    except RequestRefused:
        machine.on_renewal_refused()
        raise
    except BaseException:
        machine.on_renewal_lost()
        raise
    else:
        keys.forget()
        return machine.on_renewed(answer)
    finally:
        tell()


class Clock(Protocol):
    def wall_clock(self) -> float: ...


class Renewal:
    """One device's. `renew` does it, and returns why control would not; "" when it did."""

    def __init__(self, bus: Bus, clock: Clock, *, can_log_in: bool, renew: Callable[[], Awaitable[str]]) -> None:
        self._bus = bus
        self._health = Health(bus)
        self._clock = clock
        self._can_log_in = can_log_in
        self._renew = renew
        self._expiry = 0.0
        self._due = math.inf

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Until cancelled."""
        with self._bus.subscribe(NetMapChanged, name="renewal") as inbox:
            while True:
                self._look()
                left = self._due - self._now()
                if left <= 0:
                    await self._attempt()
                    continue
                with trio.move_on_after(min(left, LONGEST_SLEEP)):
                    await inbox.receive()

    def _now(self) -> float:
        """By control's clock, which is the one that our key runs out by."""
        heard = self._bus.latest(NetMapChanged)
        return self._clock.wall_clock() + (heard.netmap.clock_offset if heard is not None else 0.0)

    def _look(self) -> None:
        heard = self._bus.latest(NetMapChanged)
        ourselves = heard.netmap.self_node if heard is not None else None
        expires = ourselves is not None and ourselves.key_expiry.year > 1 and not ourselves.expired
        expiry = unix_time(ourselves.key_expiry) if ourselves is not None and expires else 0.0
        if expiry == self._expiry:
            return
        self._expiry = expiry
        left = expiry - self._now()
        self._due = expiry - min(LONGEST_LEAD, SHARE * left) if expiry else math.inf
        self._health.clear(EXPIRES_SOON)

    async def _attempt(self) -> None:
        if not self._can_log_in:
            self._due = math.inf
            self._warn("and nothing was given to renew it by")
            return
        left = self._expiry - self._now()
        self._due = self._now() + max(left / 2, SHORTEST_PAUSE)
        try:
            refusal = await self._renew()
        except (ControlLost, RequestRefused, KeyNotMade, BadPacket, StateCorrupt) as problem:
            refusal = problem.reason if isinstance(problem, KeyNotMade) else str(problem)
        except CallbackFailed as problem:  # a device that runs is not ended by what it may not need
            refusal = f"the program's own function raised {type(problem.__cause__).__name__}"
            log.warning("no key to renew by", exc_info=problem.__cause__)
        if not refusal:
            log.info("the node key was renewed")
            self._due = math.inf
        elif left <= 0:
            self._due = math.inf  # it has run out, and that is told by others
        else:
            self._warn(f"and could not be renewed: {refusal}")

    def _warn(self, why: str) -> None:
        when = datetime.fromtimestamp(self._expiry, UTC)
        sentence = f"this device's key expires on {when:%Y-%m-%d %H:%M} UTC, {why}"
        self._health.show(EXPIRES_SOON, sentence, "await device.login(), or extend the key on the control server")
