"""What becomes of a request, in the words of each protocol: SOCKS replies, HTTP statuses and RFC 9209 error types.

One table, from typed errors. Owns the errors that only a proxy has.
"""

from __future__ import annotations

import errno
import socket
from typing import NamedTuple

from tailscale.errors import (
    ConnectionRefused,
    ConnectionTimedOut,
    NameNotFound,
    NoRoute,
    PeerKeyExpired,
    PeerOffline,
    TailscaleError,
)
from ts_proxy.socks5 import Reply


class RequestDenied(TailscaleError):
    """The rules of this proxy do not let the client go there."""


class ProxyLoop(RequestDenied):
    """The request leads back to this proxy."""


class ProxyBusy(TailscaleError):
    """The proxy has as many clients as it may."""


class ClientGone(Exception):
    """The client hung up while it was being served: nobody needs an answer."""


class Outcome(NamedTuple):
    """How one failure is told."""

    reply: Reply
    status: int
    error: str
    """RFC 9209, section 2.3."""


NO_NAME = Outcome(Reply.HOST_UNREACHABLE, 502, "dns_error")
NO_RESOLVER = Outcome(Reply.GENERAL_FAILURE, 504, "dns_timeout")
NO_WAY = Outcome(Reply.NETWORK_UNREACHABLE, 503, "destination_ip_unroutable")
NOT_THERE = Outcome(Reply.HOST_UNREACHABLE, 503, "destination_unavailable")
REFUSED = Outcome(Reply.REFUSED, 502, "connection_refused")
DENIED = Outcome(Reply.NOT_ALLOWED, 403, "http_request_denied")
LOOPED = Outcome(Reply.NOT_ALLOWED, 508, "proxy_loop_detected")
SILENT = Outcome(Reply.TTL_EXPIRED, 504, "connection_timeout")
BROKEN = Outcome(Reply.GENERAL_FAILURE, 502, "connection_terminated")
BUSY = Outcome(Reply.GENERAL_FAILURE, 503, "proxy_internal_error")

# The first that fits counts. Behind our own errors stand what the machine's network says of the same failures.
_TABLE: tuple[tuple[type[BaseException], Outcome], ...] = (
    (ProxyLoop, LOOPED),
    (RequestDenied, DENIED),
    (ProxyBusy, BUSY),
    (NoRoute, NO_WAY),
    (PeerOffline, NOT_THERE),
    (PeerKeyExpired, NOT_THERE),
    (ConnectionRefused, REFUSED),
    (ConnectionTimedOut, SILENT),
    (ConnectionRefusedError, REFUSED),
    (TimeoutError, SILENT),
    (UnicodeError, NO_NAME),
)
_BY_NUMBER = {errno.ENETUNREACH: NO_WAY, errno.EHOSTUNREACH: NOT_THERE, errno.EADDRNOTAVAIL: NO_WAY}


def outcome_of(problem: BaseException, *, is_key_expired: bool = False) -> Outcome:
    """How `problem` is told. `is_key_expired`: our own key, which makes every peer silent."""
    if isinstance(problem, NameNotFound):
        return NO_RESOLVER if problem.is_temporary else NO_NAME
    if isinstance(problem, socket.gaierror):
        return NO_RESOLVER if problem.errno == socket.EAI_AGAIN else NO_NAME
    if isinstance(problem, ConnectionTimedOut) and is_key_expired:
        return NO_WAY
    if isinstance(problem, ConnectionRefused) and problem.by_policy:
        return DENIED
    for kind, outcome in _TABLE:
        if isinstance(problem, kind):
            return outcome
    return _BY_NUMBER.get(problem.errno or 0, BROKEN) if isinstance(problem, OSError) else BROKEN
