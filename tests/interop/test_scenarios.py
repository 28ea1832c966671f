"""Traffic, as a table: which peer, over which path, what is sent, what must come back.

Each row of a table is one line of the closing report; a test walks all rows of one (peer, path) pair,
so that a tailnet is built once for it.
"""

from __future__ import annotations

import hashlib

import pytest
import trio

import tailscale
from tests.interop.ours import PATHS, SERVICES, Far, FarTsnet, converse, far_end, joined, tailnet
from tests.interop.pattern import pattern, pattern_sha256
from tests.interop.processes import poll_until
from tests.interop.rig import Rig, TsnetPeer
from tests.tailscale.tailnet_scripts import runtime_of
from ts_netstack.tcp_inbound import INITIAL_RECEIVE, MAXIMUM_BUFFER

KIB, MIB = 1 << 10, 1 << 20

PEERS_AND_PATHS = [
    # peer             path
    ("tsnet",          "direct"),
    ("tsnet",          "derper tls"),
    ("tsnet",          "derper http"),
    ("tsnet",          "embedded"),
    ("tailscaled",     "direct"),
    ("tailscaled",     "derper tls"),
    ("old tailscaled", "direct"),
    ("ours",           "direct"),
    ("ours",           "derper tls"),
]  # fmt: skip
TCP_SIZES = [0, 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 3 * MIB]
UDP_SIZES = [0, 1, 512, 1200, 1232]
IN_FRAGMENTS = [1233, 4000, 16_000]  # more than a packet of the tailnet holds
TOO_BIG = 65_508
FULL_SEALED = 1312  # the largest datagram of anybody but two of ours at a relay
SIP, SIPS = 8 * KIB, 32  # how a slow reader reads

BINARIES = {
    "tailscaled": ("tailscaled", "tailscale"),
    "old tailscaled": ("tailscaled-old", "tailscale-old"),
    "tsnet": (),
    "ours": (),
}
pairs = pytest.mark.parametrize(
    ("kind", "path"),
    [pytest.param(k, p, marks=pytest.mark.peers(*BINARIES[k]), id=f"{k}, {p}") for k, p in PEERS_AND_PATHS],
)

SLOW_READERS = [
    # peer         path
    ("tsnet",      "direct"),
    ("tsnet",      "derper tls"),
    ("tailscaled", "direct"),
    ("ours",       "direct"),
    ("ours",       "derper tls"),
]  # fmt: skip
slow_pairs = pytest.mark.parametrize(
    ("kind", "path"),
    [pytest.param(k, p, marks=pytest.mark.peers(*BINARIES[k]), id=f"{k}, {p}") for k, p in SLOW_READERS],
)


@pairs
async def test_tcp_both_directions(r: Rig, kind: str, path: str) -> None:
    async with (
        tailnet(r, path) as hs,
        far_end(r, hs, kind, path=path) as far,
        joined(hs, path=path, services=True) as us,
    ):
        for size in TCP_SIZES:
            data = pattern(size)
            echoed = await converse(await us.tcp_connect(far.ip4, far.port("echo")), data)
            assert (echoed.received, echoed.sha256) == (size, pattern_sha256(size)), f"echo of {size}, we call"
            hashed = await converse(await us.tcp_connect(far.name, far.port("hash")), data)
            assert hashed.head == f"{size} {pattern_sha256(size)}\n".encode(), f"hash of {size}, we call"
            made = await converse(await us.tcp_connect(far.ip4, far.port("generate")), b"%d\n" % size, read=size)
            assert made.sha256 == pattern_sha256(size), f"generate {size}, we call"
            echoed = await far.dial(us.ipv4 or "", SERVICES["echo"], size)
            assert (echoed.received, echoed.sha256) == (size, pattern_sha256(size)), f"echo of {size}, they call"
            if not far.can_half_close:
                continue
            hashed = await far.dial(us.ipv4 or "", SERVICES["hash"], size)
            assert hashed.head == f"{size} {pattern_sha256(size)}\n".encode(), f"hash of {size}, they call"
        assert us.status().peers[0].path.startswith("direct" if path == "direct" else "relay")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "path"), [("tsnet", "direct"), ("tsnet", "derper tls"), ("ours", "derper tls")])
