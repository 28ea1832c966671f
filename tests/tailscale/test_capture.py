"""Captures: what goes by inside the tunnel is in the file, once and in order, with its peer, path and drop reason."""

from __future__ import annotations

import asyncio
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import dpkt
import pytest
import trio
from dpkt import pcapng as reader
from tailnet_scripts import echo_service, echoed, runtime_of, until
from trio.testing import MockClock

import tailscale
from tailscale import Device, aio, capturing, sync
from tailscale.testing import Tailnet


class Packet(NamedTuple):
    """One block of a capture, as dpkt reads it."""

    at: float
    ip: Any
    comment: str
    is_inbound: bool
    length: int


def packets_in(data: bytes) -> list[Packet]:
    found = []
    while data:
        kind, size = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:8], "little")
        if kind == reader.PCAPNG_BT_EPB:
            block = reader.EnhancedPacketBlockLE(data[:size])
            options = {option.code: option.data for option in block.opts}
            kind_of = dpkt.ip.IP if block.pkt_data[0] >> 4 == 4 else dpkt.ip6.IP6
            at = (block.ts_high << 32 | block.ts_low) / 1e6
            flags = int.from_bytes(options[2], "little")
            found.append(Packet(at, kind_of(block.pkt_data), options[1].decode(), flags == 1, block.pkt_len))
        data = data[size:]
    return found


def read(path: Path) -> list[Packet]:
    packets = packets_in(path.read_bytes())
    with path.open("rb") as file:
        plain = list(reader.Reader(file))  # dpkt's own walk over the file agrees with ours
    assert [at for at, _ in plain] == [packet.at for packet in packets]
    return packets


async def pair(net: Tailnet) -> tuple[Device, Device]:
    return await net.device("a"), await net.device("b")


async def until_direct(device: Device) -> None:
    """And the relay's copies have stopped."""
    await device.ping("b")
    await device.ping("b", "tsmp")
    await until(lambda: device.status().peers[0].path.kind == "direct", 30)
    await trio.sleep(10)


async def exchange(a: Device, b: Device, count: int = 20) -> None:
    """So many numbered datagrams there and back."""
    async with await b.udp(53) as far, await a.udp() as near:
        for number in range(count):
            await near.send_to(b"ask %d" % number, ("b", 53))
            data, where = await far.receive_from()
            await far.send_to(data.replace(b"ask", b"answer"), where)
            assert await near.receive() == b"answer %d" % number


def datagrams(packets: list[Packet]) -> list[tuple[bytes, bool]]:
    return [(bytes(p.ip.data.data), p.is_inbound) for p in packets if isinstance(p.ip.data, dpkt.udp.UDP)]


EXCHANGED = [(b"%s %d" % (word, number), word == b"answer") for number in range(20) for word in (b"ask", b"answer")]


async def test_a_direct_exchange_is_captured_once_and_in_order(
    autojump_clock: MockClock, tailnet: Tailnet, tmp_path: Path
) -> None:
    a, b = await pair(tailnet)
    await until_direct(a)
    async with a.capture(tmp_path / "x.pcapng") as capture:
        await exchange(a, b)
    packets = read(tmp_path / "x.pcapng")
    assert capture.statistics() == (len(packets), (tmp_path / "x.pcapng").stat().st_size, 0)
    assert datagrams(packets) == EXCHANGED
    path = (await a.ping("b")).path
    assert path.kind == "direct"
    assert {p.comment for p in packets} == {f"to b by {path}", f"from b by {path}"}
    assert [p.at for p in packets] == sorted(p.at for p in packets)


async def test_a_relayed_exchange_says_so(autojump_clock: MockClock, tailnet: Tailnet, tmp_path: Path) -> None:
    a, b = await pair(tailnet)
    tailnet.block_udp(a, b)
    async with b.capture(tmp_path / "x.pcapng", peer="a"):
        await exchange(a, b)
    packets = read(tmp_path / "x.pcapng")
    assert datagrams(packets) == [(data, not is_answer) for data, is_answer in EXCHANGED]
    plain = {p.comment for p in packets if p.ip.p == dpkt.ip.IP_PROTO_UDP}
    assert plain == {"to a by relay test", "from a by relay test"}


