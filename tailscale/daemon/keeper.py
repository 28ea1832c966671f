"""Keeps one Device alive for as long as it is wanted, enters another when it has ended, and tells everybody.

Owns the Device, the wish to have one, and the events of all Devices one after the other. A Device that cannot join yet
is tried again and again; one that never will (a refused key, a state that is not ours) waits for somebody to change
that. Knows no socket.
"""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import trio

from tailscale._causes import sole_cause
from tailscale._config import Preferences, control_url_from_environment
from tailscale._spelling import default_hostname
from tailscale.device import Device
from tailscale.errors import (
    AuthKeyRejected,
    DeviceClosed,
    DeviceNotReady,
    StateCorrupt,
    StateLocked,
    TailscaleError,
)
from tailscale.events import Event, EventStream, LoginNeeded, StateChanged
from tailscale.status import Status
from ts_control.netmap import NetMap

log = logging.getLogger("tailscale.daemon")
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # between attempts, doubled each time
LOGIN = ("auth_key", "client_id", "id_token", "audience")  # what a device is done with once it is in
READERS = 256  # of events, at once
STOPPED = "stopped"
FINAL = (AuthKeyRejected, StateCorrupt, StateLocked, ValueError)  # trying again would end the same way
FULL = (errno.ENOSPC, errno.EDQUOT)  # a disk that somebody makes room on

MakeDevice = Callable[..., Device]
"""Called with `on_login_url` and the options of `Device` that are wished for now."""
Beside = Callable[[Device], Awaitable[None]]
"""Runs while a Device is usable; cancelled when it ends."""


@dataclass(slots=True)
class Wishes:
    """What the next Device is made with."""

    is_wanted: bool = True
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    """Options of `Device`; an auth key among them is used once."""


