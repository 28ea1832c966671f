"""An actor's own warnings on the bus: each raised once, cleared when it is over."""

from __future__ import annotations

from tailscale.foreign_text import web_address
from tailscale.runtime.bus import Bus
from tailscale.runtime.messages import HealthCleared, HealthRaised
from ts_control.netmap import NetMap

CONTROL_PREFIX = "control-says-"


class Warnings:
    """Remembers what it raised, so that clearing what never was costs nothing and says nothing."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._active: dict[str, tuple[str, str]] = {}

    def show(self, code: str, sentence: str, remedy: str = "") -> None:
        if self._active.get(code) != (sentence, remedy):
            self._active[code] = (sentence, remedy)
            self._bus.publish(HealthRaised(code, sentence, remedy))

    def clear(self, code: str) -> None:
        if self._active.pop(code, None) is not None:
            self._bus.publish(HealthCleared(code))

    def show_netmap(self, netmap: NetMap) -> None:
        """Control's own warnings, under the names it gives them."""
        current = {f"{CONTROL_PREFIX}{number}": (text, "") for number, text in enumerate(netmap.health, 1)}
        for name, message in netmap.display_messages.items():
            text = f"{message.title}: {message.text}" if message.title else message.text
            action = message.primary_action
            current[f"{CONTROL_PREFIX}{name}"] = (
                text,
                f"{action.label}: {action.url}" if action and web_address(action.url) else "",
            )
        for code in [code for code in self._active if code.startswith(CONTROL_PREFIX) and code not in current]:
            self.clear(code)
        for code, (text, remedy) in current.items():
            self.show(code, text, remedy)
