"""Sockets beside the first, and large pings that may not be cut."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest
import trio
import trio.testing

from tailscale.runtime.fragments import fragment_option
from tailscale.runtime.udp import MAX_USUAL, HostUdp
from ts_base.who import socket_of, through_socket, uplink_of
from ts_dataplane.disco import MAGIC


def test_the_name_of_a_socket_is_no_uplink() -> None:
    place = ("192.0.2.7", 41641)
    assert socket_of(place) == uplink_of(place) == ""
    assert socket_of(("192.0.2.7%wwan0", 41641)) == ""
    for name, uplink in (("#3", ""), ("wwan0#3", "wwan0")):
        path = through_socket(place, name)
        assert (socket_of(path), uplink_of(path)) == (name, uplink)


async def test_each_further_socket_sends_and_hears_under_its_name() -> None:
    a, b = HostUdp(0), HostUdp(0)
    made = a.open_more(3)
    assert len(made) == 3
    for name, more in made.items():
        a.send_many([(through_socket(("127.0.0.1", b.local_port), name), [name.encode()])])
        [(path, [datagram])] = await b.readers()[0]()
        assert datagram == name.encode()
        assert path[1] not in (a.local_port, b.local_port)
        b.send_many([(path, [b"back"])])
        assert await more.recv_many() == [(through_socket(("127.0.0.1", b.local_port), name), [b"back"])]
    a.close()
    b.close()


async def test_what_is_for_a_closed_socket_is_dropped_and_its_reader_ends() -> None:
    a = HostUdp(0)
    made = a.open_more(2)
    name, other = made
    a.close_more([name])
    with pytest.raises(trio.ClosedResourceError):
        await made[name].recv_many()
    a.send_many([(through_socket(("127.0.0.1", 9), name), [b"x"] * 2)])
    assert a.drops["underlay.no_socket_of_family"] == 2
    a.close()
    with pytest.raises(trio.ClosedResourceError):
        await made[other].recv_many()


async def test_the_tasks_of_a_closed_socket_end() -> None:
    a = HostUdp(0)
    made = a.open_more(3)
    async with trio.open_nursery() as nursery:
        for more in made.values():
            nursery.start_soon(more.run_writer)
        await trio.testing.wait_all_tasks_blocked()
        a.close_more(None)
    a.close()


async def test_a_system_that_gives_no_more_sockets_gives_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    a = HostUdp(0)
    real, left = socket.socket, iter(range(2))

    def few(*arguments: Any) -> socket.socket:
        if next(left, None) is None:
            raise OSError(errno.EMFILE, "too many open files")
        return real(*arguments)

    monkeypatch.setattr("tailscale.runtime.udp.socket.socket", few)
    assert len(a.open_more(5)) == 2
    a.close()


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_each_system_spells_fragments_in_its_own_way(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailscale.runtime.fragments.sys.platform", platform)
    found = {family: fragment_option(family) for family in (socket.AF_INET, socket.AF_INET6)}
    assert found[socket.AF_INET] is not None
    assert found[socket.AF_INET] != found[socket.AF_INET6]


async def test_large_pings_go_whole_and_what_follows_as_before() -> None:
    a, b = HostUdp(0), HostUdp(0)
    ping = MAGIC + bytes(MAX_USUAL)
    a.send_many([(("127.0.0.1", b.local_port), [ping, b"small"])])
    got: list[bytes] = []
    while len(got) < 2:
        for _, datagrams in await b.readers()[0]():
            got += datagrams
    assert got == [ping, b"small"]
    a.close()
    b.close()


async def test_a_system_that_cannot_forbid_fragments_sends_no_large_ping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailscale.runtime.fragments.sys.platform", "sunos")
    a = HostUdp(0)
    a.send_many([(("127.0.0.1", 9), [MAGIC + bytes(MAX_USUAL)])])
    assert a.drops["underlay.cannot_be_kept_whole"] == 1
    a.close()
