"""What the relay path costs: the codec per packet, TLS in bulk, and packets through a relay with a window.

python -m bench.derp                    # codec, TLS streams, our own relay in this process
python -m bench.derp --derper PATH      # the same through a derper binary, TLS and plain HTTP
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from tailscale.testing.relay import Certificate, RelayService
from tailscale.testing.served_tls import ServedTls
from ts_base.keys import NodePrivate
from ts_derp import frames
from ts_derp.client import DerpClient
from ts_derp.dial import PlainStream, TlsStream
from ts_derp.frames import FrameReader, Run, encode_packets
from ts_derp.machine import DerpMachine
from ts_derp.regions import RelayNode, RelayRegion
from ts_derp.trust import Trust

PACKET = 1300
BURST = 200


def best_of(work: Callable[[], object], rounds: int = 40) -> float:
    """Microseconds per packet, best of many."""
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best / BURST * 1e6


def codec() -> None:
    key, packets = os.urandom(32), [os.urandom(PACKET) for _ in range(BURST)]
    wire = encode_packets(frames.RECV_PACKET, [(key, packets)])
    reader = FrameReader(frames.RECV_PACKET)
    print(f"encode, us per packet     {best_of(lambda: encode_packets(frames.SEND_PACKET, [(key, packets)])):6.2f}")
    print(f"decode, whole frames      {best_of(lambda: reader.feed(wire)):6.2f}")
    reader.feed(wire[:700])
    shifted = wire[700:] + wire[:700]
    print(f"decode, frames cut        {best_of(lambda: reader.feed(shifted)):6.2f}")
    mixed = encode_packets(
        frames.RECV_PACKET, [(os.urandom(32), [packet[: 6 * i]]) for i, packet in enumerate(packets)]
    )
    mixed_reader = FrameReader(frames.RECV_PACKET)
    print(f"decode, 200 sources       {best_of(lambda: mixed_reader.feed(mixed)):6.2f}")


async def tls_streams() -> None:
    """Receiving 256 MiB over loopback TLS: our stream over memory buffers, and trio's."""
    certificate = Certificate("127.0.0.1")
    node = RelayNode("n", "127.0.0.1", cert_name=certificate.pin)
    block, blocks = os.urandom(256 << 10), 1024

    async def serve(raw: trio.SocketStream) -> None:
        served = trio.SSLStream(raw, certificate.context, server_side=True)
        for _ in range(blocks):
            await served.send_all(block)

    for name in ("memory buffers", "trio.SSLStream"):
        async with trio.open_nursery() as nursery:
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            raw = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
            context = Trust().context(node)
            received, reads, began, spent = 0, 0, time.perf_counter(), time.process_time()
            if name == "memory buffers":
                ours = TlsStream(PlainStream(raw), context, "127.0.0.1")
                await ours.do_handshake()
                while received < len(block) * blocks:
                    received += len(await ours.receive_some())
                    reads += 1
            else:
                theirs = trio.SSLStream(raw, context, server_hostname="127.0.0.1")
                while received < len(block) * blocks:
                    received += len(await theirs.receive_some(256 << 10))
                    reads += 1
            took = time.perf_counter() - began
            cpu = (time.process_time() - spent) / received * PACKET * 1e6
            rate = received * 8 / took / 1e9
            print(f"TLS by {name:18} {rate:6.2f} Gbit/s, {reads} reads, both ends {cpu:.2f} us/packet")
            nursery.cancel_scope.cancel()


class Loopback:
    async def open_tcp(self, host: str, port: int) -> trio.SocketStream:
        return await trio.open_tcp_stream(host, port)

    def wall_clock(self) -> float:
        return time.time()


