"""What is wrong right now, in words for the user: one retained value on the bus, changed by whoever knows better.

Owns: the bounds. Relays and control choose how often they complain and in what words, so there is one state per code,
the newest; readers see the state and not every change; and a text is cut and cleared of control characters.
Refuses to know: who reads it.
"""

from __future__ import annotations

from collections.abc import Mapping

from tailscale.foreign_text import web_address
from tailscale.runtime.bus import Bus
from tailscale.runtime.messages import WarningsChanged
from tailscale.status import HealthWarning
from ts_control.netmap import NetMap

CONTROL_PREFIX = "control-says-"
LONGEST_TEXT = 1024
WARNING_LIMIT = 256  # 128 relay regions, control's own, and some twenty of ours
CONTROL_LIMIT = 64
WARNINGS_FULL = "health.warnings_full"


class Health:
    """The warnings of one Device. Any number of these may stand over one bus: the bus keeps the state."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    @property
    def active(self) -> tuple[HealthWarning, ...]:
        return tuple(self._warnings.values())

    @property
    def _warnings(self) -> Mapping[str, HealthWarning]:
        latest = self._bus.latest(WarningsChanged)
        return latest.warnings if latest is not None else {}

    def show(self, code: str, sentence: str, remedy: str = "") -> None:
        """Something is wrong; `code` names it until `clear`."""
        self._change({code: HealthWarning(code, readable(sentence), readable(remedy))})

    def clear(self, *codes: str) -> None:
        """It is over, or never was."""
        self._change({}, codes)

    def show_netmap(self, netmap: NetMap) -> None:
        """Control's own warnings, under the names it gives them."""
        texts = {f"{CONTROL_PREFIX}{number}": (text, "") for number, text in enumerate(netmap.health, 1)}
        for name, message in netmap.display_messages.items():
            text = f"{message.title}: {message.text}" if message.title else message.text
            action = message.primary_action
            texts[CONTROL_PREFIX + readable(name)[:64]] = (
                text,
                f"{action.label}: {action.url}" if action and web_address(action.url) else "",
            )
        current = {
            code: HealthWarning(code, readable(text), readable(remedy))
            for code, (text, remedy) in list(texts.items())[:CONTROL_LIMIT]
        }
        self._bus.drops[WARNINGS_FULL] += len(texts) - len(current)
        over = [code for code in self._warnings if code.startswith(CONTROL_PREFIX) and code not in current]
        self._change(current, over)

    def _change(self, shown: Mapping[str, HealthWarning], cleared: tuple[str, ...] | list[str] = ()) -> None:
        before = self._warnings
        after = {code: warning for code, warning in before.items() if code not in cleared}
        for code, warning in shown.items():
            if code in after or len(after) < WARNING_LIMIT:
                after[code] = warning
            else:
                self._bus.drops[WARNINGS_FULL] += 1
        if after != before:
            self._bus.publish(WarningsChanged(after))


def readable(text: str) -> str:
    """Somebody else's words, fit for a log line and a terminal: short, and without control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:LONGEST_TEXT])


def show_exit_names(health: Health, problem: str) -> None:
    """Why the exit node that everything goes by does not look names up; "" when it does."""
    if not problem:
        health.clear("exit-names")
        return
    health.show(
        "exit-names",
        f"names are looked up by the tailnet's resolvers, not by the exit node: {problem}",
        "the exit must be online and offer its peer API, and the policy must let us use it for autogroup:internet",
    )
