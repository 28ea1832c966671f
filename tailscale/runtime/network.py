"""The outside world as the runtime sees it: TCP out, one UDP port, our addresses, a wall clock, entropy.

`HostNetwork` is the machine's own; `tailscale.testing` has a virtual one with the same face.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import trio

from tailscale.runtime.udp import HostUdp, HostUdpStatistics, Offloads
from ts_base.errors import BadPacket
from ts_base.ip import format_address, is_tailscale_address, parse_address
from ts_base.who import Direct, DirectRun

if TYPE_CHECKING:
    from tailscale.runtime.tun import TunDevice

DirectRuns = list[DirectRun]

# Interfaces of other overlay networks: carrying one overlay inside another amplifies both.
FOREIGN_OVERLAYS = ("zt", "wt0", "tailscale", "utun-ts", "docker", "br-", "virbr")


class UdpUnderlay(Protocol):
    """One UDP port in every family the machine has, and on every uplink."""

    @property
    def local_port(self) -> int: ...
    @property
    def has_ipv6(self) -> bool: ...
    @property
    def uplinks(self) -> tuple[str, ...]:
        """The interfaces it is bound to, each with sockets of its own; none: the system chooses."""

    def readers(self) -> Sequence[Callable[[], Awaitable[DirectRuns]]]:
        """One per socket: each waits for data, then returns a burst."""

    def send_many(self, runs: DirectRuns) -> None:
        """Never blocks: what the kernel refuses now is kept within bounds, then dropped and counted."""

    def limit(self, offloads: Offloads) -> None:
        """Use no more of the kernel's help than this."""

    def take_unreachable(self) -> list[Direct]:
        """Where the host had no route to since last asked."""

    async def run_writers(self) -> None:
        """Send what was kept as soon as the kernel takes it. Runs until cancelled."""

    def rebind(self) -> None:
        """Replace the sockets after the machine's network changed, on the same port if possible."""

    def statistics(self) -> HostUdpStatistics: ...
    def close(self) -> None: ...


class DatagramSocket(Protocol):
    """Datagrams to and from one place outside; what that place refuses is an OSError. trio's sockets are such."""

    def send(self, data: bytes, /) -> Awaitable[int]: ...
    def recv(self, size: int, /) -> Awaitable[bytes]: ...
    def close(self) -> None: ...


class Network(Protocol):
    """Everything the runtime asks of the world outside."""

    async def open_tcp(self, host: str, port: int) -> trio.abc.HalfCloseableStream: ...
    async def connect_udp(self, address: str, port: int) -> DatagramSocket: ...
    async def open_udp(self, port: int) -> UdpUnderlay: ...
    def open_tun(self) -> TunDevice | None:
        """A device by which the kernel's own sockets speak to the tailnet, where this network is to have one."""

    def interface_addresses(self) -> list[str]: ...
    def wall_clock(self) -> float: ...
    def entropy(self, length: int) -> bytes: ...


class HostNetwork:
    """The machine's own network; with `uplinks`, its UDP leaves by these interfaces only.

    With `tun`, a TUN device of that name stands beside the device's own sockets.
    """

    def __init__(self, uplinks: Sequence[str] = (), tun: str = "") -> None:
        self.uplinks = tuple(uplinks)
        self._tun = tun

    async def open_tcp(self, host: str, port: int) -> trio.abc.HalfCloseableStream:
        try:
            return await trio.open_tcp_stream(host, port, happy_eyeballs_delay=0.2)
        except (UnicodeError, OverflowError) as problem:  # the resolver's and the kernel's words for nonsense
            raise OSError(f"{host!a} port {port} is no place to dial: {problem}") from None

    async def connect_udp(self, address: str, port: int) -> DatagramSocket:
        made = trio.socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            await made.connect((address, port))
        except BaseException:
            made.close()
            raise
        return made

    async def open_udp(self, port: int) -> UdpUnderlay:
        return HostUdp(port, self.uplinks)

    def open_tun(self) -> TunDevice | None:
        if not self._tun:
            return None
        from tailscale.runtime.tun import TunDevice  # few want one

        return TunDevice(self._tun)

    def interface_addresses(self) -> list[str]:
        return list_interface_addresses()

    def wall_clock(self) -> float:
        return time.time()

    def entropy(self, length: int) -> bytes:
        return os.urandom(length)


def list_interface_addresses() -> list[str]:
    """Our addresses worth telling peers, best first; loopback only where there is nothing else."""
    import ifaddr  # 15 ms of ctypes that a warm start can overlap with dialling

    regular: list[str] = []
    reserve: list[str] = []
    loopback: list[str] = []
    for adapter in ifaddr.get_adapters():
        if adapter.name.startswith(FOREIGN_OVERLAYS):
            continue
        for entry in adapter.ips:
            text = entry.ip if isinstance(entry.ip, str) else entry.ip[0]
            try:
                address = parse_address(text.partition("%")[0])
            except BadPacket:
                continue
            text = format_address(address)
            if is_tailscale_address(address) or text.startswith("fe8"):
                continue
            if text.startswith("127.") or text == "::1":
                loopback.append(text)
            elif text.startswith(("169.254.", "fd", "fc")):
                reserve.append(text)
            else:
                regular.append(text)
    return regular or reserve or loopback