async def test_what_the_filter_drops_is_there_with_its_reason(
    autojump_clock: MockClock, tailnet: Tailnet, tmp_path: Path
) -> None:
    a, b = await pair(tailnet)
    tailnet.policy({"acls": [{"action": "accept", "src": ["*"], "dst": ["*:80"]}]})
    await trio.sleep(1)
    async with b.capture(tmp_path / "x.pcapng"), echo_service(b, 80):
        assert await echoed(a, "b", 80) == b"hello"
        with pytest.raises(tailscale.ConnectionRefused):
            await a.tcp_connect("b", 81)
    packets = read(tmp_path / "x.pcapng")
    dropped = [p for p in packets if "dropped" in p.comment]
    assert [p.ip.data.dport for p in dropped] == [81, 81]  # the SYN for each of its addresses
    assert all(p.comment.endswith("; dropped: filter.no_rule") and p.comment.startswith("from a by ") for p in dropped)
    told = [p for p in packets if p.comment.endswith("(TSMP)") and not p.is_inbound]
    assert len(told) >= 2, "each refusal is told to its peer"
    passed = [p for p in packets if isinstance(p.ip.data, dpkt.tcp.TCP) and 80 in (p.ip.data.sport, p.ip.data.dport)]
    assert b"".join(p.ip.data.data for p in passed if p.is_inbound) == b"hello"
    assert not any("dropped" in p.comment for p in passed)


async def test_what_a_peer_sends_that_is_no_packet_is_there_too(
    autojump_clock: MockClock, tailnet: Tailnet, tmp_path: Path
) -> None:
    a, b = await pair(tailnet)
    await b.ping("a", "tsmp")
    junk = [bytes([first]) * size for first in (0x00, 0x45, 0x46, 0x60, 0xFF) for size in (1, 3, 19, 20, 39, 40, 100)]
    async with a.capture(tmp_path / "x.pcapng", peer="b") as capture:
        runtime = runtime_of(b)
        runtime.endpoint.send([(a.node.id, junk)], trio.current_time())
        runtime.dataplane.flush(trio.current_time())
        await trio.sleep(1)
        assert await exchange(a, b, 1) is None
    data = (tmp_path / "x.pcapng").read_bytes()
    assert capture.statistics().packets >= len(junk) + 2
    assert data.count(b"dropped: engine.malformed") >= 20


async def test_what_nobody_routes_is_there_too(autojump_clock: MockClock, tailnet: Tailnet, tmp_path: Path) -> None:
    a, b = await pair(tailnet)
    async with a.capture(tmp_path / "x.pcapng"), await a.udp() as socket:
        await socket.connect(("b", 53))
        tailnet.remove(b)
        await until(lambda: "b" not in a.peers)
        await socket.send(b"lost")
    (lost,) = [p for p in read(tmp_path / "x.pcapng") if p.comment.startswith("to nobody")]
    assert lost.comment == "to nobody; dropped: engine.no_route"
    assert lost.ip.data.data == b"lost"


async def test_a_capture_of_one_peer_leaves_out_the_others(
    autojump_clock: MockClock, tailnet: Tailnet, tmp_path: Path
) -> None:
    a, b = await pair(tailnet)
    await tailnet.device("c")
    async with a.capture(tmp_path / "x.pcapng", peer="b"):
        await a.ping("c", "tsmp")
        await exchange(a, b, 1)
    assert all(" b by " in p.comment for p in read(tmp_path / "x.pcapng"))
    with pytest.raises(tailscale.NameNotFound):
        a.capture(tmp_path / "y.pcapng", peer="nobody")
    assert not (tmp_path / "y.pcapng").exists()


async def test_limits_end_a_capture_and_cut_packets(
    autojump_clock: MockClock, tailnet: Tailnet, tmp_path: Path
) -> None:
    a, b = await pair(tailnet)
    await a.ping("b", "tsmp")
    async with a.capture(tmp_path / "n.pcapng", max_packets=3) as capture:
        await exchange(a, b)
        await capture.wait()
    assert len(read(tmp_path / "n.pcapng")) == 3
    async with a.capture(tmp_path / "b.pcapng", max_bytes=1000) as capture:
        await exchange(a, b)
        await capture.wait()
    assert 800 < (tmp_path / "b.pcapng").stat().st_size <= 1000
    async with a.capture(tmp_path / "s.pcapng", snaplen=28):
        await exchange(a, b, 1)
    data = (tmp_path / "s.pcapng").read_bytes()
    assert len(data) < 600
    assert (28).to_bytes(4, "little") + (28 + len(b"ask 0")).to_bytes(4, "little") in data
    for wrong in ({"snaplen": 0}, {"max_packets": -1}, {"max_bytes": 0}):
        with pytest.raises(ValueError, match="is 1 or more"):
            await a.capture(tmp_path / "w.pcapng", **wrong)


async def test_the_file_is_private_and_there_when_it_is_whole(
    autojump_clock: MockClock, tailnet: Tailnet, tmp_path: Path
) -> None:
    a, b = await pair(tailnet)
    target = tmp_path / "x.pcapng"
    target.write_text("the last one")
    target.chmod(0o644)
    with pytest.raises(ZeroDivisionError):
        async with a.capture(target):
            await exchange(a, b, 1)
            assert target.read_text() == "the last one"
            raise ZeroDivisionError
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert read(target)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pcapng"]
    with pytest.raises(ValueError, match="no regular file: open it yourself"):
        await a.capture(tmp_path)
    with pytest.raises(FileNotFoundError):
        await a.capture(tmp_path / "none" / "x.pcapng")


