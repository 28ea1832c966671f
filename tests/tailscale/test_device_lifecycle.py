"""Entering, leaving and misusing a Device: what users catch is what was raised, and nothing is left behind."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from tailnet_scripts import echo_service, echoed, host_of, runtime_of, until
from trio.testing import MockClock

import tailscale
from tailscale.testing import Tailnet


def device_on(net: Tailnet, name: str, **options: object) -> tailscale.Device:
    """A Device on the tailnet's network that the test itself enters."""
    options.setdefault("control_url", net.control.url)
    options.setdefault("auth_key", net.auth_key())
    return tailscale.Device.on(host_of(net, name), name, **options)  # type: ignore[arg-type]


class Oops(Exception):
    """Somebody's own."""


async def test_exception_of_the_body_comes_out_as_it_is(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    with pytest.raises(Oops) as caught:
        async with device_on(tailnet, "a"):
            raise Oops("mine")
    assert type(caught.value) is Oops
    assert caught.value.__cause__ is None


async def test_exception_of_a_nursery_in_the_body_keeps_its_one_group(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    async def fail() -> None:
        raise Oops

    with pytest.raises(ExceptionGroup) as caught:
        async with device_on(tailnet, "a"), trio.open_nursery() as nursery:
            nursery.start_soon(fail)
    (only,) = caught.value.exceptions
    assert type(only) is Oops


async def test_keyboard_interrupt_comes_out_as_it_is(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    with pytest.raises(KeyboardInterrupt):
        async with device_on(tailnet, "a"):
            raise KeyboardInterrupt
    assert not list(tailnet.control.server.directory), "even then the ephemeral node says goodbye"


async def test_cancellation_ends_the_device_and_only_it(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    with trio.move_on_after(5) as scope:
        async with device_on(tailnet, "a") as a:
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert not list(tailnet.control.server.directory)
    with pytest.raises(tailscale.DeviceClosed):
        a.status()


async def test_body_error_survives_a_cancellation_beside_it(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    with trio.CancelScope() as scope, pytest.raises(Oops):
        async with device_on(tailnet, "a"):
            scope.cancel()
            raise Oops


async def test_return_and_break_leave_cleanly(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async def name() -> str:
        async with device_on(tailnet, "a") as a:
            return a.hostname

    assert await name() == "a"
    for _ in range(2):
        async with device_on(tailnet, "a"):
            break
    assert not list(tailnet.control.server.directory)


async def test_joining_is_told_to_who_asked_before(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    await tailnet.device("b")
    device = device_on(tailnet, "a")
    stream = device.events()
    async with device:
        pass
    found = [event async for event in stream]
    assert [e.state for e in found if isinstance(e, tailscale.StateChanged)][-1] == "running"
    assert [e.node.hostname for e in found if isinstance(e, tailscale.PeerUp)] == ["b"]
    assert tailscale.RelayChanged("test", True) in found
    assert tailscale.NetworkChecked(True) in found


async def test_used_before_during_joining_and_after(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    while_joining: list[BaseException] = []

    def look(url: str) -> None:
        for verb in (lambda: device.node, lambda: device.peers["b"]):
            try:
                verb()
            except Exception as error:
                while_joining.append(error)
        assert device.status().state == "needs_login"
        tailnet.approve_login(url)

    device = device_on(tailnet, "a", auth_key="", on_login_url=look)
    verbs = (
        lambda: device.name,
        lambda: device.ipv4,
        lambda: device.peers,
        lambda: device.health,
        device.status,
    )
    for verb in verbs:
        with pytest.raises(tailscale.DeviceNotReady, match="async with"):
            verb()
    async with device:
        assert [type(e) for e in while_joining] == [tailscale.DeviceNotReady, tailscale.NoSuchPeer]
        stream_error: list[str] = []
        with pytest.raises(tailscale.DeviceClosed, match="once"):
            async with device:
                stream_error.append("entered twice")
        assert not stream_error
        assert device.hostname == "a", "the first use goes on"
    for verb in (*verbs, device.events):
        with pytest.raises(tailscale.DeviceClosed, match="make a new one"):
            verb()
    for call in (
        lambda: device.tcp_connect("b", 80),
        lambda: device.listen(80),
        device.udp,
        lambda: device.resolve("b"),
        lambda: device.whois("100.64.0.1"),
        lambda: device.ping("b"),
        device.netcheck,
        device.login,
        device.logout,
        device.set,
        device.__aenter__,
    ):
        with pytest.raises(tailscale.DeviceClosed):
            await call()


async def test_sockets_of_a_closed_device_are_closed(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    b = await tailnet.device("b")
    woken: list[BaseException] = []

    async def wait(call: Callable[[], Awaitable[object]]) -> None:
        try:
            await call()
        except (trio.ClosedResourceError, trio.BrokenResourceError) as error:
            woken.append(error)

    async with echo_service(b, 80), trio.open_nursery() as nursery:
        async with device_on(tailnet, "a") as a:
            await tailnet.until_introduced(b)
            stream, listener, udp = await a.tcp_connect("b", 80), await a.listen(80), await a.udp(53)
            calls = (stream.receive_some, listener.accept, udp.receive)
            for call in calls:
                nursery.start_soon(wait, call)
            await trio.sleep(1)
        with trio.fail_after(1):
            await until(lambda: len(woken) == 3)
        for call in (*calls, lambda: stream.send_all(b"x")):
            with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
                await call()
        for resource in (stream, listener, udp):
            await resource.aclose()


async def test_crash_of_an_actor_ends_the_device_with_its_cause(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    with pytest.raises(ZeroDivisionError):
        async with device_on(tailnet, "a") as a:
            runtime_of(a)._nursery.start_soon(_divide)  # type: ignore[union-attr]
            await trio.sleep_forever()


async def test_crashes_without_end_while_joining_end_the_entering_with_their_cause(
    autojump_clock: MockClock, tailnet: Tailnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailscale.runtime.netmap_actor.TablesCompiler.steps", lambda *_: 1 // 0)
    with pytest.raises(tailscale.DeviceFailed, match="its netmap failed") as caught:
        async with device_on(tailnet, "a"):
            pytest.fail("entered")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def _divide() -> None:
    _ = 1 // 0


async def test_login_callback_that_fails_is_heard(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    def fail(url: str) -> None:
        raise Oops

    with pytest.raises(Oops):
        async with device_on(tailnet, "a", auth_key="", on_login_url=fail):
            pytest.fail("entered")


async def test_key_is_read_from_its_file_when_it_is_needed(
    autojump_clock: MockClock, tailnet: Tailnet, tmp_path: Path
) -> None:
    secret = tmp_path / "key"
    device = device_on(tailnet, "a", auth_key=f"file:{secret}")
    secret.write_text(f"{tailnet.auth_key()}\n")
    async with device:
        assert device.hostname == "a"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read: No such file"),
        (b"\n", "is empty"),
        (b"k" * 5000, "longer than any"),
        (b"\xff", "no text"),
    ],
)
async def test_key_file_without_a_key_is_named(
    autojump_clock: MockClock, tailnet: Tailnet, tmp_path: Path, content: bytes | None, why: str
) -> None:
    secret = tmp_path / "key"
    if content is not None:
        secret.write_bytes(content)
    with pytest.raises(tailscale.AuthKeyMissing, match=f"{secret}.*{why}"):
        async with device_on(tailnet, "a", auth_key=f"file:{secret}"):
            pytest.fail("entered")


async def test_failing_to_enter_leaves_nothing_and_the_state_free(
    autojump_clock: MockClock, tailnet: Tailnet, tmp_path: Path
) -> None:
    store = tailscale.MemoryStore()
    for _ in range(2):
        with pytest.raises(tailscale.AuthKeyRejected):
            async with device_on(tailnet, "a", auth_key="tskey-auth-wrong", state=store):
                pytest.fail("entered")
    assert not host_of(tailnet, "a").udp
    async with device_on(tailnet, "a", state=store) as a:
        with pytest.raises(tailscale.StateLocked):
            async with device_on(tailnet, "b", state=store):
                pytest.fail("entered")
        assert a.hostname == "a"


async def test_cancelled_while_joining_leaves_nothing(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    host_of(tailnet, "a")
    tailnet.block("a", "control")
    with trio.move_on_after(3) as scope:
        async with device_on(tailnet, "a"):
            pytest.fail("entered")
    assert scope.cancelled_caught
    assert not host_of(tailnet, "a").udp


@pytest.mark.parametrize("fault", ["healthy", "dead", "silent"])
async def test_leaving_is_quick(autojump_clock: MockClock, tailnet: Tailnet, fault: str) -> None:
    b = await tailnet.device("b")
    async with echo_service(b, 80):
        device = device_on(tailnet, "a")
        async with device as a:
            await tailnet.until_introduced(b)
            stream = await a.tcp_connect("b", 80)
            await stream.send_all(bytes(1 << 20))
            if fault == "dead":
                await tailnet.control.stop()
                await tailnet.relay.stop()
            elif fault == "silent":
                for other in ("control", "relay", "b"):
                    tailnet.block("a", other)
            began = trio.current_time()
        assert trio.current_time() - began <= (1 if fault == "healthy" else 5)


async def test_two_devices_in_one_process_are_isolated(autojump_clock: MockClock) -> None:
    async with Tailnet(seed=1) as one, Tailnet(seed=2, domain="other.test") as two:
        a, b = await one.device("a"), await one.device("b")
        c, d = await two.device("a"), await two.device("b")
        async with echo_service(b, 80), echo_service(d, 81):
            assert await echoed(a, "b", 80) == b"hello"
            assert await echoed(c, "b", 81) == b"hello"
            for device, port in ((a, 81), (c, 80)):
                with pytest.raises(ConnectionRefusedError):
                    await device.tcp_connect("b", port)
        assert (b.name, d.name) == ("b.tailnet.test", "b.other.test")
        assert runtime_of(a).control.saved.state.node_key.public != runtime_of(c).control.saved.state.node_key.public
        await one.control.stop()
        await trio.sleep(60)
        assert a.health
        assert not c.health


async def test_real_sockets_are_all_given_back() -> None:
    before = open_sockets()
    with trio.fail_after(20):
        async with Tailnet(real=True) as net:
            a, b = await net.device("a"), await net.device("b")
            async with echo_service(b, 80):
                assert await echoed(a, "b", 80) == b"hello"
    gc.collect()
    assert open_sockets() == before


def open_sockets() -> int:
    """Sockets of this process, by what the kernel says."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += entry.readlink().name.startswith("socket:")
    return count


def test_a_device_that_is_never_entered_holds_nothing() -> None:
    device = tailscale.Device("x", control_url="http://127.0.0.1:1")
    assert "new" in repr(device)
    del device
    gc.collect()


async def test_a_device_has_a_repr_while_it_is_being_built(
    autojump_clock: MockClock, tailnet: Tailnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, seen = host_of(tailnet, "a"), []

    async def open_udp(port: int) -> None:
        seen.append(repr(device))
        raise OSError("no sockets here")

    monkeypatch.setattr(host, "open_udp", open_udp)
    device = device_on(tailnet, "a")
    async with device:
        assert "running" in repr(device)
    assert seen == ["<Device 'a' starting>"]


async def test_machine_that_waits_for_approval_is_not_ready_before_it(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    control = tailnet.control
    control.server.ask_for_approval()
    with pytest.raises(tailscale.LoginRequired, match="approve"):
        async with device_on(tailnet, "a", login_timeout=30):
            pytest.fail("entered")

    async def approve() -> None:
        await trio.sleep(60)
        for device in list(control.server.directory):
            control.do(control.server.authorize, device.id)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(approve)
        began = trio.current_time()
        async with device_on(tailnet, "b", login_timeout=300) as b:
            assert trio.current_time() - began == pytest.approx(60, abs=2)
            assert b.status().state == "running"
            assert not b.health
