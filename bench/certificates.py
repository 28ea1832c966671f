"""How long a certificate takes: the first one, a kept one, a handshake. `python -m bench.certificates`.

Pebble issues, upstream's testcontrol writes the records, both on loopback; stock tailscaled asks in the same lab, by
its local API and without its command line. Needs the peers of the interop suite (`python tests/interop/build.py`).
"""

from __future__ import annotations

import argparse
import ssl
import statistics
import time
from collections.abc import Awaitable, Callable

import httpx
import trio

import tailscale
from tailscale.certificates import ControlCertificates
from tests.interop.rig import Pebble, Rig, pebble, rig

ROUNDS = 7
BOUND, AGAINST_STOCK = 1.0, 2.0  # seconds, and times stock's
HANDSHAKES = 200


async def timed(what: Callable[[], Awaitable[object]]) -> float:
    started = time.perf_counter()
    await what()
    return time.perf_counter() - started


async def ours(control: str, authority: Pebble, number: int) -> tuple[float, float, float]:
    """The first certificate, the same one again, and one handshake with a new connection's worth of TLS in memory."""
    source = ControlCertificates(authority.directory, tls=authority.tls)
    async with tailscale.Device(
        f"ours{number}", control_url=control, auth_key="tskey-any", certificates=source
    ) as device:
        first = await timed(device.certificate)
        again = await timed(device.certificate)
        context, client = await device.tls_context(), ssl.create_default_context(cadata=await authority.root_pem())
        started = time.perf_counter()
        for _ in range(HANDSHAKES):
            shake_hands(context, client, device.name)
        return first, again, (time.perf_counter() - started) / HANDSHAKES


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    one, other = ssl.MemoryBIO(), ssl.MemoryBIO()
    waiting = [client.wrap_bio(one, other, server_hostname=name), server.wrap_bio(other, one, server_side=True)]
    while waiting:
        for end in tuple(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                continue


async def stock(r: Rig, control: str, authority: Pebble, number: int) -> tuple[float, float]:
    """The first certificate and the same one again, by the local API."""
    name = f"stock{number}"
    async with r.tailscaled(name, env=authority.environment) as daemon:
        await daemon.up(control, "tskey-any")
        socket = httpx.AsyncHTTPTransport(uds=str(daemon.socket))
        async with httpx.AsyncClient(transport=socket, base_url="http://local-tailscaled.sock", timeout=60) as client:

            async def get() -> None:
                (await client.get(f"/localapi/v0/cert/{name}.rig.test?type=pair")).raise_for_status()

            return await timed(get), await timed(get)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    mine, theirs = [], []
    async with rig("bench-certificates") as r, r.derper() as relay, pebble(r) as authority:
        settings = {"set_dns": authority.set_txt, "same_user": True}
        async with r.testcontrol(regions=[relay.region], **settings) as control:
            for number in range(rounds):
                mine.append(await ours(control.url, authority, number))
                theirs.append(await stock(r, control.url, authority, number))
    first, first_of_stock = (statistics.median(row[0] for row in rows) for rows in (mine, theirs))
    again, again_of_stock = (statistics.median(row[1] for row in rows) for rows in (mine, theirs))
    print(f"medians of {rounds}; a new node each time")
    print(f"first certificate  ours {1e3 * first:7.1f} ms   stock {1e3 * first_of_stock:7.1f} ms", end="   ")
    print(f"x {first / first_of_stock:.2f} (at most x {AGAINST_STOCK:g}, and {BOUND:g} s)")
    print(f"the same again     ours {1e3 * again:7.2f} ms   stock {1e3 * again_of_stock:7.2f} ms")
    print(f"a TLS handshake, both ends, in memory  {1e3 * statistics.median(row[2] for row in mine):.2f} ms")
    if first > BOUND or first > AGAINST_STOCK * first_of_stock:
        raise SystemExit("the first certificate took too long")


if __name__ == "__main__":
    trio.run(main)
