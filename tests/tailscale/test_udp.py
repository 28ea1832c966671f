"""Bursts over real loopback sockets: runs, segmentation, the plain path, rebinding."""

from __future__ import annotations

import errno
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import trio

from tailscale.runtime.udp import UNREACHABLE_LIMIT, HostSocket, HostUdp, Offloads
from tailscale.runtime.underlay import Underlay
from ts_base.who import RelayedRun
from ts_dataplane import geneve


class NoRelays:
    """Nothing here goes by a relay."""

    def send(self, runs: list[RelayedRun]) -> None:
        raise AssertionError(runs)


class Meddled:
    """The machine's socket, but for what a subclass makes of it."""

    def __init__(self, real: socket.socket) -> None:
        self.real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


@contextmanager
def meddling(udp: HostUdp, how: Callable[[socket.socket], Meddled]) -> Iterator[None]:
    """What `udp` writes by IPv4 meets `how` until the block ends."""
    held = udp._sockets[False]
    real = held._sock
    held._sock = how(real)  # type: ignore[assignment]
    yield
    held._sock = real


async def receive_all(udp: HostUdp, count: int, family: int = 0) -> list[bytes]:
    got: list[bytes] = []
    with trio.fail_after(5):
        while len(got) < count:
            for _, datagrams in await udp.readers()[family]():
                got += datagrams
    return got


async def test_runs_arrive_whole_and_in_order() -> None:
    a, b = HostUdp(0), HostUdp(0)
    sent = [bytes([i]) * 1300 for i in range(70)] + [b"short", b"\xff" * 1400, b"x"]
    a.send_many([(("127.0.0.1", b.local_port), sent)])
    assert await receive_all(b, len(sent)) == sent
    a.close()
    b.close()


async def test_ipv6_and_ipv4_share_a_port_and_keep_apart() -> None:
    a, b = HostUdp(0), HostUdp(0)
    a.send_many([(("::1", b.local_port), [b"six"]), (("127.0.0.1", b.local_port), [b"four"])])
    assert await receive_all(b, 1, 0) == [b"four"]
    assert await receive_all(b, 1, 1) == [b"six"]
    a.close()
    b.close()


async def test_what_a_device_cannot_carry_whole_is_not_offered_for_segmentation() -> None:
    """Cut for a relay, sealed when the path was direct: one such run must not end segmentation for everybody."""
    a, b = HostUdp(0), HostUdp(0)

    class Ethernet(Meddled):
        def sendmsg(self, buffers: list[bytes], options: list[tuple[int, int, bytes]], *rest: Any) -> int:
            if int.from_bytes(options[0][2], sys.byteorder) > 1472:
                raise OSError(errno.EINVAL, "segments larger than the device's MTU")
            return self.real.sendmsg(buffers, options, *rest)

    with meddling(a, Ethernet):
        sent = [b"l" * 20_000] * 3 + [b"s" * 1300] * 3
        a.send_many([(("127.0.0.1", b.local_port), sent)])
        assert await receive_all(b, len(sent)) == sent
        assert a.drops["underlay.segmentation_refused"] == 0
    a.close()
    b.close()


async def test_refused_segmentation_falls_back_to_single_sends() -> None:
    a, b = HostUdp(0), HostUdp(0)

    class Refusing(Meddled):
        def sendmsg(self, *_: object) -> int:
            raise OSError(errno.EIO, "no checksum offload")

    with meddling(a, Refusing):
        sent = [b"a" * 100] * 10
        a.send_many([(("127.0.0.1", b.local_port), sent)])
        assert await receive_all(b, 10) == sent
        assert a.statistics().offloads["segmentation"] is False
        assert a.drops["underlay.segmentation_refused"] == 1
    a.close()
    b.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux segments and joins datagrams")
async def test_offloads_that_control_forbids_are_not_used() -> None:
    a, b = HostUdp(0), HostUdp(0)
    written: list[int] = []

    class Seen(Meddled):
        def sendmsg(self, *args: Any) -> int:
            written.append(len(args[0][0]))
            return int(self.real.sendmsg(*args))

        def sendto(self, *args: Any) -> int:
            written.append(len(args[0]))
            return int(self.real.sendto(*args))

    def send(*sizes: int) -> list[int]:
        written.clear()
        a.send_many([(("127.0.0.1", b.local_port), [bytes(size) for size in sizes])])
        return list(written)

    with meddling(a, Seen):
        assert send(100, 100, 100) == [300]
        a.limit(Offloads(equal_tail=False))
        assert send(100, 100, 100) == [100, 100, 100]
        assert send(100, 100, 40) == [240]
        a.limit(Offloads(segmentation=False, coalescing=False))
        assert send(100, 100, 40) == [100, 100, 40]
        assert a.statistics().offloads == {"segmentation": False, "coalescing": False}
    a.rebind()
    assert a.statistics().offloads == {"segmentation": False, "coalescing": False}
    a.limit(Offloads())
    assert a.statistics().offloads == {"segmentation": True, "coalescing": True}
    a.close()
    b.close()


