"""The way to a control server and the talk with it, over streams that stall, break and lie."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from backports import zstd

from ts_base.errors import BadPacket, TailscaleError
from ts_base.keys import DiscoPrivate, MachinePrivate, NodePrivate
from ts_control.client import CONNECT_TIMEOUT, ControlClient
from ts_control.connection import STALL_TIMEOUT, WATCHDOG, ControlConnection
from ts_control.errors import ControlLost, NotControl, RequestRefused
from ts_control.framing import encode_frame
from ts_control.gojson import encode_json
from ts_control.handshake import encode_refusal
from ts_control.wire import MapRequest
from ts_control.wire_register import RegisterAuth, RegisterRequest, ServerKeys

from control_scripts import first_map, seeded  # isort: skip
from fake_control import FakeControl, Stream, frame  # isort: skip

URL = "http://127.0.0.1:8080"
NODE = NodePrivate.generate(seeded(5)(32))
DISCO = DiscoPrivate.generate(seeded(6)(32))


def make_client(control: FakeControl, url: str = URL, **environment: str) -> ControlClient:
    return ControlClient(url, control, MachinePrivate.generate(seeded(4)(32)), environment=environment)


def map_request() -> MapRequest:
    return MapRequest(version=131, stream=True, compress="zstd", node_key=NODE.public, disco_key=DISCO.public)


@asynccontextmanager
async def served() -> AsyncIterator[FakeControl]:
    async with trio.open_nursery() as nursery:
        yield FakeControl(nursery)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[FakeControl, ControlConnection]]:
    async with served() as control, make_client(control).connect() as connection:
        yield control, connection


async def test_one_tcp_connection_carries_everything(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (control, connection):
        answer = await connection.register(RegisterRequest(version=131, node_key=NODE.public))
        assert answer.machine_authorized
        async with connection.map_stream(map_request()) as stream:
            assert await stream.receive() == first_map(2, 3)
            await connection.update(MapRequest(version=131, omit_peers=True))
        assert control.dials == [("127.0.0.1", 8080)]
        assert [path for path, _ in control.requests] == ["/machine/register", "/machine/map", "/machine/map"]


async def test_a_server_that_keeps_no_connection_alive_gets_a_second_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with served() as control:
        control.closes_after_key = True
        async with make_client(control).connect() as connection:
            await connection.register(RegisterRequest())
        assert len(control.dials) == 2


async def test_a_proxy_is_asked_to_connect(autojump_clock: trio.testing.MockClock) -> None:
    async with served() as control:
        client = make_client(control, "http://hs.example:8080", HTTP_PROXY="http://proxy:3128")
        async with client.connect() as connection:
            await connection.register(RegisterRequest())
        assert control.dials == [("proxy", 3128)]


async def test_a_black_hole_is_given_up_at_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    async with served() as control:
        control.is_black_hole = True
        began = trio.current_time()
        with pytest.raises(ControlLost, match="did not answer"):
            async with make_client(control).connect():
                pass
        assert trio.current_time() - began == pytest.approx(CONNECT_TIMEOUT)


async def test_nobody_there_is_told(autojump_clock: trio.testing.MockClock) -> None:
    async with served() as control:
        control.refuses = True
        with pytest.raises(ControlLost, match="nobody listens"):
            async with make_client(control).connect():
                pass


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (404, b"not here", NotControl),
        (200, b"<html>", NotControl),
        (200, b"mkey:00", NotControl),
        (200, b'{"publicKey": 7}', NotControl),
        (200, encode_json(ServerKeys()), NotControl),
        (502, b"bad gateway", ControlLost),
    ],
)
async def test_what_is_no_coordination_server_is_told_apart(
    status: int, body: bytes, error: type[Exception], autojump_clock: trio.testing.MockClock
) -> None:
    async with served() as control:
        control.key_reply = (status, body)
        with pytest.raises(error):
            async with make_client(control).connect():
                pass


async def test_another_server_key_than_announced_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with served() as control:
        other = MachinePrivate.generate(seeded(9)(32)).public
        control.key_reply = (200, encode_json(ServerKeys(public_key=other)))
        with pytest.raises((NotControl, ControlLost)):
            async with make_client(control).connect():
                pass


@pytest.mark.parametrize(
    "wire",
    [
        b"\xff" * 500,
        b"\x04\xff\xff" + bytes(100),
        b"\x04\0\x10" + bytes(16),
        encode_refusal("go away"),
        b"",
    ],
    ids=["noise", "long record", "forged record", "late refusal", "silence then end"],
)
async def test_garbage_after_the_upgrade_ends_the_connection(
    wire: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    async def babble(stream: Stream) -> None:
        await stream.send_all(wire)

    async with served() as control:
        control.after_upgrade = babble
        with pytest.raises(ControlLost):
            async with make_client(control).connect() as connection:
                await connection.register(RegisterRequest())


@pytest.mark.parametrize(
    "body",
    [
        (2**32 - 1).to_bytes(4, "little"),
        bytes(4),
        b"\x05\0\0\0hello",
        encode_frame(b'{"Node": {', compressed=True),
        encode_frame(b'{"Peers": {}}', compressed=True),
        encode_frame(b"null", compressed=True),
        encode_frame(zstd.compress(bytes(200 << 20)), compressed=True),
        len(zstd.compress(bytes(200 << 20))).to_bytes(4, "little") + zstd.compress(bytes(200 << 20)),
    ],
    ids=["4 GiB", "empty", "no zstd", "half json", "wrong type", "null", "zstd in zstd", "bomb"],
)
async def test_a_bad_map_ends_the_stream(body: bytes, autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (control, connection):
        control.map_reply = body
        async with connection.map_stream(map_request()) as stream:
            with pytest.raises(BadPacket):
                await stream.receive()
        await connection.register(RegisterRequest())  # the connection itself is unharmed


@pytest.mark.parametrize(
    ("body", "words", "patience"),
    [
        (b"", "said nothing", WATCHDOG),
        (frame(first_map())[:-1], "stopped in the middle", STALL_TIMEOUT),
        (frame(first_map())[:2], "stopped in the middle", STALL_TIMEOUT),
    ],
    ids=["nothing", "half a frame", "half a length"],
)
async def test_silence_is_noticed_by_the_watchdog(
    body: bytes, words: str, patience: float, autojump_clock: trio.testing.MockClock
) -> None:
    async with connected() as (control, connection):
        control.map_reply = body
        began = trio.current_time()
        async with connection.map_stream(map_request()) as stream:
            with pytest.raises(ControlLost, match=words):
                await stream.receive()
        assert trio.current_time() - began == pytest.approx(patience)


async def test_a_refusal_carries_its_words_and_its_patience(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (control, connection):
        control.register_reply = lambda body: (429, [("retry-after", "17")], b"slow down\n")
        with pytest.raises(RequestRefused) as caught:
            await connection.register(RegisterRequest())
        assert (caught.value.status, caught.value.text, caught.value.retry_after) == (429, "slow down", "17")


async def test_an_endless_answer_is_cut_off(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (control, connection):
        control.register_reply = lambda body: (200, [], bytes(3 << 20))
        with pytest.raises(BadPacket, match="more than"):
            await connection.register(RegisterRequest())


async def test_a_map_of_many_peers_comes_in_steps(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (control, connection):
        control.map_reply = frame(first_map(*range(2, 1500)))
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery, connection.map_stream(map_request()) as stream:
            nursery.start_soon(count)
            assert len((await stream.receive()).peers) == 1498
            assert turns > 7
            nursery.cancel_scope.cancel()


async def test_a_ping_request_is_answered_outside_the_channel(autojump_clock: trio.testing.MockClock) -> None:
    async with served() as control:
        await make_client(control).answer_ping(f"{URL}/machine/ping-response?id=7")
        assert control.heads == ["/machine/ping-response?id=7"]


async def test_cancelling_anywhere_leaves_nothing_behind(autojump_clock: trio.testing.MockClock) -> None:
    for turns in range(40):
        async with served() as control:
            with trio.CancelScope() as scope:

                async def cancel_after(turns: int = turns, scope: trio.CancelScope = scope) -> None:
                    for _ in range(turns):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(cancel_after)
                    async with make_client(control).connect() as connection:
                        await connection.register(RegisterRequest())
                        async with connection.map_stream(map_request()) as stream:
                            await stream.receive()
                            await stream.receive()


async def test_no_secret_is_logged(autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "hskey-auth-verysecret"
    async with connected() as (control, connection):
        control.register_reply = lambda body: (500, [], b"no")
        with pytest.raises(TailscaleError) as caught:
            await connection.register(RegisterRequest(auth=RegisterAuth(auth_key=secret)))
        assert secret.encode() in control.requests[0][1]
    assert "verysecret" not in caplog.text + repr(caught.value) + repr(connection)


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:8080/x",
        "http://localhost:8080/x",
        "http://2130706433/x",
        "http://[::1]/x",
        "http://[::ffff:127.0.0.1]/x",
        "http://10.0.0.1/x",
        "http://172.16.9.9/x",
        "http://192.168.1.1:8080/x",
        "http://169.254.169.254/latest/meta-data",
        "http://[fe80::1]/x",
        "http://[fd00::1]/x",
        "http://100.100.100.100/x",
        "http://0.0.0.0/x",
    ],
)
async def test_a_ping_request_reaches_no_place_inside(target: str) -> None:
    for url in ("http://8.8.8.8:8080", "http://192.168.7.7:8080"):
        async with served() as control:
            with pytest.raises(BadPacket):
                await make_client(control, url).answer_ping(target)
            assert control.dials == []


async def test_a_ping_request_reaches_control_wherever_it_is_and_public_places() -> None:
    for url, target in (
        ("http://192.168.7.7:8080", "http://192.168.7.7:8080/x"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:9/x"),
        ("http://localhost:8080", "http://127.0.0.1:8080/x"),
        ("http://127.0.0.1:8080", "http://8.8.8.8/x"),
    ):
        async with served() as control:
            await make_client(control, url).answer_ping(target)
            assert control.heads == ["/x"]
