"""What a TUN device does to a machine's routes: exits, stock and ours, failures at every step, and kill -9."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio

import tailscale
from tailscale.kernel import life, netlink
from tests.interop import natlab
from tests.interop.kernel_state import RECORDS, left_over, picture, pieces
from tests.interop.natlab.namespaces import run, why_not
from tests.interop.processes import poll_until
from tests.interop.rig import Headscale, Rig

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "there can be namespaces"),
]
SUBNET, METADATA = "198.18.7.0/24", "169.254.169.254/32"
NAME, STRANGER, PORT = "pt-tun", "203.0.113.9", 9977
WHO = """
import socket, sys
s = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
while True:
    c, peer = s.accept()
    c.sendall(peer[0].encode())
    c.close()
"""


@contextlib.asynccontextmanager
async def stranger(made: natlab.Lab) -> AsyncIterator[None]:
    """A server on the lab's internet that says who called."""
    run("ip", "-n", made.inet, "addr", "add", f"{STRANGER}/32", "dev", "lo")
    command = ["ip", "netns", "exec", made.inet, sys.executable, "-c", WHO, STRANGER, str(PORT)]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(partial(trio.run_process, command, check=False))
        try:
            yield
        finally:
            process.kill()


async def who_am_i() -> str:
    """By which address the lab's internet sees the kernel of this namespace."""
    stream = await trio.open_tcp_stream(STRANGER, PORT)
    async with stream:
        return b"".join([bytes(chunk) async for chunk in stream]).decode()


async def seen_as(address: str) -> None:
    async def is_seen() -> bool:
        with contextlib.suppress(OSError), trio.move_on_after(3):
            return await who_am_i() == address
        return False

    await poll_until(f"the internet to see {address}", is_seen, 40)


@pytest.mark.parametrize("kind", ["stock", "ours"])
async def test_everything_goes_by_the_exit_and_back_again(kind: str, r: Rig) -> None:
    async with natlab.lab(r) as (made, hs), stranger(made):
        away, home = made.site("none"), made.site("none")
        async with exit_node(kind, r, hs, away.client), on(home.client):
            run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.default.rp_filter=1")  # strict
            before = await picture()
            options = {"control_url": hs.url, "auth_key": await hs.auth_key(), "overlay": tailscale.tun(NAME)}
            async with tailscale.Device("desk", **options) as desk:
                assert await who_am_i() == home.address, "nothing but the tailnet goes by the tunnel"
                await subnets_are_followed(desk, hs)
                await desk.set(exit_node="exit")
                await seen_as(away.address)
                assert desk.tun is not None
                assert desk.tun.mode == "full"
                assert desk.status().drops.get("tun.own_datagram", 0) == 0, "what is sealed passes the tunnel by"
                await control_and_relays_pass_by(desk, hs)
                await held_back(desk)
                await new_address_of_an_uplink(home.client)
                await desk.set(exit_node=None)
                await seen_as(home.address)
                assert desk.tun.mode == "split"
                await desk.tun_down()
                await desk.set(exit_node="exit")
                await desk.tun_up(tailscale.tun(NAME, exclude=[f"{STRANGER}/32"], dns=False))
                assert await who_am_i() == home.address, "what is excluded goes as before"
                await desk.tun_down()
                await desk.tun_up(tailscale.tun(NAME, split=True, dns=False))
                assert await who_am_i() == home.address, "a split tunnel leaves the rest alone"
            assert await picture() == before
            assert not left_over()


async def control_and_relays_pass_by(desk: tailscale.Device, hs: Headscale) -> None:
    """New connections of the device's own are made beside the tunnel that they carry."""
    url = hs.url.rpartition(":")
    with socket.socket() as kernel:  # the control server is nobody's to take
        kernel.settimeout(5)
        kernel.connect((url[0].rpartition("/")[2], int(url[2])))
        assert not kernel.getsockname()[0].startswith("100.")
    report = await desk.netcheck()
    assert report.latencies, "the relays are measured past the tunnel"


