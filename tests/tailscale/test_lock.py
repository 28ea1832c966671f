"""A tailnet with a lock: who is a peer, who is not, what control may do about it, and what users are told."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from tailscale.device import Device
from tailscale.errors import LockError, NoSuchPeer, PeerLockedOut
from tailscale.state_file import MemoryStore
from tailscale.testing import Tailnet
from tailscale.testing.locking import SECRET
from ts_lock.keys import LockPrivate, parse_public


async def until(is_so: Callable[[], object]) -> None:
    with trio.fail_after(120):
        while not is_so():  # noqa: ASYNC110 - what others know comes without an event
            await trio.sleep(0.1)


async def ask(tailnet: Tailnet, device: Device, line: str) -> tuple[int, bytes]:
    payload = base64.b64encode(f"{line} HTTP/1.1\r\nHost: h\r\n\r\n".encode()).decode()
    ping = tailnet.control.do(tailnet.control.server.ping, tailnet.id_of(device), types="c2n", payload=payload)
    await until(lambda: ping.answer)
    return int(ping.answer.split(b" ", 2)[1]), ping.answer.partition(b"\r\n\r\n")[2]


def codes(device: Device) -> set[str]:
    return {warning.code for warning in device.health}


def hides(device: Device, *names: str) -> bool:
    return [one.node.hostname for one in device.lock.hidden_peers] == list(names)


async def test_device_without_a_lock_says_so(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with tailnet.device("a") as a:
        assert (a.lock.enabled, a.lock.head, a.lock.our_node_signed, a.lock.hidden_peers) == (False, "", True, ())
        assert "no lock" in str(a.lock)
        with pytest.raises(LockError):
            await a.lock.sign("a")


async def test_peer_that_is_not_signed_is_none_until_it_is(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with tailnet.device("a") as a, tailnet.device("b") as b:
        lock = tailnet.lock()
        await until(lambda: a.lock.enabled and b.lock.enabled)
        assert a.lock.head == b.lock.head == lock.head
        assert [key.key for key in a.lock.keys] == [lock.key]
        assert a.lock.our_node_signed
        assert (await a.ping("b")).node is not None
        async with tailnet.device("c") as c:
            await until(lambda: hides(a, "c") and hides(b, "c"))
            assert "tailnet-lock" in codes(c)
            assert f"tailscale lock sign {c.lock.node_key} {c.lock.our_key}" in str(c.health)
            assert a.peers["c"].locked_out == "its node key is not signed"
            assert a.peers["c"].presence == "locked out"
            with pytest.raises(PeerLockedOut, match="not signed"):
                await a.tcp_connect("c", 80)
            # Its own handshakes, discovery and all else that it sends are answered by nobody.
            for kind in ("disco", "tsmp"):
                with pytest.raises(TimeoutError):
                    await c.ping("a", kind, timeout=6)
            assert not any(peer.handshake_age for peer in a.status().peers if peer.node.hostname == "c")
            lock.sign(c)
            await until(lambda: hides(a) and "tailnet-lock" not in codes(c))
            assert (await c.ping("a")).node is not None
            lock.unsign(c)
            await until(lambda: hides(a, "c"))


async def test_lock_that_ends_with_its_secret_lets_everybody_in(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with tailnet.device("a") as a:
        lock = tailnet.lock()
        async with tailnet.device("b") as b:
            await until(lambda: hides(a, "b"))
            lock.disable()
            await until(lambda: not a.lock.enabled and not b.lock.enabled)
            assert (await a.ping("b")).node is not None
            assert not codes(b) & {"tailnet-lock", "tailnet-lock-not-ended"}


async def test_lock_that_control_calls_off_without_the_secret_stays(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    async with tailnet.device("a") as a:
        lock = tailnet.lock()
        async with tailnet.device("b"):
            await until(lambda: hides(a, "b"))
            tailnet.control.server.lock.withholds_secret = True
            lock.disable()
            await until(lambda: "tailnet-lock-not-ended" in codes(a))
            assert a.lock.enabled
            assert hides(a, "b")


async def test_lock_is_kept_between_runs_and_against_a_control_that_forgets_it(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    store = MemoryStore()
    async with tailnet.device("a", state=store, ephemeral=False) as a:
        lock = tailnet.lock()
        await until(lambda: a.lock.enabled)
        key, head = a.lock.our_key, lock.head
    tailnet.control.server.pretend_no_lock()
    async with tailnet.device("a", state=store) as a, tailnet.device("b"):
        await until(lambda: hides(a, "b"))
        assert (a.lock.our_key, a.lock.head) == (key, head)
        assert "tailnet-lock-withheld" in codes(a)


async def test_device_whose_key_is_trusted_signs_others(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with tailnet.device("a") as a:
        lock = tailnet.lock()
        await until(lambda: a.lock.enabled)
        async with tailnet.device("b") as b:
            await until(lambda: hides(a, "b"))
            with pytest.raises(LockError, match="lock add tlpub:"):
                await a.lock.sign("b")
            lock.trust(a)
            await until(lambda: len(a.lock.keys) == 2)
            assert a.lock.log[0].kind == "add-key"
            with pytest.raises(NoSuchPeer):
                await a.lock.sign("nobody")
            with pytest.raises(LockError):
                await a.lock.sign("nodekey:xyz")
            await a.lock.sign(a.lock.hidden_peers[0].node, b.lock.our_key)
            await until(lambda: hides(a) and b.lock.our_node_signed)
            status, body = await ask(tailnet, a, "GET /debug/tka/log?limit=5")
            assert (status, [one["Change"] for one in json.loads(body)]) == (200, ["add-key", "checkpoint"])
            lock.distrust(a)
            await until(lambda: hides(a, "b"))
            assert "does not trust" in a.lock.hidden_peers[0].reason


async def test_device_whose_key_is_trusted_changes_and_ends_the_lock(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    other = "tlpub:" + "5" * 64
    async with tailnet.device("a") as a, tailnet.device("b") as b:
        with pytest.raises(LockError, match="no lock"):
            await a.lock.disable(SECRET)
        lock = tailnet.lock()
        await until(lambda: a.lock.enabled and b.lock.enabled)
        with pytest.raises(LockError, match="does not trust this device"):
            await a.lock.add(other)
        lock.trust(a)
        await until(lambda: len(a.lock.keys) == 2)
        await a.lock.add(other)
        await until(lambda: len(a.lock.keys) == len(b.lock.keys) == 3)
        for wrong in (lambda: a.lock.add(other), lambda: a.lock.remove("tlpub:" + "6" * 64), lambda: a.lock.add("x")):
            with pytest.raises(LockError):
                await wrong()
        await a.lock.remove(other, lock.key)
        await until(lambda: [key.key for key in b.lock.keys] == [a.lock.our_key])
        await until(lambda: hides(a, "b"))  # whom the key that is gone had signed
        with pytest.raises(LockError, match="cannot be changed so"):
            await a.lock.remove(a.lock.our_key)  # the last one stays
        with pytest.raises(LockError, match="no disablement secret"):
            await a.lock.disable(b"wrong")
        assert a.lock.enabled
        await a.lock.disable(SECRET)
        await until(lambda: not a.lock.enabled and not b.lock.enabled)


async def test_auth_key_that_carries_a_signature_joins_signed(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with tailnet.device("a") as a:
        lock = tailnet.lock()
        key = lock.wrap(tailnet.auth_key())
        async with tailnet.device("b", auth_key=key) as b:
            assert b.lock.our_node_signed
            assert (await a.ping("b")).node is not None
            assert hides(a)


async def test_node_that_changes_its_key_stays_signed(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    key = tailnet.auth_key(reusable=True)
    async with tailnet.device("a") as a, tailnet.device("b", auth_key=key) as b:
        tailnet.lock()
        await until(lambda: a.lock.enabled and b.lock.enabled)
        before = b.lock.node_key
        await b.login()
        await until(lambda: b.lock.node_key != before and b.lock.our_node_signed)
        await until(lambda: hides(a))
        assert (await a.ping("b")).node is not None


async def test_device_that_logs_out_forgets_the_lock(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with tailnet.device("a", auth_key=tailnet.auth_key(reusable=True)) as a:
        tailnet.lock()
        await until(lambda: a.lock.enabled)
        key = a.lock.our_key
        await a.logout()
        assert a.lock.our_key != key


def test_lock_key_shows_in_no_repr() -> None:
    key = LockPrivate(b"\7" * 32)
    assert key.export()[-8:] not in repr(key)
    assert LockPrivate.parse(key.export()) == key
    assert parse_public("tlpub:" + key.public.hex()) == key.public


async def test_lock_that_control_replaces_or_rolls_back_stays(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    """Control shows another lock under the first one's tailnet, and then an older head: neither is believed."""
    async with tailnet.device("a") as a:
        lock = tailnet.lock()
        await until(lambda: a.lock.enabled)
        lock.trust("tlpub:" + "5" * 64)
        await until(lambda: len(a.lock.keys) == 2)
        head, served = a.lock.head, tailnet.control.server.lock
        true_chain = served.chain
        assert true_chain is not None
        # Back to the beginning, as if the last change had not been.
        served.chain = type(true_chain)(true_chain.genesis)
        served.touch()
        tailnet.control.do(tailnet.control.server.tell_lock)
        await trio.sleep(30)
        assert (a.lock.head, len(a.lock.keys)) == (head, 2)
        served.chain = None
        tailnet.lock()
        await until(lambda: "tailnet-lock-behind" in codes(a))
        assert (a.lock.head, len(a.lock.keys)) == (head, 2)
        async with tailnet.device("b"):
            await until(lambda: hides(a, "b"))


