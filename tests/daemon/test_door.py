"""The daemon's socket against what it does not expect: strangers, browsers, halves, floods, readers that stop."""

from __future__ import annotations

import gc
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from daemon.daemon_scripts import PATIENCE, World, client_of

from tailscale.daemon.answering import Answer, Question, Routes, json_answer, lines_answer
from tailscale.daemon.client import Client
from tailscale.daemon.daemon import Daemon
from tailscale.daemon.door import CONNECTIONS, Door
from tailscale.daemon.frames import CALL, frame
from tailscale.daemon.places import places
from tailscale.daemon.requests import DaemonAbsent, DaemonError
from tailscale.daemon.transport import LoopbackTransport, SocketPlaceTaken, UnixTransport, remove_stale_socket
from tailscale.errors import StateLocked
from tailscale.events import QUEUE_LIMIT, EventStream, RelayChanged

HELLO = b"GET /localapi/v0/status HTTP/1.1\r\nHost: local-tailscaled.sock\r\n"
UPGRADE = b"POST %b HTTP/1.1\r\nHost: localhost\r\nUpgrade: %b\r\nConnection: upgrade\r\n\r\n"


def talk(path: str, data: bytes) -> bytes:
    """What comes back until the daemon hangs up or has answered once with `Connection: close`."""
    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout(PATIENCE)
        door.connect(path)
        door.sendall(data)
        got = b""
        while piece := door.recv(1 << 16):
            got += piece
        return got


def status_line(answer: bytes) -> bytes:
    return answer.split(b"\r\n", 1)[0].removeprefix(b"HTTP/1.1 ").strip()


# Who may ask


def test_socket_and_its_folder_are_private(daemon: Daemon) -> None:
    assert stat.S_IMODE(os.stat(daemon.places.socket).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(daemon.places.log).st_mode) == 0o600


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (b"Host: evil.example", b"403"),
        (b"Host: local-tailscaled.sock\r\nOrigin: http://evil.example", b"403"),
        (b"Host: local-tailscaled.sock\r\nReferer: http://evil.example/x", b"403"),
        (b"Host: localhost\r\nSec-Fetch-Site: cross-site", b"403"),
        (b"Host: localhost", b"200"),
        (b"Host: local-tailscaled.sock\r\nTailscale-Cap: 142", b"200"),
    ],
)
def test_browsers_and_other_hosts_are_refused(daemon: Daemon, head: bytes, code: bytes) -> None:
    request = b"GET /localapi/v0/status HTTP/1.1\r\n" + head + b"\r\nConnection: close\r\n\r\n"
    assert status_line(talk(daemon.places.socket, request)) == code


