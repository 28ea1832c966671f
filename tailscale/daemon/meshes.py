"""One mesh for each app, however many ask for it: commands that come and go, and the settings.

Owns when a mesh begins and ends: with the first who wants it and a while after the last, so that commands one after the
other meet peers that know each other already. The mesh itself is `tailscale.mesh`'s.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from tailscale.device import Device
from tailscale.errors import DeviceNotReady

if TYPE_CHECKING:
    from tailscale.mesh.mesh import Mesh

LINGER = 30.0
APPS_LIMIT = 32  # at once


@dataclass(eq=False, slots=True)
class _Lent:
    """One app's mesh while it lives."""

    users: int = 0
    mesh: Mesh | None = None
    problem: Exception | None = None
    settled: trio.Event = field(default_factory=trio.Event)
    left: trio.Event = field(default_factory=trio.Event)


class Meshes:
    """Those of one device, while it is usable."""

    def __init__(self) -> None:
        self._lent: dict[str, _Lent] = {}
        self._nursery: trio.Nursery | None = None
        self._device: Device | None = None

    @property
    def apps(self) -> tuple[str, ...]:
        return tuple(self._lent)

    async def run(self, device: Device) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery, self._device = nursery, device
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = self._device = None
                self._lent.clear()

    @asynccontextmanager
    async def of(self, app: str) -> AsyncIterator[Mesh]:
        """The mesh of an app, inside; the same for all who want it at the time."""
        if self._nursery is None or self._device is None:
            raise DeviceNotReady("a mesh needs a device that has joined")
        lent = self._lent.get(app)
        if lent is None:
            if len(self._lent) >= APPS_LIMIT:
                raise ValueError(f"{APPS_LIMIT} apps have a mesh here already")
            lent = self._lent[app] = _Lent()
            self._nursery.start_soon(self._keep, app, lent, self._device)
        lent.users += 1
        try:
            await lent.settled.wait()
            if lent.problem is not None:
                raise lent.problem
            assert lent.mesh is not None
            yield lent.mesh
        finally:
            lent.users -= 1
            if not lent.users:
                lent.left.set()

    async def _keep(self, app: str, lent: _Lent, device: Device) -> None:
        try:
            from tailscale.mesh.mesh import Mesh  # few daemons have one

            async with Mesh(device, app) as lent.mesh:
                lent.settled.set()
                while lent.users:
                    lent.left = trio.Event()
                    await lent.left.wait()
                    await trio.sleep(LINGER)
        except Exception as problem:
            lent.problem = problem
            lent.settled.set()
        finally:
            if self._lent.get(app) is lent:
                del self._lent[app]
