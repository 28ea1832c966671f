"""The app under test: a guest book on the tailnet. Whoever connects is written down and reads who came before."""

from __future__ import annotations

from contextlib import suppress

import trio

import tailscale

PORT = 4711


class GuestBook:
    def __init__(self) -> None:
        self.guests: list[str] = []

    async def serve(
        self, device: tailscale.Device, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with await device.listen(PORT) as listener:
            task_status.started()
            await trio.serve_listeners(self._welcome, [listener])

    async def _welcome(self, stream: tailscale.TcpStream) -> None:
        async with stream:
            with suppress(trio.BrokenResourceError):  # a guest may leave at once
                await stream.send_all("".join(f"{guest}\n" for guest in self.guests).encode())
                self.guests.append(stream.peer.hostname if stream.peer else "somebody")


async def visit(device: tailscale.Device, host: str) -> list[str]:
    """Sign the book at `host`; who was there before. Tries again while the way there is broken."""
    for pause in (1, 5, 30):
        try:
            async with await device.tcp_connect(host, PORT, timeout=10) as stream:
                return b"".join([data async for data in stream]).decode().split()
        except (tailscale.PeerOffline, tailscale.ConnectionTimedOut):
            await trio.sleep(pause)
    raise ConnectionError(f"{host} cannot be visited")