async def subnets_are_followed(desk: tailscale.Device, hs: Headscale) -> None:
    """What a peer routes from now on the kernel is given, but for what no peer may have."""
    assert SUBNET not in run("ip", "route", "show", "table", "5300")
    await hs.approve_routes("exit", ["0.0.0.0/0", "::/0", SUBNET, METADATA])

    async def is_given() -> bool:
        return SUBNET in run("ip", "route", "show", "table", "5300")

    await poll_until("a route to the subnet", is_given, 30)
    assert desk.tun is not None
    assert list(desk.tun.refused) == [METADATA]
    assert "tun-routes-refused" in [one.code for one in desk.health]
    assert METADATA.partition("/")[0] not in run("ip", "route", "show", "table", "5300")
    await hs.approve_routes("exit", ["0.0.0.0/0", "::/0"])

    async def is_gone() -> bool:
        return SUBNET not in run("ip", "route", "show", "table", "5300") and not desk.tun.refused  # type: ignore[union-attr]

    await poll_until("the route to be gone", is_gone, 30)


async def held_back(desk: tailscale.Device) -> None:
    """While the exit is not there nothing leaves beside the tunnel, and programs hear so at once."""
    await desk.set(exit_node="nobody")

    async def is_held() -> bool:
        return "exit-node-missing" in [one.code for one in desk.health]

    await poll_until("the exit to be missed", is_held, 20)
    assert desk.tun is not None
    assert desk.tun.mode == "full"
    with pytest.raises(OSError, match=r"No route|unreachable|all attempts"), trio.fail_after(20):
        await who_am_i()


async def new_address_of_an_uplink(namespace: str) -> None:
    """A machine whose address changes answers from the new one as well."""
    run("ip", "addr", "add", "198.51.100.77/32", "dev", "eth0")

    async def is_followed() -> bool:
        return "from 198.51.100.77 goto" in run("ip", "rule")

    await poll_until("a rule for the new address", is_followed, 20)
    run("ip", "addr", "del", "198.51.100.77/32", "dev", "eth0")


@contextlib.asynccontextmanager
async def exit_node(kind: str, r: Rig, hs: Headscale, namespace: str) -> AsyncIterator[None]:
    key = await hs.auth_key()
    if kind == "stock":
        arguments = ["--advertise-exit-node", f"--advertise-routes={SUBNET},{METADATA}"]
        async with r.tailscaled("exit", control=hs, auth_key=key, namespace=namespace, arguments=arguments):
            await hs.approve_routes("exit", ["0.0.0.0/0", "::/0"])
            yield
    else:
        async with r.ours(hs, key, "exit", namespace=namespace) as peer:
            await peer.ask("set", advertise_exit_node=True, advertise_routes=[SUBNET, METADATA])
            await hs.approve_routes("exit", ["0.0.0.0/0", "::/0"])
            yield


@contextlib.asynccontextmanager
async def on(namespace: str) -> AsyncIterator[None]:
    with natlab.inside(namespace):
        yield


class Failing(netlink.Netlink):
    """The kernel, refusing one question."""

    at = asked = 0

    def _ask(self, kind: int, flags: int, body: bytes, what: str) -> list[tuple[int, bytes]]:
        Failing.asked += 1
        if Failing.asked == Failing.at:
            raise OSError(12, f"the kernel refuses {what}: out of memory")
        return super()._ask(kind, flags, body, what)


async def test_failure_at_any_step_leaves_nothing(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "Netlink", Failing)
    async with natlab.lab(r) as (made, hs), on(made.site("none").client):
        options = {"control_url": hs.url, "auth_key": await hs.auth_key()}
        async with tailscale.Device("desk", **options) as desk:
            before, chosen = await picture(), tailscale.tun(NAME, dns=False, exclude=["198.51.100.0/24"])
            failures = 0
            while True:
                Failing.at, Failing.asked = failures + 1, 0
                try:
                    await desk.tun_up(chosen)
                except tailscale.TunFailed:
                    failures += 1
                    assert desk.tun is None
                    assert await picture() == before, f"after failure {failures}"
                    assert not left_over()
                else:
                    break
            Failing.at = 0
            assert failures > 20, "links, addresses, routes and rules of both families, asked and given"
            with pytest.raises(tailscale.TunHeld, match=f"{NAME} is held by process {os.getpid()}"):
                await desk.tun_up(chosen)
            async with tailscale.Device("second", overlay=tailscale.tun("pt-tun2", dns=False), **options):
                assert "lookup 5310" in run("ip", "rule"), "two beside each other have numbers of their own"
            assert "lookup 5300" in run("ip", "rule")
            with trio.CancelScope() as scope:
                scope.cancel()
                await desk.tun_down()
            await desk.tun_down()
            assert await picture() == before
            with trio.CancelScope() as scope:
                scope.cancel()
                await desk.tun_up(chosen)
            assert await picture() == before
            assert not left_over()


