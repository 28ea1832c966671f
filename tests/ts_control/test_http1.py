"""HTTP/1.1 before the channel, and c2n inside it: one connection for key and upgrade, nonsense as BadPacket."""

from __future__ import annotations

import base64
import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_base.errors import BadPacket
from ts_control.c2n import Facts, Trouble, answer_c2n_untrusted
from ts_control.http1 import BODY_LIMIT, Http1Client, Reply, check_upgrade_untrusted, upgrade_headers

KEY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
SWITCH = b"HTTP/1.1 101 Switching\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\r\n\x02\0\x30rest"


def ask(http: Http1Client, wire: bytes, *, step: int = 1 << 20) -> Reply | None:
    for start in range(0, len(wire), step):
        if reply := http.receive_untrusted(wire[start : start + step]):
            return reply
    return None


@pytest.mark.parametrize("step", [1, 1 << 20])
def test_key_and_upgrade_share_one_connection(step: int) -> None:
    http = Http1Client()
    assert http.request("GET", "/key?v=131", [("Host", "h")]).startswith(b"GET /key?v=131 HTTP/1.1\r\n")
    reply = ask(http, KEY, step=step)
    assert reply is not None
    assert (reply.status, reply.body, reply.can_continue) == (200, b"{}", True)
    assert b"X-Tailscale-Handshake: abc" in http.request("POST", "/ts2021", upgrade_headers("h", "abc"))
    reply = ask(http, SWITCH if step > 1 else SWITCH[: SWITCH.index(b"\x02")], step=step)
    assert reply is not None
    check_upgrade_untrusted(reply)
    assert reply.rest == (b"\x02\0\x30rest" if step > 1 else b"")