async def test_64_mib_both_directions(r: Rig, kind: str, path: str) -> None:
    size = 64 * MIB
    async with (
        tailnet(r, path) as hs,
        far_end(r, hs, kind, path=path) as far,
        joined(hs, path=path, services=True) as us,
    ):
        hashed = await converse(await us.tcp_connect(far.ip4, far.port("hash")), pattern(size))
        assert hashed.head == f"{size} {pattern_sha256(size)}\n".encode()
        made = await converse(await us.tcp_connect(far.ip4, far.port("generate")), b"%d\n" % size, read=size)
        assert made.sha256 == pattern_sha256(size)
        assert (await far.dial(us.ipv4 or "", SERVICES["hash"], size)).head.startswith(b"%d " % size)
        largest = await mean_of_full_datagrams(us, far)
        assert largest > 4 * FULL_SEALED if kind == "ours" else largest <= FULL_SEALED


async def mean_of_full_datagrams(us: tailscale.Device, far: Far) -> float:
    """Of eight MiB more: how large what we send is."""
    traffic = runtime_of(us).endpoint.peer_statistics
    before = traffic(us.status().peers[0].node.id)
    await converse(await us.tcp_connect(far.ip4, far.port("hash")), pattern(8 * MIB))
    after = traffic(us.status().peers[0].node.id)
    return (after.bytes_out - before.bytes_out) / (after.packets_out - before.packets_out)


@pytest.mark.parametrize("path", PATHS)
async def test_udp_sizes_both_directions(r: Rig, path: str) -> None:
    async with (
        tailnet(r, path) as hs,
        far_end(r, hs, "tsnet", path=path) as far,
        joined(hs, path=path, services=True) as us,
    ):
        assert isinstance(far, FarTsnet)
        for host in (far.ip4, far.ip6):
            async with await us.udp() as socket:
                for size in UDP_SIZES:
                    with trio.fail_after(10):
                        await socket.send_to(pattern(size), (host, 7))
                        data, source = await socket.receive_from()
                    assert (data, source[:2]) == (pattern(size), (host, 7)), f"{size} bytes of UDP to {host}"
        async with await us.udp() as socket:
            for size in IN_FRAGMENTS:
                await socket.send_to(pattern(size), (far.ip4, 7))
                with trio.fail_after(10):
                    data, _ = await socket.receive_from()
                assert data == pattern(size), f"{size} bytes of UDP in fragments"
            with pytest.raises(OSError, match="at most 65507"):
                await socket.send_to(bytes(TOO_BIG), (far.ip4, 7))
        for size in UDP_SIZES + IN_FRAGMENTS:
            said = await far.peer.ask("udp", host=us.ipv4, port=7, bytes=size, count=3)
            assert said["same"] == 3, f"{size} bytes of UDP, they call"


@pytest.mark.parametrize("kind", ["disco", "icmp", "tsmp"])
@pytest.mark.parametrize("path", ["direct", "derper tls"])
async def test_pings_both_ways(r: Rig, kind: str, path: str) -> None:
    async with tailnet(r, path) as hs, far_end(r, hs, "tsnet", path=path) as far, joined(hs, path=path) as us:
        assert isinstance(far, FarTsnet)
        pong = await us.ping(far.ip4, kind)
        assert 0 < pong.latency < 5
        if path == "derper tls":
            assert pong.path.startswith("relay")
        their_kind = {"disco": "disco", "icmp": "ICMP", "tsmp": "TSMP"}[kind]
        assert not (await far.peer.ping(us.ipv4 or "", their_kind)).get("Err")


@pytest.mark.parametrize("path", ["direct", "derper tls"])
async def test_a_path_is_measured_by_both_ends(r: Rig, path: str) -> None:
    """Two of ours, under Headscale; and a stock node, of which pings tell what can be told."""
    async with (
        tailnet(r, path) as hs,
        far_end(r, hs, "tsnet", path=path) as stock,
        joined(hs, path=path) as us,
        joined(hs, "other", path=path) as other,
    ):
        result = await us.bench(other.ipv4 or "", seconds=0.5, streams=2)
        assert not result.why
        assert result.up
        assert result.down
        assert result.loaded is not None
        assert result.path.startswith("relay") == (path == "derper tls")
        pinged = await us.bench(stock.ip4, seconds=0.5)
        assert "it is no pytailscale node" in pinged.why or "has no peer API" in pinged.why
        assert pinged.idle is not None
        assert pinged.up is pinged.down is None


@pytest.mark.parametrize(("families", "v4", "v6"), [("4", True, False), ("6", False, True)], ids=["v4 only", "v6 only"])
async def test_one_address_family(r: Rig, families: str, v4: bool, v6: bool) -> None:
    async with tailnet(r, families=families) as hs, far_end(r, hs, "tsnet") as far, joined(hs, services=True) as us:
        assert (us.ipv4 is not None, us.ipv6 is not None) == (v4, v6)
        assert (await converse(await us.tcp_connect("db", far.port("echo")), b"hi")).head == b"hi"
        assert (await far.dial(us.ipv4 or us.ipv6 or "", SERVICES["echo"], data=b"hi")).head == b"hi"