@pytest.mark.slow
async def test_tailnet_whose_lock_cannot_be_had_has_no_peers_until_it_can(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    async with tailnet.device("a") as a:
        tailnet.lock()
        await until(lambda: a.lock.enabled)
        served = tailnet.control.server.lock
        chain, served.chain = served.chain, None  # every question is refused; maps still name a lock
        async with tailnet.device("b") as b:
            await until(lambda: hides(b, "a"))
            assert "could not be fetched" in b.lock.hidden_peers[0].reason
            assert "tailnet-lock-behind" in codes(b)
            served.chain = chain
            await until(lambda: b.lock.enabled and hides(b) and "tailnet-lock-behind" not in codes(b))


async def test_signatures_are_checked_once_for_all_runs(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    store = MemoryStore()
    key = tailnet.auth_key(reusable=True)
    async with tailnet.device("b"):
        async with tailnet.device("a", state=store, ephemeral=False, auth_key=key) as a:
            tailnet.lock()
            await until(lambda: a.lock.enabled)
            assert checked(a) == 1
        async with tailnet.device("a", state=store, ephemeral=False, auth_key=key) as a:
            assert (await a.ping("b")).node is not None
            assert checked(a) == 0
            await a.logout()
        entry = store.read("tailnet-lock-verdicts")
        assert entry is not None
        assert b'"direct": {}' in entry  # who gives the identity up takes nothing along


def checked(device: Device) -> int:
    return device.status().counters.levels["control.lock.signatures_checked"]
