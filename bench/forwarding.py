"""`python -m bench.forwarding`: one stream through our subnet router, beside a direct one, and through tailscaled's.

    python -m bench.forwarding        # five rounds, about two minutes; needs root and the Go peers of `make interop`
    python -m bench.forwarding --rounds 1 --seconds 1

The caller is a tsnet node. Each router is a process in a namespace of its own with a plain host behind it that nobody
else reaches; the direct stream ends at a port of our router itself. All sides are measured in turn, in the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import trio

from bench.proxy import in_turn
from bench.results import Report, Row
from tests.interop import natlab
from tests.interop.processes import poll_until
from tests.interop.rig import TsnetPeer, rig

BLOCK = bytes(1 << 20)
OURS, STOCK = "10.77.0", "10.78.0"
SERVE = "serve"
OUR_NODE = [sys.executable, "-m", "bench.node"]
OUR_PATH = {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}


def discard(sock: socket.socket) -> None:
    """Reads all of it, then says so, as the rig's port 9 does."""
    into, count = bytearray(1 << 20), 0
    while got := sock.recv_into(into):
        count += got
    sock.sendall(b"%d\n" % count)


def generate(sock: socket.socket) -> None:
    """Bytes until nobody wants more, as the rig's port 19 does."""
    sock.recv(100)
    with contextlib.suppress(OSError):
        while True:
            sock.sendall(BLOCK)


def serve(address: str) -> None:
    """A plain host, in a process of its own."""

    def accept(listener: socket.socket, handle: Callable[[socket.socket], None]) -> None:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=run, args=(sock, handle), daemon=True).start()

    def run(sock: socket.socket, handle: Callable[[socket.socket], None]) -> None:
        with sock, contextlib.suppress(OSError):
            handle(sock)

    doors = [(socket.create_server((address, port)), handle) for port, handle in ((9, discard), (19, generate))]
    for door in doors[1:]:
        threading.Thread(target=accept, args=door, daemon=True).start()
    accept(*doors[0])


@contextlib.asynccontextmanager
async def host_behind(made: natlab.Lab, site: natlab.Site, net: str) -> AsyncIterator[str]:
    """The address of a plain host that only this site's router reaches."""
    namespace, address = made.leg(site, "lan0", f"{net}.1", f"{net}.2"), f"{net}.2"
    command = ["ip", "netns", "exec", namespace, sys.executable, "-m", "bench.forwarding", SERVE, address]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.run_process, command, check=False))
        yield address
        nursery.cancel_scope.cancel()


async def rate(caller: TsnetPeer, kind: str, host: str, seconds: float) -> float:
    found: float = (await caller.ask("bench", kind=kind, host=host, seconds=seconds, timeout=60))["mbit_s"]
    return found


async def until_reached(caller: TsnetPeer, host: str) -> None:
    async def answers() -> bool:
        return await rate(caller, "down", host, 0.3) > 1

    await poll_until(f"{host} to be reached", answers, 30)


async def measure(rounds: int, seconds: float, report: Report) -> None:
    async with rig("bench-forwarding") as r, natlab.lab(r) as (made, hs):
        home, other, away = made.site("none"), made.site("none"), made.site("none")
        key = await hs.auth_key(ephemeral=False)
        async with (
            host_behind(made, home, OURS) as ours,
            host_behind(made, other, STOCK) as theirs,
            r.tsnet(hs, key, "ours", namespace=home.client, program=OUR_NODE, env=OUR_PATH, verbose=False) as router,
            r.tailscaled("stock", control=hs, auth_key=key, namespace=other.client,
                         arguments=[f"--advertise-routes={STOCK}.0/24"]),
            r.tsnet(hs, key, "caller", namespace=away.client, verbose=False) as caller,
        ):  # fmt: skip
            await router.ask("set", advertise_routes=[f"{OURS}.0/24"])
            await hs.approve_routes("ours", [f"{OURS}.0/24"])
            await hs.approve_routes("stock", [f"{STOCK}.0/24"])
            await caller.ask("accept-routes")
            for host in (ours, theirs, router.ip4):
                await until_reached(caller, host)
            for kind, words in (("down", "routed down"), ("up", "routed up")):
                sides: dict[str, Callable[[], Awaitable[float]]] = {
                    "direct": partial(rate, caller, kind, router.ip4, seconds),
                    "ours": partial(rate, caller, kind, ours, seconds),
                    "tailscaled": partial(rate, caller, kind, theirs, seconds),
                }
                samples = await in_turn(rounds, sides)
                report.add(
                    Row(f"{words}, beside a direct stream", "Mbit/s", samples, "ours", "direct", aim=0.7, floor=0.5)
                )
                report.add(
                    Row(f"{words}, beside tailscaled", "Mbit/s", samples, "ours", "tailscaled", aim=1, floor=0.8)
                )


def main() -> None:
    if sys.argv[1:2] == [SERVE]:
        serve(sys.argv[2])
        return
    parser = argparse.ArgumentParser(prog="python -m bench.forwarding", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    report = Report({"rows": ["forwarding"], "rounds": options.rounds})
    report.start()
    try:
        trio.run(measure, options.rounds, options.seconds, report)
    finally:
        print(f"\nfigures: {report.save(None)}")


if __name__ == "__main__":
    main()
