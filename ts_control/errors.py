"""How talking to a control server fails. The public names for these are in `tailscale.errors`."""

from __future__ import annotations

from ts_base.errors import TailscaleError


class ControlLost(TailscaleError, ConnectionError):
    """The server cannot be reached, or the connection to it ended."""


class NotControl(TailscaleError, ConnectionError):
    """Something answered that is no coordination server, or one we cannot talk to."""


class RequestRefused(TailscaleError):
    """The server answered with an HTTP status that is not success."""

    def __init__(self, what: str, status: int, text: str = "", retry_after: str = "") -> None:
        self.status = status
        self.text = text
        self.retry_after = retry_after
        super().__init__(f"{what} was answered with HTTP {status}" + (f": {text}" if text else ""))


class RegistrationRefused(TailscaleError):
    """The server will not have this device; `reason` is what it said."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the control server refused the registration: {reason}")


class AuthKeyRefused(RegistrationRefused):
    """The same, in answer to an auth key."""


class KeyNotMade(RegistrationRefused):
    """No auth key could be had for what was given instead of one, and waiting will not change that."""

    def __init__(self, reason: str, remedy: str) -> None:
        self.reason, self.remedy = reason, remedy
        TailscaleError.__init__(self, f"no auth key could be made: {reason}. {remedy}")
