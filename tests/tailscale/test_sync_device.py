"""The threaded face: real sockets between two devices of a tailnet on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.server
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from thread_scripts import introduce, our_threads, read_all

from tailscale import ConnectionRefused, ControlUnreachable, DeviceClosed, NameNotFound, sync
from tailscale.errors import DeviceNotReady
from tailscale.http import Transport
from tailscale.testing.threaded import TailnetThread
from tailscale.threads.loopback import FarEnd, TailnetSocket, loopback_pair


@pytest.fixture(scope="module")
def net() -> Iterator[TailnetThread]:
    with TailnetThread() as net:
        yield net


@pytest.fixture(scope="module")
def pair(net: TailnetThread) -> Iterator[tuple[sync.Device, sync.Device]]:
    with sync.Device("left", **net.options()) as left, sync.Device("right", **net.options()) as right:
        introduce(left, right)
        yield left, right


Pair = tuple[sync.Device, sync.Device]


@contextlib.contextmanager
def serving(device: sync.Device, port: int, handle: Any) -> Iterator[sync.TailnetListener]:
    """A thread per connection, as simple servers have it."""
    listener = device.listen(port)

    def accept() -> None:
        for sock, address in listener:
            threading.Thread(target=handle, args=(sock, address), daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield listener
    finally:
        listener.close()
        thread.join(5)
        assert not thread.is_alive()


def echo(sock: socket.socket, _address: Any) -> None:
    with sock, contextlib.suppress(ConnectionResetError):  # a caller that had enough may leave before the end
        while data := sock.recv(1 << 16):
            sock.sendall(data)


def test_socket_carries_bytes_and_half_closes(pair: Pair) -> None:
    left, right = pair

    def count(sock: socket.socket, address: Any) -> None:
        with sock:
            sock.sendall(str(len(read_all(sock))).encode())

    with serving(right, 7000, count), left.connect("right", 7000, timeout=10) as sock:
        assert isinstance(sock, socket.socket)
        assert (sock.gettimeout(), sock.getpeername()) == (10, (right.ipv4, 7000))
        assert sock.getsockname()[0] == left.ipv4
        sock.sendall(bytes(5 << 20))
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b"5242880"


def test_accept_tells_who_is_there(pair: Pair) -> None:
    left, right = pair
    with right.listen(7001) as listener, left.connect(("right", 7001)) as sock:
        listener.settimeout(5)
        accepted, address = listener.accept()
        with accepted:
            assert address == accepted.getpeername() == sock.getsockname()
            assert right.whois(address).node.hostname == "left"
            assert listener.getsockname() == (right.ipv4, 7001)
            assert listener.fileno() >= 0


def test_strangers_on_this_machine_are_hung_up_on(pair: Pair) -> None:
    left, right = pair
    with serving(right, 7002, echo) as listener, socket.create_connection(listener.door, timeout=5) as stranger:
        assert stranger.recv(1) == b""
        with left.connect("right", 7002, timeout=5) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"


def test_accept_times_out_and_ends_with_the_listener(pair: Pair) -> None:
    listener = pair[1].listen(0)
    listener.settimeout(0.05)
    with pytest.raises(TimeoutError):
        listener.accept()
    listener.settimeout(None)
    threading.Timer(0.1, listener.close).start()
    assert list(listener) == []
    with pytest.raises(OSError):
        listener.accept()
    with pytest.raises(ConnectionRefused):
        for _ in range(100):  # the tailnet hears of it a moment later: until then, accepted and reset
            with contextlib.suppress(ConnectionResetError):
                pair[0].connect("right", listener.port).close()


def test_keepalive_of_our_sockets_is_the_tailnets() -> None:
    told: list[tuple[float | None, float, int]] = []

    def keep_alive(idle: float | None, interval: float, count: int) -> None:
        told.append((idle, interval, count))

    ours, theirs = loopback_pair()
    with ours, TailnetSocket(theirs, FarEnd(("100.64.0.1", 1), ("100.64.0.2", 2), keep_alive)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert told == []
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        assert told.pop() == (7200.0, 75.0, 9)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        assert told[-1] == (10.0, 2.0, 3)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
        assert told[-1] == (None, 2.0, 3)


def test_keepalive_may_be_set_on_both_sides_and_after_the_end(pair: Pair) -> None:
    left, right = pair
    with right.listen(0) as listener, left.connect("right", listener.port) as dialled:
        accepted, _ = listener.accept()
        for sock in (dialled, accepted):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        dialled.sendall(b"alive")
        assert accepted.recv(100) == b"alive"
        accepted.close()
        assert dialled.recv(100) == b""
        dialled.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def test_reset_arrives_as_a_reset_both_ways(pair: Pair) -> None:
    left, right = pair
    linger = b"\1\0\0\0\0\0\0\0"
    with right.listen(7003) as listener:
        with left.connect("right", 7003, timeout=5) as sock:
            accepted, _ = listener.accept()
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            accepted.close()
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        sock = left.connect("right", 7003)
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(5)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            sock.close()
            with pytest.raises(ConnectionResetError):
                accepted.recv(1)


def test_writer_to_a_reader_that_left_gets_an_error(pair: Pair) -> None:
    left, right = pair
    with right.listen(7004) as listener, left.connect("right", 7004, timeout=5) as sock:
        listener.accept()[0].close()
        assert sock.recv(1) == b""
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            for _ in range(1000):
                sock.sendall(bytes(100_000))


@pytest.mark.slow
def test_reader_that_does_not_read_holds_the_writer_back(pair: Pair) -> None:
    left, right = pair
    with right.listen(7005) as listener, left.connect("right", 7005, timeout=0.5) as sock:
        accepted, _ = listener.accept()
        sent = 0
        with accepted, pytest.raises(TimeoutError):
            while sent < 200 << 20:
                sent += sock.send(bytes(1 << 18))
        assert sent < 64 << 20


def test_questions_and_their_typed_errors(pair: Pair) -> None:
    left, right = pair
    assert (left.name, left.hostname, left.node.ipv4) == ("left.tailnet.test", "left", left.ipv4)
    assert left.resolve("right") == right.ipv4
    assert left.resolve_all("right", "AAAA") == [right.ipv6]
    assert left.peers["right"].name == right.name
    assert left.ping("right", kind="icmp").latency > 0
    assert left.status().node is not None
    assert isinstance(left.health, tuple)
    assert left.netcheck().home
    left.set(shields_up=False)
    with pytest.raises(NameNotFound, match="right"):
        left.connect("righ", 80)
    with pytest.raises(ConnectionRefused):
        left.connect("right", 9, timeout=5)
    with pytest.raises(OSError, match="port 0"):
        left.connect("right", 0)
    with left.udp() as silent, pytest.raises(TimeoutError):
        silent.receive_from(timeout=0.05)


def test_datagrams(pair: Pair) -> None:
    left, right = pair
    with right.udp(7006) as server, left.udp() as client:
        client.send_to(b"ping", ("right", 7006))
        data, source = server.receive_from(timeout=5)
        assert (data, source) == (b"ping", (left.ipv4, client.local_address[1]))
        server.connect(source)
        server.send(b"pong")
        assert client.receive(timeout=5) == b"pong"


def test_forward_leads_libraries_that_dial_themselves(pair: Pair, tmp_path: Path) -> None:
    left, right = pair
    path = tmp_path / "door"
    with serving(right, 7007, echo):
        with left.forward("right", 7007) as way, socket.create_connection(way.address, timeout=5) as sock:
            assert (way.host, way.port) == sock.getpeername()
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
        with left.forward("right", 7007, path=path), socket.socket(socket.AF_UNIX) as sock:
            assert os.stat(path).st_mode & 0o777 == 0o600
            sock.settimeout(5)
            sock.connect(str(path))
            sock.sendall(b"y")
            assert sock.recv(1) == b"y"
    with (
        left.forward("right", 9) as way,
        socket.create_connection(way.address, timeout=5) as sock,
        pytest.raises(ConnectionResetError),
    ):
        sock.recv(1)
    left.ping("right")
    assert not path.exists()


def test_expose_lets_the_tailnet_in(pair: Pair) -> None:
    left, right = pair
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        with right.expose(7011, local_port=server.getsockname()[1]) as exposed:
            assert exposed.port == 7011
            with left.connect("right", 7011, timeout=5) as sock:
                sock.sendall(b"in")
                accepted, _ = server.accept()
                with accepted:
                    assert accepted.recv(2) == b"in"
                    accepted.sendall(b"out")
                assert read_all(sock) == b"out"
    with (
        right.expose(7012, local_port=1),
        pytest.raises((ConnectionResetError, BrokenPipeError)),  # as on a kernel socket, perhaps while connecting
        left.connect("right", 7012, timeout=5) as sock,
    ):
        sock.sendall(b"x")
        sock.recv(1)


@pytest.mark.slow
def test_standard_http_server_and_clients(pair: Pair) -> None:
    left, right = pair

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"{self.client_address[0]}".encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = right.listen(7008)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with httpx.Client(transport=Transport(left)) as client:
            for _ in range(20):
                assert client.get("http://right:7008/").text == left.ipv4
            with pytest.raises(httpx.ConnectError):
                client.get("http://right:9/")
        httpx2 = pytest.importorskip("httpx2")
        with httpx2.Client(transport=Transport(left)) as client:
            assert client.get("http://right:7008/").text == left.ipv4
        requests = pytest.importorskip("requests")
        from tailscale.http import RequestsAdapter

        with requests.Session() as session:
            session.mount("http://", RequestsAdapter(left))
            for _ in range(20):
                assert session.get("http://right:7008/").text == left.ipv4
            with pytest.raises(requests.ConnectionError, match="refused"):
                session.get("http://right:9/")
        with left.forward("right", 7008) as way, urllib.request.urlopen(f"http://{way.host}:{way.port}/") as answer:
            assert answer.read().decode() == left.ipv4
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_tls_over_our_sockets(pair: Pair) -> None:
    left, right = pair
    authority = trustme.CA()
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("right").configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)

    def handle(sock: socket.socket, _address: Any) -> None:
        with server_side.wrap_socket(sock, server_side=True) as tls:
            tls.sendall(tls.recv(100))

    with (
        serving(right, 7009, handle),
        left.connect("right", 7009, timeout=5) as sock,
        client_side.wrap_socket(sock, server_hostname="right") as tls,
    ):
        tls.sendall(b"secret")
        assert tls.recv(100) == b"secret"


def test_what_the_tailnet_does_not_know_goes_the_machines_way(pair: Pair) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pair[0].connect_anywhere("127.0.0.1", server.getsockname()[1]) as sock,
    ):
        assert sock.getpeername() == server.getsockname()


def test_events_arrive(net: TailnetThread, pair: Pair) -> None:
    events = pair[0].events()
    names: list[str] = []

    def listen() -> None:
        for event in events:
            names.append(type(event).__name__)
            if names.count("PeerUp"):
                return

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    with sync.Device("late", **net.options()):
        thread.join(5)
    assert "PeerUp" in names


def test_beside_a_running_event_loop(net: TailnetThread) -> None:
    async def notebook() -> str:
        with sync.Device("notebook", **net.options()) as device:
            return device.name

    assert asyncio.run(notebook()) == "notebook.tailnet.test"


def test_what_was_written_last_still_leaves(net: TailnetThread, pair: Pair) -> None:
    with pair[1].listen(7010) as listener:
        with sync.Device("brief", **net.options()) as brief:
            introduce(brief, pair[1])
            sock = brief.connect("right", 7010)
            accepted, _ = listener.accept()
            sock.sendall(bytes(300_000))
        with accepted:
            accepted.settimeout(5)
            assert len(read_all(accepted)) == 300_000
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        sock.close()


def test_closing_ends_everything(net: TailnetThread) -> None:
    before = our_threads()
    device = sync.Device("short", **net.options()).open()
    listener = device.listen(80)
    waiting = threading.Thread(target=lambda: list(listener))
    waiting.start()
    device.close()
    waiting.join(5)
    assert not waiting.is_alive()
    listener.close()
    assert our_threads() == before
    device.close()
    for call in (lambda: device.connect("right", 80), lambda: device.name, lambda: device.listen(80), device.status):
        with pytest.raises(DeviceClosed):
            call()
    with pytest.raises(DeviceClosed):
        device.open()
    with pytest.raises(DeviceNotReady):
        _ = sync.Device("never", **net.options()).name


@pytest.mark.slow
def test_failure_to_join_is_raised_and_leaves_nothing() -> None:
    before = our_threads()
    with pytest.raises(ControlUnreachable), sync.Device(control_url="http://127.0.0.1:9", ready_timeout=0.3):
        pass
    assert our_threads() == before


def test_interrupt_gives_a_waiting_call_up(net: TailnetThread) -> None:
    main = threading.main_thread().ident
    assert main is not None
    with sync.Device("patient", **net.options()) as device, device.udp() as port:
        listener = device.listen(80)
        for wait in (listener.accept, port.receive_from):
            timer = threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                wait()
            timer.join()
        assert device.name
        listener.close()


@pytest.mark.slow
def test_program_that_forgets_to_close_ends_cleanly(net: TailnetThread) -> None:
    code = (
        "import sys; from tailscale import sync\n"
        "device = sync.Device('forgetful', control_url=sys.argv[1], auth_key=sys.argv[2]).open()\n"
        "print(device.name)"
    )
    options = net.options()
    command = [sys.executable, "-W", "error", "-c", code, options["control_url"], options["auth_key"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "forgetful.tailnet.test\n", "")
    assert "forgetful" not in [d.label for d in net.do(lambda: list(net.inner.control.server.directory))]


def test_a_listener_and_a_datagram_socket_that_are_lost_give_their_ports_back(pair: Pair) -> None:
    device = pair[1]
    gc.collect()  # what other tests have lost
    for make, name in ((device.listen, "TailnetListener"), (device.udp, "UdpSocket")):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            make(7099)
            gc.collect()
        assert [name in str(one.message) for one in said if one.category is ResourceWarning] == [True]
        for _ in range(100):
            with suppress(OSError):
                make(7099).close()
                break
        else:
            pytest.fail(f"{name} kept its port")
