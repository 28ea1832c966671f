"""A stranger's socket floods a Device beside a good flow: the flow keeps at least half its rate and nothing grows.

Over real loopback sockets; the flood comes from a process of its own at a fixed rate, and both rates are measured in
turns in the same run, so that a busy machine does not decide.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

import pytest
import trio
from tailnet_scripts import runtime_of, until

from tailscale import Device
from tailscale.runtime.underlay import Runs
from tailscale.testing import Tailnet
from ts_base.who import Direct
from ts_dataplane import disco, stun
from ts_dataplane.disco_budget import MAX_BUCKETS
from ts_dataplane.disco_inbox import MAX_SEEN_PINGS
from ts_tunnel.cookie import append_macs, mac1_key_of
from ts_tunnel.wire import INITIATION, INITIATION_LENGTH, MACS_LENGTH, kind_of

PER_SECOND = 5000
KINDS = 500  # different datagrams, sent in turn
TURN = 1.0
FLOODER = """
import socket, sys, time
port, rate = int(sys.argv[1]), float(sys.argv[2])
data = sys.stdin.buffer.read()
flood, at = [], 0
while at < len(data):
    end = at + 2 + int.from_bytes(data[at:at + 2], "big")
    flood.append(data[at + 2:end])
    at = end
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
began, sent = time.monotonic(), 0
while True:
    for _ in range(50):
        sock.sendto(flood[sent % len(flood)], ("127.0.0.1", port))
        sent += 1
    if sent == 50:
        print("flooding", flush=True)
    time.sleep(max(0.0, began + sent / rate - time.monotonic()))
"""


def initiations(entropy: Callable[[int], bytes], public: bytes) -> list[bytes]:
    """From keys nobody knows, with the first mac as it must be: the dearest thing a stranger can send."""
    key = mac1_key_of(public)
    body = INITIATION_LENGTH - MACS_LENGTH - 4
    return [append_macs(b"\1\0\0\0" + entropy(body), key, None) for _ in range(KINDS)]


def disco_pings(entropy: Callable[[int], bytes], claimed: bytes | None) -> list[bytes]:
    """From keys nobody knows, or in the name of a key that is known and cannot be had."""
    return [disco.MAGIC + (claimed or entropy(32)) + entropy(24 + 16 + 46) for _ in range(KINDS)]


def resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    return 0


def start_flooder(port: int, datagrams: list[bytes]) -> subprocess.Popen[bytes]:
    """A process that floods `port`, once it has begun to."""
    command = [sys.executable, "-c", FLOODER, str(port), str(PER_SECOND)]
    flooder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert flooder.stdin is not None
    assert flooder.stdout is not None
    flooder.stdin.write(b"".join(len(datagram).to_bytes(2, "big") + datagram for datagram in datagrams))
    flooder.stdin.close()
    assert flooder.stdout.readline() == b"flooding\n"
    return flooder


@asynccontextmanager
async def flooded(port: int, datagrams: list[bytes]) -> AsyncIterator[None]:
    with await trio.to_thread.run_sync(start_flooder, port, datagrams) as flooder:
        try:
            yield
        finally:
            flooder.kill()


class Counted:
    """A stream of zeros, and how much of it arrived."""

    def __init__(self) -> None:
        self.arrived = 0

    async def send(self, client: Device, host: str, port: int) -> None:
        async with await client.tcp_connect(host, port) as stream:
            while True:
                await stream.send_all(bytes(1 << 16))

    async def receive(self, server: Device, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        async with await server.listen(0) as listener:
            task_status.started(listener.port)
            stream = await listener.accept()
        async with stream:
            async for chunk in stream:
                self.arrived += len(chunk)

    async def rate(self) -> float:
        began, before = trio.current_time(), self.arrived
        await trio.sleep(TURN)
        return (self.arrived - before) / (trio.current_time() - began)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["unknown initiations", "replayed initiation", "garbage", "unknown discos", "forged discos", "stun answers"]
)
async def test_a_good_flow_beside_a_flood_keeps_half_its_rate(kind: str) -> None:
    async with Tailnet(real=True) as net, net.device("good") as good, net.device("target") as target:
        runtime, entropy = runtime_of(target), random.Random(1).randbytes
        heard: list[bytes] = []
        send = runtime_of(good).underlay.send

        def listening(runs: Runs) -> list[Direct]:
            heard.extend(d for _, datagrams in runs for d in datagrams if d[:1] == b"\1" and kind_of(d) == INITIATION)
            return send(runs)

        runtime_of(good).underlay.send = listening  # type: ignore[method-assign]
        flow = Counted()
        async with trio.open_nursery() as nursery:
            port = await nursery.start(flow.receive, target)
            nursery.start_soon(flow.send, good, target.ipv4, port)
            await until(lambda: flow.arrived > 1 << 20)
            datagrams = {
                "unknown initiations": lambda: initiations(entropy, runtime.endpoint._handshakes.private.public.raw),
                "replayed initiation": lambda: heard[:1] * KINDS,
                "garbage": lambda: [entropy(1 + n % 1400) for n in range(KINDS)],
                "unknown discos": lambda: disco_pings(entropy, None),
                "forged discos": lambda: disco_pings(entropy, runtime.directory.netmap.peers[1].disco_key.raw),
                "stun answers": lambda: [stun.encode_response(entropy(12), ("203.0.113.5", 5)) for _ in range(KINDS)],
            }[kind]()
            calm, busy = [], []
            grown = 0
            for _ in range(3):
                calm.append(await flow.rate())
                before = resident()
                async with flooded(runtime.traffic.udp_port, datagrams):
                    busy.append(await flow.rate())
                grown = resident() - before
            nursery.cancel_scope.cancel()
        inbox = runtime.dataplane.finder.statistics().inbox
        assert inbox.seen_pings <= MAX_SEEN_PINGS
        assert inbox.budgets <= MAX_BUCKETS
        assert runtime.endpoint.statistics().active_peers <= 1
        ratio = median(busy) / median(calm)
        dropped = {reason: count for reason, count in target.status().drops.items() if count > 100}
        print(f"{kind}: {median(calm) / 125e3:.0f} Mbit/s, {median(busy) / 125e3:.0f} beside {PER_SECOND} a second: "
              f"{ratio:.2f}; {dropped}; {grown >> 10} KiB more")  # fmt: skip
        assert ratio >= 0.5
        assert grown < 16 << 20