ASK_AS_NOBODY = """
import os, sys, encodings.idna
sys.path[:0] = {path!r}
from tailscale.daemon.client import Client
from tailscale.daemon.requests import DaemonAbsent, DaemonError
os.setgid(65534); os.setuid(65534)
daemon, told = Client({socket!r}), []
for method, what in (("GET", "/localapi/v0/status"), ("PATCH", "/localapi/v0/prefs"), ("POST", "stop"), ("GET", "log"),
                     ("POST", "/localapi/v0/ping?ip=100.64.0.1"), ("GET", "status")):
    try:
        daemon.ask(method, what, {{}} if method == "PATCH" else None)
        told.append(200)
    except DaemonError as error:
        told.append(error.status)
print(told)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask as another user")
def test_another_user_may_read_where_let_in_and_never_write(net: World) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        with net.daemon(Path(folder)) as daemon:
            os.chmod(daemon.places.socket, 0o666)
            code = ASK_AS_NOBODY.format(path=readable_path(), socket=daemon.places.socket)
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
            assert done.stdout == "[200, 403, 403, 403, 403, 403]\n", done.stderr


def readable_path() -> list[str]:
    return [str(Path(__file__).parents[2]), *sys.path]


# Places


async def test_socket_of_a_killed_daemon_is_taken_over(tmp_path: Path) -> None:
    path = str(tmp_path / "s.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    transport = UnixTransport(path)
    async with await transport.listen():
        assert stat.S_ISSOCK(os.stat(path).st_mode)
        transport.leave()
        assert not os.path.exists(path)


async def test_socket_of_a_living_program_is_left_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "s.sock")
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(path)
        living.listen()
        with pytest.raises(SocketPlaceTaken, match="another program listens"):
            await UnixTransport(path).listen()
        assert os.path.exists(path)


async def test_a_file_where_the_socket_should_be_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    path.write_text("precious")
    with pytest.raises(SocketPlaceTaken, match="is no socket"):
        await UnixTransport(str(path)).listen()
    link = tmp_path / "link.sock"
    link.symlink_to(path)
    with pytest.raises(SocketPlaceTaken, match="is no socket"):
        await remove_stale_socket(str(link))
    assert path.read_text() == "precious"


async def test_a_path_too_long_for_a_socket_says_so(tmp_path: Path) -> None:
    with pytest.raises(SocketPlaceTaken, match="too long for a socket"):
        await UnixTransport(str(tmp_path / ("x" * 120))).listen()


async def test_a_socket_that_another_took_over_is_not_removed(tmp_path: Path) -> None:
    path = str(tmp_path / "s.sock")
    first, second = UnixTransport(path), UnixTransport(path)
    listener = await first.listen()
    await listener.aclose()
    async with await second.listen():
        first.leave()
        assert os.path.exists(path)


def test_two_daemons_of_one_state_cannot_be(net: World, daemon: Daemon) -> None:
    with pytest.raises(StateLocked, match=f"process {os.getpid()}"), net.daemon(Path(daemon.places.state).parent):
        raise AssertionError


# Requests that are none


@pytest.mark.parametrize(
    "data",
    [
        b"", b"G", b"\x00\xff" * 50, b"GET", b"GET / HTTP/1.1\r\nHost", b"\r\n\r\n", b"GET / HTTP/3.0\r\n\r\n",
        UPGRADE % (b"/pytailscale/v1/run", b"pytailscale-run") + b"ZZZZZZZ",
        UPGRADE % (b"/pytailscale/v1/run", b"pytailscale-run") + frame(CALL, b"[]"),
        UPGRADE % (b"/localapi/v0/dial", b"ts-dial"),
        b"PATCH /localapi/v0/prefs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{",
    ],
)  # fmt: skip
def test_half_a_request_harms_nobody(daemon: Daemon, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as door:
        door.connect(daemon.places.socket)
        door.sendall(data)
    assert client_of(daemon).get("status")["daemon"]["is_ready"]


@pytest.mark.parametrize(
    ("method", "what", "body", "code"),
    [
        ("PATCH", "/localapi/v0/prefs", [1], 400),
        ("PATCH", "/localapi/v0/prefs", {"HostnameSet": True, "Hostname": 5}, 400),
        ("PATCH", "/localapi/v0/prefs", {"AdvertiseRoutesSet": True, "AdvertiseRoutes": ["x"]}, 400),
        ("PATCH", "/localapi/v0/prefs", {"RunWebClientSet": True, "RunWebClient": True}, 501),
        ("PATCH", "/localapi/v0/prefs", {"RunSSHSet": True, "RunSSH": "yes"}, 400),
        ("PATCH", "/localapi/v0/prefs", {"ExitNodeIDSet": True, "ExitNodeID": "nobody"}, 400),
        ("POST", "/localapi/v0/start", {"UpdatePrefs": {"Hostname": [1]}}, 400),
        ("POST", "/localapi/v0/ping?ip=db&type=smoke", None, 400),
        ("POST", "/localapi/v0/ping?ip=db&size=x", None, 400),
        ("GET", "/localapi/v0/whois?addr=", None, 400),
        ("GET", "/localapi/v0/whois?addr=1.2.3.4", None, 404),
        ("GET", "/localapi/v0/watch-ipn-bus?mask=x", None, 400),
        ("GET", "/localapi/v0/dns-query?name=db&type=ZZZ", None, 400),
        ("GET", "/localapi/v0/../../etc/passwd", None, 404),
        ("GET", "/localapi/v0/cert/x", None, 500),
        ("PUT", "/localapi/v0/file-put/x/y", None, 404),
        ("DELETE", "/localapi/v0/status", None, 405),
        ("GET", "log?level=loud", None, 400),
        ("GET", "log?backlog=x", None, 400),
        ("GET", "status?watch=0", None, 400),
        ("GET", "status?watch=nan", None, 400),
        ("GET", "whois?address=x", None, 400),
        ("POST", "up", {"nonsense": 1}, 400),
    ],
)
def test_wrong_questions_are_answered_with_a_reason(
    client: Client, method: str, what: str, body: Any, code: int
) -> None:
    with pytest.raises(DaemonError) as caught:
        client.ask(method, what, body)
    assert (caught.value.status, bool(str(caught.value))) == (code, True)
    assert client.get("status")["daemon"]["is_ready"]


def test_a_body_too_long_is_refused(client: Client) -> None:
    with pytest.raises(DaemonError, match="a body of more than"):
        client.ask("PATCH", "/localapi/v0/prefs", {"x": "y" * (2 << 20)})


# Many


@pytest.mark.slow
def test_a_hundred_clients_at_once_are_served(daemon: Daemon) -> None:
    client, failures = client_of(daemon), []

    def ask() -> None:
        told = [client.get("/localapi/v0/status")["BackendState"] for _ in range(5)]
        failures.extend(state for state in told if state != "Running")

    threads = [threading.Thread(target=ask) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not failures
    assert daemon.door.statistics().open <= CONNECTIONS


def flood(path: str, count: int) -> None:
    """So many requests over one connection, sent ahead."""
    batch = 500
    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout(PATIENCE)
        door.connect(path)
        for _ in range(count // batch):
            door.sendall((HELLO.replace(b"/status", b"/status?peers=false") + b"\r\n") * batch)
            seen, rest = 0, b""
            while seen < batch:
                rest += door.recv(1 << 18)
                seen += rest.count(b"\r\n\r\n")
                rest = rest[rest.rfind(b"\r\n\r\n") + 4 :] if b"\r\n\r\n" in rest else rest[-3:]


@pytest.mark.slow
def test_a_thousand_requests_on_one_connection_leave_nothing(daemon: Daemon) -> None:
    flood(daemon.places.socket, 1000)
    assert client_of(daemon).get("status")["daemon"]["is_ready"]


# A cancel scope that has ended stays in trio's heap of deadlines until a thousand such have gathered, and twice as many
# as are alive: each is one scope and one entry of the heap, and all that a flood may leave.
ENDED_SCOPES = 1000 + 2 * 100


def objects_by_kind() -> Counter[str]:
    gc.collect()
    return Counter(type(each).__name__ for each in gc.get_objects())


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_hundred_thousand_requests_leave_nothing(daemon: Daemon) -> None:
    flood(daemon.places.socket, 2_000)
    before = objects_by_kind()
    flood(daemon.places.socket, 100_000)
    grown = objects_by_kind() - before
    scopes, entries = grown.pop("CancelScope", 0), grown.pop("tuple", 0)
    assert scopes <= ENDED_SCOPES
    assert entries <= scopes + 100
    assert grown.total() < 100, grown.most_common(5)  # a thousandth of an object for each


async def test_a_client_that_stops_reading_is_told_what_it_missed(tmp_path: Path) -> None:
    """The events wait in the stream's own queue: bounded, and what was dropped is counted in its place."""
    stream = EventStream()
    routes, path = Routes(), str(tmp_path / "s.sock")

    async def events(_: Question) -> Answer:
        await trio.lowlevel.checkpoint()

        async def values() -> Any:
            async for event in stream:
                yield {"event": type(event).__name__, "missed": getattr(event, "missed", 0), "padding": "x" * 4000}

        return lines_answer(values())

    routes.add("GET", "/events", events)
    async with trio.open_nursery() as nursery:
        await nursery.start(Door(UnixTransport(path), routes).run)
        async with await trio.open_unix_socket(path) as reader:
            await reader.send_all(b"GET /events HTTP/1.0\r\n\r\n")
            for _ in range(200):  # until it is stuck: the kernel's buffers are full, and nobody reads
                for _ in range(QUEUE_LIMIT // 4):
                    stream.put(RelayChanged("x", True))
                await trio.testing.wait_all_tasks_blocked()
            got = b""
            while b"Lagged" not in got:
                got += await reader.receive_some(1 << 20)
            line = next(line for line in got.split(b"\n") if b"Lagged" in line)
            assert json.loads(line)["missed"] > QUEUE_LIMIT
        nursery.cancel_scope.cancel()


# What others wrote


def test_names_and_texts_of_others_cannot_command_a_terminal_or_a_page() -> None:
    answer = json_answer({"name": "db\x1b]0;gotcha\x07", "health": "<script>alert(1)</script>\u202e"})
    assert isinstance(answer.body, bytes)
    assert answer.body == (b'{"name": "db\\u001b]0;gotcha\\u0007", "health": "<script>alert(1)</script>\\u202e"}\n')
    assert answer.kind == "application/json"  # and nosniff goes with it: no browser takes it for a page


def test_answers_are_marked_as_not_to_be_guessed_at(daemon: Daemon) -> None:
    answer = talk(daemon.places.socket, HELLO + b"Connection: close\r\n\r\n").lower()
    assert b"\r\nx-content-type-options: nosniff\r\n" in answer
    assert b"tailscale-version" not in answer


# Loopback, for systems without Unix sockets


async def test_loopback_serves_those_who_can_read_the_token(tmp_path: Path) -> None:
    path = str(tmp_path / "s.sock")
    routes, transport = Routes(), LoopbackTransport(path)

    async def hello(_: Question) -> Answer:
        await trio.lowlevel.checkpoint()
        return json_answer("hello")

    routes.add("GET", "/pytailscale/v1/hello", hello)
    async with trio.open_nursery() as nursery:
        await nursery.start(Door(transport, routes).run)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert await trio.to_thread.run_sync(Client(path).get, "hello") == "hello"
        note = json.loads(Path(path).read_text())
        for head, code in (
            (b"", b"401"),
            (b"Authorization: Bearer wrong\r\n", b"401"),
            (b"Host: evil.example\r\nAuthorization: Bearer %b\r\n" % note["token"].encode(), b"403"),
            (b"Origin: http://evil.example\r\nAuthorization: Bearer %b\r\n" % note["token"].encode(), b"403"),
        ):
            async with await trio.open_tcp_stream("127.0.0.1", note["port"]) as stream:
                await stream.send_all(b"GET /pytailscale/v1/hello HTTP/1.0\r\n" + head + b"\r\n")
                assert status_line(await stream.receive_some()) == code
        nursery.cancel_scope.cancel()
    assert not os.path.exists(path)


def test_a_whole_daemon_lives_on_loopback(net: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from tailscale.cli import main

    where = places(tmp_path)
    with net.daemon(tmp_path, transport=LoopbackTransport(where.socket)):
        assert main(["ip", "--state", str(tmp_path), "db"]) == 0
        assert capfd.readouterr().out.startswith("100.64.0.1\n")


def test_log_on_a_full_disk_costs_lines_and_nothing_else() -> None:
    import logging

    from tailscale.daemon.log import DaemonLog

    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    log = DaemonLog("/dev/full")
    with log.running():
        for _ in range(3):
            logging.getLogger("tailscale.daemon").warning("hello")
    assert log.statistics().lost == 3


def test_log_is_turned_over_before_it_grows_large(tmp_path: Path) -> None:
    import logging

    from tailscale.daemon.log import DaemonLog

    log = DaemonLog(str(tmp_path / "d.log"), size=2000, files=2)
    with log.running():
        for number in range(100):
            logging.getLogger("tailscale.daemon").warning("line %d", number)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["d.log", "d.log.1", "d.log.2"]
    assert all(path.stat().st_size <= 2000 for path in tmp_path.iterdir())
    assert (tmp_path / "d.log").read_text().endswith("line 99\n")


async def test_log_reader_that_stops_is_told_what_it_missed() -> None:
    import logging

    from tailscale.daemon.log import QUEUE_LIMIT as LINES
    from tailscale.daemon.log import DaemonLog

    log = DaemonLog(None)
    with log.running(), log.follow(logging.INFO, 0) as reader:
        for _ in range(LINES + 5):
            logging.getLogger("tailscale.daemon").warning("hello")
        assert await reader.next() == {"event": "Lagged", "missed": 5}
        assert (await reader.next())["message"] == "hello"
    assert log.statistics().lagged == 5


@pytest.mark.parametrize(
    ("answer", "heard"),
    [
        (b'HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n{"pid":7}', {"pid": 7}),
        (b"HTTP/1.0 200 OK\r\nCont", None),
        (b"", None),
    ],
)
def test_an_answer_that_came_whole_is_believed_whatever_the_end(
    tmp_path: Path, answer: bytes, heard: dict[str, int] | None
) -> None:
    """A daemon that ends resets those it has not read to the end: the question here."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        def answer_and_end() -> None:
            caller, _ = server.accept()
            with caller:
                caller.recv(1)
                caller.sendall(answer)

        thread = threading.Thread(target=answer_and_end)
        thread.start()
        if heard is None:
            with pytest.raises(DaemonAbsent, match="hung up"):
                Client(path).post("stop")
        else:
            assert Client(path).post("stop") == heard
        thread.join()
