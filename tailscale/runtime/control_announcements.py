"""What the control actor says of its own standing: states, login pages, warnings, under the names users know.

Owns: the translation of the session's facts and errors. Refuses to know: how they came about.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from tailscale.errors import AuthKeyNotMade, AuthKeyRejected, ControlProtocolError, TailscaleError
from tailscale.faults import WAITS_FOR_LOGIN
from tailscale.foreign_text import web_address
from tailscale.runtime.bus import Bus
from tailscale.runtime.control_line import Jobs
from tailscale.runtime.health import Health
from tailscale.runtime.messages import ControlStateChanged, NetMapChanged
from tailscale.runtime.supervision import CallbackFailed
from ts_control.errors import AuthKeyRefused, KeyNotMade, RegistrationRefused
from ts_control.session import Phase, PhaseChanged

log = logging.getLogger("tailscale.control")

TAGS_REMEDY = "Drop tags= (the key's own tags count), or use a key that carries these tags"
FAILURES_BEFORE_WARNING = 2  # a server that restarts quickly is no news


class Announcements:
    """Publishes on the bus and calls the user's login callback."""

    def __init__(self, bus: Bus, jobs: Jobs, on_login_url: Callable[[str], Any] | None) -> None:
        self.health = Health(bus)
        self._bus = bus
        self._jobs = jobs
        self._on_login_url = on_login_url
        self._failures = 0
        self._last_page = ""

    def say_phase(self, changed: PhaseChanged) -> None:
        page, detail = web_address(changed.url), changed.detail
        if changed.url and not page:  # a program may hand whatever it is given to a browser
            detail = "what it asks to open is no page of the web"
        self._bus.publish(ControlStateChanged(changed.phase, detail, page, _public(changed.error)))
        if changed.phase is Phase.NEEDS_LOGIN:
            self._show_login_page(page, detail)
        elif changed.phase is Phase.FAILED:
            self._show_refusal(changed)
        elif changed.phase is Phase.NEEDS_APPROVAL:
            sentence = "this device waits for an administrator's approval: nobody can see it yet"
            self.health.show("approval-needed", sentence, "approve it on the control server")
        elif changed.phase is Phase.EXPIRED:
            sentence = "this device's key has expired: its peers do not talk to it"
            self.health.show("key-expired", sentence, "await device.login(), or extend the key on the control server")
        elif changed.phase is Phase.RUNNING:
            self.health.clear("key-expired", "approval-needed", "control-refused", "login-needed")

    def _show_refusal(self, changed: PhaseChanged) -> None:
        sentence = f"the control server refused this device: {changed.detail}"
        remedy = "create a new auth key, or log in with device.login()"
        if isinstance(changed.error, KeyNotMade):
            sentence, remedy = f"no auth key could be made: {changed.detail}", changed.error.remedy
        self.health.show("control-refused", sentence, remedy)

    def say_failure(self, reason: str) -> None:
        """One more attempt came to nothing."""
        self._failures += 1
        if self._failures >= FAILURES_BEFORE_WARNING:
            sentence = f"the control server cannot be used: {reason}"
            remedy = "check the network, and that the server is up"
            shown = self._bus.latest(NetMapChanged)
            if shown is not None:
                known = "they were in the last run" if shown.is_remembered else "they are known"
                remedy = f"peers stay reachable as {known}; {remedy}"
            self.health.show("control-unreachable", sentence, remedy)

    def say_success(self) -> None:
        self._failures = 0
        self.health.clear("control-unreachable")

    def say_page(self, url: str) -> None:
        """Control wants the user to see a page; the same page once."""
        if url != self._last_page and web_address(url):
            self._last_page = url
            self.health.show("control-url", "the control server asks you to open a page", f"open {url}")

    def _show_login_page(self, url: str, why: str) -> None:
        where = url if self._on_login_url is None else "the page that was shown"  # its address is a secret
        remedy = f"open {where}" if url else "ask whoever runs the control server"
        sentence = WAITS_FOR_LOGIN + (f": {why}" if why else "")
        self.health.show("login-needed", sentence, remedy)
        if not url:
            return
        if self._on_login_url is None:
            log.info("to log this device in, open %s", url)
        else:
            self._jobs.start(partial(_call, self._on_login_url, url))


async def _call(callback: Callable[[str], Any], url: str) -> None:
    try:
        result = callback(url)
        if inspect.isawaitable(result):
            await result
    except Exception as error:
        raise CallbackFailed from error


def _public(error: Exception | None) -> TailscaleError | None:
    """The room's errors under the names users catch."""
    if isinstance(error, KeyNotMade):
        return AuthKeyNotMade(error.reason, error.remedy)
    if isinstance(error, AuthKeyRefused):
        # Both Headscale's and Tailscale's words for tags that a key may not ask for.
        about_tags = "requested tags" in error.reason
        return AuthKeyRejected(error.reason, TAGS_REMEDY) if about_tags else AuthKeyRejected(error.reason)
    if isinstance(error, RegistrationRefused):
        return ControlProtocolError(str(error))
    return None