def test_a_server_that_closes_is_noticed() -> None:
    http = Http1Client()
    http.request("GET", "/key", [("Host", "h")])
    reply = ask(http, KEY.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert reply is not None
    assert not reply.can_continue


@pytest.mark.parametrize(
    ("wire", "words"),
    [
        (b"HTTP/1.1 400 Bad\r\nContent-Length: 21\r\n\r\nmissing next protocol", "missing next protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "HTTP 200"),
        (b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", "another protocol"),
    ],
)
def test_a_refused_upgrade_says_why(wire: bytes, words: str) -> None:
    http = Http1Client()
    http.request("POST", "/ts2021", upgrade_headers("h", "abc"))
    reply = ask(http, wire)
    assert reply is not None
    with pytest.raises(BadPacket, match=words):
        check_upgrade_untrusted(reply)


@pytest.mark.parametrize(
    "wire",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + bytes(BODY_LIMIT + 1),
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000,
        b"",
    ],
)
def test_nonsense_raises_bad_packet(wire: bytes) -> None:
    http = Http1Client()
    http.request("GET", "/key", [("Host", "h")])
    with pytest.raises(BadPacket):
        http.receive_untrusted(wire)


@given(st.binary(max_size=200))
def test_any_bytes_raise_only_bad_packet(data: bytes) -> None:
    http = Http1Client()
    http.request("GET", "/key", [("Host", "h")])
    with contextlib.suppress(BadPacket):
        http.receive_untrusted(data)
    with contextlib.suppress(BadPacket):
        answer_c2n_untrusted(base64.b64encode(data).decode())
    with contextlib.suppress(BadPacket):
        answer_c2n_untrusted(data.decode("latin-1"))


def test_c2n_echo_returns_the_body_and_other_paths_are_unknown() -> None:
    request = b"POST /echo?x=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
    assert answer_c2n_untrusted(base64.b64encode(request).decode()).endswith(b"Content-Length: 5\r\n\r\nhello")
    other = base64.b64encode(b"GET /debug/pprof HTTP/1.1\r\nHost: h\r\n\r\n").decode()
    assert answer_c2n_untrusted(other).startswith(b"HTTP/1.1 400 ")
    assert b"unknown c2n path" in answer_c2n_untrusted(other)
    with pytest.raises(BadPacket):
        answer_c2n_untrusted(base64.b64encode(request[:-1]).decode())


@pytest.mark.parametrize(
    ("request_line", "answer"),
    [
        (b"GET /update", b"HTTP/1.1 200 OK\r\nContent-Length: 35\r\n\r\n" + b'{"Enabled":false,"Supported":false}'),
        (b"POST /update", b"HTTP/1.1 200 OK\r\nContent-Length: 35\r\n\r\n" + b'{"Enabled":false,"Supported":false}'),
        (b"POST /logtail/flush", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET /posture/identity", b"HTTP/1.1 200 OK\r\nContent-Length: 24\r\n\r\n" + b'{"PostureDisabled":true}'),
        (
            b"GET /vip-services?x=1",
            b"HTTP/1.1 200 OK\r\nContent-Length: 36\r\n\r\n" + b'{"VIPServices":[],"ServicesHash":""}',
        ),
        (b"DELETE /echo", b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 11\r\n\r\nbad method\n"),
        (b"GET /logtail/flush", b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 11\r\n\r\nbad method\n"),
    ],
)
def test_c2n_says_what_is_true_of_every_device(request_line: bytes, answer: bytes) -> None:
    request = base64.b64encode(request_line + b" HTTP/1.1\r\nHost: h\r\n\r\n").decode()
    assert answer_c2n_untrusted(request) == answer


def asked(line: bytes, **facts: Any) -> bytes:
    request = base64.b64encode(line + b" HTTP/1.1\r\nHost: h\r\n\r\n").decode()
    return answer_c2n_untrusted(request, lambda: Facts(**facts))


C2N = [
    # request                                       status, and what the body holds
    (b"GET /debug/health",                          200, b'{"Warnings":{"login-state":{"WarnableCode":"login-state"'),
    (b"POST /debug/health",                         200, b'"ImpactsConnectivity":true'),
    (b"GET /debug/prefs",                           200, b'"Hostname":"py"'),
    (b"GET /debug/metrics",                         200, b"# TYPE a gauge\na{b=\"c\"} 2\na{b=\"d\"} 3\n"),
    (b"GET /debug/netmap",                          501, b""),
    (b"POST /debug/netmap",                         501, b""),
    (b"GET /debug/goroutines",                      501, b""),
    (b"GET /debug/pprof/heap",                      501, b""),
    (b"POST /sockstats",                            501, b""),
    (b"GET /sockstats",                             405, b""),
    (b"POST /netfilter-kind",                       501, b""),
    (b"GET /ssh/usernames",                         200, b'{"Usernames":null}'),
    (b"GET /tls-cert-status?domain=x",              200, b'"Missing":true}'),
    (b"GET /debug/tka/log?limit=5",                 400, b"not in use"),
    (b"GET /appconnector/routes",                   400, b"unknown c2n path"),
    (b"POST /wol",                                  400, b"unknown c2n path"),
    (b"GET /conn25/state",                          400, b"unknown c2n path"),
    (b"GET /remoteapi/localapi/v0/status",          403, b"not administered"),
    (b"POST /remoteapi/localapi/v0/prefs?x=/echo",  403, b"not administered"),
    (b"DELETE /remoteapi/anything",                 403, b"not administered"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "status", "held"), C2N, ids=[row[0].decode() for row in C2N])
def test_c2n_answers_as_upstream_would(line: bytes, status: int, held: bytes) -> None:
    troubles = [Trouble("login-state", "t", "x", is_about_connectivity=True)]
    figures = [('a{b="c"}', "gauge", 2.0), ('a{b="d"}', "gauge", 3.0)]
    answer = asked(line, troubles=troubles, preferences={"Hostname": "py"}, metrics=figures)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert held in answer


def test_c2n_answers_are_bounded() -> None:
    many = [Trouble(f"code-{number}", "t" * 1000, "x" * 1000) for number in range(1000)]
    assert asked(b"GET /debug/health", troubles=many).startswith(b"HTTP/1.1 500 ")


def test_c2n_looks_only_when_it_has_to() -> None:
    def never() -> Facts:
        raise AssertionError("nobody asked for that")

    for line in (b"GET /remoteapi/localapi/v0/status", b"GET /nothing", b"PUT /debug/health"):
        answer_c2n_untrusted(base64.b64encode(line + b" HTTP/1.1\r\nHost: h\r\n\r\n").decode(), never)
