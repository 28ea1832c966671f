"""What happens to a flow when the way under it goes away, changes or comes back: our Device and tsnet in the NAT lab.

Most tests run an echo over one tailnet connection: each byte crosses twice, the hash shows a byte lost or doubled in
either direction, and the longest silence is measured while it runs. Measured times are printed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import AsyncIterator

import pytest
import trio

import tailscale
from tests.interop import natlab
from tests.interop.natlab import Lab, Site, inside
from tests.interop.ours import joined
from tests.interop.pattern import BLOCK_SIZE, pattern, pattern_sha256
from tests.interop.processes import poll_until
from tests.interop.rig import Derper, Headscale, Rig, TsnetPeer
from tests.tailscale.tailnet_scripts import runtime_of

WHY_NOT = natlab.why_not()
pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-"),
]

CHUNK = 1 << 14
RATE = 4 << 20  # bytes a second: enough to show every gap, little enough to leave the machine to others
PORT = natlab.NODE_PORT


class Flow:
    """A paced echo; `silence` is the longest time nothing came back since it was last asked."""

    def __init__(self, stream: tailscale.TcpStream, rate: float) -> None:
        self._stream = stream
        self._rate = rate
        self._stopping = False
        self._heard_at = trio.current_time()
        self._silence = 0.0
        self._heard = trio.Event()
        self.sent = self.received = 0
        self._hash = hashlib.sha256()

    def silence(self) -> float:
        worst, self._silence = max(self._silence, trio.current_time() - self._heard_at), 0.0
        self._heard_at = trio.current_time()
        return worst

    async def heard_again(self, patience: float) -> float:
        """How long until the next byte that was not yet on its way a moment ago."""
        began = trio.current_time()
        with trio.fail_after(patience):
            await self._until_received(self.sent + 1)
        return trio.current_time() - began

    async def carries(self, count: int = RATE) -> None:
        """Waits until so many more bytes are back; what `silence` says next is about them."""
        await self._until_received(self.received + count)

    async def _until_received(self, count: int) -> None:
        while self.received < count:
            self._heard = trio.Event()
            await self._heard.wait()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send)
            task_status.started()
            async for chunk in self._stream:
                now = trio.current_time()
                self._silence = max(self._silence, now - self._heard_at)
                self._heard_at = now
                self._hash.update(chunk)
                self.received += len(chunk)
                self._heard.set()

    async def _send(self) -> None:
        data = pattern(BLOCK_SIZE + CHUNK)
        began = trio.current_time()
        while not self._stopping:
            at = self.sent % BLOCK_SIZE
            await self._stream.send_all(data[at : at + CHUNK])
            self.sent += CHUNK
            await trio.sleep_until(max(trio.current_time(), began + self.sent / self._rate))
        await self._stream.send_eof()

    def finish(self) -> None:
        self._stopping = True

    def check(self) -> None:
        assert self.received == self.sent
        assert self._hash.hexdigest() == pattern_sha256(self.sent)


@contextlib.asynccontextmanager
async def flowing(us: tailscale.Device, host: str, patience: float = 100, rate: float = RATE) -> AsyncIterator[Flow]:
    """An echo that runs while the body does; afterwards every byte is accounted for."""
    async with await us.tcp_connect(host, 7) as stream:
        flow = Flow(stream, rate)
        with trio.fail_after(patience):
            async with trio.open_nursery() as nursery:
                await nursery.start(flow.run)
                yield flow
                flow.finish()
        flow.check()


def path_of(us: tailscale.Device, peer: str = "db") -> str:
    return next(known.path for known in us.status().peers if known.node.hostname == peer)


async def until_path(us: tailscale.Device, kind: str, patience: float) -> float:
    """Seconds until our own path is of this kind."""
    began = trio.current_time()
    with trio.fail_after(patience):
        while not path_of(us).startswith(kind):  # noqa: ASYNC110
            await trio.sleep(0.02)
    return trio.current_time() - began


async def until_theirs(peer: TsnetPeer, us: tailscale.Device, *, direct: bool, patience: float) -> float:
    began = trio.current_time()

    async def probe() -> bool:
        return bool((await peer.path_to(us.ipv4 or "")).get("CurAddr")) == direct

    await poll_until(f"{peer.name} direct={direct}", probe, patience)
    return trio.current_time() - began


@contextlib.asynccontextmanager
async def pair(r: Rig, left: str, right: str) -> AsyncIterator[tuple[Lab, Headscale, Site, Site]]:
    async with natlab.lab(r) as (made, hs):
        yield made, hs, made.site(left), made.site(right)


@contextlib.asynccontextmanager
async def ours_and_theirs(
    r: Rig, hs: Headscale, a: Site, b: Site, theirs: str = "tsnet"
) -> AsyncIterator[tuple[tailscale.Device, TsnetPeer]]:
    """Our Device in this process at the left site, tsnet (or another Device) at the right one."""
    key = await hs.auth_key(ephemeral=False)
    start = r.tsnet if theirs == "tsnet" else r.ours
    async with start(hs, key, "db", namespace=b.client, port=PORT) as db:
        with inside(a.client):
            async with joined(hs, auth_key=key, udp_port=PORT) as us:
                yield us, db


@pytest.mark.parametrize("theirs", ["tsnet", "ours"])
async def test_a_direct_path_cut_in_mid_transfer_and_mended(r: Rig, theirs: str) -> None:
    async with pair(r, "easy", "easy") as (_, hs, a, b), ours_and_theirs(r, hs, a, b, theirs) as (us, db):
        async with flowing(us, db.ip4) as flow:
            await until_path(us, "direct", 10)
            await until_theirs(db, us, direct=True, patience=10)
            await flow.carries()
            before = flow.silence()
            a.block_udp(True)
            await flow.heard_again(15)
            await until_path(us, "relay", 15)
            await flow.carries(2 * RATE)
            gap = flow.silence()
            assert path_of(us).startswith("relay")
            a.block_udp(False)
            ours = await until_path(us, "direct", 40)
            far = ours + await until_theirs(db, us, direct=True, patience=40)
            await flow.carries()
            mended = flow.silence()
        print(f"cut, {theirs} there: {gap:.2f} s silent ({before:.2f} before); direct after {ours:.1f} / {far:.1f} s, "
              f"silence then {mended:.2f} s; {flow.sent >> 20} MiB, none lost")  # fmt: skip
        assert gap <= 7
        assert max(ours, far) <= 35
        assert mended <= 1


async def test_a_relay_restarted_in_mid_flow(r: Rig) -> None:
    made = natlab.Lab()
    try:
        with inside(made.inet):
            async with (
                r.derper(host=natlab.HOSTS[0]) as relay,
                r.headscale(host=natlab.HOSTS[0], regions=[relay.region]) as hs,
            ):
                a, b = made.site("blocked"), made.site("easy")
                async with ours_and_theirs(r, hs, a, b) as (us, db), flowing(us, db.ip4) as flow:
                    await flow.heard_again(10)
                    flow.silence()
                    down = await _restart(relay, made, us)
                    began = trio.current_time()
                    await flow.heard_again(30)
                    healed, gap = trio.current_time() - began, flow.silence()
                print(f"relay restarted: bytes again {healed:.2f} s after it was back (gone for {down:.2f}); "
                      f"{gap:.2f} s of silence")  # fmt: skip
                assert healed <= 10
    finally:
        made.close()


async def _restart(relay: Derper, made: Lab, us: tailscale.Device) -> float:
    """Down until our user has been told; returns for how long."""
    began = trio.current_time()

    async def told() -> bool:
        return any(warning.code == "relay-home-unreachable" for warning in us.health)

    with inside(made.inet):
        await relay.stop()
        await poll_until("our user to be told", told, 20)
        await relay.restart()
    return trio.current_time() - began


@pytest.mark.parametrize(("left", "theirs"), [("hard", "tsnet"), ("easy", "tsnet"), ("hard", "ours")])
async def test_a_nat_mapping_flushed(r: Rig, left: str, theirs: str) -> None:
    """The router forgets us, and gives us another port: our datagrams come from where the peer never saw us."""
    async with pair(r, left, "none") as (_, hs, a, b), ours_and_theirs(r, hs, a, b, theirs) as (us, db):
        async with flowing(us, db.ip4) as flow:
            await until_path(us, "direct", 10)
            await until_theirs(db, us, direct=True, patience=10)
            await flow.carries()
            flow.silence()
            a.forget_mappings()
            began = trio.current_time()
            await flow.heard_again(25)
            await flow.carries(2 * RATE)
            gap = flow.silence()
            await until_path(us, "direct", 20)
            await until_theirs(db, us, direct=True, patience=20)
            direct = trio.current_time() - began
        print(f"mapping flushed ({left}, {theirs} there): {gap:.2f} s of silence, direct {direct:.1f} s later")
        assert gap <= 15


async def test_a_peer_restarted_on_another_port(r: Rig) -> None:
    async with pair(r, "easy", "easy") as (_, hs, a, b):
        key = await hs.auth_key(ephemeral=False)
        state = r.folder / "db-state"
        first = r.tsnet(hs, key, "db", namespace=b.client, port=PORT, state=state)
        db = await first.__aenter__()
        with inside(a.client):
            async with joined(hs, auth_key=key, udp_port=PORT) as us:
                async with flowing(us, db.ip4) as flow:
                    await until_path(us, "direct", 10)
                    await flow.carries()
                db.process.kill()
                await first.__aexit__(None, None, None)
                async with r.tsnet(hs, key, "db", namespace=b.client, port=PORT + 1, state=state) as again:
                    began = trio.current_time()
                    assert again.ip4 == db.ip4
                    first_byte = 0.0
                    with trio.fail_after(40):
                        async with await us.tcp_connect(again.ip4, 7, timeout=30) as stream:
                            await stream.send_all(b"x")
                            assert await stream.receive_some(1) == b"x"
                            first_byte = trio.current_time() - began
                    direct = first_byte + await _direct_to(us, f":{PORT + 1}", 30)
        print(
            f"peer restarted on another port: first byte {first_byte:.2f} s after it was up, direct after {direct:.2f}"
        )
        assert direct <= 15


async def _direct_to(us: tailscale.Device, ending: str, patience: float) -> float:
    began = trio.current_time()
    with trio.fail_after(patience):
        while not (path_of(us).startswith("direct") and path_of(us).endswith(ending)):
            await us.ping("db", timeout=5)
            await trio.sleep(0.05)
    return trio.current_time() - began


async def test_our_own_address_changes(r: Rig) -> None:
    """Another lease: what was bound to the old address is dead without a word, relay connections included."""
    async with pair(r, "none", "easy") as (_, hs, a, b), ours_and_theirs(r, hs, a, b) as (us, db):
        async with flowing(us, db.ip4) as flow:
            await until_path(us, "direct", 10)
            await flow.carries()
            flow.silence()
            old, new = a.address, a.address + "1"
            gateway = old.rsplit(".", 1)[0] + ".1"
            for words in (
                f"addr del {old}/24 dev eth0",
                f"addr add {new}/24 dev eth0",
                f"route add default via {gateway}",
            ):
                await trio.run_process(["ip", "-n", a.client, *words.split()])
            await flow.heard_again(40)
            gap = flow.silence()
            direct = await until_path(us, "direct", 40)
            relay = await _relay_alive(us, 40)
        print(
            f"own address changed: {gap:.2f} s of silence, direct {direct:.1f} s later, relay alive {relay:.1f} s later"
        )
        assert gap <= 15


async def _relay_alive(us: tailscale.Device, patience: float) -> float:
    began = trio.current_time()
    relays = runtime_of(us).relays
    with trio.fail_after(patience):
        while not ((link := relays.statistics().links.get(relays.home)) and link.connected):  # noqa: ASYNC110
            await trio.sleep(0.02)
    return trio.current_time() - began


async def test_a_start_with_udp_blocked_takes_no_longer(r: Rig) -> None:
    """Usable: joined, and the first byte of the first connection is back."""
    took: dict[str, list[float]] = {"easy": [], "blocked": []}
    async with natlab.lab(r) as (made, hs):
        key = await hs.auth_key(ephemeral=False)
        async with r.tsnet(hs, key, "db", namespace=made.site("none").client, port=PORT) as db:
            for kind in ("easy", "blocked") * 4:
                site = made.site(kind)
                with inside(site.client):
                    began = trio.current_time()
                    async with joined(hs, f"{kind}{site.number}", auth_key=key, udp_port=PORT) as us:
                        ready = trio.current_time() - began
                        async with await us.tcp_connect(db.ip4, 7) as stream:
                            await stream.send_all(b"x")
                            assert await stream.receive_some(1) == b"x"
                        took[kind].append(trio.current_time() - began)
                        print(f"start behind {kind}: ready {ready:.3f} s, first byte {took[kind][-1]:.3f} s")
    with_udp, without = (sorted(took[kind])[1] for kind in ("easy", "blocked"))
    print(f"start: {with_udp:.3f} s with UDP, {without:.3f} s without: {without / with_udp:.2f} x")
    assert without <= 1.5 * with_udp + 0.05


async def test_on_one_lan_direct_at_once_and_the_first_packet_arrives(r: Rig) -> None:
    async with natlab.lab(r) as (made, hs):
        a = made.site("easy")
        b = made.neighbour(a)
        async with ours_and_theirs(r, hs, a, b) as (us, db):
            began = trio.current_time()
            async with await us.udp() as socket:
                await socket.send_to(b"first", (db.ip4, 7))
                with trio.fail_after(2):
                    assert (await socket.receive_from())[0] == b"first"
                answered = trio.current_time() - began
                direct = answered + await until_path(us, "direct", 2)
            print(
                f"one LAN: first datagram answered after {answered * 1000:.1f} ms, direct after {direct * 1000:.1f} ms"
            )
            assert direct <= 2


REKEY_SECONDS = 120.0  # the side that began a session renews it after so long
REKEY_MIB = int(os.environ.get("REKEY_MIB", "0"))  # 2048 sends more in the same time


@pytest.mark.timeout(REKEY_SECONDS + 260)
async def test_a_transfer_crosses_rekeys_without_a_stall(r: Rig) -> None:
    """WireGuard changes keys every two minutes, in real time."""
    async with pair(r, "easy", "none") as (_, hs, a, b), ours_and_theirs(r, hs, a, b) as (us, db):
        wanted = REKEY_MIB << 20
        rate = max(RATE, wanted / REKEY_SECONDS)
        async with flowing(us, db.ip4, patience=REKEY_SECONDS + 200, rate=rate) as flow:
            await until_path(us, "direct", 10)
            await flow.carries()
            flow.silence()
            began, age, rekeys = trio.current_time(), 0.0, 0
            while not rekeys or flow.sent < wanted:
                await flow.carries(RATE // 4)
                before, age = age, next(p.handshake_age or 0.0 for p in us.status().peers)
                rekeys += age < before
            await flow.carries(4 * RATE)
            stall, took = flow.silence(), trio.current_time() - began
        print(
            f"rekeys: {rekeys} in {took:.0f} s, {flow.sent >> 20} MiB, longest stall {stall * 1000:.0f} ms, none lost"
        )
        assert rekeys >= 1
        assert stall <= 1
