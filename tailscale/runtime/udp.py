"""UDP in bursts: wait once, drain many; send runs of equal datagrams as one system call.

Linux: UDP_GRO hands up to 64 datagrams per read and UDP_SEGMENT takes as many per write (0.3 us a datagram against 5).
Elsewhere, and where the kernel refuses, one call per datagram. Knows nothing of what the datagrams mean.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from struct import Struct
from typing import Any

import trio

UDP_SEGMENT, UDP_GRO = 103, 104  # linux/udp.h; the socket module does not name them
SEGMENT_SIZE = Struct("=H")
GRO_SIZE = Struct("=i").unpack_from
MAX_SEGMENTS = 64
MAX_GSO_BYTES = 65_000
MAX_GSO_SEGMENT = 1452  # larger ones exceed the device's MTU: the kernel fragments them one by one, or refuses all
MAX_DATAGRAM = 65_535
READS_PER_BURST = 16
BACKLOG_LIMIT = 256  # kept writes; beyond it the network is the bottleneck and TCP must hear of it as loss
KERNEL_BUFFER = 7 << 20
UNREACHABLE_LIMIT = 64  # paths remembered until somebody asks
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_DONT = 10, 23, 0

# Losses and leftovers of ICMP errors that say nothing about the socket itself.
TRANSIENT = frozenset({
    errno.EPERM, errno.EACCES, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ECONNREFUSED,
    errno.ECONNRESET, errno.EMSGSIZE, errno.ENOBUFS, errno.EADDRNOTAVAIL, errno.EINVAL, errno.EAFNOSUPPORT,
})  # fmt: skip
# The host itself knows that nothing arrives there; a firewall's EPERM says only that this datagram is lost.
NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL})

DirectPath = tuple[str, int]
DirectRuns = list[tuple[DirectPath, list[bytes]]]


class UdpSocket:
    """One family's socket."""

    def __init__(
        self, family: int, port: int, counters: Counter[str], unreachable: dict[DirectPath, None] | None = None
    ) -> None:
        self.family = family
        self.counters = counters
        self._unreachable = {} if unreachable is None else unreachable
        self.port = port
        self._backlog: deque[tuple[bytes, list[tuple[int, int, bytes]], DirectPath]] = deque()
        self._has_backlog = trio.Event()
        self._bind(port)

    def _bind(self, port: int) -> None:
        sock = socket.socket(self.family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            v6 = self.family == socket.AF_INET6
            if v6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(("::" if v6 else "0.0.0.0", port))
        except OSError:
            sock.close()
            raise
        self._sock = sock
        self.port = sock.getsockname()[1]
        self._ask_for_large_buffers()
        self.gso = self.gro = False
        if sys.platform == "linux":
            level, option = (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER) if v6 else (socket.IPPROTO_IP, IP_MTU_DISCOVER)
            self._set_quietly(level, option, PMTUDISC_DONT)
            with contextlib.suppress(OSError):
                sock.getsockopt(socket.IPPROTO_UDP, UDP_SEGMENT)
                self.gso = True
            self.gro = self._set_quietly(socket.IPPROTO_UDP, UDP_GRO, 1)

    def _set_quietly(self, level: int, option: int, value: int) -> bool:
        try:
            self._sock.setsockopt(level, option, value)
        except OSError:
            return False
        return True

    def _ask_for_large_buffers(self) -> None:
        linux = sys.platform == "linux"
        for forced, polite in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
            if not (linux and self._set_quietly(socket.SOL_SOCKET, forced, KERNEL_BUFFER)):
                self._set_quietly(socket.SOL_SOCKET, polite, KERNEL_BUFFER)

    async def recv_many(self) -> DirectRuns:
        """Wait until something is here, then take a burst. Never empty."""
        while True:
            sock = self._sock
            try:
                await trio.lowlevel.wait_readable(sock)
            except trio.ClosedResourceError:
                if self._sock is sock:
                    raise
                continue  # rebound while we waited
            runs = self._drain()
            if runs:
                return runs

    def _drain(self) -> DirectRuns:
        runs: DirectRuns = []
        receive, gro = self._sock.recvmsg if self.gro else self._sock.recvfrom, self.gro
        for _ in range(READS_PER_BURST):
            try:
                result: Any = receive(MAX_DATAGRAM, 32) if gro else receive(MAX_DATAGRAM)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno not in TRANSIENT:
                    self.counters[f"receive: {errno.errorcode.get(error.errno or 0, error.errno)}"] += 1
                continue
            data, address = result[0], result[-1]
            if gro and result[1]:
                size = GRO_SIZE(result[1][0][2])[0]
                if 0 < size < len(data):
                    runs.append((address[:2], [data[i : i + size] for i in range(0, len(data), size)]))
                    continue
            path = address[:2]
            if runs and runs[-1][0] == path:
                runs[-1][1].append(data)
            else:
                runs.append((path, [data]))
        return runs

    def send(self, path: DirectPath, datagrams: list[bytes]) -> None:
        if len(datagrams) == 1 or not self.gso:
            for datagram in datagrams:
                self._send_one(datagram, [], path)
            return
        start, total = 0, len(datagrams)
        while start < total:
            size = len(datagrams[start])
            many = min(MAX_SEGMENTS, MAX_GSO_BYTES // max(size, 1)) if size <= MAX_GSO_SEGMENT else 1
            limit = min(total, start + many)
            end = start + 1
            while end < limit and len(datagrams[end]) == size:
                end += 1
            if end < limit and len(datagrams[end]) < size:
                end += 1  # a shorter last one may ride along
            if end - start == 1:
                self._send_one(datagrams[start], [], path)
            else:
                option = (socket.IPPROTO_UDP, UDP_SEGMENT, SEGMENT_SIZE.pack(size))
                self._send_one(b"".join(datagrams[start:end]), [option], path)
            start = end

    def _send_one(self, data: bytes, options: list[tuple[int, int, bytes]], path: DirectPath) -> None:
        if self._backlog:
            self._keep(data, options, path)
            return
        try:
            if options:
                self._sock.sendmsg([data], options, 0, path)
            else:
                self._sock.sendto(data, path)
        except BlockingIOError:
            self._keep(data, options, path)
        except OSError as error:
            self._send_failed(error, data, options, path)

    def _send_failed(
        self, error: OSError, data: bytes, options: list[tuple[int, int, bytes]], path: DirectPath
    ) -> None:
        if options and error.errno in (errno.EIO, errno.EINVAL, errno.ENOPROTOOPT):
            # A device without checksum offload refuses segmentation: say so once and go on singly.
            self.gso = False
            self.counters["segmentation offload refused"] += 1
            size = SEGMENT_SIZE.unpack(options[0][2])[0]
            self.send(path, [data[i : i + size] for i in range(0, len(data), size)])
            return
        self.counters[f"send: {errno.errorcode.get(error.errno or 0, error.errno)}"] += 1
        if error.errno in NO_ROUTE and len(self._unreachable) < UNREACHABLE_LIMIT:
            self._unreachable[path] = None

    def _keep(self, data: bytes, options: list[tuple[int, int, bytes]], path: DirectPath) -> None:
        if len(self._backlog) >= BACKLOG_LIMIT:
            self.counters["send: backlog full"] += 1
            return
        self._backlog.append((data, options, path))
        self._has_backlog.set()

    @trio.lowlevel.enable_ki_protection
    async def run_writer(self) -> None:
        while True:
            await self._has_backlog.wait()
            with contextlib.suppress(trio.ClosedResourceError):
                await trio.lowlevel.wait_writable(self._sock)
            waiting, self._backlog = self._backlog, deque()
            self._has_backlog = trio.Event()
            while waiting:
                data, options, path = waiting.popleft()
                self._send_one(data, options, path)
                if self._backlog:  # refused again: it is kept; the rest goes behind it
                    for entry in waiting:
                        self._keep(*entry)
                    break

    def rebind(self) -> None:
        old, port = self._sock, self.port
        trio.lowlevel.notify_closing(old)
        old.close()
        for candidate in (port, 0):
            try:
                self._bind(candidate)
            except OSError:
                continue
            return
        raise OSError(errno.EADDRNOTAVAIL, "no UDP port can be bound")

    def close(self) -> None:
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()


class HostUdp:
    """One UDP port in IPv4 and, where the machine has it, in IPv6."""

    def __init__(self, port: int) -> None:
        self.counters: Counter[str] = Counter()
        self._unreachable: dict[DirectPath, None] = {}
        self._sockets: dict[bool, UdpSocket] = {}  # is it IPv6? -> socket
        first_error: OSError | None = None
        for family in (socket.AF_INET, socket.AF_INET6):
            is_ipv6 = family == socket.AF_INET6
            for candidate in dict.fromkeys((self._sockets[False].port if False in self._sockets else port, 0)):
                try:
                    self._sockets[is_ipv6] = UdpSocket(family, candidate, self.counters, self._unreachable)
                except OSError as error:
                    first_error = first_error or error
                    continue
                break
        if not self._sockets:
            raise OSError(errno.EADDRNOTAVAIL, f"no UDP port can be bound: {first_error}") from first_error

    @property
    def local_port(self) -> int:
        return next(iter(self._sockets.values())).port

    @property
    def has_ipv6(self) -> bool:
        return True in self._sockets

    @property
    def offloads(self) -> dict[str, bool]:
        """Whether the kernel batches for us; told in status and metrics."""
        return {
            "segmentation": all(s.gso for s in self._sockets.values()),
            "coalescing": all(s.gro for s in self._sockets.values()),
        }

    def readers(self) -> Sequence[Callable[[], Awaitable[DirectRuns]]]:
        return [s.recv_many for s in self._sockets.values()]

    def send_many(self, runs: DirectRuns) -> None:
        for path, datagrams in runs:
            target = self._sockets.get(":" in path[0])
            if target is None:
                self.counters["send: no socket of that family"] += len(datagrams)
            else:
                target.send(path, datagrams)

    def take_unreachable(self) -> list[DirectPath]:
        """Where the host had no route to since last asked."""
        if not self._unreachable:
            return []
        paths = list(self._unreachable)
        self._unreachable.clear()
        return paths

    @trio.lowlevel.enable_ki_protection
    async def run_writers(self) -> None:
        async with trio.open_nursery() as nursery:
            for s in self._sockets.values():
                nursery.start_soon(s.run_writer)

    def rebind(self) -> None:
        for s in self._sockets.values():
            s.rebind()

    def close(self) -> None:
        for s in self._sockets.values():
            s.close()
