"""What can go wrong, each under the name people already catch.

Every sentence says what failed, why as far as we know, and what to set. A failed dial is also the builtin `OSError`
that the same failure would be on a kernel socket.

```python
try:
    await device.tcp_connect("dbb", 5432)
except tailscale.NameNotFound as error:
    print(error, error.suggestions)
```

`error.fault` is a code of `docs/explain.md`, the same that `device.explain` and `pytailscale doctor` use.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

import trio

from ts_base.errors import BadPacket, TailscaleError

__all__ = [
    "AuthKeyMissing",
    "AuthKeyNotMade",
    "AuthKeyRejected",
    "BadPacket",
    "CaptureFailed",
    "CertificateError",
    "CertificateNameRefused",
    "CertificateRateLimited",
    "ConnectionRefused",
    "ConnectionReset",
    "ConnectionTimedOut",
    "ControlProtocolError",
    "ControlUnreachable",
    "DeviceClosed",
    "DeviceFailed",
    "DeviceNotReady",
    "DialsTaken",
    "FunnelUnavailable",
    "LoginRequired",
    "NameNotFound",
    "NoRoute",
    "NoSuchPeer",
    "NotCarried",
    "PeerKeyExpired",
    "PeerOffline",
    "ServiceUnavailable",
    "StateCorrupt",
    "StateLocked",
    "TailscaleError",
    "TunFailed",
    "TunHeld",
    "WrongFace",
]


class LoginRequired(TailscaleError):
    """Somebody has to open `url` and approve this device, and nobody did in time."""

    fault = "login-needed"

    def __init__(self, url: str, message: str | None = None) -> None:
        self.url = url
        super().__init__(
            message or f"this device is not logged in: open {url} to approve it, or pass auth_key= (or set TS_AUTHKEY)"
        )


class AuthKeyRejected(TailscaleError, PermissionError):
    """The control server refused the auth key, or what was asked for with it; `reason` is what it said."""

    def __init__(self, reason: str, remedy: str = "Create a new key; pass it as auth_key= (or TS_AUTHKEY)") -> None:
        self.reason = reason
        super().__init__(f"the control server refused the auth key: {reason}. {remedy}")


class AuthKeyMissing(AuthKeyRejected):
    """The file that shall hold the auth key holds none, or cannot be read; `reason` says which."""

    def __init__(self, reason: str) -> None:
        TailscaleError.__init__(
            self, f"no auth key: {reason}. Check the path behind file: in auth_key= (or TS_AUTHKEY)"
        )
        self.reason = reason


class AuthKeyNotMade(AuthKeyRejected):
    """No auth key could be had for an OAuth client's secret or a workload's identity; `reason` says why."""

    def __init__(self, reason: str, remedy: str) -> None:
        TailscaleError.__init__(self, f"no auth key could be made: {reason}. {remedy}")
        self.reason = reason


class ControlUnreachable(TailscaleError, ConnectionError):
    """The control server could not be reached in time."""

    fault = "control-unreachable"


class ControlProtocolError(TailscaleError, ConnectionError):
    """Something answered, but it is not a coordination server we can talk to."""


class NameNotFound(TailscaleError, socket.gaierror):
    """No node, record or resolver knows this name; `suggestions` are close ones.

    `is_temporary` when that is not certain because no resolver answered: `errno` is then EAI_AGAIN.
    """

    def __init__(
        self,
        name: str,
        suggestions: Sequence[str] = (),
        detail: str = "",
        *,
        is_temporary: bool = False,
        fault: str = "",
    ) -> None:
        self.name = name
        self.fault = fault or ("name-unanswered" if is_temporary else "name-not-found")
        self.suggestions = tuple(suggestions)
        self.is_temporary = is_temporary
        if is_temporary:
            sentence = f"cannot look up {name!r} right now: {detail}"
        else:
            sentence = f"no node or record is called {name!r}" + (f" ({detail})" if detail else "")
        if self.suggestions:
            sentence += f"; did you mean {' or '.join(map(repr, self.suggestions))}?"
        OSError.__init__(self, socket.EAI_AGAIN if is_temporary else socket.EAI_NONAME, sentence)

    def __str__(self) -> str:
        return str(self.args[1])


class _Dial(TailscaleError, OSError):
    """Also what the same failure would be on a kernel socket."""

    code = errno.EHOSTUNREACH

    def __init__(self, message: str, fault: str = "") -> None:
        OSError.__init__(self, self.code, message)
        if fault:
            self.fault = fault

    def __str__(self) -> str:
        return str(self.args[1])


class PeerOffline(_Dial):
    """The control server says the peer is offline, and it did not answer."""

    fault = "peer-offline"


class PeerKeyExpired(_Dial):
    """The peer's node key has expired: nobody can talk to it until it logs in again."""

    fault = "peer-key-expired"


