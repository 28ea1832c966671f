"""A UDP socket of the tailnet for plain threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from tailscale.sockets.udp import UdpSocket as TrioUdpSocket
from tailscale.threads.blocking import blocking
from tailscale.threads.face import UdpFace

if TYPE_CHECKING:
    from tailscale.sockets.socket_device import Address


class UdpSocket(UdpFace):
    """`tailscale.UdpSocket` for plain threads: the same verbs, blocking."""

    connect = blocking(TrioUdpSocket.connect)
    send_to = blocking(TrioUdpSocket.send_to)
    send = blocking(TrioUdpSocket.send)

    def receive_from(self, timeout: float | None = None) -> tuple[bytes, Address]:
        """The next datagram and who sent it; TimeoutError after `timeout` seconds."""
        job = self._thread.submit(lambda: self._udp.receive_from())
        try:
            return job.future.result(timeout)
        except BaseException:
            job.give_up()
            raise

    def receive(self, timeout: float | None = None) -> bytes:
        return self.receive_from(timeout)[0]

    def close(self) -> None:
        if not self._thread.ended.done():
            self._thread.submit(lambda: self._udp.aclose()).wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
