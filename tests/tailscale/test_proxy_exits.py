"""Exits by policy over a whole tailnet: who is taken, what happens when one dies, and what is never blamed on it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from proxy_scripts import NAME, WEB, WEB6, cut, desk_and_exits, echoed_by, mend, outside, timed
from tailnet_scripts import beside, echo_service, held_by, runtime_of, until
from test_cancel_anywhere import cancelled_after
from trio.testing import MockClock

import tailscale
from tailscale.proxy import DIRECT, NO_EXIT, BadPolicy, Exits, NoExit
from tailscale.proxy.pool_file import PoolFile
from tailscale.testing import Tailnet


async def test_a_connection_goes_through_an_exit_of_the_policy(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss", "dutch")
    async with outside(tailnet) as web:
        chosen = Exits(desk, nodes=["dutch", "swiss"])
        assert await echoed_by(chosen) == "dutch"
        assert await echoed_by(chosen, NAME) == "dutch"
        assert web.visitors == ["dutch", "dutch"]
        assert [exit_node.node.hostname for exit_node in chosen.candidates] == ["dutch", "swiss"]
        assert chosen.current is not None
        assert chosen.current.node.hostname == "dutch"


async def test_a_dead_exit_costs_one_connection_a_second_and_the_next_nothing(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss", "dutch")
    async with outside(tailnet):
        chosen = Exits(desk, nodes=["swiss", "dutch"])
        assert await echoed_by(chosen) == "swiss"
        cut(tailnet, "swiss")
        name, seconds = await timed(chosen)
        assert name == "dutch"
        assert seconds <= 1.5
        for _ in range(5):
            name, seconds = await timed(chosen)
            assert (name, seconds < 0.1) == ("dutch", True)
            await trio.sleep(3)


async def test_a_better_exit_is_taken_back_after_three_answers_and_never_after_one(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss", "dutch")
    async with outside(tailnet):
        chosen = Exits(desk, nodes=["swiss", "dutch"])
        await echoed_by(chosen)
        cut(tailnet, "swiss")
        assert await echoed_by(chosen) == "dutch"
        lost_at = trio.current_time()
        mend(tailnet, "swiss")
        used = {}
        for _ in range(12):
            await trio.sleep(3)
            used[trio.current_time() - lost_at] = await echoed_by(chosen)
    back_at = min(at for at, name in used.items() if name == "swiss")
    assert 29 < back_at < 34, used
    assert [name for at, name in used.items() if at >= back_at] == ["swiss"] * sum(at >= back_at for at in used)


# The named exits


async def test_named_exits_are_hard_and_say_why_after_ten_seconds(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss", "dutch")
    async with outside(tailnet) as web:
        chosen = Exits(desk, nodes=["swiss"])
        await echoed_by(chosen)
        cut(tailnet, "swiss")
        began = trio.current_time()
        with pytest.raises(
            NoExit, match=r"no way out by an exit \(node:swiss\): .*swiss: its tunnel fell silent"
        ) as caught:
            await echoed_by(chosen)
        assert 9 < trio.current_time() - began < 11
        assert isinstance(caught.value, tailscale.NoRoute)
        assert caught.value.reasons["dutch"] == "it is not among the named exits"
        mend(tailnet, "swiss")
        assert await echoed_by(chosen) == "swiss"
        assert set(web.visitors) == {"swiss"}


async def test_a_named_exit_that_is_not_there_is_waited_for(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk = await tailnet.device("desk")
    async with outside(tailnet):
        chosen = Exits(desk, nodes=["swiss"])
        began = trio.current_time()
        with pytest.raises(NoExit, match="swiss: no exit node has that name"):
            await echoed_by(chosen)
        assert 9 < trio.current_time() - began < 11

        async def come() -> None:
            await trio.sleep(3)
            await tailnet.exit_node("swiss")

        async with beside(come):
            assert await echoed_by(chosen) == "swiss"


async def test_with_fallback_the_filters_choose_once_no_named_exit_is_there(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    desk = await tailnet.device("desk")
    await tailnet.exit_node("swiss", country_code="CH")
    await tailnet.exit_node("dutch", country_code="NL")
    await tailnet.exit_node("thai", country_code="TH")
    async with outside(tailnet):
        chosen = Exits(desk, nodes=["swiss"], country="NL", fallback=True)
        assert await echoed_by(chosen) == "swiss"
        cut(tailnet, "swiss")
        name, seconds = await timed(chosen)
        assert (name, seconds < 1.5) == ("dutch", True)
        assert [one.node.hostname for one in chosen.candidates] == ["dutch", "swiss"]


async def test_a_name_that_no_exit_has_is_met_with_the_nearest(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss", country="Switzerland", country_code="CH", city="Zurich")
    for options, hint in (
        ({"nodes": ["swis"]}, "swiss"),
        ({"country": "switserland"}, "switzerland"),
        ({"city": "zurch"}, "zurich"),
    ):
        with pytest.raises(NoExit, match=f"did you mean '{hint}'"):
            await Exits(desk, **options).tcp_connect(WEB, 80)


# By hand


async def test_pin_moves_new_connections_and_none_brings_the_policy_back(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss", "dutch", "thai")
    async with outside(tailnet):
        chosen = Exits(desk, nodes=["swiss", "dutch"])
        async with await chosen.tcp_connect(WEB, 80) as old:
            await chosen.pin("thai")
            assert await echoed_by(chosen) == "thai", "not of the policy, and yet a person's word"
            assert chosen.status().pinned == "thai"
            assert old.exit is not None
            await old.send_all(b"still here")
            assert await old.receive_some() == b"still here"
            assert old.exit.hostname == "swiss"
            cut(tailnet, "thai")
            with pytest.raises(NoExit, match="the pinned exit thai: thai: its tunnel fell silent"):
                await echoed_by(chosen)
            await chosen.pin(None)
            assert await echoed_by(chosen) == "swiss"
        with pytest.raises(
            tailscale.NameNotFound, match=r"'tai'.*only an exit node .* can be pinned.*did you mean 'thai'"
        ):
            await chosen.pin("tai")
        with pytest.raises(BadPolicy, match="nothing can be pinned"):
            await NO_EXIT.on(desk).pin("swiss")


# Sticky, sessions, and the pool on disk


async def test_sticky_stays_with_the_exit_used_last(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk, _ = await desk_and_exits(tailnet, "a", "b", "c")
    async with outside(tailnet):
        chosen = Exits(desk)
        first = await echoed_by(chosen)
        cut(tailnet, first)
        second, seconds = await timed(chosen)
        assert second != first
        assert seconds < 1.5
        mend(tailnet, first)
        for _ in range(8):
            await trio.sleep(20)
            assert await echoed_by(chosen) == second, "nothing is gained by going back"


async def test_sessions_spread_over_the_pool_and_move_only_when_their_exit_dies(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    desk, _ = await desk_and_exits(tailnet, "a", "b", "c", "d")
    async with outside(tailnet):
        chosen = Exits(desk, pool=4)
        names = [f"session {number}" for number in range(16)]
        before = {name: await echoed_by(chosen, session=name) for name in names}
        assert len(set(before.values())) >= 3
        assert {name: await echoed_by(chosen, session=name) for name in names} == before
        dead = before[names[0]]
        cut(tailnet, dead)
        after = {name: await echoed_by(chosen, session=name) for name in names}
        assert {name for name in names if before[name] != after[name]} == {n for n in names if before[n] == dead}
        mend(tailnet, dead)
        await trio.sleep(400)
        again = {name: await echoed_by(chosen, session=name) for name in names}
        assert again == after, "whoever moved stays where it is"


async def test_the_pool_outlives_the_process_and_belongs_to_its_policy(
    autojump_clock: MockClock, tailnet: Tailnet, tmp_path: Path
) -> None:
    for name in ("a", "b", "c"):
        await tailnet.exit_node(name)
    file = tmp_path / "exits.json"
    async with outside(tailnet):
        async with tailnet.device("desk") as desk:
            last = Exits(desk, state=tmp_path)
            await echoed_by(last)
            cut(tailnet, "a")
            used = await echoed_by(last)
            assert used != "a"
            mend(tailnet, "a")
        assert json.loads(file.read_text())["version"] == 1
        assert file.stat().st_mode & 0o777 == 0o600
        async with tailnet.device("desk") as desk:
            assert await echoed_by(Exits(desk, state=file)) == used
            assert await echoed_by(Exits(desk, state=tmp_path, nodes=["a", "b", "c"])) == "a"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"version": 1, "fingerprint": "x", "po', "cut short or overwritten"),
        (b'{"version": 2, "fingerprint": "x", "pool": []}', "version 2 and this program knows version 1"),
        (b"[]", "not a file of exits"),
        (b'{"version": 1, "fingerprint": "x", "pool": [7]}', "no exits"),
        (b'{"version": 1, "fingerprint": 7, "pool": []}', "wrong type"),
        (b"9" * 70_000, "far larger"),
    ],
)
async def test_a_file_of_exits_that_cannot_be_understood_is_put_aside(
    autojump_clock: MockClock,
    tailnet: Tailnet,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    text: bytes,
    reason: str,
) -> None:
    await tailnet.exit_node("a")
    file = tmp_path / "exits.json"
    file.write_bytes(text)
    async with outside(tailnet), tailnet.device("desk") as desk:
        assert await echoed_by(Exits(desk, state=tmp_path)) == "a"
        used = desk.peers["a"].stable_id
    assert reason in caplog.text
    assert (tmp_path / "exits.json.unreadable").read_bytes() == text
    assert json.loads(file.read_text())["pool"] == [used]


async def test_a_file_of_exits_that_cannot_be_written_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "file"
    place.write_text("not a folder")
    file = PoolFile(place / "exits.json", "fingerprint")
    assert await file.load() == ()
    for _ in range(3):
        await file.save(["a"])
    assert caplog.text.count("cannot be kept") == 1


async def test_what_is_saved_last_stays_whoever_else_is_writing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine, other = (PoolFile(tmp_path, "fingerprint") for _ in range(2))
    for number in range(40):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mine.save, ["older"])
            nursery.start_soon(other.save, ["another's"])
            await trio.lowlevel.checkpoint()
            mine.save_now([f"newest {number}"])
        other.save_now([f"newest {number}"])
        assert await mine.load() == (f"newest {number}",)
    assert caplog.text == ""


# Paths


async def test_connections_move_off_the_relay_once_a_member_of_the_pool_is_direct(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    desk, _ = await desk_and_exits(tailnet, "a", "b")
    async with outside(tailnet):
        chosen = Exits(desk)
        assert {await echoed_by(chosen, session=f"{n}") for n in range(8)} == {"a", "b"}
        first = await echoed_by(chosen)
        other = "b" if first == "a" else "a"
        async with await chosen.tcp_connect(WEB, 80) as old:
            tailnet.block_udp("desk", first)
            await trio.sleep(30)
            assert chosen.status().exits[1].exit.path.kind == "relay"
            assert await echoed_by(chosen) == other
            assert old.exit is not None
            assert old.exit.hostname == first, "what is open stays where it is"
            await old.send_all(b"hello")
            assert await old.receive_some() == b"hello"


async def test_direct_only_waits_for_a_direct_path(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk, _ = await desk_and_exits(tailnet, "a")
    tailnet.block_udp("desk", "a")
    await trio.sleep(30)
    async with outside(tailnet):
        chosen = Exits(desk, direct_only=True)
        with pytest.raises(NoExit, match="a: its path is not direct"):
            await echoed_by(chosen)
        tailnet.unblock_udp("desk", "a")
        assert await echoed_by(chosen) == "a"


# Blame


async def test_a_target_that_says_no_is_nobody_elses_fault(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss", "dutch")
    async with outside(tailnet) as web:
        chosen = Exits(desk, nodes=["swiss", "dutch"])
        for _ in range(5):
            with pytest.raises(tailscale.ConnectionRefused) as refused:
                await chosen.tcp_connect(WEB, 81)
            assert not refused.value.by_policy
            with pytest.raises(tailscale.NameNotFound):
                await chosen.tcp_connect("no.example", 80)
        [swiss, dutch] = chosen.status().exits
        assert (swiss.state, swiss.failures) == ("in use", 0)
        assert (dutch.state, dutch.failures) == ("ready", 0)
        assert await echoed_by(chosen) == "swiss"
        assert web.visitors == ["swiss"]


async def test_one_silent_target_is_not_the_exits_fault_and_three_are(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss", "dutch")
    for number in (1, 2, 3):
        tailnet.host(f"hole{number}", f"198.51.100.10{number}")
        tailnet.block(f"hole{number}", "swiss")
        tailnet.block(f"hole{number}", "dutch")
    async with outside(tailnet):
        chosen = Exits(desk, nodes=["swiss", "dutch"])
        await echoed_by(chosen)

        async def time_out(number: int) -> None:
            with pytest.raises(tailscale.ConnectionTimedOut):
                await chosen.tcp_connect(f"198.51.100.10{number}", 80, timeout=5)

        for _ in range(6):
            await time_out(1)
        assert chosen.status().exits[0].failures <= 1
        assert await echoed_by(chosen) == "swiss", "one target, however often"
        for number in (1, 2, 3):
            await time_out(number)
        broken = next(one for one in chosen.status().exits if one.exit.node.hostname == "swiss")
        assert (broken.state, broken.reason) == ("broken", "its way out is silent: too many targets in a row timed out")
        name, seconds = await timed(chosen)
        assert (name, seconds < 0.1) == ("dutch", True)
        await trio.sleep(11)
        assert await echoed_by(chosen) == "swiss", "half-open: one connection finds out"
        assert chosen.status().exits[0].state == "in use"


async def test_a_breaker_opens_after_three_silent_dials_and_closes_with_one_that_works(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss")
    async with outside(tailnet):
        chosen = Exits(desk, nodes=["swiss"])
        await echoed_by(chosen)
        news = EventLog(chosen)
        async with beside(news.read):
            await trio.sleep(0.1)
            cut(tailnet, "swiss")
            for _ in range(3):
                with pytest.raises(NoExit):
                    await echoed_by(chosen)
            assert chosen.status().exits[0].state == "broken"
            assert chosen.current is None
            sent = desk.peer_status("swiss").bytes_sent
            with trio.move_on_after(9) as waiting:
                await chosen.udp()
            assert waiting.cancelled_caught
            assert desk.peer_status("swiss").bytes_sent == sent
            await trio.sleep(11)
            mend(tailnet, "swiss")
            assert await echoed_by(chosen) == "swiss"
        assert chosen.status().exits[0].failures == 0
        assert news.kinds() == ["ExitLost", "ExitBroken", "ExitChosen", "ExitChosen", "ExitRecovered"]


async def test_five_hundred_clients_without_an_exit_make_one_attempt(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss")
    async with outside(tailnet) as web:
        chosen = Exits(desk, nodes=["swiss"])
        await echoed_by(chosen)
        cut(tailnet, "swiss")
        with pytest.raises(NoExit):
            await echoed_by(chosen)
        await trio.sleep(5)
        dials: list[int] = []
        failures: list[BaseException] = []

        async def client() -> None:
            try:
                await echoed_by(chosen)
            except NoExit as failure:
                failures.append(failure)

        async def count() -> None:
            while True:
                dials.append(chosen.status().exits[0].dials)
                await trio.sleep(0.5)

        began = trio.current_time()
        async with beside(count), trio.open_nursery() as clients:
            for _ in range(500):
                clients.start_soon(client)
        assert len(failures) == 500
        assert trio.current_time() - began < 10.5
        assert max(dials) == 1
        mend(tailnet, "swiss")
        await trio.sleep(30)
        async with trio.open_nursery() as clients:
            for _ in range(40):
                clients.start_soon(client)
        assert len(failures) == 500
        assert len(web.visitors) >= 41
        assert chosen.status().waiting == 0


async def test_one_policys_dead_exit_delays_another_by_nothing(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss", "dutch")
    async with outside(tailnet):
        one, other = Exits(desk, nodes=["swiss"]), Exits(desk, nodes=["dutch"])
        await echoed_by(one)
        await echoed_by(other)
        cut(tailnet, "swiss")

        async def fail() -> None:
            with pytest.raises(NoExit):
                await echoed_by(one)

        async with trio.open_nursery() as clients:
            for _ in range(20):
                clients.start_soon(fail)
            await trio.sleep(0.5)
            for _ in range(10):
                name, seconds = await timed(other)
                assert (name, seconds < 0.05) == ("dutch", True)
                await trio.sleep(0.3)


# Connections of an exit that dies


async def test_what_goes_through_a_dead_tunnel_is_reset_and_everything_else_stays(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss", "dutch")
    async with outside(tailnet):
        chosen = Exits(desk, nodes=["swiss", "dutch"])
        idle, other = await chosen.tcp_connect(WEB, 80), await Exits(desk, nodes=["dutch"]).tcp_connect(WEB, 80)
        cut(tailnet, "swiss")
        assert await echoed_by(chosen) == "dutch"
        began = trio.current_time()
        with pytest.raises(tailscale.ConnectionReset, match="its exit node left the tailnet, or takes nothing there"):
            await idle.receive_some()
        assert 5 < trio.current_time() - began < 15
        await other.send_all(b"unmoved")
        assert await other.receive_some() == b"unmoved"
        for stream in (idle, other):
            await stream.aclose()


async def test_a_dead_tunnel_is_noticed_without_a_new_connection(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss", "dutch")
    async with outside(tailnet):
        chosen = Exits(desk, nodes=["swiss", "dutch"])
        async with await chosen.tcp_connect(WEB, 80) as stream, await chosen.udp() as socket:
            assert chosen.status().exits[0].connections == 2
            await trio.sleep(300)
            assert chosen.status().exits[0].state == "in use", "an idle tunnel owes nothing"
            cut(tailnet, "swiss")
            began = trio.current_time()
            await stream.send_all(b"anybody there?")
            with pytest.raises(tailscale.ConnectionReset):
                await stream.receive_some()
            with pytest.raises(tailscale.NoRoute, match="open another socket"):
                await socket.receive()
            assert 15 < trio.current_time() - began < 32
        name, seconds = await timed(chosen)
        assert (name, seconds < 0.1) == ("dutch", True)


async def test_an_exit_whose_policy_says_no_makes_room_for_the_next_and_is_not_blamed(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss", "dutch")
    tailnet.policy({"acls": [{"action": "accept", "src": ["*"], "dst": ["*:443", "autogroup:internet:443"]}]})
    await trio.sleep(1)
    async with outside(tailnet) as web:
        chosen = Exits(desk, nodes=["swiss", "dutch"])
        began = trio.current_time()
        with pytest.raises(tailscale.ConnectionRefused, match="its tailnet policy does not let us in") as refused:
            await chosen.tcp_connect(WEB, 80)
        assert trio.current_time() - began < 0.5
        assert refused.value.by_policy
        asked = [desk.peer_status(name).bytes_received for name in ("swiss", "dutch")]
        assert all(asked), "both said it"
        assert [(one.state, one.failures) for one in chosen.status().exits] == [("in use", 0), ("ready", 0)]
    assert web.visitors == []


async def test_connections_live_on_where_an_exit_was_only_slow(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss", "dutch")
    async with outside(tailnet):
        chosen = Exits(desk, nodes=["swiss", "dutch"])
        async with await chosen.tcp_connect(WEB, 80) as old:
            cut(tailnet, "swiss")
            assert await echoed_by(chosen) == "dutch"
            await trio.sleep(3)
            mend(tailnet, "swiss")
            await trio.sleep(15)
            await old.send_all(b"hello")
            assert await old.receive_some() == b"hello"
        assert await echoed_by(chosen) == "dutch", "one answer is no proof"


async def removed(net: Tailnet, name: str) -> None:
    net.remove(name)


async def expired(net: Tailnet, name: str) -> None:
    net.expire(name)


async def not_approved(net: Tailnet, name: str) -> None:
    net.approve_routes(name)


@pytest.mark.parametrize("goes", [removed, expired, not_approved])
async def test_an_exit_that_control_takes_away_is_out_at_once(
    autojump_clock: MockClock, tailnet: Tailnet, goes: Callable[[Tailnet, str], Awaitable[None]]
) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss", "dutch")
    async with outside(tailnet):
        chosen = Exits(desk, nodes=["swiss", "dutch"])
        async with await chosen.tcp_connect(WEB, 80) as old:
            await goes(tailnet, "swiss")
            with pytest.raises(tailscale.ConnectionReset):
                await old.receive_some()
        name, seconds = await timed(chosen)
        assert (name, seconds < 0.1) == ("dutch", True)


async def test_an_exit_that_goes_offline_is_left_without_a_trial(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk = await tailnet.device("desk")
    await tailnet.exit_node("dutch")
    swiss = tailnet.device("swiss", advertise_routes=("0.0.0.0/0", "::/0"), ephemeral=False)
    async with outside(tailnet):
        async with swiss as device:
            await until(lambda: tailnet.control.server.directory.find(tailnet.id_of(device)).advertised)
            tailnet.approve_routes(device, "0.0.0.0/0", "::/0")
            await until(lambda: len(desk.exit_nodes) == 2)
            chosen = Exits(desk, nodes=["swiss", "dutch"])
            assert await echoed_by(chosen) == "swiss"
        await until(lambda: desk.peers["swiss"].online is False)
        name, seconds = await timed(chosen)
        assert (name, seconds < 0.1) == ("dutch", True)
        assert chosen.status().exits[1].reason == "control says that it is offline"


async def test_a_renamed_exit_is_no_longer_the_named_one(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss", "dutch")
    async with outside(tailnet):
        chosen = Exits(desk, nodes=["swiss", "dutch"])
        assert await echoed_by(chosen) == "swiss"
        tailnet.rename("swiss", "helvetia")
        await until(lambda: "helvetia" in desk.peers)
        assert await echoed_by(chosen) == "dutch"


async def test_an_exit_for_one_family_does_not_hinder_the_other(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss", "dutch")
    tailnet.approve_routes("swiss", "0.0.0.0/0")
    await until(lambda: not runtime_of(desk).reach.routes_to(b"\x26" * 16, desk.peers["swiss"].id))
    async with outside(tailnet, WEB, WEB6):
        chosen = Exits(desk, nodes=["swiss", "dutch"])
        assert await echoed_by(chosen, WEB) == "swiss"
        assert await echoed_by(chosen, WEB6) == "dutch"
        assert await echoed_by(chosen, WEB) == "swiss", "and it is not held against it"
        with pytest.raises(tailscale.NoRoute, match="does it offer IPv6 too"):
            await Exits(desk, nodes=["swiss"]).tcp_connect(WEB6, 80)


# What does not go through exits


async def test_the_tailnets_own_goes_directly(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk, [swiss, _] = await desk_and_exits(tailnet, "swiss", "dutch")
    async with outside(tailnet) as web, echo_service(swiss.device, 7):
        for chosen in (Exits(desk, nodes=["dutch"]), NO_EXIT.on(desk), DIRECT.on(desk)):
            async with await chosen.tcp_connect("swiss", 7) as stream:
                assert stream.exit is None
            async with await chosen.connect_anywhere("swiss", 7) as either:
                await either.send_all(b"hello")
                assert await either.receive_some() == b"hello"
        with pytest.raises(tailscale.NoRoute, match=r"is not in the tailnet, and no exit is to be used: .* 'none'"):
            await NO_EXIT.on(desk).connect_anywhere(WEB, 80)
        with pytest.raises(tailscale.NoRoute, match="localhost is this machine itself"):
            await Exits(desk).tcp_connect("localhost", 80)
        async with await DIRECT.on(desk).connect_anywhere(WEB, 80):
            await until(lambda: web.visitors)
        assert web.visitors == ["desk"]
        async with await NO_EXIT.on(desk).udp() as socket:
            assert socket.exit is None
        async with await Exits(desk, nodes=["dutch"]).udp() as socket:
            assert socket.exit == desk.peers["dutch"]
    with pytest.raises(tailscale.DeviceNotReady, match=r"NO_EXIT\.on\(device\)"):
        await NO_EXIT.tcp_connect(WEB, 80)
    assert DIRECT.on(desk).on(desk).kind == "direct"
    assert NO_EXIT.status().to_dict()["kind"] == "none"


async def test_names_are_asked_at_the_exit_or_of_the_tailnet(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk, [swiss, _] = await desk_and_exits(tailnet, "swiss", "dutch")
    async with outside(tailnet):
        assert await echoed_by(Exits(desk, nodes=["swiss"]), NAME) == "swiss"
        assert swiss.asked[NAME] == 2
        with pytest.raises(tailscale.NameNotFound):
            await Exits(desk, nodes=["swiss"], dns="tailnet").tcp_connect(NAME, 80)
        swiss.is_silent = True
        with pytest.raises(tailscale.NameNotFound, match="the exit swiss did not answer") as caught:
            await Exits(desk, nodes=["swiss", "dutch"]).tcp_connect("other.example", 80)
        assert caught.value.is_temporary


# A function of the user's


async def test_where_decides_and_one_that_fails_wants_nobody(
    autojump_clock: MockClock, tailnet: Tailnet, caplog: pytest.LogCaptureFixture
) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss", "dutch")
    async with outside(tailnet):
        assert await echoed_by(Exits(desk, where=lambda one: one.node.hostname == "dutch")) == "dutch"
        broken = Exits(desk, where=lambda one: one.node.hostname[99] == "x")
        with pytest.raises(NoExit, match=r"the where= function does not want it"):
            await broken.tcp_connect(WEB, 80)
    assert caplog.text.count("where= failed") == 1


# Hedging and reconnecting


async def test_without_a_hedge_the_same_exit_is_tried_again_or_the_next_at_once(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss", "dutch")
    took: dict[str, float] = {}
    async with outside(tailnet):
        for reconnect in ("fast", "backoff"):
            chosen = Exits(desk, nodes=["swiss", "dutch"], hedge=math.inf, reconnect=reconnect)  # type: ignore[arg-type]
            await echoed_by(chosen)
            cut(tailnet, "swiss")
            name, took[reconnect] = await timed(chosen)
            assert name == "dutch"
            mend(tailnet, "swiss")
            await trio.sleep(60)
    assert took["fast"] < 4, "one try of three seconds"
    assert 11 < took["backoff"] < 14, "three of them, a second and two seconds apart: then its breaker is open"


async def test_a_shorter_hedge_is_quicker(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss", "dutch")
    async with outside(tailnet):
        chosen = Exits(desk, nodes=["swiss", "dutch"], hedge=0.2)
        await echoed_by(chosen)
        cut(tailnet, "swiss")
        name, seconds = await timed(chosen)
        assert (name, seconds < 0.4) == ("dutch", True)


async def test_a_client_that_goes_leaves_nothing(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss", "dutch")
    async with outside(tailnet):
        chosen = Exits(desk, nodes=["swiss", "dutch"])
        await echoed_by(chosen)
        await trio.sleep(65)
        cut(tailnet, "swiss", "dutch")
        for patience in (0, 0.01, 0.3, 1.2, 4):
            with trio.move_on_after(patience):
                await chosen.tcp_connect(WEB, 80)
            status = chosen.status()
            assert (status.waiting, sum(one.dials for one in status.exits)) == (0, 0)
        await trio.sleep(65)
        held = held_by(desk)
        assert (held["connections"], held["dials"], held["pings"]) == (0, 0, 0)


async def test_nobody_follows_the_device_for_exits_that_nobody_uses(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss")
    async with outside(tailnet):
        before = held_by(desk)["tasks"]
        chosen = Exits(desk)
        assert held_by(desk)["tasks"] == before
        await echoed_by(chosen)
        assert held_by(desk)["tasks"] > before
        await trio.sleep(700)
        assert held_by(desk)["tasks"] == before
        assert await echoed_by(chosen) == "swiss", "and the next verb begins again"


async def test_events_tell_of_the_choice_and_end_with_the_device(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss", "dutch")
    async with outside(tailnet):
        chosen = Exits(desk, nodes=["swiss", "dutch"])
        news = EventLog(chosen)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(news.read)
            await echoed_by(chosen)
            cut(tailnet, "swiss")
            await echoed_by(chosen)
            mend(tailnet, "swiss")
            await trio.sleep(40)
            assert [(type(one).__name__, one.exit.hostname) for one in news.seen] == [
                ("ExitChosen", "swiss"),
                ("ExitLost", "swiss"),
                ("ExitChosen", "dutch"),
                ("ExitRecovered", "swiss"),
                ("ExitChosen", "swiss"),
            ]
            for _ in range(300):
                await chosen.pin("dutch")
                await chosen.pin(None)
            nursery.cancel_scope.cancel()
    lagging = chosen.events()
    for _ in range(300):
        await chosen.pin("dutch")
        await chosen.pin(None)
    first = await lagging.__anext__()
    assert isinstance(first, tailscale.Lagged)


async def test_the_end_of_the_device_ends_its_exits(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    await tailnet.exit_node("swiss")
    async with outside(tailnet), trio.open_nursery() as nursery:
        async with tailnet.device("desk") as desk:
            await until(lambda: desk.exit_nodes)
            chosen = Exits(desk)
            nursery.start_soon(EventLog(chosen).read)
            await echoed_by(chosen)
            cut(tailnet, "swiss")

            async def dial() -> None:
                with pytest.raises(tailscale.TailscaleError):
                    await chosen.tcp_connect(WEB, 80)

            nursery.start_soon(dial)
            await trio.sleep(0.5)
    with pytest.raises(tailscale.DeviceClosed):
        await chosen.tcp_connect(WEB, 80)


class EventLog:
    """What one policy told."""

    def __init__(self, chosen: Exits) -> None:
        self._stream = chosen.events()
        self.seen: list[Any] = []

    async def read(self) -> None:
        async for event in self._stream:
            self.seen.append(event)

    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.seen]


async def test_cancelled_at_every_step_a_dial_leaves_nothing(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk, _ = await desk_and_exits(tailnet, "swiss", "dutch")
    async with outside(tailnet):
        for is_dead in (False, True):
            chosen = Exits(desk, nodes=["swiss", "dutch"])
            await echoed_by(chosen)
            if is_dead:
                cut(tailnet, "swiss")
            for steps in itertools.count(1):
                was_cut = await cancelled_after(steps, partial(echoed_by, chosen))
                status = chosen.status()
                assert (status.waiting, sum(one.dials for one in status.exits)) == (0, 0), f"after {steps} steps"
                if not was_cut:
                    break
            assert steps > 3
