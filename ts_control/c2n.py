"""Control-to-node requests: one serialised HTTP/1.x request in a ping, one serialised response back.

Owns: the paths we answer, what is true of every device there, and how a device's own facts are written. Refuses to
know: how the request came and the answer goes. Paths and answers: ipn/ipnlocal/c2n.go and the features beside it.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import h11

from ts_base.errors import BadPacket
from ts_control.services import PATH, VIPService, services_json
from ts_lock.updates import Update, kind_name

REQUEST_LIMIT = 1 << 20
ANSWER_LIMIT = 256 << 10

Answer = tuple[bytes, bytes]
"""A status line's text and a body."""

OK, NO_CONTENT = b"200 OK", b"204 No Content"
UNKNOWN_PATH: Answer = (b"400 Bad Request", b"unknown c2n path\n")
WRONG_METHOD: Answer = (b"405 Method Not Allowed", b"bad method\n")
NOT_HERE: Answer = (b"501 Not Implemented", b"a library has none of this\n")
TOO_LONG: Answer = (b"500 Internal Server Error", b"the answer is too long\n")
NO_LOCK: Answer = (b"400 Bad Request", b"tailnet lock is not in use here\n")
LOG_LIMIT = 50  # changes of a lock
REMOTE_API = b"/remoteapi/"
FORBIDDEN: Answer = (b"403 Forbidden", b"this device is not administered from afar\n")


class Trouble(NamedTuple):
    """One warning, as health.State has it."""

    code: str
    title: str
    text: str
    severity: str = "medium"
    is_about_connectivity: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What control may learn of one device by asking it."""

    troubles: Sequence[Trouble] = ()
    preferences: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[tuple[str, str, float]] = ()  # name with labels, type, value
    certificates: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # from when to when each is good
    now: float = 0.0
    ssh_users: Sequence[str] | None = None  # None: nobody logs in by SSH
    lock_log: Sequence[Update] | None = None  # newest first; None without a lock
    hosted: Sequence[VIPService] = ()


def _says(answer: bytes) -> Callable[[bytes, Facts], Answer]:
    return lambda _body, _facts: (OK, answer)


def _refuses(answer: Answer) -> Callable[[bytes, Facts], Answer]:
    return lambda _body, _facts: answer


def _health(_body: bytes, facts: Facts) -> Answer:
    warnings = {
        trouble.code: {
            "WarnableCode": trouble.code,
            "Severity": trouble.severity,
            "Title": trouble.title,
            "Text": trouble.text,
            "ImpactsConnectivity": trouble.is_about_connectivity,
        }
        for trouble in facts.troubles
    }
    return OK, _json({"Warnings": warnings})


def _preferences(_body: bytes, facts: Facts) -> Answer:
    return OK, _json(dict(facts.preferences))


def _metrics(_body: bytes, facts: Facts) -> Answer:
    """The text form of Prometheus; a name's type is said before its first sample."""
    lines, said = [], set()
    for sample, kind, value in facts.metrics:
        name = sample.partition("{")[0]
        if name not in said:
            said.add(name)
            lines.append(f"# TYPE {name} {kind}")
        lines.append(f"{sample} {value:g}")
    return OK, "".join(f"{line}\n" for line in lines).encode()


def _ssh_users(_body: bytes, facts: Facts) -> Answer:
    return OK, _json({"Usernames": None if facts.ssh_users is None else list(facts.ssh_users)})


def _lock_log(_body: bytes, facts: Facts) -> Answer:
    """ipnstate.TailnetLockUpdate, the newest of them."""
    if facts.lock_log is None:
        return NO_LOCK
    changes = [
        {
            "Hash": list(update.hash),
            "Change": kind_name(update.kind),
            "Raw": base64.b64encode(update.data).decode(),
        }
        for update in facts.lock_log[:LOG_LIMIT]
    ]
    return OK, _json(changes)


def _certificate(query: bytes, facts: Facts) -> Answer:
    """tailcfg.C2NTLSCertInfo; control forgets the record of a challenge by it."""
    name = dict(parse_qsl(query.decode("latin-1"))).get("domain", "")
    if not name:
        return b"400 Bad Request", b"no 'domain'\n"
    good = facts.certificates.get(name.lower())
    if good is None:
        return OK, b'{"Error":"no certificate is held","Missing":true}'
    if good[1] <= facts.now:
        return OK, b'{"Error":"the certificate has expired","Expired":true}'
    begins, ends = (datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for moment in good)
    return OK, _json({"Valid": True, "NotBefore": begins, "NotAfter": ends})


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