async def test_a_device_that_ends_first_leaves_a_whole_file(
    autojump_clock: MockClock, tailnet: Tailnet, tmp_path: Path
) -> None:
    b = await tailnet.device("b")
    async with tailnet.device("a") as a:
        capture = await a.capture(tmp_path / "x.pcapng")
        await exchange(a, b, 1)
    assert len(datagrams(read(tmp_path / "x.pcapng"))) == 2
    await capture.aclose()


async def test_what_waits_to_be_written_is_bounded_and_counted(
    autojump_clock: MockClock, tailnet: Tailnet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(capturing, "QUEUE_LIMIT", 700)
    going_on = threading.Event()
    write_all = capturing.write_all

    def write_slowly(file: Any, data: bytes) -> None:
        going_on.wait(10)
        write_all(file, data)

    monkeypatch.setattr(capturing, "write_all", write_slowly)
    a, b = await pair(tailnet)
    await a.ping("b", "tsmp")
    async with a.capture(tmp_path / "x.pcapng", peer="b") as capture:
        await exchange(a, b)
        going_on.set()
    done = capture.statistics()
    assert done.dropped == a.status().drops["capture.queue_full"] > 20
    assert len(read(tmp_path / "x.pcapng")) == done.packets
    assert done.packets + done.dropped >= 40
    assert (tmp_path / "x.pcapng").read_bytes()[-16:-8] == done.dropped.to_bytes(8, "little")


async def test_a_file_that_fails_is_said_and_ends_nothing_else(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    class FullDisk:
        def write(self, data: bytes) -> int:
            raise OSError(28, "No space left on device")

    a, b = await pair(tailnet)
    with pytest.raises(tailscale.CaptureFailed, match=r"could not be written whole: .*No space left"):
        async with a.capture(FullDisk()) as capture:
            await capture.wait()
            await exchange(a, b)
    assert runtime_of(a).packets.statistics().captures == 0


async def test_a_reader_that_has_stopped_holds_nobody_up(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await pair(tailnet)
    goes_on = threading.Event()

    class StoppedPipe:
        def write(self, data: bytes) -> int:
            goes_on.wait(60)
            return len(data)

    with pytest.raises(tailscale.CaptureFailed, match="nobody took"):
        async with a.capture(StoppedPipe()):
            await exchange(a, b)
    goes_on.set()
    assert runtime_of(a).packets.statistics().captures == 0


async def test_nobody_watches_when_nobody_captures(autojump_clock: MockClock, tailnet: Tailnet, tmp_path: Path) -> None:
    a, _ = await pair(tailnet)
    engine = runtime_of(a).dataplane.engine
    async with a.capture(tmp_path / "1"), a.capture(tmp_path / "2"):
        assert (runtime_of(a).packets.statistics().captures, engine.statistics().taps) == (2, 2)
    assert (runtime_of(a).packets.statistics().captures, engine.statistics().taps) == (0, 0)


@pytest.fixture
def joining() -> Iterator[dict[str, Any]]:
    """Options for devices of a tailnet with a peer `b`, that lives in another thread."""
    ready, options, stop = threading.Event(), {}, threading.Event()

    async def live() -> None:
        async with Tailnet(real=True) as net:
            await net.device("b")
            options.update(control_url=net.control.url, auth_key=net.auth_key(reusable=True))
            ready.set()
            await trio.to_thread.run_sync(stop.wait)

    thread = threading.Thread(target=trio.run, args=(live,))
    thread.start()
    assert ready.wait(10)
    yield options
    stop.set()
    thread.join(10)


def test_plain_threads_capture_and_explain_too(joining: dict[str, Any], tmp_path: Path) -> None:
    with sync.Device("s", **joining) as device, device.capture(tmp_path / "s.pcapng", "b") as capture:
        device.ping("b", "tsmp")
        assert device.explain("b").is_reachable
        assert capture.statistics().packets >= 2
    assert read(tmp_path / "s.pcapng")


def test_asyncio_captures_and_explains_too(joining: dict[str, Any], tmp_path: Path) -> None:
    async def main() -> None:
        async with aio.Device("t", **joining) as device:
            async with device.capture(tmp_path / "t.pcapng", max_packets=2) as capture:
                await device.ping("b", "tsmp")
                await capture.wait()
            assert (await device.explain("b")).is_reachable

    asyncio.run(main())
    assert len(read(tmp_path / "t.pcapng")) == 2