async def test_what_others_take_away_comes_back_and_a_lost_interface_ends_only_itself(r: Rig) -> None:
    async with natlab.lab(r) as (made, hs), on(made.site("none").client):
        options = {"control_url": hs.url, "auth_key": await hs.auth_key()}
        async with tailscale.Device("desk", overlay=tailscale.tun(NAME, dns=False), **options) as desk:
            before = await picture()
            for taken in (
                "route flush table 5300",
                f"addr del {desk.ipv4}/32 dev {NAME}",
                "rule del pref 5303",
                f"link set {NAME} down",
            ):
                run("ip", *taken.split())
                assert await picture() != before, taken

                async def is_back() -> bool:
                    return pieces(await picture()) == pieces(before)

                await poll_until(f"`ip {taken}` to be undone", is_back, 20)
            assert desk.tun is not None
            assert desk.tun.restored >= 4
            for end, why in ((f"link del {NAME}", "removed"), (f"link set {NAME} name other", "renamed")):
                run("ip", *end.split())
                with pytest.raises(tailscale.TunFailed, match=why), trio.fail_after(20):
                    await desk.tun_ended()
                assert [one.code for one in desk.health] == ["tun-ended"]
                assert not left_over()
                await desk.tun_up(tailscale.tun(NAME, dns=False))
                assert not desk.health
            assert desk.state == "running"


async def test_killed_process_leaves_what_cleanup_takes_back(r: Rig, tmp_path: Path) -> None:
    async with natlab.lab(r) as (made, hs), on(made.site("none").client):
        before, key = await picture(), await hs.auth_key()
        words = ["--state", str(tmp_path / "s"), "--control-url", hs.url, "--hostname", "desk", "--plain"]
        up = [sys.executable, "-m", "tailscale.cli", "tun", "up", *words, "--auth-key", key, "--name", NAME, "--no-dns"]
        async with trio.open_nursery() as nursery:
            for how in ("kill", "again", "term"):
                start = partial(trio.run_process, up, check=False)
                process: trio.Process = await nursery.start(start)

                await poll_until("this process to have its rules", partial(holds, process.pid), 60)
                if how == "kill":
                    assert await cli("tun", "--cleanup") == 1, "what lives is not touched"
                    process.send_signal(signal.SIGKILL)
                    await process.wait()
                    assert "lookup 5300" in run("ip", "rule")
                    assert left_over()
                    assert await cli("tun", "--cleanup") == 0
                    assert await picture() == before
                    assert await cli("tun", "--cleanup") == 0, "twice is as good as once"
                elif how == "again":
                    process.send_signal(signal.SIGKILL)
                    await process.wait()  # and the next one cleans up after it
                else:
                    process.send_signal(signal.SIGTERM)
                    await process.wait()
                    assert await picture() == before
                    assert not left_over()


async def holds(pid: int) -> bool:
    """Whether the interface is up, by this process."""
    told = [json.loads((RECORDS / name).read_text() or "{}").get("pid") for name in left_over()]
    return told == [pid] and "lookup 5300" in run("ip", "rule")


async def cli(*words: str) -> int:
    done = await trio.run_process([sys.executable, "-m", "tailscale.cli", *words], check=False, capture_stderr=True)
    return done.returncode


async def test_daemon_keeps_it_when_the_command_has_ended(r: Rig, tmp_path: Path) -> None:
    async with natlab.lab(r) as (made, hs), on(made.site("none").client):
        before, key = await picture(), await hs.auth_key()
        state = ["--state", str(tmp_path / "s")]
        config = tmp_path / "s" / "config.toml"
        config.parent.mkdir()
        try:
            assert await cli("up", *state, "--control-url", hs.url, "--hostname", "desk", "--auth-key", key) == 0
            assert await cli("tun", "up", *state, "--name", NAME, "--no-dns") == 0
            assert NAME in run("ip", "link")
            assert await cli("tun", "up", *state, "--name", NAME, "--no-dns") != 0, "it is up already"
            assert await cli("tun", "down", *state) == 0
            assert await picture() == before
            shown = await trio.run_process(
                [sys.executable, "-m", "tailscale.cli", "tun", *state, "--json"], capture_stdout=True
            )
            assert json.loads(shown.stdout) == {"tun": None}
            assert await cli("tun", "up", *state, "--name", NAME, "--no-dns") == 0
        finally:
            await cli("down", *state)
        assert await picture() == before


