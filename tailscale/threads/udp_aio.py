"""A UDP socket of the tailnet for asyncio."""

from __future__ import annotations

import contextlib
from typing import Self

from tailscale.errors import DeviceClosed
from tailscale.sockets.udp import UdpSocket as TrioUdpSocket
from tailscale.threads.awaiting import awaited, finished
from tailscale.threads.face import UdpFace


class UdpSocket(UdpFace):
    """`tailscale.UdpSocket` for asyncio: the same verbs, awaited in this event loop."""

    connect = awaited(TrioUdpSocket.connect)
    send_to = awaited(TrioUdpSocket.send_to)
    send = awaited(TrioUdpSocket.send)
    receive_from = awaited(TrioUdpSocket.receive_from)
    receive = awaited(TrioUdpSocket.receive)

    async def close(self) -> None:
        with contextlib.suppress(DeviceClosed):
            await finished(self._thread.submit(lambda: self._udp.aclose()))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
