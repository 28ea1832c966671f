"""The other processes of `bench.funnel`: a published node, and clients on plain sockets.

python funnel_sides.py target URL KEY        # publishes, and serves the same bytes bare
python funnel_sides.py raw PORT SIZE         # pulls bytes through a relay; prints Mbit/s
python funnel_sides.py tls PORT SIZE         # the same with TLS, as browsers do
"""

from __future__ import annotations

import socket
import ssl
import sys
import time
from functools import partial
from typing import Any

BARE = 7000
RAW_NAME, TLS_NAME = "raw.example", "tls.example"
CHUNK = bytes(256 << 10)


def hello(name: bytes) -> bytes:
    """The smallest that says which name is wanted."""
    told = b"\0\0" + len(name).to_bytes(2, "big") + name  # of one kind, whose list and extension are measured below
    told = (len(told) - 1).to_bytes(2, "big") + told[1:]
    extension = b"\0\0" + len(told).to_bytes(2, "big") + told
    body = b"\3\3" + bytes(32) + b"\0\0\2\x13\1\1\0" + len(extension).to_bytes(2, "big") + extension
    message = b"\1" + len(body).to_bytes(3, "big") + body
    return b"\x16\3\1" + len(message).to_bytes(2, "big") + message


def pull(kind: str, port: int, size: int) -> float:
    name = TLS_NAME if kind == "tls" else RAW_NAME
    sock: Any = socket.create_connection(("127.0.0.1", port))
    if kind == "tls":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        sock = context.wrap_socket(sock, server_hostname=name)
    else:
        sock.sendall(hello(name.encode()))
    buffer = memoryview(bytearray(1 << 20))
    began, left = time.perf_counter(), size
    sock.sendall(b"%d\n" % size)
    while left > 0:
        left -= sock.recv_into(buffer) or sys.exit("the relay hung up")
    return size * 8 / (time.perf_counter() - began) / 1e6


async def generate(stream: Any) -> None:
    """Answers the line behind a hello, or a line alone, with so many bytes; one that says nothing rests."""
    asked = b""
    while not asked.endswith(b"\n"):
        data = await stream.receive_some()
        if not data:
            return
        asked += data
    left = int(asked.rpartition(RAW_NAME.encode())[2])
    while left > 0:
        await stream.send_all(CHUNK[:left])
        left -= len(CHUNK)
    await stream.receive_some()


async def target(url: str, key: str) -> None:
    import trio
    import trustme

    import tailscale

    async def bare(stream: Any) -> None:
        async with stream:
            await generate(stream)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert(TLS_NAME).configure_cert(context)
    async with tailscale.Device("target", control_url=url, auth_key=key) as device, trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, bare, [await device.listen(BARE)])
        listener = await device.listen_funnel(name=TLS_NAME, tls=context, relays=["gate"])
        nursery.start_soon(trio.serve_listeners, bare, [listener])
        with device.answer_funnel(RAW_NAME, 443, generate, relays=["gate"]):
            print("ready", flush=True)
            await trio.sleep_forever()


if __name__ == "__main__":
    what, one, other = sys.argv[1:]
    if what == "target":
        import trio

        trio.run(partial(target, one, other))
    print(pull(what, int(one), int(other)))