GET, POST, BOTH = frozenset({b"GET"}), frozenset({b"POST"}), frozenset({b"GET", b"POST"})
# What is asked by which methods, and the answer to a body, or to what stands behind a GET's question mark.
HANDLERS: Mapping[bytes, tuple[frozenset[bytes], Callable[[bytes, Facts], Answer]]] = {
    b"/echo": (frozenset({b"GET", b"POST", b"PUT", b"HEAD"}), lambda body, _facts: (OK, body)),
    b"/debug/health": (BOTH, _health),
    b"/debug/prefs": (BOTH, _preferences),
    b"/debug/metrics": (BOTH, _metrics),
    # The netmap came from whoever asks; tasks and memory are the program's own business.
    b"/debug/netmap": (BOTH, _refuses(NOT_HERE)),
    b"/debug/goroutines": (BOTH, _refuses(NOT_HERE)),
    b"/debug/pprof/heap": (BOTH, _refuses(NOT_HERE)),
    b"/debug/pprof/allocs": (BOTH, _refuses(NOT_HERE)),
    b"/debug/logheap": (BOTH, _refuses(NOT_HERE)),
    b"/debug/component-logging": (BOTH, _refuses(NOT_HERE)),
    b"/sockstats": (POST, _refuses(NOT_HERE)),
    b"/netfilter-kind": (POST, _refuses(NOT_HERE)),
    # A library neither updates itself nor can be told to.
    b"/update": (BOTH, _says(b'{"Enabled":false,"Supported":false}')),
    # No log leaves this machine, so whatever was to be flushed is.
    b"/logtail/flush": (POST, _refuses((NO_CONTENT, b""))),
    # Nothing is read from the machine beyond its system's name.
    b"/posture/identity": (GET, _says(b'{"PostureDisabled":true}')),
    b"/ssh/usernames": (BOTH, _ssh_users),
    b"/tls-cert-status": (GET, _certificate),
    PATH.encode(): (GET, lambda _body, facts: (OK, services_json(facts.hosted))),
    b"/debug/tka/log": (GET, _lock_log),
}


def answer_c2n_untrusted(payload_base64: str, look: Callable[[], Facts] = Facts) -> bytes:
    """BadPacket when the payload is not one whole HTTP request. `look` is called for requests of known paths only."""
    request, body = _request_untrusted(payload_base64)
    path, _, query = bytes(request.target).partition(b"?")
    if path.startswith(REMOTE_API):  # the whole local API in control's hands: no answer of ours opens that
        return _serialise(*FORBIDDEN)
    methods, answer = HANDLERS.get(path, (frozenset(), None))
    if answer is None:
        return _serialise(*UNKNOWN_PATH)
    about = query if request.method == b"GET" and not body else body
    status, text = answer(about, look()) if request.method in methods else WRONG_METHOD
    return _serialise(*(TOO_LONG if len(text) > ANSWER_LIMIT and path != b"/echo" else (status, text)))


def _request_untrusted(payload_base64: str) -> tuple[h11.Request, bytes]:
    if len(payload_base64) > REQUEST_LIMIT:
        raise BadPacket("c2n request too long")
    try:
        payload = base64.b64decode(payload_base64, validate=True)
    except (binascii.Error, ValueError):
        raise BadPacket("c2n payload is not base64") from None
    connection = h11.Connection(h11.SERVER)
    try:
        connection.receive_data(payload)
        request = connection.next_event()
        if not isinstance(request, h11.Request):
            raise BadPacket("c2n payload is not a whole HTTP request")
        body = bytearray()
        while isinstance(event := connection.next_event(), h11.Data):
            body += event.data
    except h11.RemoteProtocolError:
        raise BadPacket("c2n payload is not HTTP") from None
    if not isinstance(event, h11.EndOfMessage):
        raise BadPacket("c2n payload is not a whole HTTP request")
    return request, bytes(body)


def _serialise(status: bytes, body: bytes) -> bytes:
    # RFC 9110 section 8.6: no Content-Length in a 204.
    length = b"" if status == NO_CONTENT else b"Content-Length: %d\r\n" % len(body)
    return b"HTTP/1.1 %b\r\n%b\r\n%b" % (status, length, body)
