"""What a peer may say that it should not: hellos, envelopes and flows that no honest peer sends, and what comes of it.

The mesh goes on in every case, and whoever did it loses its own session at most.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from mesh_scripts import (
    EPOCH,
    FEATURES,
    bare_client,
    bare_server,
    greeted,
    hello_of,
    meshes,
    next_of,
    until_met,
)
from tailnet_scripts import until
from trio.testing import MockClock
from wsproto.events import BytesMessage, Ping, TextMessage
from wsproto.utilities import LocalProtocolError

from tailscale import ConnectionRefused, ConnectionReset, Device
from tailscale.mesh import Mesh, MeshLimits, PeerGone, TooManySessions
from tailscale.testing import Tailnet

UPGRADE = "GET /ws HTTP/1.1\r\nhost: b\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
OURS = {"features": FEATURES, "epoch": EPOCH}


@asynccontextmanager
async def attacked(net: Tailnet, **options: Any) -> AsyncIterator[tuple[Mesh, Device]]:
    """A mesh, and a device that may do what it wants to it. Afterwards the mesh still does its work."""
    async with meshes(net, "b", "friend", **options) as (b, friend):
        attacker = await net.device("x")
        yield b, attacker
        async with b.subscribe("still-there", int) as inbox:
            await friend.send("b", "still-there", 1, timeout=10)
            assert (await next_of(inbox)).data == 1


async def code_after(device: Device, *said: Any) -> int | None:
    """With which code a session ends that begins like this."""
    async with bare_client(device, "b") as bare:
        await bare.say(*said)
        return await bare.code()


# --- hello ----------------------------------------------------------------------------------------


async def test_hello_of_another_app_is_4001(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with attacked(tailnet) as (b, x):
        assert await code_after(x, hello_of(x, app_id="other")) == 4001
        assert "x" not in b.peers


async def test_hello_with_a_lying_id_is_4003(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with attacked(tailnet) as (b, x):
        assert await code_after(x, hello_of(x, tailscale_id=b.device.node.stable_id)) == 4003
        assert await code_after(x, hello_of(x, tailscale_id="")) == 4003
        assert await code_after(x, hello_of(x, device_id=b.id)) == 4003
        assert b.drops["mesh.wrong_identity"] == 3
        assert "x" not in b.peers


async def test_hello_with_missing_or_wrong_fields_is_4002(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    """Which ones, and where the bounds are, is in tests/ts_mesh/test_hello.py."""
    async with attacked(tailnet) as (b, x):
        for change in ({"kind": "goodbye"}, {"version": 1}, {"identity": {}}, {"seen": {"epoch": "", "n": -1}}):
            assert await code_after(x, {**hello_of(x), **change}) == 4002
        assert await code_after(x, hello_of(x, app_id="x" * 33)) == 4002  # bounds come before the app is compared
        assert "x" not in b.peers


async def test_hello_of_8_kib_and_one_byte_is_4002(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with attacked(tailnet) as (_, x):
        hello = json.dumps(hello_of(x))
        async with bare_client(x, "b") as bare:
            await greeted(bare, {**hello_of(x), "padding": "x" * (8192 - len(hello) - 16)})
        assert await code_after(x, hello[:-1] + " " * (8193 - len(hello)) + "}") == 4002
        async with bare_client(x, "b") as bare:  # in pieces, none of which is too long
            for _ in range(17):
                await bare.send(TextMessage(data=" " * 512, message_finished=False))
            assert await bare.code() == 4002


async def test_hello_that_does_not_come_in_five_seconds_is_4002(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with attacked(tailnet) as (_, x):
        began = trio.current_time()
        assert await code_after(x) == 4002
        assert trio.current_time() - began == pytest.approx(5, abs=1)


async def test_hello_after_seventeen_pings_is_too_late(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with attacked(tailnet) as (_, x):
        async with bare_client(x, "b") as bare:
            await bare.send(*[Ping()] * 16)
            await greeted(bare, hello_of(x))
        async with bare_client(x, "b") as bare:
            await bare.send(*[Ping()] * 17)
            assert await bare.code() == 4002


async def test_hello_in_a_binary_frame_is_heard_as_truffle_does(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with attacked(tailnet) as (b, x):
        async with bare_client(x, "b") as bare:
            await bare.send(BytesMessage(data=json.dumps(hello_of(x)).encode()))
            assert (await bare.hear())["identity"]["device_id"] == b.id
        async with bare_client(x, "b") as bare:
            await bare.send(BytesMessage(data=b"\xff" * 100))
            assert await bare.code() == 4002


async def test_hello_in_a_compressed_frame_ends_the_session(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with attacked(tailnet) as (_, x):
        async with bare_client(x, "b") as bare:
            frame = bytearray(bare.machine.send(TextMessage(data=json.dumps(hello_of(x)))))
            frame[0] |= 0x40  # RFC 7692: compressed, which nobody negotiated
            await bare.stream.send_all(bytes(frame))
            assert await bare.code() == 1002


async def test_hello_may_come_byte_by_byte(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with attacked(tailnet) as (b, x):
        async with bare_client(x, "b") as bare:
            for character in json.dumps(hello_of(x))[:-1]:
                await bare.send(TextMessage(data=character, message_finished=False))
            await bare.send(TextMessage(data="}"))
            assert (await bare.hear())["identity"]["device_id"] == b.id


async def test_hello_of_a_later_version_is_heard(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with attacked(tailnet) as (b, x):
        async with bare_client(x, "b") as bare:
            hello = {**hello_of(x, features=[*FEATURES, "telepathy"], epoch=EPOCH), "version": 7, "mood": ["good"]}
            assert (await greeted(bare, hello))["version"] == 2
            await until(lambda: "x" in b.peers)
            await until(lambda: b.peers["x"].features == {"ack", "bin", "files", "store"})


async def test_hello_of_a_server_is_checked_as_well(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b, c = [await tailnet.device(name) for name in "abc"]
    async with Mesh(a, "notes") as mesh:
        with b.announce("mesh:notes", 9417):
            await until_met(mesh, 1)
            for changes, code in (({"tailscale_id": c.node.stable_id}, 4003), ({"app_id": "other"}, 4001)):
                async with bare_server(b, hello_of(b, **changes)):
                    with pytest.raises(ConnectionRefused, match=f"before it began: .*{code}"):
                        await mesh.send("b", "chat", 1)
                    assert not mesh.peers["b"].connected


async def test_requests_for_anything_else_are_404(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with attacked(tailnet) as (_, x):
        for path, status in (("/", 404), ("/ws", 404), ("/f/guessed/1", 404), ("/f/", 404), ("/ws x", 400)):
            assert await status_of(x, f"GET {path} HTTP/1.1\r\nhost: b\r\n\r\n") == status
        assert await status_of(x, UPGRADE) == 400  # without a key


async def status_of(device: Device, request: str, host: str = "b") -> int:
    """Of the answer to a bare request."""
    async with await device.tcp_connect(host, 9417) as stream:
        await stream.send_all(request.encode())
        return int((await stream.receive_some()).split()[1])


# --- envelope -------------------------------------------------------------------------------------


def envelope(n: int = 1, payload: Any = None, **changes: Any) -> dict[str, Any]:
    return {"namespace": "chat", "msg_type": "message", "payload": payload, "n": n, **changes}


def nested(depth: int) -> str:
    return json.dumps(envelope()).replace("null", "[" * depth + "]" * depth)


async def test_envelope_that_breaks_the_rules_ends_the_session(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    """Which ones do is in tests/ts_mesh/test_envelope.py and test_window_rules.py."""
    bad: list[str | bytes] = [
        nested(65),
        json.dumps(envelope((1 << 64) - 1)),
        b"\x00\x00\x01\x00{}",
        json.dumps({"namespace": "_", "msg_type": "ack", "payload": {"n": 1}}),
        json.dumps({"namespace": "_", "msg_type": "ack", "payload": []}),
    ]
    async with attacked(tailnet) as (b, x), b.subscribe("chat") as inbox:
        for number, said in enumerate(bad):
            async with bare_client(x, "b") as bare:
                await greeted(bare, hello_of(x, features=FEATURES, epoch=f"{number:016x}"))
                await bare.send(BytesMessage(data=said) if isinstance(said, bytes) else TextMessage(data=said))
                assert await bare.code() == 4002, said[:50]
        with trio.move_on_after(1) as nothing:
            await inbox.__anext__()
        assert nothing.cancelled_caught
        assert b.drops["mesh.malformed"] == len(bad)


async def test_envelope_at_its_bounds_is_taken(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with attacked(tailnet) as (b, x), b.subscribe("chat") as inbox:
        async with bare_client(x, "b") as bare:
            await greeted(bare, hello_of(x, **OURS))
            await bare.say(nested(64))
            await bare.say(json.dumps(envelope(2, "last"))[:-1] + ', "payload": "first", "payload": "last"}')
            await bare.say({**envelope(3, (1 << 64) - 1), "from": "somebody else", "v": 99})
            assert str((await next_of(inbox)).data) == "[" * 64 + "]" * 64
            assert (await next_of(inbox)).data == "last"
            message = await next_of(inbox)
            assert message.data == (1 << 64) - 1
            assert message.sender.id == "ID-OF-x"


async def test_n_going_back_is_a_message_that_came_before(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with attacked(tailnet) as (b, x), b.subscribe("chat") as inbox:
        async with bare_client(x, "b") as bare:
            await greeted(bare, hello_of(x, **OURS))
            await bare.say(envelope(1, "one"), envelope(2, "two"), envelope(1, "again"), envelope(3, "three"))
            assert [(await next_of(inbox)).data for _ in range(3)] == ["one", "two", "three"]
            assert (await bare.hear_until("ack"))["payload"]["n"] in (0, 3)
            await bare.say(envelope(5, "a gap"))
            assert await bare.code() == 4002


async def test_answers_nobody_asked_for_are_dropped(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    """`re` of a request of somebody else, or of none."""
    async with attacked(tailnet) as (b, x):
        async with bare_client(x, "b") as bare:
            await greeted(bare, hello_of(x, **OURS))
            await bare.say(envelope(1, "forged", msg_type="reply", re=1), envelope(2, None, re=1 << 52))
            while (await bare.hear_until("ack"))["payload"]["n"] < 2:
                pass
            stats = b.line_of(b.peers["x"]).window.statistics()
            assert stats.drops["mesh.stray_answer"] == 2


TRUFFLE_OFFER = {
    "type": "offer",
    "file_name": "a",
    "size": 1,
    "sha256": "",
    "save_path": "",
    "token": "t",
    "tcp_port": 0,
}


async def test_truffles_offers_of_files_are_refused_and_not_left_without_a_word(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    asks = [TRUFFLE_OFFER, {"type": "pull_request", "path": "/etc/passwd", "requester_id": "n", "token": "u"}]
    others = [
        {"type": "accept", "token": "t", "tcp_port": 1},
        {"type": "offer"},
        {**TRUFFLE_OFFER, "token": "x" * 257},
        7,
    ]
    async with attacked(tailnet) as (b, x), bare_client(x, "b") as bare:
        await greeted(bare, hello_of(x))
        for kind, payload in [*(("message", each) for each in (*asks, *others)), ("offer", TRUFFLE_OFFER)]:
            await bare.say({"namespace": "ft", "msg_type": kind, "payload": payload})
        for token in ("t", "u", "t"):
            answer = await bare.hear_until("reject")
            assert answer["namespace"] == "ft"
            assert answer["payload"] == {"type": "reject", "token": token, "reason": "unsupported"}
        await until(lambda: b.statistics().drops.get("mesh.nobody_listens") == len(others))
        assert b.drops["mesh.foreign_offer"] == 3
        async with b.subscribe("ft") as inbox:  # a program that speaks them itself is asked instead
            await bare.say({"namespace": "ft", "msg_type": "message", "payload": TRUFFLE_OFFER})
            assert (await next_of(inbox)).data == TRUFFLE_OFFER
        assert b.drops["mesh.foreign_offer"] == 3


@pytest.mark.slow
async def test_a_flood_of_truffles_offers_that_reads_no_answers_is_bounded(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    async with attacked(tailnet) as (b, x), bare_client(x, "b") as bare:
        await greeted(bare, hello_of(x))

        async def flood() -> None:
            for _ in range(300):
                await bare.say(*[{"namespace": "ft", "msg_type": "message", "payload": TRUFFLE_OFFER}] * 100)

        with trio.move_on_after(20):
            await _until_broken(flood)
        assert b.drops["mesh.foreign_offer"] >= 1000
        assert not b.line_of(b.peers["x"]).window.has_room("ft", 1)


async def test_a_message_of_more_than_sixteen_mebibytes_is_4005(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with attacked(tailnet) as (_, x):
        async with bare_client(x, "b") as bare:
            await greeted(bare, hello_of(x, **OURS))

            async def flood() -> None:
                for _ in range(20):
                    await bare.send(BytesMessage(data=bytes(1 << 20), message_finished=False))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(_until_broken, flood)
                assert await bare.code() == 4005


# --- flow -----------------------------------------------------------------------------------------


async def test_flow_beyond_the_credit_ends_the_session(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    """A subscriber that never reads: what an honest peer may send is kept, more is not."""
    limits = MeshLimits(credit=4)
    async with attacked(tailnet, limits=limits) as (b, x), b.subscribe("chat"), b.subscribe("other") as other:
        async with bare_client(x, "b") as bare:
            await greeted(bare, hello_of(x, **OURS))
            await bare.say(*(envelope(n, n) for n in range(1, 9)), envelope(9, 9, namespace="other"))
            assert (await next_of(other)).data == 9
            await bare.say(envelope(10, 10))
            assert await bare.code() == 4002


async def test_flow_of_a_million_namespaces_costs_nothing(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    """Thousands here: what counts is that they leave nothing behind."""
    async with attacked(tailnet) as (b, x):
        async with bare_client(x, "b") as bare:
            await greeted(bare, hello_of(x, **OURS))
            await bare.say(*(envelope(n, None, namespace=f"n{n}") for n in range(1, 1001)))
            while (await bare.hear_until("nack"))["payload"]["n"] < 1000:
                pass
            window = b.line_of(b.peers["x"]).window
            assert window.statistics().held == 64
            await trio.sleep(3)
            assert window.statistics().held == 0


async def test_flow_of_refusals_that_nobody_reads_ends_the_session(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with attacked(tailnet) as (_, x):
        async with bare_client(x, "b") as bare:
            await greeted(bare, hello_of(x, **OURS))

            async def flood() -> None:
                for n in range(1, 6000, 500):
                    await bare.say(*(envelope(n + more, namespace="nobody") for more in range(500)))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(_until_broken, flood)
                assert await bare.code() in (4002, None)


async def _until_broken(flood: Callable[[], Awaitable[None]]) -> None:
    with contextlib.suppress(trio.BrokenResourceError, LocalProtocolError):
        await flood()


async def test_flow_to_a_peer_removed_in_the_middle_fails(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "a", "b") as (a, b), b.subscribe("chat", limit=1):
        bob = await a.peer("b")
        await bob.send("chat", 0)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with pytest.raises(PeerGone):
                    await bob.send("chat", 1)

            nursery.start_soon(send)
            await trio.sleep(0.5)
            tailnet.remove("b")


async def test_flow_goes_on_under_another_name_and_key(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    device = await tailnet.device("b", auth_key=tailnet.auth_key(reusable=True))
    async with meshes(tailnet, "a") as (a,), Mesh(device, "notes") as b, b.subscribe("chat", int) as inbox:
        bob = await a.peer("b", timeout=5)
        await bob.send("chat", 0)
        tailnet.rename("b", "bee")
        await a.peer("bee", timeout=10)
        await a.send("bee", "chat", 1, timeout=60)
        await device.login()
        await bob.send("chat", 2, timeout=60)
        assert [(await next_of(inbox)).data for _ in range(3)] == [0, 1, 2]
        assert bob == a.peers["bee"]


async def test_callers_that_say_nothing_are_bounded(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "b", limits=MeshLimits(pending=3)) as (b,), contextlib.AsyncExitStack() as stack:
        x = await tailnet.device("x")
        for _ in range(5):
            with contextlib.suppress(ConnectionReset):  # it may be told before it is handed out
                await stack.enter_async_context(await x.tcp_connect("b", 9417))
        await until(lambda: b.drops["mesh.too_many_callers"] == 2)
        await trio.sleep(70)
        async with bare_client(x, "b") as bare:
            await greeted(bare, hello_of(x))


async def test_sessions_are_bounded(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "b", limits=MeshLimits(sessions=1)) as (_,):
        x, y = await tailnet.device("x"), await tailnet.device("y")
        async with bare_client(x, "b") as bare:
            await greeted(bare, hello_of(x))
            assert await status_of(y, UPGRADE) == 503


async def test_sessions_of_one_app_are_bounded_where_another_has_room(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    async with meshes(tailnet, "b", limits=MeshLimits(sessions=1)) as (b,), Mesh(b.device, "wiki"):
        x, y = await tailnet.device("x"), await tailnet.device("y")
        async with bare_client(x, "b") as bare, bare_client(y, "b") as late:
            await greeted(bare, hello_of(x))
            await late.say(hello_of(y))
            assert await late.code() == 1013
            assert [peer.node.hostname for peer in b.peers.values()] == ["x"]


async def test_sessions_we_begin_are_bounded_with_stores_as_well(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    names = [f"m{number}" for number in range(4)]
    async with meshes(tailnet, "a", limits=MeshLimits(sessions=2)) as (a,), contextlib.AsyncExitStack() as stack:
        others = {name: Mesh(await tailnet.device(name), "notes") for name in names}
        for mesh in others.values():
            await stack.enter_async_context(mesh)
        await until_met(a, len(names))

        def connected() -> list[str]:
            return [peer.node.hostname for peer in a.peers.values() if peer.connected]

        async with a.store("presence"):
            most = 0
            for _ in range(100):
                await trio.sleep(0.5)
                most = max(most, len(connected()))
            assert most == len(connected()) == 2
            first, *_ = connected()
            left = next(name for name in names if name not in connected())
            assert await status_of(others[left].device, UPGRADE, "a") == 503
            tailnet.remove(first)
            await until(lambda: first not in connected() and len(connected()) == 2, 120)
        with pytest.raises(TooManySessions, match=r"MeshLimits\(sessions=\)"):
            await a.send(next(name for name in names if name not in (first, *connected())), "chat", 1, timeout=60)
