"""An echo service on port 7 of the tailnet. It says who is calling, and by which path.

TS_AUTHKEY=... python echo_server.py
"""

from __future__ import annotations

from contextlib import suppress

import trio

import tailscale


async def echo(stream: tailscale.TcpStream) -> None:
    async with stream:
        print(f"{stream.peer.hostname if stream.peer else stream.remote_address[0]} calls, {stream.path}", flush=True)
        with suppress(trio.BrokenResourceError):  # a caller may vanish in mid-sentence; the server lives on
            async for data in stream:
                await stream.send_all(data)


async def main() -> None:
    async with tailscale.Device("echo") as device:
        listener = await device.listen(7)
        print(f"listening on {device.hostname} port {listener.port}", flush=True)
        await trio.serve_listeners(echo, [listener])


if __name__ == "__main__":
    trio.run(main)
