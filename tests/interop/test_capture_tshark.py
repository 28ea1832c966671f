"""Captures as Wireshark reads them: every packet of a known exchange once, in order, whole, with its comment.

tshark comes from a Debian package (`apt-get install tshark`); without it these tests are skipped with a loud line.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

import tailscale
from tailscale import Device
from tailscale.testing import Tailnet

pytestmark = pytest.mark.interop
COUNT = 20


def dissected(path: Path, condition: str, *fields: str) -> list[list[str]]:
    """A row of fields for each packet; tshark fails on a file that is cut short or malformed."""
    tshark = shutil.which("tshark")
    if tshark is None:
        pytest.skip("CAPTURES SKIPPED: no tshark here: apt-get install tshark")
    wanted = [word for field in fields for word in ("-e", field)]
    command = [tshark, "-n", "-r", str(path), "-Y", condition, "-T", "fields", *wanted]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    complaints = [line for line in done.stderr.splitlines() if "Running as user" not in line and line.strip()]
    assert not complaints
    return [line.split("\t") for line in done.stdout.splitlines()]


async def exchange(a: Device, b: Device) -> None:
    """Numbered datagrams there and back, and a TCP connection that says hello."""
    async with await b.udp(7000) as far, await a.udp() as near:
        for number in range(COUNT):
            await near.send_to(b"ask %d" % number, ("b", 7000))
            data, where = await far.receive_from()
            await far.send_to(data.replace(b"ask", b"answer"), where)
            await near.receive()
    async with await b.listen(7001) as listener, await a.tcp_connect("b", 7001) as near, await listener.accept() as far:
        await near.send_all(b"hello")
        await far.receive_some()


@pytest.mark.parametrize("way", ["direct", "relay"])
async def test_tshark_reads_every_packet_of_an_exchange_once(
    autojump_clock: MockClock, tmp_path: Path, way: str
) -> None:
    async with Tailnet() as net:
        a, b = await net.device("a"), await net.device("b")
        if way == "relay":
            net.block_udp(a, b)
        await a.ping("b")
        await trio.sleep(15)
        path = (await a.ping("b")).path
        assert path.kind == way
        async with a.capture(tmp_path / "x.pcapng"):
            await exchange(a, b)
    rows = dissected(tmp_path / "x.pcapng", "udp", "udp.payload", "frame.comment")
    said = [(bytes.fromhex(payload), comment) for payload, comment in rows]
    assert said == [
        (b"%s %d" % (word, number), f"{comment} b by {path}")
        for number in range(COUNT)
        for word, comment in ((b"ask", "to"), (b"answer", "from"))
    ]
    flags = dissected(tmp_path / "x.pcapng", "tcp.flags.syn == 1", "tcp.dstport", "tcp.flags.ack", "frame.comment")
    assert [(row[0] == "7001", row[2]) for row in flags] == [(True, f"to b by {path}"), (False, f"from b by {path}")]
    payload = dissected(tmp_path / "x.pcapng", "tcp.len > 0", "tcp.payload")
    assert payload == [[b"hello".hex()]]
    assert not dissected(tmp_path / "x.pcapng", "tcp.analysis.retransmission or _ws.malformed", "frame.number")


async def test_tshark_reads_what_the_filter_dropped(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with Tailnet() as net:
        a, b = await net.device("a"), await net.device("b")
        net.policy({"acls": [{"action": "accept", "src": ["*"], "dst": ["*:80"]}]})
        await trio.sleep(1)
        async with b.capture(tmp_path / "x.pcapng", peer="a"):
            with pytest.raises(tailscale.ConnectionRefused):
                await a.tcp_connect("b", 7001)
    rows = dissected(tmp_path / "x.pcapng", "tcp.dstport == 7001", "ip.version", "frame.comment")
    assert [row[0] for row in rows] == ["4", "6"]  # each of its addresses was tried
    assert all(row[1].endswith("; dropped: filter.no_rule") for row in rows)