class Keeper:
    """One per daemon."""

    def __init__(self, make: MakeDevice, wishes: Wishes, beside: Beside) -> None:
        self.wishes = wishes
        self.is_ready = False
        self.login_url = ""
        """Where somebody has to let the device in; a secret."""
        self.problem: BaseException | None = None
        """Why there is no usable Device, if one is wanted."""
        self._make = make
        self._beside = beside
        self._device: Device | None = None
        self._life: trio.CancelScope | None = None
        self._work: trio.Nursery | None = None
        self._readers: list[EventStream] = []
        self._news = trio.Condition()
        self._hurry = trio.Event()

    # What others ask

    @property
    def device(self) -> Device:
        """The Device, as soon as it can answer anything at all. Raises DeviceNotReady."""
        if self._device is None:
            if not self.wishes.is_wanted:
                raise DeviceNotReady("the daemon is down: `pytailscale up` or `tailscale up` brings it back")
            raise DeviceNotReady(f"the device is not there: {self.problem or 'it is being started'}")
        return self._device

    @property
    def usable(self) -> Device:
        """The Device, once it has joined. Raises DeviceNotReady."""
        device = self.device
        if not self.is_ready:
            where = "it waits for somebody to log in" if self.login_url else "it is joining"
            raise DeviceNotReady(f"the device is not usable yet: {self.problem or where}")
        return device

    @property
    def has_device(self) -> bool:
        return self._device is not None

    def status(self) -> Status | None:
        """Of the Device; None while there is none, or it has only just been made."""
        if self._device is not None:
            with suppress(DeviceNotReady, DeviceClosed):
                return self._device.status()
        return None

    def events(self) -> EventStream:
        """What happens from now on, through all Devices. The caller closes it by `forget`."""
        if len(self._readers) >= READERS:
            raise TailscaleError(f"{READERS} readers of events are connected already")
        stream = EventStream()
        self._readers.append(stream)
        return stream

    def forget(self, stream: EventStream) -> None:
        if stream in self._readers:
            self._readers.remove(stream)

    async def until(self, fact: Callable[[], object]) -> None:
        """Wait until `fact()` is true; it is asked whenever something here has changed."""
        async with self._news:
            while not fact():
                await self._news.wait()

    async def settle(self) -> None:
        """Wait until it is usable, or somebody has to do something, or nothing is wanted."""
        await self.until(lambda: self.is_ready or self.login_url or self.problem or not self.wishes.is_wanted)

    @property
    def control_url(self) -> str:
        """The coordination server of the next Device, and of this one."""
        return self.wishes.options.get("control_url") or control_url_from_environment()

    def netmap(self) -> NetMap | None:
        """The Device's; None while there is none."""
        if self._device is not None:
            with suppress(DeviceNotReady, DeviceClosed):
                return self._device.netmap
        return None

    def preferences(self) -> Preferences:
        """The Device's, or those of the next one."""
        if self._device is not None:
            with suppress(DeviceNotReady, DeviceClosed):
                return self._device.preferences
        options = self.wishes.options
        return Preferences(
            hostname=options.get("hostname") or default_hostname(),
            tags=tuple(options.get("tags", ())),
            accept_routes=options.get("accept_routes", True),
            exit_node=options.get("exit_node"),
            advertise_routes=tuple(options.get("advertise_routes", ())),
            advertise_exit_node=options.get("advertise_exit_node", False),
            shields_up=options.get("shields_up", False),
        )

    # What others want

    async def start(self, **options: Any) -> None:
        """Want a Device. Options that differ from those of the present one make a new one of it."""
        if self.is_ready and self._device is not None and self._device.state == "running":
            options = {name: value for name, value in options.items() if name not in LOGIN}  # it is in already
        is_other = any(self.wishes.options.get(name) != value for name, value in options.items())
        self.wishes.options |= options
        self.wishes.is_wanted = True
        if is_other and self._life is not None:
            self._life.cancel()
        self.problem = None
        self._hurry.set()
        await self._tell()

    async def stop(self) -> None:
        """Want none; returns when it has said goodbye."""
        self.wishes.is_wanted = False
        if self._life is not None:
            self._life.cancel()
        self._hurry.set()
        await self.until(lambda: self._device is None)

    async def restart(self) -> None:
        """A new Device in place of this one."""
        if self._life is not None:
            self._life.cancel()
        self._hurry.set()
        await trio.lowlevel.checkpoint()

    def log_in(self) -> None:
        """Have the Device ask for a new login, in its own time; the events tell where somebody has to go."""
        if self._work is not None and self._device is not None:
            self._work.start_soon(self._log_in, self._device)

    async def _log_in(self, device: Device) -> None:
        try:
            await device.login()
        except (TailscaleError, OSError) as error:
            log.warning("the login failed: %s", error)

    # The life of Devices

    async def run(self) -> None:
        """Until cancelled."""
        pause = FIRST_PAUSE
        while True:
            await self.until(lambda: self.wishes.is_wanted)
            self._hurry = trio.Event()
            began = trio.current_time()
            try:
                await self._live()
                continue
            except* (TailscaleError, OSError, ValueError) as group:
                self.problem = sole_cause(group)
            if trio.current_time() - began > LONGEST_PAUSE:
                pause = FIRST_PAUSE  # it was well for a while
            hopeless = is_final(self.problem)
            log.warning("%s%s", self.problem, "" if hopeless else f". Trying again in {pause:g} s")
            self.say(StateChanged("failed", str(self.problem)))
            await self._tell()
            with trio.move_on_after(math.inf if hopeless else pause):
                await self._hurry.wait()
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _live(self) -> None:
        """One Device, from entering to leaving."""
        options = dict(self.wishes.options)
        self._device = device = self._make(on_login_url=self._ask_to_open, **options)
        self.problem = None
        try:
            async with trio.open_nursery() as nursery:
                self._work = nursery
                nursery.start_soon(self._pass_on, device.events())
                with trio.CancelScope() as self._life:
                    await self._tell()
                    async with device:
                        self.is_ready, self.login_url = True, ""
                        for name in LOGIN:
                            self.wishes.options.pop(name, None)
                        await self._tell()
                        await self._beside(device)
                        await trio.sleep_forever()
                nursery.cancel_scope.cancel()
        finally:
            self._life = self._work = self._device = None
            self.is_ready, self.login_url = False, ""
            with trio.CancelScope(shield=True):
                await self._tell()
        self.say(StateChanged(STOPPED, ""))

    async def _pass_on(self, events: EventStream) -> None:
        async for event in events:
            if isinstance(event, LoginNeeded):
                self.login_url = event.url
                await self._tell()
            elif isinstance(event, StateChanged) and event.state == "running" and self.login_url:
                self.login_url = ""
                await self._tell()
            self.say(event)

    async def _ask_to_open(self, url: str) -> None:
        self.login_url = url
        await self._tell()

    def say(self, event: Event) -> None:
        """To everybody who reads events."""
        for reader in self._readers:
            reader.put(event)

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()


def is_final(problem: BaseException | None) -> bool:
    """Whether another attempt would end the same way, until somebody changes something here."""
    return isinstance(problem, FINAL) and getattr(problem.__cause__, "errno", None) not in FULL
