"""Where a test tailnet lives: on the virtual network, or on this machine's loopback.

Both offer the same: a place for each server to listen at, and a `Network` for each device. Loopback can block UDP
between two devices; latency and loss exist only where time and links are ours.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import trio

from tailscale.runtime.network import DirectRuns, HostNetwork, Network, UdpUnderlay
from tailscale.testing.network import VirtualNetwork

LOOPBACK = "127.0.0.1"

Listeners = list[trio.abc.Listener[Any]]


class Place(Protocol):
    """The world a tailnet is put into."""

    def address(self, name: str) -> str: ...
    async def listen(self, name: str, port: int) -> tuple[Listeners, int]: ...
    def unlisten(self, name: str, port: int) -> None: ...
    async def open_udp(self, name: str, port: int) -> UdpUnderlay: ...
    def network(self, name: str, *addresses: str, uplinks: Sequence[str] = ()) -> Network: ...
    def change(self, first: str, second: str, **changes: float | bool) -> None: ...
    def wall_clock(self) -> float: ...
    def entropy(self, length: int) -> bytes: ...


class VirtualPlace:
    """Everything in memory: works under `MockClock`, repeats with its seed."""

    def __init__(self, *, seed: int, latency: float, loss: float) -> None:
        self.internet = VirtualNetwork(seed=seed, latency=latency, loss=loss)
        self._servers = self.internet.host("servers")
        self.wall_clock = self.internet.wall_clock
        self.entropy = self._servers.entropy

    def address(self, name: str) -> str:
        return self.internet.host(name).address

    async def listen(self, name: str, port: int) -> tuple[Listeners, int]:
        listener = self.internet.host(name).listen_tcp(port)
        return [listener], port

    def unlisten(self, name: str, port: int) -> None:
        host = self.internet.host(name)
        host.unlisten(port)
        host.reset_streams()

    async def open_udp(self, name: str, port: int) -> UdpUnderlay:
        return self.internet.host(name).bind_udp(port)

    def network(self, name: str, *addresses: str, uplinks: Sequence[str] = ()) -> Network:
        return self.internet.host(name, *addresses, uplinks=uplinks)

    def change(self, first: str, second: str, **changes: float | bool) -> None:
        self.internet.change(first, second, **changes)


class LoopbackPlace:
    """Real sockets on 127.0.0.1, so that other processes and languages can join."""

    def __init__(self) -> None:
        self._networks: dict[str, LoopbackNetwork] = {}

    def address(self, name: str) -> str:
        return LOOPBACK

    async def listen(self, name: str, port: int) -> tuple[Listeners, int]:
        # A port asked for by number is one we had before: it may take a moment until the system gives it back.
        for _ in range(50):
            try:
                listeners = await trio.open_tcp_listeners(port, host=LOOPBACK)
            except OSError:
                await trio.sleep(0.05)
            else:
                return list(listeners), listeners[0].socket.getsockname()[1]
        raise OSError(f"port {port} of {LOOPBACK} stays taken")

    def unlisten(self, name: str, port: int) -> None:
        """Closing the listeners is all there is to do."""

    async def open_udp(self, name: str, port: int) -> UdpUnderlay:
        return await HostNetwork().open_udp(port)

    def network(self, name: str, *addresses: str, uplinks: Sequence[str] = ()) -> Network:
        if uplinks:
            raise ValueError("on real sockets uplinks are this machine's: use Tailnet() without real=True")
        if addresses:
            raise ValueError("on real sockets nobody chooses addresses: use Tailnet() without real=True")
        return self._networks.setdefault(name, LoopbackNetwork())

    def change(self, first: str, second: str, **changes: float | bool) -> None:
        blocked = changes.pop("udp_blocked", None)
        if changes or blocked is None:
            raise ValueError("on real sockets only UDP can be blocked: use Tailnet() without real=True")
        one, other = (self._networks.setdefault(name, LoopbackNetwork()) for name in (first, second))
        for network, peer in ((one, other), (other, one)):
            if blocked:
                network.shunned.add(peer)
            else:
                network.shunned.discard(peer)

    def wall_clock(self) -> float:
        return time.time()

    def entropy(self, length: int) -> bytes:
        return os.urandom(length)


class LoopbackNetwork(HostNetwork):
    """The host's network as one device of several on it; `shunned` devices are not heard and not spoken to over UDP."""

    def __init__(self) -> None:
        super().__init__()
        self.shunned: set[LoopbackNetwork] = set()
        self.ports: list[ShunningUdp] = []

    async def open_udp(self, port: int, uplinks: Sequence[str] = ()) -> UdpUnderlay:
        made = ShunningUdp(await super().open_udp(port, uplinks), self)
        self.ports.append(made)
        return made

    def interface_addresses(self) -> list[str]:
        return [LOOPBACK]

    def shunned_ports(self) -> set[int]:
        return {port.local_port for network in self.shunned for port in network.ports}


class ShunningUdp:
    """A real UDP port that leaves out what is shunned. Implements the runtime's `UdpUnderlay`."""

    def __init__(self, port: UdpUnderlay, network: LoopbackNetwork) -> None:
        self._port = port
        self._network = network
        self.run_writers = port.run_writers
        self.rebind = port.rebind
        self.close = port.close
        self.take_unreachable = port.take_unreachable
        self.limit = port.limit
        self.statistics = port.statistics
        self.use_uplinks = port.use_uplinks
        self.bound_by = port.bound_by
        self.more_readers = port.more_readers
        self.open_more = port.open_more
        self.close_more = port.close_more

    @property
    def local_port(self) -> int:
        return self._port.local_port

    @property
    def has_ipv6(self) -> bool:
        return self._port.has_ipv6

    @property
    def uplinks(self) -> tuple[str, ...]:
        return self._port.uplinks

    def readers(self) -> Sequence[Callable[[], Awaitable[DirectRuns]]]:
        return [self._without_shunned(reader) for reader in self._port.readers()]

    def _without_shunned(self, reader: Callable[[], Awaitable[DirectRuns]]) -> Callable[[], Awaitable[DirectRuns]]:
        async def read() -> DirectRuns:
            while True:
                runs = self._allowed(await reader())
                if runs:
                    return runs

        return read

    def send_many(self, runs: DirectRuns) -> None:
        self._port.send_many(self._allowed(runs))

    def _allowed(self, runs: DirectRuns) -> DirectRuns:
        if not self._network.shunned:
            return runs
        shunned = self._network.shunned_ports()
        return [run for run in runs if run[0][1] not in shunned]