class PeerLockedOut(PeerKeyExpired):
    """The tailnet has a lock, and nobody whom it trusts has signed the peer's node key."""

    fault = "peer-not-signed"


class NoRoute(_Dial):
    """No peer owns or routes this address."""

    fault = "no-route"


class ConnectionRefused(_Dial, ConnectionRefusedError):
    """The peer answered with a reset, or its policy rejected us at once."""

    code = errno.ECONNREFUSED
    fault = "port-closed"

    @property
    def by_policy(self) -> bool:
        """The machine is there and its policy, or the tailnet's, let nothing through."""
        return self.fault == "policy-there"


class ConnectionTimedOut(_Dial, TimeoutError):
    """Nothing answered in time."""

    code = errno.ETIMEDOUT
    fault = "port-silent"


class ConnectionReset(_Dial, ConnectionResetError, trio.BrokenResourceError):
    """An open connection was reset by the other side, or gave up on it; trio's streams call this broken."""

    code = errno.ECONNRESET
    fault = "port-resets"


class NotCarried(_Dial):
    """A device that takes the program's dials has to carry this one and cannot: datagrams, or it has been closed."""

    code = errno.EOPNOTSUPP


class DialsTaken(TailscaleError):
    """Another device takes this program's dials already."""


class FunnelUnavailable(TailscaleError):
    """The tailnet does not lead the internet to this node or port; `missing` is "https", "funnel" or "funnel-ports"."""

    def __init__(self, missing: str, message: str) -> None:
        self.missing = missing
        super().__init__(message)


class StateLocked(TailscaleError):
    """Another process holds the state; `pid` names it when known."""

    fault = "state-in-use"

    def __init__(self, where: str, pid: int | None = None) -> None:
        self.where = where
        self.pid = pid
        holder = f"process {pid}" if pid else "another process"
        super().__init__(f"the state in {where} is in use by {holder}: stop it, or give this device its own state=")


class StateCorrupt(TailscaleError):
    """The state cannot be read or written as it is. It is never overwritten silently."""


class TunFailed(TailscaleError):
    """The kernel cannot be given what a TUN device needs; `remedy` says what to set, where that is known."""

    def __init__(self, sentence: str, remedy: str = "") -> None:
        self.remedy = remedy
        super().__init__(f"{sentence}: {remedy}" if remedy else sentence)


class TunHeld(TunFailed):
    """There is a TUN device of that name already; `pid` is the process that holds it, 0 where nobody knows."""

    def __init__(self, name: str, pid: int) -> None:
        self.name, self.pid = name, pid
        holder = f"process {pid}" if pid > 0 else "another process"
        super().__init__(f"{name} is held by {holder}", "end that one (pytailscale tun down), or choose another name=")


class LockError(TailscaleError):
    """What was asked of the tailnet's lock cannot be done."""


class CaptureFailed(TailscaleError, OSError):
    """What was captured could not be written; its cause is what the file said."""


class CertificateError(TailscaleError):
    """There is no certificate to be had now; `retry_at` is when another attempt makes sense, where that is known."""

    def __init__(self, sentence: str, retry_at: float | None = None) -> None:
        self.retry_at = retry_at  # Unix time
        super().__init__(sentence)


class CertificateNameRefused(CertificateError):
    """This device can have no certificate for that name, or for none at all."""


class CertificateRateLimited(CertificateError):
    """The authority issues no more for now: `retry_at` says until when, if it did."""


class DeviceClosed(TailscaleError):
    """The Device has been closed; make a new one."""


class DeviceFailed(TailscaleError):
    """One part of the device failed again and again, so that it ended itself: a mistake of pytailscale."""

    def __init__(self, part: str, times: int, seconds: float) -> None:
        self.part = part
        super().__init__(
            f"this device ended itself: its {part} failed {times} times within {seconds:g} s. That is a mistake of "
            "pytailscale: please report it with the tracebacks in the log; a new Device may be entered at once"
        )


class NoSuchPeer(TailscaleError, KeyError):
    """`device.peers[...]` knows nobody of that name, address or id."""

    def __str__(self) -> str:
        return str(self.args[0])


class NoSuchUplink(TailscaleError, OSError):
    """`uplinks=` names an interface that this machine does not have."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(
            f"this machine has no interface {name!a} to reach peers by: it has {', '.join(known) or 'none'}"
        )
        self.name = name


class WrongFace(TailscaleError, TypeError):
    """The Device, or what was made from it, is for another kind of program: trio, asyncio, or none of the two."""


class DeviceNotReady(TailscaleError):
    """The Device has not been entered yet: use it inside `async with`."""


class ServiceUnavailable(TailscaleError):
    """This device cannot host a Service of the tailnet; the sentence says what to set."""
