"""SOCKS 5 over raw bytes, in virtual time: every field cut and split, every code, and nothing told before it is so."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import trio
import trio.lowlevel
from proxy_clients import (
    ECHO_PORT,
    NO_LOGIN,
    bytewise,
    echoed,
    login,
    read_all,
    read_exactly,
    scene,
    socks_open,
    socks_request,
)
from tailnet_scripts import held_by, until
from trio.testing import MockClock

from tailscale.proxy import ProxyLimits, Request
from tailscale.testing import Tailnet
from ts_proxy.socks5 import Reply

USERS = {"alice": "secret", "bob": "other"}
ZEROS = b"\0\1" + bytes(6)  # address type and an address that says nothing


def reply(code: int) -> bytes:
    return bytes((5, code)) + ZEROS


async def test_socks_connects_and_says_our_real_end(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    async with scene(tailnet) as s, await s.connect() as stream:
        answer = await socks_open(stream, "web", ECHO_PORT)
        assert answer[:4] == b"\5\0\0\1"
        assert answer[4:8] == bytes(map(int, (s.desk.ipv4 or "").split(".")))
        assert await echoed(stream) == b"hello"
        assert s.proxy.statistics().carried == 1
        await stream.send_eof()
        assert await read_all(stream) == b""
        await until(lambda: not s.proxy.statistics().carried)
        assert s.proxy.statistics().bytes_sent == s.proxy.statistics().bytes_received == 5


async def test_socks_takes_addresses_of_both_families_and_names(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    async with scene(tailnet) as s:
        ipv4, ipv6 = s.web.ipv4 or "", s.web.ipv6 or ""
        port = ECHO_PORT.to_bytes(2, "big")
        raw4 = bytes(map(int, ipv4.split(".")))
        raw6 = next(bytes.fromhex("".join(p.rjust(4, "0") for p in e.split(":"))) for e in [exploded(ipv6)])
        for head, end in (
            (b"\5\1\0\1" + raw4, 1),
            (b"\5\1\0\4" + raw6, 4),
            (b"\5\1\0\4" + bytes(10) + b"\xff\xff" + raw4, 1),  # IPv4 in IPv6 clothes
            (socks_request("web", 0)[:-2], 1),
            (socks_request("WEB.tailnet.test.", 0)[:-2], 1),
            (socks_request(ipv4, 0)[:-2], 1),
            (socks_request(ipv6, 0)[:-2], 4),
            (socks_request(f"[{ipv6}]", 0)[:-2], 4),
            (b"\5\1\xaa\1" + raw4, 1),  # RSV is ignored
        ):
            async with await s.connect() as stream:
                await stream.send_all(NO_LOGIN + head + port)
                answer = await read_exactly(stream, 2 + 4)
                assert answer == b"\5\0" + bytes((5, 0, 0, end)), head
                await read_exactly(stream, {1: 6, 4: 18}[end])
                assert await echoed(stream) == b"hello"


def exploded(address: str) -> str:
    import ipaddress

    return ipaddress.IPv6Address(address).exploded


async def test_socks_understands_a_client_that_sends_byte_by_byte_and_one_that_sends_all_at_once(
    tailnet: Tailnet,
    autojump_clock: MockClock,
) -> None:
    everything = b"\5\2\0\2" + login(b"alice", b"secret") + socks_request("web", ECHO_PORT) + b"hello"
    async with scene(tailnet, users=USERS) as s:
        for pieces in (list(bytewise(everything)), [everything]):
            answer = await s.exchange(*pieces, eof=True)
            assert answer[:4] == b"\5\2\1\0"
            assert answer[4:6] == b"\5\0"
            assert answer.endswith(b"hello")


async def test_socks_client_that_stops_within_a_field_is_hung_up_on_in_silence(
    tailnet: Tailnet, autojump_clock: MockClock
) -> None:
    """Cut behind each byte: no reply but to what was whole, and nothing is left."""
    greeting, who, request = b"\5\1\2", login(b"alice", b"secret"), socks_request("web", ECHO_PORT)
    everything = greeting + who + request
    async with scene(tailnet, users=USERS) as s:
        before = held_by(s.desk)
        for cut in range(len(everything)):
            said = b"\5\2" * (cut >= len(greeting)) + b"\1\0" * (cut >= len(greeting + who))
            assert (await s.exchange(everything[:cut], eof=True)).removesuffix(b"<reset>") == said, cut
        await until(lambda: s.proxy.statistics().open == 0)
        await until(lambda: held_by(s.desk)["connections"] == before["connections"], 200)
        assert s.proxy.statistics().requests == {}


ANSWERS = (
    (b"\5\0", b"\5\xff"),  # no methods at all
    (b"\5\1\x80", b"\5\xff"),
    (b"\5\xff" + bytes(range(1, 256)), b"\5\2"),  # 255 of them, 2 among them
    (b"\5\xff" + bytes((1, *range(3, 256), 0)) + b"\5\1\0\7", b"\5\0" + reply(8)),
    (NO_LOGIN + b"\5\2\0\1", b"\5\0" + reply(7)),  # BIND
    (NO_LOGIN + b"\5\x55\0\1", b"\5\0" + reply(7)),
    (NO_LOGIN + b"\5\1\0\2", b"\5\0" + reply(8)),
    (NO_LOGIN + b"\4\1\0\1", b"\5\0" + reply(1)),  # another version within
    (NO_LOGIN + socks_request("web", 0), b"\5\0" + reply(1)),
    (NO_LOGIN + socks_request(b"", 80), b"\5\0" + reply(1)),
    (NO_LOGIN + socks_request(b"a" * 255, 80), b"\5\0" + reply(1)),
    (NO_LOGIN + socks_request(b"we b", 80), b"\5\0" + reply(1)),
    (NO_LOGIN + socks_request(b"web\0.evil", 80), b"\5\0" + reply(1)),
    (NO_LOGIN + socks_request(b"web%00", 80), b"\5\0" + reply(1)),
    (NO_LOGIN + socks_request(b"web\r\n", 80), b"\5\0" + reply(1)),
    (NO_LOGIN + socks_request("\u0dd7" * 60, 80), b"\5\0" + reply(1)),  # dear to some IDNA encoders
    (NO_LOGIN + socks_request(b"\xff\xfe", 80), b"\5\0" + reply(1)),
    (NO_LOGIN + socks_request("0x7f000001", 80), b"\5\0" + reply(1)),
    (NO_LOGIN + socks_request("127.1", 80), b"\5\0" + reply(1)),
    (NO_LOGIN + socks_request("nobody", 80), b"\5\0" + reply(4)),
    (NO_LOGIN + socks_request("b\u00fccher.tailnet.test", 80), b"\5\0" + reply(4)),
    (NO_LOGIN + socks_request("8.8.8.8", 80), b"\5\0" + reply(3)),
    (NO_LOGIN + socks_request("web", 9), b"\5\0" + reply(5)),
    (NO_LOGIN + socks_request("127.0.0.1", 80), b"\5\0" + reply(2)),
    (NO_LOGIN + socks_request("169.254.169.254", 80), b"\5\0" + reply(2)),
    (NO_LOGIN + socks_request("::ffff:127.0.0.1", 80), b"\5\0" + reply(2)),
    (NO_LOGIN + socks_request("localhost", 80), b"\5\0" + reply(2)),
    (NO_LOGIN + socks_request("metadata.google.internal", 80), b"\5\0" + reply(2)),
    (NO_LOGIN + socks_request("desk", 1080), b"\5\0" + reply(2)),  # this proxy itself
    (b"\4\1\0\x50\1\2\3\4\0", b"\0\x5b" + bytes(6)),  # SOCKS 4
    (b"\4\1\0\x50\0\0\0\1\0web\0", b"\0\x5b" + bytes(6)),  # SOCKS 4a
    (b"\x16\3\1\2\0\1\0\1\xfc\3\3", b""),  # TLS
    (b"\x80nonsense", b""),
    (b"get / http/1.1\r\n\r\n", b""),
)


async def test_socks_answers(tailnet: Tailnet, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with scene(tailnet) as s:
        for sent, answer in ANSWERS:
            for pieces in ([sent], list(bytewise(sent))):
                got = await s.exchange(*pieces, eof=answer == b"\5\2")
                assert got.removesuffix(b"<reset>") == answer, sent
        await until(lambda: s.proxy.statistics().open == 0)
        assert s.proxy.statistics().carried == 0
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


LOGINS = (
    (b"\5\1\0", b"\5\xff"),  # nobody comes in without a name
    (b"\5\1\2" + login(b"alice", b"wrong"), b"\5\2\1\1"),
    (b"\5\1\2" + login(b"mallory", b"secret"), b"\5\2\1\1"),
    (b"\5\1\2" + login(b"nobody", b"nobody"), b"\5\2\1\1"),
    (b"\5\1\2" + login(b"alice+ttl=never", b"secret"), b"\5\2\1\1"),
    (b"\5\1\2" + login(b"\xff", b"secret"), b"\5\2\1\1"),
    (b"\5\1\2" + login(b"alice", b"\xff"), b"\5\2\1\1"),
)


async def test_socks_login_that_fails_is_told_after_a_pause(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    async with scene(tailnet, users=USERS) as s:
        for sent, answer in LOGINS:
            began = trio.current_time()
            assert await s.exchange(sent) == answer
            assert (trio.current_time() - began > 0.19) is (answer == b"\5\2\1\1")
        assert s.proxy.statistics().logins_refused == len(LOGINS) - 1
        for malformed in (b"\5\1\2\2\5alice", b"\5\1\2\1\0\1x", b"\5\1\2\1\5alice\0"):
            assert (await s.exchange(malformed)) == b"\5\2\1\1"


@pytest.mark.parametrize(
    ("users", "name", "password", "expected"),
    [
        (USERS, b"alice+session=shop+ttl=600", b"secret", ("alice", "shop", 600)),
        (None, b"session=shop", b"anything", ("", "shop", 0)),
        (None, b"session=shop", b"", ("", "shop", 0)),
        (None, b"a+b+ttl=5+session=x", b"x", ("a+b", "x", 5)),
    ],
)
async def test_socks_user_name_names_a_session(
    tailnet: Tailnet, autojump_clock: MockClock, users: Any, name: bytes, password: bytes, expected: Any
) -> None:
    seen: list[Request] = []

    def note(request: Request) -> bool:
        seen.append(request)
        return True

    async with scene(tailnet, users=users, allow=note) as s:
        sent = b"\5\2\0\2" + login(name, password) + socks_request("web", ECHO_PORT) + b"hello"
        assert (await s.exchange(sent, eof=True)).endswith(b"hello")
        (request,) = seen
        assert (request.user, request.session, request.ttl) == expected
        assert str(request) == "socks web:7"
        assert request.peer == s.desk.peers["laptop"]
        assert request.client[0] == s.laptop.ipv4


async def test_socks_users_may_be_a_function_that_waits(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    async def known(user: str, password: str) -> bool:
        await trio.sleep(0.01)
        return (user, password) == ("carol", "pass")

    async with scene(tailnet, users=known) as s:
        right = b"\5\1\2" + login(b"carol", b"pass") + socks_request("web", ECHO_PORT) + b"hello"
        assert (await s.exchange(right, eof=True))[:6] == b"\5\2\1\0\5\0"
        assert await s.exchange(b"\5\1\2" + login(b"carol", b"x")) == b"\5\2\1\1"


async def test_socks_never_says_yes_before_the_connection_is_there(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    async with scene(tailnet) as s:
        for way in ("desk", "relay"):
            tailnet.block(way, "web")
        async with await s.connect() as stream:
            await stream.send_all(NO_LOGIN + socks_request("web", ECHO_PORT))
            await read_exactly(stream, 2)
            with trio.move_on_after(4):
                await stream.receive_some()
                pytest.fail("a reply came before the peer could have answered")
            for way in ("desk", "relay"):
                tailnet.unblock(way, "web")
            assert (await read_exactly(stream, 2)) == b"\5\0"


async def test_socks_tells_silence_from_offline(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    async with scene(tailnet, limits=ProxyLimits(dial=5.0)) as s:
        tailnet.block("desk", "web")
        tailnet.block("relay", "web")
        assert await s.exchange(NO_LOGIN + socks_request("web", ECHO_PORT)) == b"\5\0" + reply(6)
        assert s.proxy.statistics().failures == {"connection_timeout": 1}


async def test_socks_keeps_what_was_sent_ahead_for_the_tunnel(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    ahead = bytes(range(256)) * 300  # more than is read ahead
    async with scene(tailnet) as s:
        tailnet.link("desk", "web", latency=0.2)
        async with await s.connect() as stream, trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, NO_LOGIN + socks_request("web", ECHO_PORT) + ahead)
            assert (await read_exactly(stream, 12))[:4] == b"\5\0\5\0"
            assert await read_exactly(stream, len(ahead)) == ahead


@pytest.mark.parametrize("goes", ["with a reset", "properly"])
async def test_socks_client_that_goes_while_we_dial_ends_the_dial(
    tailnet: Tailnet, autojump_clock: MockClock, goes: str
) -> None:
    async with scene(tailnet) as s:
        tailnet.block("desk", "web")
        tailnet.block("relay", "web")
        before = held_by(s.desk)
        stream = await s.connect()
        await stream.send_all(NO_LOGIN + socks_request("web", ECHO_PORT))
        await read_exactly(stream, 2)
        await until(lambda: held_by(s.desk)["dials"] == 1)
        if goes == "properly":
            await stream.aclose()
        else:
            stream.abort()
        await until(lambda: held_by(s.desk)["dials"] == 0, 1.0)
        await until(lambda: s.proxy.statistics().open == 0, 1.0)
        await until(lambda: held_by(s.desk)["tasks"] == before["tasks"], 1.0)
        assert s.proxy.statistics().failures == {}


async def test_socks_client_that_only_finished_sending_gets_its_answer(
    tailnet: Tailnet, autojump_clock: MockClock
) -> None:
    async with scene(tailnet) as s:
        tailnet.link("desk", "web", latency=0.2)
        sent = NO_LOGIN + socks_request("web", ECHO_PORT) + b"hello"
        assert (await s.exchange(sent, eof=True)).endswith(b"hello")


async def test_socks_reset_within_the_handshake_is_no_error(
    tailnet: Tailnet, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene(tailnet) as s:
        for sent in (b"\5", NO_LOGIN, NO_LOGIN + socks_request("web", ECHO_PORT)[:9]):
            stream = await s.connect()
            await stream.send_all(sent)
            await trio.sleep(0.1)
            stream.abort()
        await until(lambda: s.proxy.statistics().open == 0)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


async def test_socks_handshake_has_ten_seconds_however_slowly_it_drips(
    tailnet: Tailnet, autojump_clock: MockClock
) -> None:
    async with scene(tailnet) as s, await s.connect() as stream:
        began = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            for byte in bytewise(b"\5\xff" + bytes(255)):
                await stream.send_all(byte)
                await trio.sleep(0.5)
        assert math.isclose(trio.current_time() - began, 10, abs_tol=1.1)
        assert s.proxy.statistics().open == 0


async def test_socks_reset_of_one_side_is_a_reset_of_the_other(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    async with scene(tailnet) as s:
        listener = await s.web.listen(99)
        async with await s.connect() as stream, listener:
            await socks_open(stream, "web", 99)
            far = await listener.accept()
            far.abort()
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            async with await s.connect() as other:
                await socks_open(other, "web", 99)
                far = await listener.accept()
                other.abort()
                with pytest.raises(trio.BrokenResourceError):
                    await far.receive_some()


async def test_socks_connection_that_carries_nothing_for_too_long_is_ended(
    tailnet: Tailnet, autojump_clock: MockClock
) -> None:
    async with scene(tailnet, limits=ProxyLimits(idle=60)) as s, await s.connect() as stream:
        await socks_open(stream, "web", ECHO_PORT)
        for _ in range(3):
            await trio.sleep(50)
            assert await echoed(stream) == b"hello"
        with trio.fail_after(60 * 1.3), pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert s.proxy.statistics().timed_out == 1
        assert ProxyLimits().idle == 3600


async def test_socks_allow_is_asked_and_its_failure_is_a_no(
    tailnet: Tailnet, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def rules(request: Request) -> bool:
        await trio.lowlevel.checkpoint()
        if request.port == 13:
            raise KeyError(request.port)
        return request.port == ECHO_PORT

    async with scene(tailnet, allow=rules) as s:
        for port, code in ((ECHO_PORT, Reply.SUCCEEDED), (9, Reply.NOT_ALLOWED), (13, Reply.NOT_ALLOWED)):
            async with await s.connect() as stream:
                assert (await socks_open(stream, "web", port))[1] == code
        assert s.proxy.statistics().failures == {"http_request_denied": 2}
    assert "allow= failed" in caplog.text


async def test_socks_policy_that_rejects_us_is_told_as_not_allowed(tailnet: Tailnet, autojump_clock: MockClock) -> None:
    async with scene(tailnet) as s:
        await s.web.set(shields_up=True)
        await trio.sleep(1)
        async with await s.connect() as stream:
            assert (await socks_open(stream, "web", ECHO_PORT))[1] in (Reply.NOT_ALLOWED, Reply.TTL_EXPIRED)