async def test_half_close_ends_one_direction_only(r: Rig) -> None:
    async with tailnet(r) as hs, far_end(r, hs, "tsnet") as far, joined(hs) as us:
        async with await us.tcp_connect(far.ip4, far.port("hash")) as stream:
            await stream.send_all(b"abc")
            await stream.send_eof()
            with pytest.raises(trio.ClosedResourceError):
                await stream.send_all(b"more")
            assert b"".join([c async for c in stream]) == b"3 " + hashlib.sha256(b"abc").hexdigest().encode() + b"\n"


async def test_reset_by_them_is_a_typed_error(r: Rig) -> None:
    async with tailnet(r) as hs, far_end(r, hs, "tsnet") as far, joined(hs) as us:
        async with await us.tcp_connect(far.ip4, far.port("reset")) as stream:
            await stream.send_all(b"bye\n")
            with pytest.raises(tailscale.ConnectionReset), trio.fail_after(10):
                await stream.receive_some()


async def test_reset_by_us_is_seen_by_them(r: Rig) -> None:
    async with tailnet(r) as hs, far_end(r, hs, "tsnet") as far, joined(hs, services=True) as us:
        assert isinstance(far, FarTsnet)
        said = await far.peer.ask("dial", check=False, host=us.ipv4, port=11, data=b"bye\n", read=-1)
        assert "reset" in said["error"]


async def test_refused_and_unknown_are_told_apart(r: Rig) -> None:
    async with tailnet(r) as hs, far_end(r, hs, "tsnet") as far, joined(hs) as us:
        with pytest.raises(tailscale.ConnectionRefused):
            await us.tcp_connect(far.ip4, 4)
        with pytest.raises(tailscale.NameNotFound) as unknown:
            await us.tcp_connect("dbb", 7)
        assert "db" in str(unknown.value)
        with pytest.raises(tailscale.NoRoute):
            await us.tcp_connect("100.64.99.99", 7)


@pytest.mark.parametrize("path", ["direct", "derper tls"])
async def test_200_parallel_connections(r: Rig, path: str) -> None:
    done = 0
    async with tailnet(r, path) as hs, far_end(r, hs, "tsnet", path=path) as far, joined(hs, path=path) as us:

        async def one(size: int) -> None:
            nonlocal done
            answer = await converse(await us.tcp_connect(far.ip4, far.port("echo")), pattern(size))
            assert answer.sha256 == pattern_sha256(size)
            done += 1

        async with trio.open_nursery() as nursery:
            for n in range(200):
                nursery.start_soon(one, 1000 + 37 * n)
    assert done == 200


async def until_all_room_is_taken(stream: tailscale.TcpStream) -> None:
    """The window we offer is full: whoever sends to us has to wait until we read."""
    connection = stream._connection

    async def full() -> bool:
        return connection.unread > INITIAL_RECEIVE - SIP // 2

    await poll_until("the sender to fill our window", full)
    assert connection.unread < 2 * INITIAL_RECEIVE, "more is kept for a slow reader than it was offered"


async def until_we_are_held_back(stream: tailscale.TcpStream) -> None:
    """The peer offers no window any more, and what we had under way has arrived."""
    connection = stream._connection

    async def shut() -> bool:
        seen = connection.statistics()
        return not connection.writable and seen.outstanding == 0 and seen.peer_window < 2 * seen.mss

    await poll_until("the peer's window to close", shut)
    assert connection.unsent <= MAXIMUM_BUFFER, "a slow reader makes the sender hoard"


async def others_are_served(us: tailscale.Device, far: Far) -> None:
    """A stream beside the held one, each way."""
    data = pattern(20_000)
    with trio.fail_after(5):
        assert (await converse(await us.tcp_connect(far.ip4, far.port("echo")), data)).sha256 == pattern_sha256(20_000)
        assert (await far.dial(us.ipv4 or "", SERVICES["echo"], 20_000)).sha256 == pattern_sha256(20_000)


