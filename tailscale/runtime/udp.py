"""UDP in bursts: wait once, drain many; send runs of equal datagrams as one system call.

Linux: UDP_GRO hands up to 64 datagrams per read and UDP_SEGMENT takes as many per write (0.3 us a datagram against 5).
Elsewhere, and where the kernel refuses, one call per datagram. With uplinks there is a socket for each of them, and an
address tells as its zone which one it was heard or is sent through. Knows nothing of what the datagrams mean, but that
large pings must arrive whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import socket
import sys
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from struct import Struct
from typing import Any, Literal

import trio

from tailscale.runtime.fragments import fragment_option
from tailscale.runtime.udp_facts import ALL_OFFLOADS, SEGMENT_SIZE, datagrams_in, name_of
from tailscale.runtime.udp_facts import HostUdpStatistics as HostUdpStatistics
from tailscale.runtime.udp_facts import Offloads as Offloads
from tailscale.runtime.uplinks import confine
from ts_base.who import Direct, DirectRun, host_of, socket_of, uplink_of
from ts_dataplane.disco import MAGIC

UDP_SEGMENT, UDP_GRO = 103, 104  # linux/udp.h; the socket module does not name them
GRO_SIZE = Struct("=i").unpack_from
MAX_SEGMENTS = 64
MAX_GSO_BYTES = 65_000
MAX_USUAL = 1452  # larger datagrams may exceed the device's MTU: then segmentation is refused, and the kernel cuts each
MAX_DATAGRAM = 65_535
READS_PER_BURST = 16
BACKLOG_LIMIT = 256  # kept writes; beyond it the network is the bottleneck and TCP must hear of it as loss
KERNEL_BUFFER = 7 << 20
UNREACHABLE_LIMIT = 64  # paths remembered until somebody asks
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33

# Losses and leftovers of ICMP errors that say nothing about the socket itself.
TRANSIENT = frozenset({
    errno.EPERM, errno.EACCES, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ECONNREFUSED,
    errno.ECONNRESET, errno.EMSGSIZE, errno.ENOBUFS, errno.EADDRNOTAVAIL, errno.EINVAL, errno.EAFNOSUPPORT,
})  # fmt: skip
# The host itself knows that nothing arrives there (EBADF: its interface is gone, and the socket with it); a firewall's
# EPERM says only that this datagram is lost.
NO_ROUTE = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENODEV, errno.EADDRNOTAVAIL, errno.EBADF}
)

log = logging.getLogger("tailscale.udp")


class HostSocket:
    """One family's socket, of one uplink if it is named."""

    def __init__(
        self,
        family: int,
        port: int,
        drops: Counter[str],
        unreachable: dict[Direct, None],
        uplink: str = "",
        name: str = "",
    ) -> None:
        self.family = family
        self.uplink = uplink
        self._zone = name or uplink  # what paths through it carry
        self.drops = drops
        self.port = port
        self._offloads = ALL_OFFLOADS
        self.is_source_bound = False  # the system let us bind to an address of the uplink only
        self._unreachable = unreachable
        self._is_closed = False
        self._was_rebound = trio.Event()
        self._backlog: deque[tuple[bytes, list[tuple[int, int, bytes]], Direct]] = deque()
        self._has_backlog = trio.Event()
        self._bind(port)

    def _bind(self, port: int) -> None:
        sock = socket.socket(self.family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            v6 = self.family == socket.AF_INET6
            if v6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            anywhere = "::" if v6 else "0.0.0.0"
            address = confine(sock, self.uplink) if self.uplink else anywhere
            sock.bind((address, port))
        except OSError:
            sock.close()
            raise
        self._sock = sock
        self.port = sock.getsockname()[1]
        self.is_source_bound = address != anywhere
        self._ask_for_large_buffers()
        self._take_offloads()
        self._fragments = fragment_option(self.family)
        if self._fragments is not None:
            level, option, allowed, _ = self._fragments
            self._set_quietly(level, option, allowed)

    def limit(self, offloads: Offloads) -> None:
        """Use no more of the kernel's help than this, now and after every rebinding."""
        self._offloads = offloads
        if self._sock.fileno() >= 0:
            self._take_offloads()

    def _take_offloads(self) -> None:
        sock, wanted = self._sock, self._offloads
        self.gso = self.gro = False
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                sock.getsockopt(socket.IPPROTO_UDP, UDP_SEGMENT)
                self.gso = wanted.segmentation
            self.gro = self._set_quietly(socket.IPPROTO_UDP, UDP_GRO, wanted.coalescing) and wanted.coalescing

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

    async def recv_many(self) -> list[DirectRun]:
        """Wait until something is here, then take a burst. Never empty."""
        while True:
            await self._until_bound()
            try:
                await trio.lowlevel.wait_readable(self._sock)
            except trio.ClosedResourceError:
                continue
            runs = self._drain()
            if runs and self._zone:
                return [((f"{host_of(path)}%{self._zone}", path[1]), datagrams) for path, datagrams in runs]
            if runs:
                return runs

    async def _until_bound(self) -> None:
        """Where nothing could be bound in a socket's place its interface is gone; it may come back."""
        while self._sock.fileno() < 0:
            if self._is_closed:
                raise trio.ClosedResourceError
            await self._was_rebound.wait()

    def _drain(self) -> list[DirectRun]:
        runs: list[DirectRun] = []
        receive, gro = self._sock.recvmsg if self.gro else self._sock.recvfrom, self.gro
        for _ in range(READS_PER_BURST):
            try:
                result: Any = receive(MAX_DATAGRAM, 32) if gro else receive(MAX_DATAGRAM)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno not in TRANSIENT:
                    self.drops[f"underlay.receive_{name_of(error)}"] += 1
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

    def send(self, path: Direct, datagrams: list[bytes]) -> None:
        if len(datagrams) == 1 or not self.gso:
            for datagram in datagrams:
                self._send_one(datagram, [], path)
            return
        start, total = 0, len(datagrams)
        while start < total:
            size = len(datagrams[start])
            many = min(MAX_SEGMENTS, MAX_GSO_BYTES // max(size, 1))
            limit = min(total, start + many)
            end = start + 1
            while end < limit and len(datagrams[end]) == size:
                end += 1
            if end < limit and len(datagrams[end]) < size:
                end += 1  # a shorter last one may ride along
            if end - start == 1 or (not self._offloads.equal_tail and len(datagrams[end - 1]) == size):
                for datagram in datagrams[start:end]:
                    self._send_one(datagram, [], path)
            else:
                option = (socket.IPPROTO_UDP, UDP_SEGMENT, SEGMENT_SIZE.pack(size))
                self._send_one(b"".join(datagrams[start:end]), [option], path)
            start = end

    def _send_one(self, data: bytes, options: list[tuple[int, int, bytes]], path: Direct) -> None:
        if self._backlog:
            self._keep(data, options, path)
            return
        if len(data) > MAX_USUAL and not options and data.startswith(MAGIC):
            self._send_whole(data, path)
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

    def _send_whole(self, data: bytes, path: Direct) -> None:
        """A large ping measures the path: cut into fragments it would prove nothing."""
        if self._fragments is None:
            self.drops["underlay.cannot_be_kept_whole"] += 1
            return
        level, option, allowed, forbidden = self._fragments
        if not self._set_quietly(level, option, forbidden):
            self.drops["underlay.cannot_be_kept_whole"] += 1
            return
        try:
            self._sock.sendto(data, path)
        except BlockingIOError:
            self.drops["underlay.ping_refused"] += 1  # there will be another
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                self.drops["underlay.ping_too_large"] += 1  # an answer as good as any
            else:
                self._send_failed(error, data, [], path)
        finally:
            self._set_quietly(level, option, allowed)

    def _send_failed(self, error: OSError, data: bytes, options: list[tuple[int, int, bytes]], path: Direct) -> None:
        if options and error.errno in (errno.EIO, errno.EINVAL, errno.ENOPROTOOPT):
            # A device without checksum offload refuses segmentation: say so once and go on singly. So does any where
            # the segments are larger than it takes, which is no reason to send others singly.
            size = SEGMENT_SIZE.unpack(options[0][2])[0]
            if size <= MAX_USUAL:
                self.gso = False
                self.drops["underlay.segmentation_refused"] += 1
            for at in range(0, len(data), size):
                self._send_one(data[at : at + size], [], path)
            return
        self.drops[f"underlay.send_{name_of(error)}"] += datagrams_in(data, options)
        if error.errno in NO_ROUTE and len(self._unreachable) < UNREACHABLE_LIMIT:
            self._unreachable[(f"{path[0]}%{self._zone}", path[1]) if self._zone else path] = None

    def _keep(self, data: bytes, options: list[tuple[int, int, bytes]], path: Direct) -> None:
        if len(self._backlog) >= BACKLOG_LIMIT:
            self.drops["underlay.backlog_full"] += datagrams_in(data, options)
            return
        self._backlog.append((data, options, path))
        self._has_backlog.set()

    @trio.lowlevel.enable_ki_protection
    async def run_writer(self) -> None:
        """Until the socket is closed."""
        while not self._is_closed:
            await self._has_backlog.wait()
            try:
                await self._until_bound()
            except trio.ClosedResourceError:
                return
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
            self._was_rebound.set()
            self._was_rebound = trio.Event()
            return
        raise OSError(errno.EADDRNOTAVAIL, "no UDP port can be bound")

    @property
    def kept(self) -> int:
        return len(self._backlog)

    @property
    def is_bound(self) -> bool:
        """Not where its interface is gone."""
        return self._sock.fileno() >= 0

    def close(self) -> None:
        self._is_closed = True
        self._was_rebound.set()
        self._has_backlog.set()
        trio.lowlevel.notify_closing(self._sock)
        if self._sock.fileno() >= 0:
            self._sock.close()


class HostUdp:
    """One UDP port in IPv4 and, where the machine has it, in IPv6; on every uplink, if there are any.

    Without uplinks the system chooses the way of every datagram. With them it chooses of none: what names no uplink
    (a STUN request) goes through the first.
    """

    def __init__(self, port: int, uplinks: Sequence[str] = ()) -> None:
        self.uplinks = tuple(uplinks)
        self.drops: Counter[str] = Counter()
        self._unreachable: dict[Direct, None] = {}
        self._sockets: dict[bool, HostSocket] = {}  # is it IPv6? -> socket of what names no uplink
        self._of_uplink: dict[tuple[str, bool], HostSocket] = {}
        self._more: dict[str, HostSocket] = {}  # beside the first, by name
        self._had_more = False
        self._names = itertools.count(1)
        self._is_warned = False
        self._error: OSError | None = None
        self._port = port
        self._was_changed = trio.Event()
        self._open_missing()
        if not self._sockets:
            raise OSError(errno.EADDRNOTAVAIL, f"no UDP port can be bound: {self._error}") from self._error
        self._warn_of_source_binding()

    def _open_missing(self) -> None:
        """A socket of each family for every uplink that has none yet."""
        for uplink in self.uplinks or ("",):
            for is_ipv6 in (False, True):
                if (uplink, is_ipv6) in self._of_uplink or (not uplink and is_ipv6 in self._sockets):
                    continue
                made = self._open(is_ipv6, self._port, uplink)
                if made is not None:
                    self._port = self._port or made.port
                    self._sockets.setdefault(is_ipv6, made)
                    if uplink:
                        self._of_uplink[uplink, is_ipv6] = made
                    self._tell_changed()

    def _tell_changed(self) -> None:
        self._was_changed.set()
        self._was_changed = trio.Event()

    def use_uplinks(self, uplinks: Sequence[str]) -> None:
        """Be bound to these interfaces from now on; sockets of those that stay live on."""
        wanted = tuple(uplinks)
        if wanted == self.uplinks:
            return
        self._port = self.local_port
        stay = {key: one for key, one in self._of_uplink.items() if key[0] in wanted}
        for one in self._all():
            if one not in stay.values():
                one.close()
        self.uplinks, self._of_uplink, self._sockets = wanted, stay, {}
        self._error = None
        for (_, is_ipv6), one in stay.items():
            self._sockets.setdefault(is_ipv6, one)
        self._open_missing()
        self._warn_of_source_binding()
        self._tell_changed()

    def bound_by(self, uplink: str) -> Literal["", "device", "source"]:
        """How the sockets of an uplink are bound; "" where there are none."""
        of_uplink = [one for (name, _), one in self._of_uplink.items() if name == uplink and one.is_bound]
        if not of_uplink:
            return ""
        return "source" if any(one.is_source_bound for one in of_uplink) else "device"

    async def more_readers(self) -> None:
        await self._was_changed.wait()

    def _open(self, is_ipv6: bool, port: int, uplink: str) -> HostSocket | None:
        for candidate in dict.fromkeys((port, 0)):
            try:
                family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
                return HostSocket(family, candidate, self.drops, self._unreachable, uplink)
            except OSError as error:
                self._error = self._error or error
        return None

    def _all(self) -> Sequence[HostSocket]:
        return list((self._of_uplink or self._sockets).values())

    def _warn_of_source_binding(self) -> None:
        bound = sorted({s.uplink for s in self._all() if s.is_source_bound})
        if bound and not self._is_warned:
            self._is_warned = True
            log.warning(
                "the system does not let us bind to %s itself (that needs Linux 5.7 or root): bound to its address, "
                "so that routes of the system may still lead elsewhere",
                ", ".join(bound),
            )

    @property
    def local_port(self) -> int:
        return next(iter(self._sockets.values())).port if self._sockets else self._port

    @property
    def has_ipv6(self) -> bool:
        return True in self._sockets

    def statistics(self) -> HostUdpStatistics:
        sockets = self._all()
        offloads = {"segmentation": all(s.gso for s in sockets), "coalescing": all(s.gro for s in sockets)}
        return HostUdpStatistics(len(sockets), offloads, sum(s.kept for s in sockets), dict(self.drops))

    def readers(self) -> Sequence[Callable[[], Awaitable[list[DirectRun]]]]:
        return [s.recv_many for s in self._all()]

    def send_many(self, runs: list[DirectRun]) -> None:
        for path, datagrams in runs:
            if self._had_more and (name := socket_of(path)):
                target = self._more.get(name)
                path = host_of(path), path[1]
            elif self._of_uplink and (uplink := uplink_of(path)):
                host = host_of(path)
                target = self._of_uplink.get((uplink, ":" in host))
                path = host, path[1]
            else:
                target = self._sockets.get(":" in path[0])
            if target is None:
                self.drops["underlay.no_socket_of_family"] += len(datagrams)
            else:
                target.send(path, datagrams)

    def open_more(self, count: int) -> Mapping[str, HostSocket]:
        made: dict[str, HostSocket] = {}
        while len(made) < count:
            name = f"#{next(self._names)}"
            try:
                made[name] = HostSocket(socket.AF_INET, 0, self.drops, self._unreachable, name=name)
            except OSError:
                break
        self._more |= made
        self._had_more = True
        return made

    def close_more(self, names: Iterable[str] | None) -> None:
        for name in list(self._more) if names is None else names:
            if (s := self._more.pop(name, None)) is not None:
                s.close()

    def limit(self, offloads: Offloads) -> None:
        """Use no more of the kernel's help than this."""
        for s in self._all():
            s.limit(offloads)

    def take_unreachable(self) -> list[Direct]:
        """Where the host had no route to since last asked."""
        paths = list(self._unreachable)
        self._unreachable.clear()
        return paths

    @trio.lowlevel.enable_ki_protection
    async def run_writers(self) -> None:
        running: set[HostSocket] = set()
        async with trio.open_nursery() as nursery:
            while True:
                changed, sockets = self._was_changed, self._all()
                for s in sockets:
                    if s not in running:
                        nursery.start_soon(s.run_writer)
                running = set(sockets)
                await changed.wait()

    def rebind(self) -> None:
        """OSError only when none could be bound again: an uplink that is gone must not cost the others."""
        sockets = self._all()
        errors = []
        for s in sockets:
            try:
                s.rebind()
            except OSError as error:
                errors.append(error)
        self._open_missing()
        if len(errors) == len(self._all()):
            raise errors[0] if errors else OSError(errno.EADDRNOTAVAIL, "no UDP port can be bound")
        self._warn_of_source_binding()

    def close(self) -> None:
        self.close_more(None)
        for s in self._all():
            s.close()
