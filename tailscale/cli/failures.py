"""From an error to an exit code, one sentence and a remedy."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from tailscale._causes import sole_cause
from tailscale.cli.exit_codes import FAILED, LOGIN, NOT_FOUND, REFUSED, STATE, TRANSFER, UNREACHABLE, USAGE
from tailscale.errors import (
    AuthKeyRejected,
    ConnectionRefused,
    ConnectionTimedOut,
    ControlProtocolError,
    ControlUnreachable,
    LoginRequired,
    NameNotFound,
    NoRoute,
    PeerKeyExpired,
    PeerOffline,
    StateCorrupt,
    StateLocked,
    TailscaleError,
)
from tailscale.faults import in_option_words, remedy_for


@dataclass(frozen=True, slots=True)
class Failure:
    """What a person needs to know of an error."""

    code: int
    kind: str
    sentence: str
    remedy: str = ""
    fault: str = ""

    def to_dict(self) -> dict[str, object]:
        said = {"kind": self.kind, "message": self.sentence, "remedy": self.remedy, "fault": self.fault}
        return {"error": said, "exit": self.code}


# A remedy here is said in the words of the command line; without one it is that of the error's fault.
_KNOWN: tuple[tuple[type[BaseException], int, str], ...] = (
    (LoginRequired, LOGIN, "run this again when somebody has; `pytailscale login` waits for that"),
    (AuthKeyRejected, LOGIN, "the admin console makes keys, or `headscale preauthkeys create`"),
    (ControlProtocolError, UNREACHABLE, "for a Headscale server it is its server_url; Tailscale's own needs none"),
    (ControlUnreachable, UNREACHABLE, "`pytailscale doctor` looks closer"),
    (NameNotFound, NOT_FOUND, ""),
    (PeerOffline, UNREACHABLE, ""),
    (PeerKeyExpired, UNREACHABLE, ""),
    (NoRoute, UNREACHABLE, ""),
    (ConnectionRefused, REFUSED, ""),
    (ConnectionTimedOut, UNREACHABLE, ""),
    (
        StateLocked,
        STATE,
        "--ephemeral is a device for one command; `pytailscale up` lets all commands share one",
    ),
    (StateCorrupt, STATE, "--state names another place"),
)


# By name: who uses no mesh imports none.
_OF_A_MESH = {
    "NotInMesh": (NOT_FOUND, "`pytailscale ls -a` lists who is in the mesh and who is not"),
    "AmbiguousPeer": (NOT_FOUND, "`pytailscale ls -l` lists names, addresses and mesh ids"),
    "NobodyListens": (REFUSED, "run `pytailscale recv` there"),
    "PeerGone": (UNREACHABLE, ""),
    "TransferFailed": (TRANSFER, ""),
    "TransferRefused": (TRANSFER, ""),
}


def explain(error: BaseException) -> Failure:
    """The failure behind `error`, whatever groups it is wrapped in."""
    cause = sole_cause(error)
    kind, sentence = type(cause).__name__, in_option_words(str(cause))
    fault = cause.fault if isinstance(cause, TailscaleError) else ""
    for known, code, remedy in _KNOWN:
        if isinstance(cause, known):
            return Failure(code, kind, sentence, remedy or in_option_words(remedy_for(fault)), fault)
    if kind in _OF_A_MESH:
        return Failure(_OF_A_MESH[kind][0], kind, sentence, _OF_A_MESH[kind][1])
    if isinstance(cause, TailscaleError):
        return Failure(FAILED, kind, sentence, in_option_words(remedy_for(fault)), fault)
    if isinstance(cause, OSError):
        return Failure(_code_of(cause), kind, _sentence_of(cause))
    if isinstance(cause, ValueError):
        return Failure(USAGE, kind, sentence)
    return Failure(FAILED, kind, f"this should not happen: {kind}: {cause}", "-v shows where; please report it")


def _code_of(error: OSError) -> int:
    if error.errno == errno.ECONNREFUSED:
        return REFUSED
    return UNREACHABLE if isinstance(error, TimeoutError) or error.errno == errno.EHOSTUNREACH else FAILED


def _sentence_of(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason
