"""Who is behind a connection that a server of this machine has: the table, `caller_at`, `expose`, and middlewares."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
from thread_scripts import introduce, read_all

from tailscale import local_callers, sync
from tailscale.http import IdentityMiddleware, WsgiIdentityMiddleware
from tailscale.local_callers import LocalCallers
from tailscale.testing.threaded import TailnetThread
from ts_proxy.proxy_header import decode_proxy_header_untrusted

US, OTHER = object(), object()
LOCAL, DOOR = ("127.0.0.1", 40000), ("127.0.0.1", 8000)
ALICE, BOB = ("100.64.0.1", 5000), ("100.64.0.2", 5000)


# --- the table ------------------------------------------------------------------------------------


def test_an_address_stands_for_a_caller_while_the_connection_lasts() -> None:
    callers = LocalCallers()
    assert callers.find(US, LOCAL) is None
    alice = callers.begin(US, LOCAL, DOOR, ALICE)
    assert callers.find(US, LOCAL) == callers.find(US, LOCAL, DOOR) == ALICE
    assert callers.find(OTHER, LOCAL) is None, "of another device"
    assert callers.find(US, LOCAL, ("127.0.0.1", 9999)) is None, "at another server"
    callers.end(alice)
    assert callers.find(US, LOCAL) is None
    callers.end(alice)


def test_an_address_is_not_used_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request of the last one that is still being answered must not become the next one's."""
    monkeypatch.setattr(local_callers, "RETIRED", 2)
    callers = LocalCallers()
    alice = callers.begin(US, LOCAL, DOOR, ALICE)
    with pytest.raises(OSError, match="stood for somebody else"):
        callers.begin(US, LOCAL, DOOR, BOB)
    callers.end(alice)
    with pytest.raises(OSError, match="stood for somebody else"):
        callers.begin(OTHER, LOCAL, ("127.0.0.1", 1), BOB)
    for port in (1, 2):
        callers.end(callers.begin(US, ("127.0.0.1", port), DOOR, BOB))
    callers.begin(US, LOCAL, DOOR, BOB)  # others have been retired since
    assert callers.find(US, LOCAL) == BOB


def test_an_address_of_the_tailnet_stands_for_itself_while_it_is_connected() -> None:
    callers = LocalCallers()
    assert callers.find(US, ALICE) is callers.find(US, (ALICE[0], 0)) is None
    first = callers.begin(US, ALICE, ("100.64.0.9", 80), ALICE)
    again = callers.begin(US, ALICE, ("100.64.0.9", 81), ALICE)
    assert callers.find(US, ALICE) == ALICE
    assert callers.find(US, (ALICE[0], 0)) == (ALICE[0], 0), "for servers that do not say the port"
    assert callers.find(US, (LOCAL[0], 0)) is None
    callers.end(first)
    assert callers.find(US, ALICE, ("100.64.0.9", 80)) is None
    assert callers.find(US, ALICE, ("100.64.0.9", 81)) == ALICE
    callers.end(again)
    assert callers.find(US, ALICE) is None


def test_addresses_are_compared_as_everybody_writes_them() -> None:
    callers = LocalCallers()
    callers.begin(US, ("::ffff:127.0.0.1", 40000, 0, 0), DOOR, ALICE)  # type: ignore[arg-type]
    assert callers.find(US, LOCAL) == ALICE


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_process_knows_nobody() -> None:
    caller = local_callers.CALLERS.begin(US, LOCAL, DOOR, ALICE)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, b"1" if local_callers.CALLERS.find(US, LOCAL) is None else b"0")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 1) == b"1"
    os.close(reading)
    os.close(writing)
    local_callers.CALLERS.end(caller)


# --- with devices ---------------------------------------------------------------------------------

Pair = tuple[sync.Device, sync.Device]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with TailnetThread() as net, sync.Device("left", **net.options()) as left:
        with sync.Device("right", **net.options()) as right:
            introduce(left, right)
            yield left, right


@contextmanager
def server_of_this_machine() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        yield server


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_expose_tells_who_calls(pair: Pair, version: int, family: str) -> None:
    left, right = pair
    with server_of_this_machine() as server:
        with right.expose(7020, local_port=server.getsockname()[1], proxy_protocol=version):
            sock = left.connect(getattr(right, family), 7020, timeout=10)
            sock.sendall(b"hello")
            sock.shutdown(socket.SHUT_WR)
            accepted, source = server.accept()
            assert accepted.recv(1, socket.MSG_PEEK)  # known from here on
            identity = right.caller_at(source, accepted.getsockname())
            assert identity is not None
            assert identity.node.hostname == "left"
            assert right.caller_at(source, ("127.0.0.1", 1)) is None
            assert left.caller_at(source) is None
            heard = read_all(accepted)
            if version:
                header = decode_proxy_header_untrusted(heard)
                assert header is not None
                assert header.source == sock.getsockname()
                heard = heard[header.length :]
            assert heard == b"hello"
            accepted.close()
            sock.close()
            while right.caller_at(source) is not None:
                pass  # until the device has closed it, too


def test_an_unknown_version_of_the_header_is_an_error(pair: Pair) -> None:
    with pytest.raises(ValueError, match="0 for none, 1 or 2, not 3"):
        pair[1].expose(7021, local_port=1, proxy_protocol=3)


def test_a_strangers_connection_is_nobodys(pair: Pair) -> None:
    with server_of_this_machine() as server, socket.create_connection(server.getsockname()) as stranger:
        assert pair[1].caller_at(stranger.getsockname()) is None


def test_a_listening_socket_is_known_by_both_its_addresses(pair: Pair) -> None:
    """Those of the tailnet, and the kernel's, which a server sees that makes the socket anew from its number."""
    left, right = pair
    with right.listen(7022) as door:
        for rebuild in (False, True):
            sock = left.connect("right", 7022, timeout=10)
            taker: socket.socket = socket.socket(fileno=os.dup(door.fileno())) if rebuild else door
            taker.settimeout(10)
            accepted, source = taker.accept()
            identity = right.caller_at(source, accepted.getsockname())
            assert identity is not None
            assert identity.node.hostname == "left"
            assert source[0] == ("127.0.0.1" if rebuild else left.ipv4)
            assert accepted.proto == socket.IPPROTO_TCP, "or asyncio sets no options"
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), "or small answers wait"
            for one in {accepted, sock, taker} - {door}:
                one.close()
        assert right.caller_at((left.ipv4, 9)) is None


# --- middlewares ----------------------------------------------------------------------------------


@contextmanager
def accepted_from_left(pair: Pair) -> Iterator[tuple[Any, Any]]:
    """A connection's addresses, as a server behind `expose` sees them."""
    left, right = pair
    with server_of_this_machine() as server, right.expose(7023, local_port=server.getsockname()[1]):
        with left.connect("right", 7023, timeout=10) as sock:
            sock.sendall(b"x")
            accepted, source = server.accept()
            with accepted:
                assert accepted.recv(1) == b"x"  # known from here on
                yield source, accepted.getsockname()


SPELLINGS = [
    b"Tailscale.User.Login",
    b"Tailscale-User-Login",
    b"tailscale_user_login",
    b"TAILSCALE-USER_LOGIN",
    b"tailscale-user-login",
]


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_asgi_middleware_says_who_calls(pair: Pair, kind: str) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)

    wrapped = IdentityMiddleware(app, pair[1])
    forged = [(name, b"root@evil") for name in SPELLINGS]
    with accepted_from_left(pair) as (source, door):
        scope = {"type": kind, "client": source, "server": door, "headers": [*forged, (b"x", b"y")]}
        trio.run(wrapped, scope, None, None)
        known, headers = seen[-1]["extensions"]["tailscale"], seen[-1]["headers"]
        assert (known["hostname"], known["user"]) == ("left", "user@tailnet.test")
        assert headers == [
            (b"x", b"y"),
            (b"tailscale-user-login", b"user@tailnet.test"),
            (b"tailscale-user-name", b"user"),
        ]
        assert scope["headers"][:-1] == forged, "the server's own scope is left alone"
        strangers = [(None, door), (["/run/x.sock", None], None), ((pair[0].ipv4, 0), door), (source, ("127.0.0.1", 1))]
        for client, server in strangers:
            trio.run(wrapped, scope | {"client": client, "server": server}, None, None)
            assert "tailscale" not in seen[-1]["extensions"]
            assert seen[-1]["headers"] == [(b"x", b"y")]


def test_wsgi_middleware_says_who_calls(pair: Pair) -> None:
    seen: list[Any] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.append(environ)
        return []

    wrapped = WsgiIdentityMiddleware(app, pair[1])
    forged = {"HTTP_TAILSCALE_USER_LOGIN": "root@evil", "HTTP_TAILSCALE_USER_NAME": "root", "HTTP_X": "y"}
    with accepted_from_left(pair) as (source, _):
        wrapped({**forged, "REMOTE_ADDR": source[0], "REMOTE_PORT": str(source[1])}, print)
        assert seen[-1]["HTTP_TAILSCALE_USER_LOGIN"] == seen[-1]["tailscale.user"] == "user@tailnet.test"
        assert seen[-1]["tailscale.hostname"] == "left"
        assert seen[-1]["HTTP_TAILSCALE_USER_NAME"] == "user"
        assert "root" not in repr(seen[-1])
        for place in ({}, {"REMOTE_ADDR": source[0]}, {"REMOTE_ADDR": source[0], "REMOTE_PORT": "x"}):
            wrapped(forged | place, print)
            assert seen[-1] == {"HTTP_X": "y"} | place


def test_asked_from_many_threads_at_once() -> None:
    callers, problems = LocalCallers(), []

    def work(number: int) -> None:
        for port in range(200):
            source = ("127.0.0.1", 1000 * number + port)
            caller = callers.begin(US, source, DOOR, (f"100.64.0.{number}", port + 1))
            if callers.find(US, source) != (f"100.64.0.{number}", port + 1):
                problems.append(source)
            callers.end(caller)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