async def test_two_kernels_speak_as_on_one_wire(r: Rig, tmp_path: Path) -> None:
    """`ping`, fragments, refusals and iperf3 of both ends' kernels, each through a TUN device of ours."""
    async with natlab.lab(r) as (made, hs), on(made.site("none").client), trio.open_nursery() as nursery:
        far, key = made.site("none").client, await hs.auth_key()
        words = ["--state", str(tmp_path / "s"), "--control-url", hs.url, "--hostname", "far", "--auth-key", key]
        up = ["ip", "netns", "exec", far, sys.executable, "-m", "tailscale.cli", "tun", "up", *words, "--no-dns"]
        process = await nursery.start(partial(trio.run_process, up, check=False))
        options = {"control_url": hs.url, "auth_key": key, "overlay": tailscale.tun(NAME, dns=False)}
        async with tailscale.Device("near", **options) as near:
            await poll_until("the far end", partial(is_peer, near, "far"), 60)
            await speak(near.peers["far"].ipv4 or "", near.peers["far"].ipv6 or "", far)
        process.send_signal(signal.SIGTERM)


async def test_stock_kernel_speaks_with_ours(r: Rig) -> None:
    """The same with tailscaled and its own TUN device over there."""
    async with natlab.lab(r) as (made, hs), on(made.site("none").client):
        far, key = made.site("none").client, await hs.auth_key()
        async with r.tailscaled("far", control=hs, auth_key=key, namespace=far, tun="tailscale0"):
            options = {"control_url": hs.url, "auth_key": key, "overlay": tailscale.tun(NAME, dns=False)}
            async with tailscale.Device("near", **options) as near:
                await poll_until("the far end", partial(is_peer, near, "far"), 60)
                peer = near.peers["far"]
                await speak(peer.ipv4 or "", peer.ipv6 or "", far, fragments6=False)  # stock lets none pass


async def is_peer(device: tailscale.Device, name: str) -> bool:
    with contextlib.suppress(tailscale.TailscaleError, OSError):
        await device.ping(name, timeout=2)
        return True
    return False


async def speak(ip4: str, ip6: str, namespace: str, *, fragments6: bool = True) -> None:
    if shutil.which("ping"):
        for host, sizes in ((ip4, ("56", "4000")), (ip6, ("56", "4000") if fragments6 else ("56",))):
            for size in sizes:
                said = await printed("ping", "-c", "3", "-i", "0.2", "-W", "5", "-s", size, host)
                assert " 0% packet loss" in said, said
    for host in (ip4, ip6):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as refused:
            refused.connect((host, 9))
            refused.setblocking(False)
            refused.send(b"anybody?")
            await poll_until("the port to be refused", partial(is_refused, refused), 20)
    if shutil.which("iperf3"):
        async with trio.open_nursery() as nursery:
            serve = ["ip", "netns", "exec", namespace, "iperf3", "--server", "--port", "5201"]
            server = await nursery.start(partial(trio.run_process, serve, check=False, capture_stdout=True))
            await poll_until("iperf3 to listen", partial(listens, ip4, 5201), 20)
            for host in (ip4, ip6):
                for more in ((), ("--reverse",), ("--parallel", "4")):
                    report = json.loads(await printed("iperf3", "--json", "-c", host, "-n", "4M", *more))
                    assert report["end"]["sum_sent"]["bytes"] >= 4 << 20, (
                        report
                    )  # the end of the rest is not waited for
                    assert report["end"]["sum_received"]["bytes"] > 0, report
            server.kill()


async def is_refused(udp: socket.socket) -> bool:
    try:
        udp.send(b"anybody?")
        udp.recv(100)
    except ConnectionRefusedError:
        return True
    except BlockingIOError:
        pass
    return False


async def listens(host: str, port: int) -> bool:
    with contextlib.suppress(OSError):
        await (await trio.open_tcp_stream(host, port)).aclose()
        return True
    return False


async def printed(*command: str) -> str:
    """What a program says, while the device lives on in this thread."""
    with trio.fail_after(90):
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {(done.stdout + done.stderr).decode()}"
    return done.stdout.decode()


async def test_without_root_it_says_what_is_needed() -> None:
    script = "import os; from tailscale.kernel.interface import what_is_missing; os.setgid(65534); os.setuid(65534)"
    said = await printed(sys.executable, "-c", f"{script}; print(what_is_missing())")
    assert "CAP_NET_ADMIN" in said
