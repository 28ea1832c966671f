"""How members are found: by what people call them, by hello where announcements are lost. How soon one is missed."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from mesh_scripts import PORT, meshes, until_met
from tailnet_scripts import beside, until
from trio.testing import MockClock

from bench.crowd import Crowd
from tailscale import Device
from tailscale.events import PeerDown
from tailscale.mesh import AmbiguousPeer, Mesh, NotInMesh, PeerDisconnected, probing
from tailscale.testing import Tailnet
from tailscale.testing.servers import REGION


async def test_a_member_is_found_by_whatever_it_is_called(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    one, two = await tailnet.device("one"), await tailnet.device("two")
    async with meshes(tailnet, "a") as (a,), Mesh(one, "notes", name="twin"), Mesh(two, "notes", name="twin"):
        await until_met(a, 2)
        first, second = await a.peer("one"), await a.peer("two")
        other = next(n for n in range(26, 3, -1) if first.id[:n] != second.id[:n])
        calls = ["ONE", "one.tailnet.test", one.ipv4, one.ipv6, first.id, first.id[:26], first.id[:other].lower()]
        assert [a.peers[str(each)] for each in calls] == [first] * len(calls)
        with pytest.raises(
            AmbiguousPeer, match=r"several devices: use one of one\.tailnet\.test, two\.tailnet\.test"
        ) as caught:
            await a.send("twin", "chat", 1)
        assert set(caught.value.candidates) == {first, second}
        with pytest.raises(NotInMesh):
            await a.send(first.id[:3], "chat", 1)


async def test_nodes_are_asked_four_at_a_time_and_never_more_than_so_many(
    autojump_clock: MockClock, tailnet: Tailnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "MOST", 6)
    Crowd(tailnet.control.server, REGION).enroll(5)  # who is offline
    now, most, asked = 0, 0, set()

    async def answer(device: Device, *, task_status: trio.TaskStatus[None]) -> None:
        nonlocal now, most
        async with await device.listen(PORT) as listener:
            task_status.started()
            while True:
                async with await listener.accept():
                    asked.add(device.hostname)
                    now += 1
                    most = max(most, now)
                    await trio.sleep(1)
                    now -= 1

    async with trio.open_nursery() as nursery:
        for number in range(8):
            await nursery.start(answer, await tailnet.device(f"s{number}"))
        async with Mesh(await tailnet.device("a"), "notes", discover=lambda node: True) as a:
            await trio.sleep(60)
            assert (most, len(asked)) == (4, 6)
            assert not a.peers
            offline = [peer for peer in a.device.status().peers if peer.node.hostname.startswith("m")]
            assert not any(peer.bytes_sent for peer in offline)
        nursery.cancel_scope.cancel()


async def test_a_peer_that_control_calls_offline_is_asked_at_once(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "a", "b") as (a, _):
        await a.peer("b")
        events, moments = a.events(), {}

        async def note(events: object, kind: type) -> None:
            async for event in events:  # type: ignore[attr-defined]
                if isinstance(event, kind):
                    moments.setdefault(kind, trio.current_time())

        async with beside(partial(note, events, PeerDisconnected)), beside(partial(note, a.device.events(), PeerDown)):
            await trio.sleep(1)
            for other in ("a", "relay"):
                tailnet.block("b", other)
            said = {"OnlineChange": {str(tailnet.id_of("b")): False}}
            tailnet.control.do(tailnet.control.server.send_to, tailnet.id_of("a"), said)
            await until(lambda: len(moments) == 2, 60)
        assert moments[PeerDisconnected] - moments[PeerDown] < 5.5
