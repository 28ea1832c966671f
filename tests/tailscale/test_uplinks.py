"""Several uplinks: how sockets are bound to them, and what a Device on such a host finds and keeps."""

from __future__ import annotations

import logging
import socket
import sys
from typing import Any

import pytest
import trio
from tailnet_scripts import echo_service, runtime_of, until, world

from tailscale import Device, NoSuchUplink, UplinkChanged
from tailscale.runtime.udp import HostUdp
from tailscale.runtime.uplinks import IP_BOUND_IF, IP_UNICAST_IF, IPV6_BOUND_IF, SO_BINDTODEVICE, confine
from tailscale.testing import Tailnet
from ts_base.who import uplink_of
from ts_dataplane.peer_paths import STANDBY_INTERVAL

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


class Recording:
    """A socket that notes what is asked of it, or forbids it."""

    def __init__(self, family: int, refusal: type[OSError] | None = None) -> None:
        self.family, self.refusal = family, refusal
        self.asked: list[tuple[Any, ...]] = []

    def setsockopt(self, *asked: Any) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.asked.append(asked)


@pytest.mark.parametrize(
    ("platform", "family", "asked"),
    [
        ("linux", socket.AF_INET, (socket.SOL_SOCKET, SO_BINDTODEVICE, LOOPBACK.encode() + b"\0")),
        ("linux", socket.AF_INET6, (socket.SOL_SOCKET, SO_BINDTODEVICE, LOOPBACK.encode() + b"\0")),
        ("darwin", socket.AF_INET, (socket.IPPROTO_IP, IP_BOUND_IF, 1)),
        ("darwin", socket.AF_INET6, (socket.IPPROTO_IPV6, IPV6_BOUND_IF, 1)),
        ("win32", socket.AF_INET, (socket.IPPROTO_IP, IP_UNICAST_IF, b"\0\0\0\1")),
        ("win32", socket.AF_INET6, (socket.IPPROTO_IPV6, IP_UNICAST_IF, (1).to_bytes(4, sys.byteorder))),
    ],
)
def test_each_system_is_asked_in_its_own_way(
    platform: str, family: int, asked: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailscale.runtime.uplinks.sys.platform", platform)
    monkeypatch.setattr("tailscale.runtime.uplinks.socket.if_nametoindex", lambda name: 1)
    made = Recording(family)
    assert confine(made, LOOPBACK) == ("::" if family == socket.AF_INET6 else "0.0.0.0")  # type: ignore[arg-type]
    assert made.asked == [asked]


def test_what_is_forbidden_is_bound_to_the_address_instead() -> None:
    assert confine(Recording(socket.AF_INET, PermissionError), LOOPBACK) == "127.0.0.1"  # type: ignore[arg-type]


def test_an_uplink_that_is_not_there_is_an_error() -> None:
    with pytest.raises(OSError):
        confine(Recording(socket.AF_INET), "nosuch0")  # type: ignore[arg-type]
    with pytest.raises(OSError, match="no UDP port can be bound"):
        HostUdp(0, ["nosuch0"])


async def test_source_binding_is_warned_of_once(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr("tailscale.runtime.udp.confine", lambda sock, uplink: "127.0.0.1")
    with caplog.at_level(logging.WARNING):
        udp = HostUdp(0, [LOOPBACK])
        udp.rebind()
    assert [record.getMessage() for record in caplog.records if LOOPBACK in record.getMessage()] == [
        "the system does not let us bind to lo itself (that needs Linux 5.7 or root): bound to its address, so that "
        "routes of the system may still lead elsewhere".replace("lo ", f"{LOOPBACK} ", 1)
    ]
    udp.close()


async def test_a_bound_port_names_the_uplink_of_what_it_hears() -> None:
    bound, plain = HostUdp(0, [LOOPBACK]), HostUdp(0)
    plain.send_many([(("127.0.0.1", bound.local_port), [b"hello"])])
    with trio.fail_after(5):
        runs = await bound.readers()[0]()
    assert runs == [((f"127.0.0.1%{LOOPBACK}", plain.local_port), [b"hello"])]
    bound.send_many([(runs[0][0], [b"back"]), (("127.0.0.1", plain.local_port), [b"by default"])])
    bound.send_many([((f"127.0.0.1%{LOOPBACK}x", plain.local_port), [b"nowhere"])])
    got: list[bytes] = []
    with trio.fail_after(5):
        while len(got) < 2:
            got += [datagram for _, datagrams in await plain.readers()[0]() for datagram in datagrams]
    assert got == [b"back", b"by default"]
    assert bound.statistics().drops == {"underlay.no_socket_of_family": 1}
    bound.close()
    plain.close()


async def test_a_socket_that_cannot_be_bound_again_rests_until_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    bound, plain = HostUdp(0, [LOOPBACK]), HostUdp(0)
    got: list[bytes] = []
    real = confine

    def gone(sock: socket.socket, uplink: str) -> str:
        raise OSError("no such interface")

    async def read(nursery: trio.Nursery) -> None:
        got.extend([datagram for _, datagrams in await bound.readers()[0]() for datagram in datagrams])
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, nursery)
        await trio.testing.wait_all_tasks_blocked()
        monkeypatch.setattr("tailscale.runtime.udp.confine", gone)
        with pytest.raises(OSError, match="no UDP port"):
            bound.rebind()
        await trio.testing.wait_all_tasks_blocked()
        place = (f"127.0.0.1%{LOOPBACK}", plain.local_port)
        bound.send_many([(place, [b"lost"])])
        assert bound.take_unreachable() == [place]
        monkeypatch.setattr("tailscale.runtime.udp.confine", real)
        bound.rebind()
        await trio.testing.wait_all_tasks_blocked()
        plain.send_many([(("127.0.0.1", bound.local_port), [b"again"])])
    assert got == [b"again"]
    bound.close()
    plain.close()


# ---- a Device on a host with two uplinks


async def test_a_device_finds_and_keeps_a_path_through_each_uplink(autojump_clock: trio.testing.MockClock) -> None:
    async with Tailnet(latency=0.01) as tailnet:
        internet = world(tailnet).internet
        internet.host("van", uplinks=("wlan0", "wwan0"))
        van, nas = await tailnet.device("van", uplinks=["wlan0", "wwan0"]), await tailnet.device("nas")
        internet.change("van%wwan0", "nas", latency=0.03)
        finder = runtime_of(van).dataplane.finder
        peer = next(iter(finder.paths))
        async with echo_service(nas, 7), await van.tcp_connect("nas", 7) as stream:

            async def beat() -> list[str]:
                await stream.send_all(b"x")
                await stream.receive_some(1)
                return [uplink_of(path) for path in finder.standbys(peer, trio.current_time())]

            for _ in range(2 * int(STANDBY_INTERVAL)):
                await trio.sleep(1)
                found = await beat()
            assert found == ["wlan0", "wwan0"]
            assert [uplink_of(path) for path in finder.paths[peer]] == ["wlan0"]  # the faster one alone carries data
            internet.change("van%wlan0", "nas", udp_blocked=True)
            for _ in range(20):
                await trio.sleep(1)
                await beat()
            assert [uplink_of(path) for path in finder.paths[peer]] == ["wwan0"]


async def test_a_device_without_uplinks_names_none(autojump_clock: trio.testing.MockClock) -> None:
    async with Tailnet() as tailnet:
        a, b = await tailnet.device("a"), await tailnet.device("b")
        async with echo_service(b, 7), await a.tcp_connect("b", 7) as stream:
            await stream.send_all(b"x")
            await stream.receive_some(1)
            finder = runtime_of(a).dataplane.finder
            await until(lambda: finder.statistics().standings)
            assert not any("%" in str(path) for paths in finder.paths.values() for path in paths)
            assert all(finder.standbys(peer, trio.current_time()) == () for peer in finder.paths)


# ---- what is refused, and what changes while a device lives


@pytest.mark.parametrize(
    ("uplinks", "error", "told"),
    [
        (["nope"], NoSuchUplink, "no interface 'nope' to reach peers by: it has wlan0, wwan0"),
        (["wlan0", "wlan0"], ValueError, "named once"),
        (["a", "b", "c", "d", "e"], ValueError, "at most 4"),
        ("wlan0", TypeError, "a list of interfaces"),
    ],
)
async def test_uplinks_that_cannot_be_are_refused(
    uplinks: Any, error: type[Exception], told: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with Tailnet() as tailnet:
        tailnet.host("van", uplinks=("wlan0", "wwan0"))
        with pytest.RaisesGroup(pytest.RaisesExc(error, match=told), allow_unwrapped=True, flatten_subgroups=True):
            await tailnet.device("van", uplinks=uplinks)


@pytest.mark.parametrize("paths", [3, {"nas": 3}, "fastest", {"nas": "redundant:9"}])
def test_strategies_that_cannot_be_are_refused(paths: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"strateg|copies"):
        Device("van", paths=paths)


async def test_uplinks_come_and_go_by_word_while_a_stream_is_open(autojump_clock: trio.testing.MockClock) -> None:
    async with Tailnet(latency=0.01) as tailnet:
        tailnet.host("van", uplinks=("wlan0", "wwan0"))
        van, nas = await tailnet.device("van"), await tailnet.device("nas")
        async with echo_service(nas, 7), await van.tcp_connect("nas", 7) as stream:

            async def beat(seconds: int = 3) -> set[str]:
                for _ in range(10 * seconds):
                    await stream.send_all(b"x")
                    with trio.fail_after(10):
                        await stream.receive_some(1)
                    await trio.sleep(0.1)
                return {way.uplink for way in van.paths("nas") if way.kind == "direct" and way.state == "good"}

            assert van.uplinks == ()
            assert await beat() == {""}
            await van.set(uplinks=["wwan0"])
            assert await beat() == {"wwan0"}
            await van.set(uplinks="all")
            assert await beat(12) == {"wlan0", "wwan0"}
            with pytest.raises(NoSuchUplink):
                await van.set(uplinks=["gone0"])
            with pytest.raises(NoSuchUplink):
                await van.set_uplink("gone0", enabled=False)
            with pytest.raises(ValueError, match="weight"):
                await van.set_uplink("wlan0", weight=-1)
            await van.set_uplink("wlan0", enabled=False)
            await beat()
            assert {way.uplink for way in van.paths("nas") if way.in_use} == {"wwan0"}
            await van.set(uplinks=None)
            assert await beat() == {""}
            with pytest.raises(KeyError):
                van.paths("nobody")


async def test_all_follows_interfaces_that_come_and_go(autojump_clock: trio.testing.MockClock) -> None:
    async with Tailnet(latency=0.01) as tailnet:
        machine = tailnet.host("van", uplinks=("wlan0", "wwan0"))
        van = await tailnet.device("van", uplinks="all")
        events = van.events()
        machine.set_up("wlan0", False)
        await until(lambda: [one.name for one in van.uplinks] == ["wwan0"])
        machine.set_up("wlan0")
        await until(lambda: {one.name for one in van.uplinks} == {"wlan0", "wwan0"})
        seen = []
        async for event in events:
            if isinstance(event, UplinkChanged):
                seen.append((event.uplink, event.up))
                if len(seen) == 2:
                    break
        assert seen == [("wlan0", False), ("wlan0", True)]
