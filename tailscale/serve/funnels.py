"""Which names of a Serve the internet reaches: they are published by the device while the plan says so.

Owns those publications. Who answers is handed in; what a relay may do is the device's to judge.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from tailscale.errors import FunnelUnavailable, TailscaleError

if TYPE_CHECKING:
    from tailscale.carry import Stream
    from tailscale.device import Device
    from tailscale.funnel import FunnelStream

    Take = Callable[[int, Stream, tuple[str, int], bool], Awaitable[None]]

log = logging.getLogger("tailscale.serve")
Place = tuple[str, int]


class Funnels:
    """Of one Serve, while it runs."""

    def __init__(self, device: Device, take: Take) -> None:
        self._device, self._take = device, take
        self._published: dict[tuple[str, int, bool], ExitStack] = {}

    def follow(self, wanted: Mapping[Place, bool]) -> None:
        """Publish exactly these; False is one that is known and not on, which control hears of."""
        places = {(name, port, is_on) for (name, port), is_on in wanted.items()}
        for key in self._published.keys() - places:
            self._published.pop(key).close()
        for key in places - self._published.keys():
            self._published[key] = stack = ExitStack()
            try:
                self._publish(*key, stack)
            except (TailscaleError, ValueError) as problem:
                log.warning("the internet does not reach %s:%d: %s", key[0] or self._device.name, key[1], problem)

    def _publish(self, name: str, port: int, is_on: bool, stack: ExitStack) -> None:
        handler = partial(self._answer, port) if is_on else None
        stack.enter_context(self._device.answer_funnel(name or self._device.name, port, handler))
        if is_on:
            try:
                self._device.check_funnel(name or self._device.name, port)
            except FunnelUnavailable as problem:
                log.warning("only a relay of one's own leads to %s:%d: %s", name or self._device.name, port, problem)

    async def _answer(self, port: int, stream: FunnelStream) -> None:
        await self._take(port, stream, stream.source, True)

    def close(self) -> None:
        """None of them any more."""
        self.follow({})
