"""Control, relay and peers misbehave: what is up stays usable, says what is wrong, and recovers by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from tailnet_scripts import beside, echo_service, echoed, host_of, until
from trio.testing import MockClock

import tailscale
from tailscale.testing import Tailnet

pytestmark = pytest.mark.slow

GONE = 300.0
RECOVERY = 30.0
Trouble = Callable[[Tailnet], AsyncIterator[None]]


def count_dials(net: Tailnet, name: str) -> list[float]:
    """When a device tried to reach control."""
    dials: list[float] = []
    host, control = host_of(net, name), host_of(net, "control").address
    original = host.open_tcp

    async def open_tcp(address: str, port: int) -> object:
        if address == control:
            dials.append(trio.current_time())
        return await original(address, port)

    host.open_tcp = open_tcp  # type: ignore[assignment, method-assign]
    return dials


# Ways in which a control server fails


async def gone(net: Tailnet) -> AsyncIterator[None]:
    await net.control.stop()
    yield
    await net.control.start()


async def gone_and_forgetful(net: Tailnet) -> AsyncIterator[None]:
    await net.control.stop()
    yield
    await net.control.restart(forget_devices=True)


async def gone_and_back_with_a_new_key(net: Tailnet) -> AsyncIterator[None]:
    await net.control.stop()
    yield
    await net.control.restart(new_key=True)


async def black_hole(net: Tailnet) -> AsyncIterator[None]:
    for name in ("a", "b"):
        net.block(name, "control")
    yield
    for name in ("a", "b"):
        net.unblock(name, "control")


async def talking_nonsense(net: Tailnet) -> AsyncIterator[None]:
    async with instead_of_control(net, b"\x00\xff nonsense \r\n\r\n" * 100, hangs=False):
        yield


async def a_web_page(net: Tailnet) -> AsyncIterator[None]:
    async with instead_of_control(net, b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", hangs=False):
        yield


async def half_an_answer_for_ever(net: Tailnet) -> AsyncIterator[None]:
    async with instead_of_control(net, b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{", hangs=True):
        yield


async def server_errors(net: Tailnet) -> AsyncIterator[None]:
    async with instead_of_control(net, b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", hangs=False):
        yield


@asynccontextmanager
async def instead_of_control(net: Tailnet, says: bytes, *, hangs: bool) -> AsyncIterator[None]:
    await net.control.stop()

    async def answer(stream: trio.abc.Stream) -> None:
        async with stream:
            try:
                await stream.receive_some(65536)
                await stream.send_all(says)
                if hangs:
                    await trio.sleep_forever()
            except trio.BrokenResourceError:
                return

    host = host_of(net, "control")
    async with beside(partial(trio.serve_listeners, answer, [host.listen_tcp(80)])):
        yield
        host.unlisten(80)
        host.reset_streams()
    await net.control.start()


TROUBLES = [
    *(gone, gone_and_forgetful, gone_and_back_with_a_new_key, black_hole),
    *(talking_nonsense, a_web_page, half_an_answer_for_ever, server_errors),
]


FEW = (gone_and_forgetful, black_hole, half_an_answer_for_ever)


@pytest.mark.parametrize(
    "trouble",
    [pytest.param(one, id=one.__name__, marks=[] if one in FEW else pytest.mark.slow) for one in TROUBLES],
)
async def test_control_gone_for_minutes(autojump_clock: MockClock, tailnet: Tailnet, trouble: Trouble) -> None:
    key = tailnet.auth_key(reusable=True)
    a, b = [await tailnet.device(name, auth_key=key, ephemeral=False) for name in ("a", "b")]
    dials = count_dials(tailnet, "a")
    async with echo_service(b, 80), await a.tcp_connect("b", 80) as stream:
        async with asynccontextmanager(trouble)(tailnet):
            began = trio.current_time()
            while trio.current_time() < began + GONE:
                await stream.send_all(b"still here")
                assert await stream.receive_some() == b"still here"
                assert await echoed(a, "b", 80) == b"hello"
                assert await a.resolve("b") == b.ipv4
                await trio.sleep(10)
            assert {warning.code for warning in a.health} == {"control-unreachable"}
            assert all(warning.sentence and warning.remedy for warning in a.health)
            assert a.status().state != "running"
            sustained = [at for at in dials if at > began + 10]
            assert len(sustained) <= GONE
        recovered = trio.current_time()
        c = await tailnet.device("c", auth_key=key)
        await until(lambda: a.status().state == "running" and not a.health, RECOVERY)
        await until(lambda: "c" in a.peers and "a" in c.peers and "b" in c.peers, RECOVERY)
        assert trio.current_time() - recovered <= RECOVERY
        assert await echoed(c, "b", 80, timeout=20) == b"hello"
        if trouble is not gone_and_forgetful:  # whoever is new to the server may have another address
            await stream.send_all(b"still here")
            assert await stream.receive_some() == b"still here"


async def test_device_outlives_its_relay(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    tailnet.block_udp(a, b)
    async with echo_service(b, 80):
        assert await echoed(a, "b", 80) == b"hello"
        stream = await a.tcp_connect("b", 80)
        await tailnet.relay.stop()
        await trio.sleep(20)
        assert any("relay" in warning.code for warning in a.health)
        await tailnet.relay.start()
        await until(lambda: not a.health, 60)
        assert await echoed(a, "b", 80, timeout=30) == b"hello"
        with trio.fail_after(60):
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"x"
        await stream.aclose()


async def test_peer_that_restarts_with_its_state_is_found_again(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, store = await tailnet.device("a"), tailscale.MemoryStore()
    for _ in range(3):
        async with tailnet.device("b", state=store) as b, echo_service(b, 80):
            assert await echoed(a, "b", 80) == b"hello"


async def test_peer_that_vanishes_and_returns_is_reached_at_once(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    async with echo_service(b, 80):
        assert await echoed(a, "b", 80) == b"hello"
        for other in (a, "relay", "control"):
            tailnet.block(b, other)
        with pytest.raises(OSError, match="did not answer"):
            await a.tcp_connect("b", 80, timeout=20)
        for other in (a, "relay", "control"):
            tailnet.unblock(b, other)
        with trio.fail_after(30):
            assert await echoed(a, "b", 80, timeout=25) == b"hello"


async def test_new_node_key_reaches_tunnel_relay_and_paths(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    key = tailnet.auth_key(reusable=True)
    a, b = await tailnet.device("a", auth_key=key), await tailnet.device("b", auth_key=key)
    async with echo_service(a, 80), echo_service(b, 80):
        for _ in range(3):
            await trio.sleep(1)  # a handshake of the very same instant would be a replayed one
            await a.login()
            for kind in ("disco", "tsmp", "icmp"):
                assert (await b.ping("a", kind)).latency >= 0
            assert await echoed(b, "a", 80) == await echoed(a, "b", 80) == b"hello"
        tailnet.block_udp(a, b)
        await trio.sleep(1)
        await b.login()
        assert await echoed(a, "b", 80, timeout=20) == await echoed(b, "a", 80, timeout=20) == b"hello"


async def test_key_that_expires_is_said_and_login_renews_it(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    key = tailnet.auth_key(reusable=True)
    a, b = await tailnet.device("a", auth_key=key), await tailnet.device("b", auth_key=key)
    before = (a.ipv4, a.node.stable_id)
    tailnet.expire(a)
    await until(lambda: a.status().state == "expired" and b.peers["a"].expired)
    assert [warning.code for warning in a.health] == ["key-expired"]
    with pytest.raises(tailscale.PeerKeyExpired):
        await b.tcp_connect("a", 80)
    await trio.sleep(600)
    await a.login()
    await until(lambda: a.status().state == "running" and not a.health and not b.peers["a"].expired, RECOVERY)
    assert (a.ipv4, a.node.stable_id) == before
    async with echo_service(a, 80), echo_service(b, 80):
        assert await echoed(b, "a", 80) == await echoed(a, "b", 80) == b"hello"


async def test_login_without_a_key_shows_the_page(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    keys = ["", tailnet.auth_key()]
    urls: list[str] = []
    a = await tailnet.device("a", auth_key=keys.pop, on_login_url=urls.append)
    tailnet.expire(a)
    await until(lambda: a.status().state == "expired")

    async def approve() -> None:
        (url,) = await until(lambda: urls)
        assert a.status().state == "needs_login"
        assert "login-needed" in {warning.code for warning in a.health}
        await trio.sleep(60)
        tailnet.approve_login(url)
        await trio.sleep_forever()

    async with beside(approve):
        await a.login()
    await until(lambda: a.status().state == "running" and not a.health, RECOVERY)


async def test_login_with_a_key_that_is_used_up_shows_the_page(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    urls: list[str] = []
    a = await tailnet.device("a", auth_key=tailnet.auth_key(), on_login_url=urls.append)
    before = (a.ipv4, a.node.stable_id)
    tailnet.expire(a)
    await until(lambda: a.status().state == "expired")

    async def approve() -> None:
        (url,) = await until(lambda: urls)
        (waits,) = [warning for warning in a.health if warning.code == "login-needed"]
        assert "the auth key was refused: " in waits.sentence
        assert "used" in waits.sentence
        tailnet.approve_login(url)
        await trio.sleep_forever()

    async with beside(approve):
        await a.login()
    await until(lambda: a.status().state == "running" and not a.health, RECOVERY)
    assert (a.ipv4, a.node.stable_id) == before


async def test_login_with_a_key_that_is_used_up_and_nobody_there_says_both(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    a = await tailnet.device("a", auth_key=tailnet.auth_key(), login_timeout=20)
    await a.logout()
    with pytest.raises(tailscale.LoginRequired, match=r"refused the auth key \(.*used.*\): open http") as caught:
        await a.login()
    tailnet.approve_login(caught.value.url)
    await until(lambda: a.status().state == "running" and not a.health, RECOVERY)


async def test_node_that_control_removed_comes_back_with_its_key(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    key = tailnet.auth_key(reusable=True)
    a, b = await tailnet.device("a", auth_key=key), await tailnet.device("b", auth_key=key)
    before = a.node.id
    tailnet.remove(a)
    await until(lambda: a.node.id != before and "a" in b.peers and b.peers["a"].ipv4 == a.ipv4, 60)
    async with echo_service(a, 80):
        assert await echoed(b, "a", 80, timeout=20) == b"hello"