async def sip(stream: tailscale.TcpStream, far: Far, us: tailscale.Device) -> bytes:
    """A few KiB at a time, each only when the sender has filled the window again."""
    got = b""
    for number in range(SIPS):
        await until_all_room_is_taken(stream)
        if number % (SIPS // 2) == 0:
            await others_are_served(us, far)
        got += await stream.receive_some(SIP)
    return got


@slow_pairs
async def test_a_slow_reader_here_holds_the_peer_back_and_loses_nothing(r: Rig, kind: str, path: str) -> None:
    size = 16 * MIB
    async with (
        tailnet(r, path) as hs,
        far_end(r, hs, kind, path=path) as far,
        joined(hs, path=path, services=True) as us,
        await us.tcp_connect(far.ip4, far.port("generate")) as stream,
    ):
        await stream.send_all(b"%d\n" % size)
        got = await sip(stream, far, us)
        await until_all_room_is_taken(stream)
        assert us.status().peers[0].bytes_received < 4 * MIB, "the peer sent what it was given no window for"
        rest = await read_to_end(stream, size - len(got))
        assert hashlib.sha256(got + rest).hexdigest() == pattern_sha256(size)


@slow_pairs
async def test_a_slow_reader_there_holds_us_back_and_loses_nothing(r: Rig, kind: str, path: str) -> None:
    """Its echo reads no faster than we take the answers: where we stop reading, it stops."""
    sent, size = 0, 48 * MIB
    data = pattern(size)

    async def send(stream: tailscale.TcpStream) -> None:
        nonlocal sent
        while sent < size:
            await stream.send_all(data[sent : sent + 64 * KIB])
            sent += 64 * KIB
        await stream.send_eof()

    async with (
        tailnet(r, path) as hs,
        far_end(r, hs, kind, path=path) as far,
        joined(hs, path=path, services=True) as us,
        await us.tcp_connect(far.ip4, far.port("echo")) as stream,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(send, stream)
        await until_all_room_is_taken(stream)
        await until_we_are_held_back(stream)
        held_at = sent
        await others_are_served(us, far)
        assert sent == held_at, "the reader stands still and the sender goes on"
        got = await sip(stream, far, us)
        await until_we_are_held_back(stream)
        assert sent < size
        rest = await read_to_end(stream, size - len(got))
        assert hashlib.sha256(got + rest).hexdigest() == pattern_sha256(size)


async def read_to_end(stream: tailscale.TcpStream, count: int) -> bytes:
    rest = bytearray()
    with trio.fail_after(60):
        while len(rest) < count:
            rest += await stream.receive_some(min(16 * KIB, count - len(rest)))
    return bytes(rest)


@pytest.mark.parametrize("kind", ["tsnet", "ours"])
async def test_a_bulk_flow_moves_from_relay_to_direct_whole(r: Rig, kind: str) -> None:
    """What the relay still carries and what UDP already does make one stream; ours sent large segments before."""
    size = 48 * MIB
    async with tailnet(r) as hs, far_end(r, hs, kind) as far, joined(hs) as us:
        async with await us.tcp_connect(far.ip4, far.port("hash")) as stream:
            await stream.send_all(pattern(size))
            await stream.send_eof()
            said = b""
            async for chunk in stream:
                said += chunk
            assert stream.path.startswith("direct")
        assert said == f"{size} {pattern_sha256(size)}\n".encode()


async def test_direct_upgrade_inside_a_flow(r: Rig) -> None:
    """The first byte travels by relay at once; the same connection then moves to UDP."""
    async with tailnet(r) as hs, far_end(r, hs, "tsnet") as far, joined(hs) as us:
        async with await us.tcp_connect(far.ip4, far.port("echo")) as stream:

            async def direct() -> bool:
                await stream.send_all(b"x" * 1000)
                count = 0
                while count < 1000:
                    count += len(await stream.receive_some(1000 - count))
                return stream.path.startswith("direct")

            await poll_until("the flow to go direct", direct, 2)


async def test_stock_peers_name_us_and_know_who_we_are(r: Rig) -> None:
    async with tailnet(r) as hs, far_end(r, hs, "tsnet") as db, joined(hs, "worker", services=True) as us:
        assert isinstance(db, FarTsnet)
        assert (await db.dial("worker", SERVICES["echo"], data=b"hello")).head == b"hello"
        page = await converse(await us.tcp_connect("db", 80), b"GET / HTTP/1.0\r\n\r\n", end="")
        assert b'"node":"worker.rig.test."' in page.head
        who = await us.whois((db.ip4, 80))
        assert who.node.name == "db.rig.test"
        await _finds(db.peer, "worker", us)


async def _finds(peer: TsnetPeer, name: str, us: tailscale.Device) -> None:
    record = await peer.path_to(name)
    assert record["TailscaleIPs"] == [us.ipv4, us.ipv6]
    assert record["Online"]
