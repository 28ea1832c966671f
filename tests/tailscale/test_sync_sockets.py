"""Sockets of plain threads: without a descriptor until one is asked for, and the same bytes in the same order after."""

from __future__ import annotations

import contextlib
import errno
import gc
import random
import select
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator

import pytest
import trustme
from thread_scripts import introduce, is_busy, our_threads

from tailscale import sync
from tailscale.testing.threaded import TailnetThread

MIB = 1 << 20
Pair = tuple[sync.Device, sync.Device]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    before = our_threads()
    with TailnetThread() as net:
        left, right = (sync.Device(name, **net.options()) for name in ("left", "right"))
        with left, right:
            introduce(left, right)
            yield left, right
            for device in (left, right):
                while is_busy(device):
                    time.sleep(0.005)
    assert our_threads() == before


@contextlib.contextmanager
def both_ends(pair: Pair) -> Iterator[tuple[socket.socket, socket.socket]]:
    with pair[1].listen(0) as door, pair[0].connect("right", door.port, timeout=10) as near:
        far, _ = door.accept()
        far.settimeout(10)
        with far:
            yield near, far


def read_exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(min(65536, size - len(data)))
        assert piece
        data += piece
    return bytes(data)


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def is_real(sock: socket.socket) -> bool:
    return "fd=" in repr(sock)


def test_plain_use_needs_no_descriptor(pair: Pair) -> None:
    with both_ends(pair) as (near, far):
        near.sendall(bytearray(b"one"))
        near.sendall(memoryview(b"two"))
        assert near.send(b"") == 0
        assert near.sendmsg([b"th", b"ree"]) == 5
        assert read_exactly(far, 4) == b"onet"
        buffer = bytearray(7)
        assert far.recv_into(memoryview(buffer)[:2]) == 2
        assert far.recv(0) == b""
        assert bytes(buffer[:2]) + read_exactly(far, 5) == b"wothree"
        with far.makefile("rwb") as file:
            near.sendall(b"line\nrest")
            assert file.readline() == b"line\n"
            file.write(b"written")
            file.flush()
            assert read_exactly(near, 7) == b"written"
            near.shutdown(socket.SHUT_WR)
            assert file.read() == b"rest"
        assert (near.getblocking(), near.gettimeout(), near.timeout) == (True, 10, 10)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
        assert near.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
        assert (near.family, near.type, near.proto) == (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        with pytest.raises(BrokenPipeError):
            near.sendall(b"after the end")
        assert not is_real(near)
        assert not is_real(far)


def test_a_descriptor_may_be_asked_for_with_bytes_on_their_way(pair: Pair) -> None:
    dice = random.Random(4)
    for which in ("near", "far", "both"):
        with both_ends(pair) as (near, far):
            out, back = dice.randbytes(3 * MIB), dice.randbytes(3 * MIB)
            writers = [in_thread(lambda: near.sendall(out)), in_thread(lambda: far.sendall(back))]  # noqa: B023
            assert read_exactly(far, 100_000) == out[:100_000]
            assert read_exactly(near, 100_000) == back[:100_000]
            if which != "far":
                assert near.fileno() >= 0
            if which != "near":
                assert far.fileno() >= 0
            got: list[bytes] = []
            readers = [in_thread(lambda: got.append(read_exactly(far, len(out) - 100_000)))]  # noqa: B023
            assert read_exactly(near, len(back) - 100_000) == back[100_000:]
            for thread in (*writers, *readers):
                thread.join(10)
            assert got == [out[100_000:]]
            near.shutdown(socket.SHUT_WR)
            assert far.recv(1) == b""
            far.close()
            assert near.recv(1) == b""


def test_a_second_descriptor_is_of_the_same_connection(pair: Pair) -> None:
    with both_ends(pair) as (near, far):
        with near.dup() as other:
            assert (other.getpeername(), other.gettimeout()) == (near.getpeername(), near.gettimeout())
            near.close()
            other.sendall(b"still here")
            assert read_exactly(far, 10) == b"still here"
        assert far.recv(1) == b""


def test_who_waits_goes_on_waiting_when_it_becomes_real(pair: Pair) -> None:
    with both_ends(pair) as (near, far):
        got: list[bytes] = []
        waiting = in_thread(lambda: got.append(near.recv(10)))
        time.sleep(0.01)
        assert select.select([near], [near], [], 0)[:2] == ([], [near])
        assert is_real(near)
        assert near.gettimeout() == 10
        far.sendall(b"still")
        waiting.join(10)
        assert got == [b"still"]
        far.shutdown(socket.SHUT_WR)
        assert select.select([near], [], [], 10)[0] == [near]


def test_waiting_ends_in_time_or_not_at_all(pair: Pair) -> None:
    with both_ends(pair) as (near, _far):
        near.settimeout(0.01)
        with pytest.raises(TimeoutError):
            near.recv(1)
        near.setblocking(False)
        with pytest.raises(BlockingIOError):
            near.recv(1)
        sent = 0
        with pytest.raises(BlockingIOError):
            while sent < 128 * MIB:
                sent += near.send(bytes(MIB))
        assert sent < 64 * MIB
        near.settimeout(0.02)
        with pytest.raises(TimeoutError):
            for _ in range(128):
                near.sendall(bytes(MIB))
        assert not is_real(near)
        with pytest.raises(ValueError, match="out of range"):
            near.settimeout(-1)


def test_closing_wakes_who_waits_and_closed_is_closed(pair: Pair) -> None:
    with both_ends(pair) as (near, far):
        failed: list[int | None] = []

        def wait() -> None:
            try:
                far.recv(1)
            except OSError as error:
                failed.append(error.errno)

        waiting = in_thread(wait)
        time.sleep(0.01)
        far.close()
        waiting.join(10)
        assert failed == [errno.EBADF]
        assert far.fileno() == -1
        assert near.recv(1) == b""


def test_a_reset_is_told_to_readers_and_writers(pair: Pair) -> None:
    with both_ends(pair) as (near, far):
        far.sendall(b"last words")
        pair[1].ping("left", "icmp")  # which travels behind it
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        far.close()
        assert near.recv(100) == b"last words"
        with pytest.raises(ConnectionResetError):
            near.recv(1)
        with pytest.raises(ConnectionResetError):
            near.sendall(b"x")
        with pytest.raises(OSError):
            near.shutdown(socket.SHUT_WR)


def test_tls_is_spoken_over_them(pair: Pair) -> None:
    authority = trustme.CA()
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("right").configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)
    with both_ends(pair) as (near, far):

        def answer() -> None:
            with server_side.wrap_socket(far, server_side=True) as secured:
                secured.sendall(secured.recv(100)[::-1])

        serving = in_thread(answer)
        with client_side.wrap_socket(near, server_hostname="right") as secured:
            secured.sendall(b"secret")
            assert secured.recv(100) == b"terces"
            assert secured.getpeername()[1] > 0
        serving.join(10)


