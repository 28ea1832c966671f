"""`take_dials`: what a program dials in the tailnet is carried, by whatever library; all else goes as before."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import http.client
import logging
import select
import smtplib
import socket
import ssl
import threading
import urllib.error
import urllib.request
from asyncio.proactor_events import BaseProactorEventLoop
from asyncio.selector_events import BaseSelectorEventLoop
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from thread_scripts import introduce

import tailscale
from tailscale import NotCarried, aio, sync
from tailscale.testing.threaded import TailnetThread
from tailscale.threads.face import thread_of

Pair = tuple[sync.Device, sync.Device]
REPLACED: list[tuple[Any, str]] = [
    *((socket, name) for name in ("getaddrinfo", "gethostbyname")),
    *((socket.socket, name) for name in ("connect", "connect_ex", "getpeername", "getsockname")),
    *((loop, "sock_connect") for loop in (BaseSelectorEventLoop, BaseProactorEventLoop)),
]
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def as_it_is() -> list[object]:
    """What stands in each place, and whether a class has it itself."""
    return [(getattr(owner, name), vars(owner).get(name)) for owner, name in REPLACED]


@pytest.fixture(scope="module")
def net() -> Iterator[TailnetThread]:
    with TailnetThread() as net:
        yield net


@pytest.fixture(scope="module")
def pair(net: TailnetThread) -> Iterator[Pair]:
    with sync.Device("left", **net.options()) as left, sync.Device("right", **net.options()) as right:
        introduce(left, right)
        yield left, right


@contextlib.contextmanager
def answering(listener: socket.socket, answer: Callable[[bytes], bytes] = lambda data: data) -> Iterator[int]:
    """A server of single questions: an echo unless told otherwise."""

    def attend(sock: socket.socket) -> None:
        with sock, contextlib.suppress(ConnectionError):
            sock.sendall(answer(sock.recv(1000)))

    def serve() -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                threading.Thread(target=attend, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.fixture(scope="module")
def echo(pair: Pair) -> Iterator[int]:
    with answering(pair[1].listen(7100)) as port:
        yield port


@pytest.fixture(scope="module")
def site(pair: Pair) -> Iterator[int]:
    with answering(pair[1].listen(80), lambda _: ANSWER) as port:
        yield port


def said_by(sock: socket.socket, word: bytes = b"hello") -> bytes:
    with sock:
        sock.sendall(word)
        return sock.recv(100)


# --- carried --------------------------------------------------------------------------------------


def test_names_and_addresses_are_reached_by_the_standard_library(pair: Pair, site: int) -> None:
    left, right = pair
    before = as_it_is()
    with left.take_dials():
        for host in ("right", "RIGHT.", "right.tailnet.test", right.ipv4, f"[{right.ipv6}]"):
            assert urllib.request.urlopen(f"http://{host}/").read() == b"ok"
        connection = http.client.HTTPConnection("right", timeout=10)
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"ok"
        connection.close()
    assert as_it_is() == before


def test_a_socket_shows_the_addresses_of_the_tailnet(pair: Pair, echo: int) -> None:
    left, right = pair
    with left.take_dials(), socket.create_connection(("right", echo), timeout=10) as sock:
        assert sock.getpeername() == (right.ipv4, echo)
        assert sock.getsockname()[0] == left.ipv4
        assert sock.gettimeout() == 10
        with socket.socket(socket.AF_INET6) as six:
            six.connect((right.ipv6, echo))
            assert six.getpeername() == (right.ipv6, echo, 0, 0)
            assert said_by(six) == b"hello"
        with socket.socket(socket.AF_INET6) as mapped:
            mapped.connect((f"::ffff:{right.ipv4}", echo))
            assert said_by(mapped) == b"hello"
        assert said_by(sock) == b"hello"
    with left.take_dials(), contextlib.closing(socket.socket()) as sock:
        sock.bind(("", 0))
        port = sock.getsockname()[1]
        sock.connect(("right", echo))
        assert sock.getsockname() == (left.ipv4, port)


def test_names_have_the_tailnets_addresses(pair: Pair) -> None:
    left, right = pair
    with left.take_dials():
        stream = socket.SOCK_STREAM
        assert socket.getaddrinfo("right", "http", type=stream)[0] == (2, stream, 6, "", (right.ipv4, 80))
        assert socket.getaddrinfo(b"right", 80, socket.AF_INET6, stream)[0][4] == (right.ipv6, 80, 0, 0)
        assert {found[0] for found in socket.getaddrinfo("right", None)} == {socket.AF_INET}
        assert socket.gethostbyname("right") == right.ipv4
        with pytest.raises(socket.gaierror):
            socket.getaddrinfo("right", "no-such-service")


def test_tls_over_a_socket_that_is_wrapped_first(pair: Pair) -> None:
    left, right = pair
    authority = trustme.CA()
    theirs, ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("right").configure_cert(theirs)
    authority.configure_trust(ours)

    def serve() -> None:
        sock, _ = listener.accept()
        with theirs.wrap_socket(sock, server_side=True) as tls:
            tls.sendall(tls.recv(100))

    with right.listen(0) as listener, left.take_dials():
        thread = threading.Thread(target=serve)
        thread.start()
        with ours.wrap_socket(socket.socket(), server_hostname="right") as tls:
            tls.connect(("right", listener.port))
            assert tls.getpeername()[0] == right.ipv4
            assert said_by(tls) == b"hello"
        thread.join()


def test_mail_is_sent_by_name(pair: Pair) -> None:
    left, right = pair
    heard: list[bytes] = []

    def serve() -> None:
        sock, _ = listener.accept()
        with sock, sock.makefile("rb") as lines:
            sock.sendall(b"220 right\r\n")
            is_data = False
            for line in lines:
                heard.append(line)
                word = line.strip().upper()
                is_data = (is_data or word == b"DATA") and word != b"."
                if not is_data or word == b"DATA":
                    sock.sendall({b"DATA": b"354 go\r\n", b"QUIT": b"221 bye\r\n"}.get(word, b"250 ok\r\n"))

    with right.listen(25) as listener, left.take_dials():
        thread = threading.Thread(target=serve)
        thread.start()
        with smtplib.SMTP("right", timeout=10, local_hostname="left") as mail:
            mail.sendmail("a@left", ["b@right"], "Subject: hello\n\nhello\n")
        thread.join()
    assert b"hello\r\n" in heard


def test_asyncio_waits_for_the_dial(pair: Pair, echo: int) -> None:
    left, right = pair

    async def main() -> None:
        for host in ("right", right.ipv4, right.ipv6):
            reader, writer = await asyncio.open_connection(host, echo)
            assert writer.get_extra_info("peername")[:2] == (right.ipv6 if host == right.ipv6 else right.ipv4, echo)
            writer.write(b"hello")
            assert await reader.read() == b"hello"
            writer.close()
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, ("right", echo))
            await loop.sock_sendall(sock, b"hello")
            assert await loop.sock_recv(sock, 100) == b"hello"
        with pytest.raises(tailscale.ConnectionRefused, match="nothing listens on that port"):
            await asyncio.open_connection("right", 9)
        with pytest.raises(tailscale.NameNotFound, match="did you mean 'right'"):
            await asyncio.open_connection("rigth", 80)

    with left.take_dials():
        asyncio.run(main())


def test_device_for_asyncio_takes_dials_too(net: TailnetThread, pair: Pair, echo: int) -> None:
    async def main() -> None:
        async with aio.Device("taker", **net.options()) as device:
            await asyncio.to_thread(introduce, *pair)
            with device.take_dials():
                async with asyncio.timeout(10):
                    while not device.known_way("right"):  # noqa: ASYNC110 - no event is of this one name
                        await asyncio.sleep(0.01)
                    reader, writer = await asyncio.open_connection("right", echo)
                writer.write(b"hello")
                assert await reader.read() == b"hello"
                writer.close()
                assert said_by(socket.create_connection(("right", echo))) == b"hello"

    asyncio.run(main())


def test_cancelled_dial_in_asyncio_leaves_nothing(pair: Pair, echo: int) -> None:
    left, _ = pair

    async def main() -> None:
        for _ in range(3):
            dialling = asyncio.ensure_future(asyncio.open_connection("right", echo))
            await asyncio.sleep(0)
            dialling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dialling

    with left.take_dials():
        asyncio.run(main())
        assert said_by(socket.create_connection(("right", echo))) == b"hello"


def test_socket_that_does_not_wait_is_connected_behind(pair: Pair, echo: int, caplog: pytest.LogCaptureFixture) -> None:
    left, right = pair
    with left.take_dials(), socket.socket() as sock:
        sock.setblocking(False)
        assert sock.connect_ex((right.ipv4, echo)) == errno.EINPROGRESS
        assert select.select([], [sock], [], 10)[1] == [sock]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        sock.setblocking(True)
        assert said_by(sock) == b"hello"
    with left.take_dials(), socket.socket() as sock, caplog.at_level(logging.WARNING):
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.connect((right.ipv4, 9))
        assert select.select([sock], [], [], 10)[0] == [sock]
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert "port 9 could not be reached: 100.64" in caplog.text
    assert "nothing listens on that port" in caplog.text


def test_streams_of_trio_are_carried_behind(pair: Pair, echo: int) -> None:
    async def main() -> bytes:
        async with await trio.open_tcp_stream("right", echo) as stream:
            await stream.send_all(b"hello")
            return bytes(await stream.receive_some())

    with pair[0].take_dials():
        assert trio.run(main) == b"hello"


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://rigth/", "did you mean 'right'"),
        ("http://rigth.tailnet.test/", "did you mean 'right'"),
        ("http://right:9/", "nothing listens on that port"),
        ("http://100.64.99.99/", "no peer owns or routes 100.64.99.99"),
        ("http://[fd7a:115c:a1e0::9999]/", "no peer owns or routes fd7a:115c:a1e0::9999"),
    ],
)
def test_failures_are_the_devices_own(pair: Pair, url: str, sentence: str) -> None:
    with pair[0].take_dials(), pytest.raises(urllib.error.URLError, match=sentence) as caught:
        urllib.request.urlopen(url, timeout=10)
    assert isinstance(caught.value.reason, OSError)


def test_connect_ex_returns_what_the_dial_met(pair: Pair) -> None:
    with pair[0].take_dials(), socket.socket() as sock:
        assert sock.connect_ex(("right", 9)) == errno.ECONNREFUSED


def test_datagrams_are_refused_by_a_sentence(pair: Pair) -> None:
    left, right = pair
    with left.take_dials(), socket.socket(type=socket.SOCK_DGRAM) as sock:
        with pytest.raises(NotCarried, match=r"use device\.udp"):
            sock.connect((right.ipv4, 53))
        with pytest.raises(NotCarried, match=r"use device\.udp"):
            socket.getaddrinfo("right", 53, type=socket.SOCK_DGRAM)


def test_socket_that_is_bound_elsewhere_is_refused(pair: Pair) -> None:
    with pair[0].take_dials(), socket.socket() as sock:
        sock.bind(("127.0.0.2", 0))
        with pytest.raises(NotCarried, match=r"bound to 127\.0\.0\.2"):
            sock.connect((pair[1].ipv4, 80))


def test_connected_socket_is_left_to_the_kernels_words(pair: Pair, echo: int) -> None:
    with pair[0].take_dials(), socket.create_connection(("right", echo)) as sock:
        with pytest.raises(OSError) as caught:
            sock.connect(("right", echo))
        assert caught.value.errno == errno.EISCONN


def test_another_device_is_refused(pair: Pair) -> None:
    left, right = pair
    with left.take_dials():
        with pytest.raises(tailscale.DialsTaken, match="taken by 'left' already"):
            right.take_dials()
    with right.take_dials():
        pass


def test_device_that_is_not_open_takes_nothing(net: TailnetThread) -> None:
    before = as_it_is()
    with pytest.raises(tailscale.DeviceNotReady):
        sync.Device("never", **net.options()).take_dials()
    assert as_it_is() == before


def test_closed_device_keeps_the_tailnets_dials_and_says_so(net: TailnetThread, pair: Pair, echo: int) -> None:
    _, right = pair
    device = sync.Device("brief", **net.options()).open()
    introduce(device, right)
    with device.take_dials():
        assert said_by(socket.create_connection(("right", echo))) == b"hello"
        device.close()
        for host in ("right", "right.tailnet.test", right.ipv4, "100.64.99.99"):
            with pytest.raises(NotCarried, match=r"'brief' takes this program's dials .* has been closed"):
                socket.create_connection((host, echo), timeout=10)
        with pytest.raises(NotCarried), socket.socket() as sock:
            sock.setblocking(False)
            sock.connect((right.ipv4, echo))
        with answering(socket.create_server(("127.0.0.1", 0))) as port:
            assert said_by(socket.create_connection(("localhost", port))) == b"hello"


# --- everything else ------------------------------------------------------------------------------


def outcome(dial: Callable[[], object]) -> object:
    try:
        return dial()
    except Exception as error:
        return type(error), str(error)


def refused_later() -> object:
    with socket.socket() as sock:
        sock.setblocking(False)
        begun = sock.connect_ex(("127.0.0.1", 9))
        select.select([], [sock], [], 10)
        return begun, sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def by_unix(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        return said_by(sock)


async def by_asyncio(port: int) -> object:
    reader, writer = await asyncio.open_connection("localhost", port, family=socket.AF_INET)
    writer.write(b"hello")
    heard = await reader.read(), writer.get_extra_info("peername")
    writer.close()
    return heard


async def by_trio(port: int) -> bytes:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"hello")
        return bytes(await stream.receive_some())


def bound_first(port: int) -> object:
    with socket.create_connection(("127.0.0.1", port), timeout=7, source_address=("127.0.0.3", 0)) as sock:
        return sock.getsockname()[0], sock.gettimeout(), sock.getpeername()


def dials_of_all_kinds(four: int, six: int, path: Path) -> dict[str, Callable[[], object]]:
    def connect(family: int, kind: int, address: Any) -> object:
        with socket.socket(family, kind) as sock:
            return sock.connect(address), sock.getpeername()

    four_, stream, datagram = socket.AF_INET, socket.SOCK_STREAM, socket.SOCK_DGRAM
    return {
        "by name": lambda: said_by(socket.create_connection(("localhost", four), timeout=5)),
        "bound, with a timeout": lambda: bound_first(four),
        "IPv6": lambda: said_by(socket.create_connection(("::1", six))),
        "IPv6 with a zone": lambda: connect(socket.AF_INET6, stream, ("::1%lo", six)),
        "Unix": lambda: by_unix(path),
        "refused": lambda: connect(four_, stream, ("127.0.0.1", 9)),
        "refused, not waited for": refused_later,
        "refused, as a number": lambda: socket.socket().connect_ex(("127.0.0.1", 9)),
        "datagrams": lambda: connect(four_, datagram, ("127.0.0.1", four)),
        "no address": lambda: connect(four_, stream, "localhost"),
        "no port": lambda: connect(four_, stream, ("127.0.0.1", "80")),
        "a port beyond": lambda: connect(four_, stream, ("127.0.0.1", 65536)),
        "of another family": lambda: connect(four_, stream, ("::1", six)),
        "bytes": lambda: connect(four_, stream, (b"127.0.0.1", four)),
        "no such name": lambda: connect(four_, stream, ("xyzzy.invalid", 80)),
        "looked up": lambda: socket.getaddrinfo("localhost", "http", type=stream),
        "looked up for nobody": lambda: socket.getaddrinfo(None, 80, flags=socket.AI_PASSIVE),
        "looked up as a number": lambda: socket.getaddrinfo("127.1", 80),
        "looked up by old words": lambda: socket.gethostbyname("localhost"),
        "looked up wrongly": lambda: socket.getaddrinfo("localhost", "no-such-service"),
        "unconnected": lambda: socket.socket().getpeername(),
        "unbound": lambda: socket.socket().getsockname(),
        "asyncio": lambda: asyncio.run(by_asyncio(four)),
        "asyncio, refused": lambda: asyncio.run(by_asyncio(9)),
        "trio": lambda: trio.run(by_trio, four),
    }


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_other_dials_go_exactly_as_before(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "door"
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(path))
    unix.listen()
    with (
        answering(socket.create_server(("127.0.0.1", 0))) as four,
        answering(socket.create_server(("::1", 0), family=socket.AF_INET6)) as six,
        answering(unix),
    ):
        dials = dials_of_all_kinds(four, six, path)
        plainly = {name: outcome(dial) for name, dial in dials.items()}
        with pair[0].take_dials():
            assert {name: outcome(dial) for name, dial in dials.items()} == plainly


def test_other_dials_do_not_wait_for_the_device(pair: Pair) -> None:
    """Its thread may be busy with a transfer, or held up by somebody."""
    thread, held, let_go = thread_of(pair[0]), threading.Event(), threading.Event()
    with pair[0].take_dials(), answering(socket.create_server(("127.0.0.1", 0))) as port:
        thread.call_soon(lambda: held.set() or let_go.wait(10))
        assert held.wait(10)
        try:
            assert said_by(socket.create_connection(("localhost", port))) == b"hello"
            assert not pair[0].known_way("192.0.2.1")
            assert not pair[0].known_way("example.com")
        finally:
            let_go.set()


def test_dials_of_the_device_itself_are_not_the_programs(pair: Pair) -> None:
    async def look_up() -> object:
        return await trio.to_thread.run_sync(outcome, lambda: socket.getaddrinfo("right", 80))

    with pair[0].take_dials():
        found = thread_of(pair[0]).submit(look_up).wait()
    assert isinstance(found, tuple)
    assert found[0] is socket.gaierror, "it was carried, or explained"


def test_exit_node_takes_all_but_this_machine(pair: Pair) -> None:
    left, _ = pair
    left.set(exit_node="nobody")
    try:
        with left.take_dials(), answering(socket.create_server(("127.0.0.1", 0))) as port:
            assert said_by(socket.create_connection(("localhost", port))) == b"hello"
            with pytest.raises(tailscale.NoRoute), socket.socket() as sock:
                sock.connect(("192.0.2.1", 80))
    finally:
        left.set(exit_node=None)


# --- given back -----------------------------------------------------------------------------------


def test_nested_takings_end_in_any_order(pair: Pair) -> None:
    left, before = pair[0], as_it_is()
    first, second = left.take_dials(), left.take_dials()
    first.close()
    first.close()
    assert socket.gethostbyname("right") == pair[1].ipv4
    second.close()
    assert as_it_is() == before
    with pytest.raises(RuntimeError, match="the program's"), left.take_dials(), left.take_dials():
        raise RuntimeError("the program's")
    assert as_it_is() == before


def test_what_others_have_put_over_ours_stays_theirs(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = as_it_is()
    with monkeypatch.context() as patch:
        dials = pair[0].take_dials()
        ours = socket.getaddrinfo

        def theirs(*args: Any, **options: Any) -> Any:
            return ours(*args, **options)

        patch.setattr(socket, "getaddrinfo", theirs)
        assert theirs("right", 80)
        dials.close()
        assert socket.getaddrinfo is theirs
        assert "socket.getaddrinfo was replaced by somebody else meanwhile" in caplog.text
        with pytest.raises(socket.gaierror):
            theirs("right", 80)
        assert theirs("localhost", 80)
        monkeypatch.setattr(socket, "getaddrinfo", before[0][0])  # type: ignore[index]
    socket.getaddrinfo = before[0][0]  # type: ignore[index]
    assert as_it_is() == before


def test_threads_dial_while_dials_are_taken_and_given_back(pair: Pair, echo: int) -> None:
    left = pair[0]
    before, is_over, wrong, carried = as_it_is(), threading.Event(), [], []

    def dial(host: str, port: int, timeout: float) -> None:
        while not is_over.is_set():
            try:
                assert said_by(socket.create_connection((host, port), timeout=timeout)) == b"hello"
                carried.append(host)
            except OSError as error:
                if (
                    host != "right"
                ):  # given back at that moment: no such name, or nobody there in this machine's network
                    wrong.append(error)

    with answering(socket.create_server(("127.0.0.1", 0), backlog=64)) as port:
        places = [("right", echo, 0.2), ("right", echo, 0.2), ("127.0.0.1", port, 10.0)]
        threads = [threading.Thread(target=dial, args=place) for place in places]
        for thread in threads:
            thread.start()
        while carried.count("right") < 10:
            with left.take_dials(), left.take_dials():
                assert said_by(socket.create_connection(("right", echo), timeout=10)) == b"hello"
        is_over.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert as_it_is() == before


def test_connections_outlive_the_taking(pair: Pair) -> None:
    left, right = pair
    with right.listen(0) as listener:
        with left.take_dials():
            sock = socket.create_connection(("right", listener.port))
        accepted, _ = listener.accept()
        with sock, accepted:
            sock.sendall(b"still there")
            assert accepted.recv(100) == b"still there"