async def through(
    region: RelayRegion, *, over_http: bool, window: int, size: int = PACKET, seconds: float = 3.0
) -> str:
    """One sender with `window` packets in flight, acknowledged by the receiver once per arriving run."""
    machines = [DerpMachine(NodePrivate.generate(os.urandom(32)), entropy=os.urandom) for _ in range(2)]
    clients = [await DerpClient.dial(Loopback(), region, m, Trust(), over_http=over_http) for m in machines]
    keys = [m._private.public.raw for m in machines]
    sent = received = 0
    packet = os.urandom(size - 8)
    news = trio.Event()
    seen = 0  # number of the last packet heard, which tells how many are no longer in flight

    def on_data(runs: list[Run]) -> None:
        nonlocal received
        for _, packets in runs:
            received += len(packets)
            clients[1].send([(keys[0], [packets[-1][:8]])], trio.current_time())

    def on_ack(runs: list[Run]) -> None:
        nonlocal seen
        seen = max(seen, int.from_bytes(runs[-1][1][-1], "big"))
        news.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(clients[0].run, on_ack, lambda fact: None)
        nursery.start_soon(clients[1].run, on_data, lambda fact: None)
        while not (machines[0].greeted and machines[1].greeted):  # noqa: ASYNC110 - a bench may poll
            await trio.sleep(0.01)
        began, spent = time.perf_counter(), time.process_time()
        while (took := time.perf_counter() - began) < seconds:
            room = window - (sent - seen)
            if room > 0:
                clients[0].send(
                    [(keys[1], [(sent + i + 1).to_bytes(8, "big") + packet for i in range(room)])], trio.current_time()
                )
                sent += room
            news = trio.Event()
            with trio.move_on_after(0.05) as lost:
                await news.wait()
            if lost.cancelled_caught:
                seen = sent  # everything in flight is gone
        cpu = (time.process_time() - spent) / max(received, 1) * 1e6
        nursery.cancel_scope.cancel()
    rate = received * size * 8 / took / 1e6
    lost = 100 * (1 - received / sent)
    return f"{size:6} bytes, window {window:4}: {rate:5.0f} Mbit/s, loss {lost:5.2f} %, {cpu:5.1f} us CPU/packet"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def region_at(port: int, pin: str) -> RelayRegion:
    return RelayRegion(900, nodes=(RelayNode("a", "127.0.0.1", pin, "127.0.0.1", "none", derp_port=port),))


@asynccontextmanager
async def derper(binary: str, *, tls: bool) -> AsyncIterator[RelayRegion]:
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        command = [binary, "-a", f"127.0.0.1:{port}", "-c", f"{folder}/key", "-hostname", "127.0.0.1", "-stun=false"]
        command += ["-http-port", "-1", "-certdir", folder, "-certmode", "manual" if tls else "letsencrypt"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: ASYNC220 - it returns at once
        try:
            await trio.sleep(1.0)
            pin = pin_of(Path(folder) / "127.0.0.1.crt") if tls else ""
            yield region_at(port, pin)
        finally:
            process.terminate()
            process.wait()


def pin_of(path: Path) -> str:
    import hashlib

    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    return "sha256-raw:" + hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


@asynccontextmanager
async def our_relay(*, tls: bool) -> AsyncIterator[RelayRegion]:
    certificate = Certificate("127.0.0.1")
    service = RelayService(NodePrivate.generate(os.urandom(32)), entropy=os.urandom, admit=lambda key: True)

    async def serve(raw: trio.SocketStream) -> None:
        stream = ServedTls(raw, certificate.context) if tls else raw
        await service.serve_stream(stream)

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        nursery.start_soon(service.run_timers)
        yield region_at(listener.socket.getsockname()[1], certificate.pin if tls else "")
        nursery.cancel_scope.cancel()


async def main(binary: str | None) -> None:
    codec()
    await tls_streams()
    for tls in (True, False):
        kind = "TLS" if tls else "plain HTTP"
        async with our_relay(tls=tls) as region:
            print(f"our relay, {kind}, everything in this process")
            print("  " + await through(region, over_http=not tls, window=256))
        if binary is not None:
            async with derper(binary, tls=tls) as region:
                print(f"derper, {kind}")
                for window in (16, 32, 64, 128, 256, 512):
                    print("  " + await through(region, over_http=not tls, window=window))
                for size in (4 << 10, 8 << 10, 16 << 10, 32 << 10, 60 << 10):
                    print("  " + await through(region, over_http=not tls, window=16, size=size))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--derper", help="path of a derper binary")
    trio.run(main, parser.parse_args().derper)