def test_a_lost_socket_is_closed_and_warned_of(pair: Pair) -> None:
    with both_ends(pair) as (_near, far):
        lost = pair[0].connect("right", far.getsockname()[1])
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            del lost
            gc.collect()
        assert [str(one.message) for one in said] == [
            f"unclosed <TailnetSocket to {far.getsockname()[0]} port {far.getsockname()[1]}>"
        ]


def test_a_listener_may_become_real_with_callers_before_it(pair: Pair) -> None:
    left, right = pair
    with right.listen(0) as door:
        first, second = (left.connect("right", door.port, timeout=10) for _ in range(2))
        first.sendall(b"first")
        left.ping("right", "icmp")  # which travels behind them
        assert select.select([door], [], [], 10)[0] == [door]
        third = left.connect("right", door.port, timeout=10)
        callers = []
        for caller in (first, second, third):
            accepted, address = door.accept()
            callers.append(address)
            assert address == caller.getsockname()
            who = right.caller_at(accepted.getpeername(), accepted.getsockname())
            assert who is not None
            assert who.node.hostname == "left"
            with accepted, caller:
                caller.sendall(b" words")
                expected = b"first words" if caller is first else b" words"
                accepted.settimeout(10)
                assert read_exactly(accepted, len(expected)) == expected
        assert len(set(callers)) == 3


def test_a_listener_waits_as_long_as_it_is_told(pair: Pair) -> None:
    with pair[1].listen(0) as door:
        door.settimeout(0.01)
        with pytest.raises(TimeoutError):
            door.accept()
        door.setblocking(False)
        with pytest.raises(BlockingIOError):
            door.accept()
        assert door.fileno() >= 0
        assert (door.gettimeout(), door.getblocking()) == (0, False)


def test_a_device_that_closes_tells_its_sockets(pair: Pair) -> None:
    with TailnetThread() as net:
        with sync.Device("one", **net.options()) as one, sync.Device("two", **net.options()) as two:
            introduce(one, two)
            door = two.listen(0)
            near = one.connect("two", door.port, timeout=10)
            far, _ = door.accept()
            near.sendall(bytes(MIB))
            one.close()
            assert read_exactly(far, MIB) == bytes(MIB)
            with pytest.raises(ConnectionResetError):
                near.recv(1)
            assert near.fileno() >= 0  # one that is broken
            with pytest.raises(ConnectionResetError):
                near.recv(1)
            two.close()
            with pytest.raises(OSError):
                door.accept()
            for sock in (near, far, door):
                sock.close()