async def test_a_full_kernel_buffer_keeps_datagrams_until_it_drains() -> None:
    a, b = HostUdp(0), HostUdp(0)
    refusals = [2]

    class Busy(Meddled):
        def sendto(self, *args: Any) -> int:
            if refusals[0]:
                refusals[0] -= 1
                raise BlockingIOError
            return self.real.sendto(*args)

    with meddling(a, Busy):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.run_writers)
            for text in (b"one", b"two", b"three"):
                a.send_many([(("127.0.0.1", b.local_port), [text])])
            assert await receive_all(b, 3) == [b"one", b"two", b"three"]
            nursery.cancel_scope.cancel()
    a.close()
    b.close()


async def test_rebinding_keeps_the_port_and_the_waiting_reader() -> None:
    a, b = HostUdp(0), HostUdp(0)
    port = b.local_port
    got: list[bytes] = []
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            got.extend(await receive_all(b, 1))
            nursery.cancel_scope.cancel()

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        b.rebind()
        assert b.local_port == port
        a.send_many([(("127.0.0.1", port), [b"after"])])
    assert got == [b"after"]
    a.close()
    b.close()


async def test_sending_nowhere_is_counted_and_never_raises() -> None:
    a = HostUdp(0)
    a.send_many([(("127.0.0.1", 9), [b"x" * 70_000]), (("255.255.255.255", 9), [b"x"])])
    assert sum(a.drops.values()) == 2
    a.close()


async def test_a_port_in_use_falls_back_to_any_port() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 0))
        a = HostUdp(taken.getsockname()[1])
        assert a.local_port != taken.getsockname()[1]
        a.close()


class Failing(Meddled):
    """A socket whose sends end in one error."""

    def __init__(self, real: socket.socket, number: int) -> None:
        super().__init__(real)
        self._number = number

    def sendto(self, *_: object) -> int:
        raise OSError(self._number, "refused")

    sendmsg = sendto


@pytest.mark.parametrize(
    ("number", "is_told"),
    [(errno.ENETUNREACH, True), (errno.EHOSTUNREACH, True), (errno.EADDRNOTAVAIL, True), (errno.EPERM, False)],
)
async def test_where_the_host_has_no_route_to_is_told_once(number: int, is_told: bool) -> None:
    a = HostUdp(0)
    with meddling(a, partial(Failing, number=number)):
        underlay = Underlay(a, NoRelays())
        place = ("192.0.2.7", 1)
        told = underlay.send([(place, [b"x"] * 3), (place, [b"y"])])
        assert a.drops == {f"underlay.send_{errno.errorcode[number].lower()}": 4}, "datagrams are counted, not writes"
        assert told == ([place] if is_told else [])
        for port in range(2 * UNREACHABLE_LIMIT):
            a.send_many([(("192.0.2.7", 1 + port), [b"x"])])
        assert len(a.take_unreachable()) == (UNREACHABLE_LIMIT if is_told else 0)
        assert a.take_unreachable() == []
    a.close()


async def test_what_goes_through_a_peer_relay_is_wrapped_by_its_kind() -> None:
    a, b = HostUdp(0), HostUdp(0)
    disco, data = geneve.DISCO_MAGIC + b"..", b"\4\0\0\0..."
    Underlay(a, NoRelays()).send([(("127.0.0.1", b.local_port, 7), [disco, data])])
    assert await receive_all(b, 2) == geneve.encapsulate(7, [disco, data])
    a.close()
    b.close()


@pytest.mark.parametrize("platform", ["darwin", "win32"])
async def test_other_systems_send_and_receive_one_datagram_per_call(
    platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailscale.runtime.udp.sys.platform", platform)
    a, b = HostUdp(0), HostUdp(0)
    assert a.statistics().offloads == {"segmentation": False, "coalescing": False}
    sent = [bytes([i]) * 1300 for i in range(70)] + [b"short"]
    a.send_many([(("127.0.0.1", b.local_port), sent), (("::1", b.local_port), [b"six"])])
    assert await receive_all(b, len(sent)) == sent
    assert await receive_all(b, 1, 1) == [b"six"]
    b.rebind()
    a.send_many([(("127.0.0.1", b.local_port), [b"after"])])
    assert await receive_all(b, 1) == [b"after"]
    a.close()
    b.close()


async def test_socket_that_could_not_be_bound_again_works_once_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its reader was doing then: it need not have been waiting on the old socket."""

    def refuse(*_: object) -> None:
        raise OSError("no such interface")

    target, a = HostSocket(socket.AF_INET, 0, Counter(), {}), HostUdp(0)
    with monkeypatch.context() as gone:
        gone.setattr("tailscale.runtime.udp.socket.socket", refuse)
        with pytest.raises(OSError, match="no UDP port can be bound"):
            target.rebind()
    got = []
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            got.extend(await target.recv_many())
            nursery.cancel_scope.cancel()

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        target.rebind()
        a.send_many([(("127.0.0.1", target.port), [b"after"])])
    assert [datagrams for _, datagrams in got] == [[b"after"]]
    a.close()
    target.close()
