"""Kernel TCP on TUN devices in network namespaces, our Stack, and the pump between any two of them.

Owns the impairments: what crosses the pump is delayed, lost, reordered, doubled, damaged and rate limited as `Path`
says, from a seed. Needs root and /dev/net/tun; nothing outside its own namespaces is touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import heapq
import itertools
import json
import math
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any, Protocol

from ts_base.ip import parse_address
from ts_netstack.arrivals import USUAL
from ts_netstack.stack import Stack
from ts_netstack.tcp import TcpConnection

PEER = File(__file__).with_name("referee_peer.py")
MTU = 1280
HOSTS = {"a": ("10.77.0.1", "fd77::1"), "b": ("10.77.0.2", "fd77::2")}
PORT = 7777
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
BURST = 256  # packets read from a device in one turn
PIECE = 1 << 18
FINEST_WAIT = 0.0002
LONGEST_WAIT = 0.05


@dataclass(frozen=True)
class Path:
    """One direction. Probabilities per packet, `delay` in seconds, `rate` in bits per second, `queue` in bytes."""

    delay: float = 0.0
    loss: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    rate: float = math.inf
    queue: int = 1 << 30


@dataclass(frozen=True)
class Result:
    """One transfer as its receiver saw it."""

    size: int
    seconds: float

    @property
    def megabits(self) -> float:
        return self.size * 8 / 1e6 / self.seconds


class End(Protocol):
    """One side of the pump."""

    def packets(self, now: float) -> list[bytes]: ...
    def deliver(self, packets: list[bytes], now: float) -> None: ...
    def next_timer(self) -> float: ...


class KernelEnd:
    """A namespace with one TUN device; its kernel is the TCP."""

    def __init__(self, side: str) -> None:
        self.side = side
        self.namespace = f"referee-{os.getpid()}-{side}"
        self.device = f"ref{os.getpid() % 100000}{side}"
        self.tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.refused = 0

    def build(self) -> None:
        fcntl.ioctl(self.tun, TUNSETIFF, struct.pack("16sH22x", self.device.encode(), IFF_TUN | IFF_NO_PI))
        ip4, ip6 = HOSTS[self.side]
        _ip("netns", "add", self.namespace)
        _ip("link", "set", self.device, "netns", self.namespace)
        inside = ("-n", self.namespace)
        _ip(*inside, "link", "set", self.device, "mtu", str(MTU), "txqueuelen", "20000", "up")
        _ip(*inside, "addr", "add", f"{ip4}/24", "dev", self.device)
        _ip(*inside, "addr", "add", f"{ip6}/64", "dev", self.device, "nodad")

    def remove(self) -> None:
        os.close(self.tun)
        _ip("netns", "del", self.namespace, check=False)

    def peer(self, opening: str, role: str, host: str, port: int, size: int, seed: int) -> KernelPeer:
        command = ["ip", "netns", "exec", self.namespace, sys.executable, str(PEER)]
        return KernelPeer([*command, opening, role, host, str(port), str(size), str(seed)], opening == "listen")

    def packets(self, now: float) -> list[bytes]:
        taken: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while len(taken) < BURST:
                taken.append(os.read(self.tun, 65536))
        return taken

    def deliver(self, packets: list[bytes], now: float) -> None:
        for packet in packets:
            try:
                os.write(self.tun, packet)
            except OSError:
                self.refused += 1  # damage may have hit the version field: not a packet any more

    def next_timer(self) -> float:
        return math.inf


class OurEnd:
    """A Stack, verifying every checksum, with one application at a time."""

    def __init__(self, side: str, seed: int) -> None:
        self.stack = Stack(entropy=random.Random(seed).randbytes, mtu=MTU, verify_checksums=True)
        self.stack.set_addresses([parse_address(text) for text in HOSTS[side]])
        self.application: Callable[[float], None] = lambda now: None

    def packets(self, now: float) -> list[bytes]:
        if self.stack.next_timer() <= now:
            self.stack.handle_timer(now)
        self.application(now)
        return [packet for _, run in self.stack.transmit(now) for packet in run]

    def deliver(self, packets: list[bytes], now: float) -> None:
        self.stack.receive([(USUAL, packets)], now)

    def next_timer(self) -> float:
        return self.stack.next_timer()


class KernelPeer:
    """The process that owns the kernel's socket."""

    def __init__(self, command: list[str], listens: bool) -> None:
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        if listens:
            assert self._process.stdout.readline() == "ready\n"

    @property
    def is_done(self) -> bool:
        return self._process.poll() is not None

    def result(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        text = self._process.stdout.read()
        assert self._process.wait() == 0, "the kernel's side failed; its traceback is above"
        found: dict[str, Any] = json.loads(text)
        return found

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class Pump:
    """Carries packets between two ends, in real time, with the faults of `path` in both directions."""

    def __init__(self, first: End, second: End, path: Path, seed: int = 1) -> None:
        self._path = path
        self._sides = ((first, second, random.Random(seed)), (second, first, random.Random(seed + 1)))
        self._free_at = [0.0, 0.0]
        self._flying: list[tuple[float, int, End, bytes]] = []
        self._order = itertools.count()
        self._descriptors = [end.tun for end in (first, second) if isinstance(end, KernelEnd)]
        self.carried = self.overflowed = 0

    def run(self, is_done: Callable[[], bool], limit: float) -> None:
        """Until `is_done`, which is asked at every turn."""
        started = time.monotonic()
        while not is_done():
            now = time.monotonic()
            assert now - started < limit, f"no end after {limit:.0f} s"
            for side, (source, target, dice) in enumerate(self._sides):
                for packet in source.packets(now):
                    self._admit(side, target, packet, dice, now)
            self._land(now)
            self._wait()

    def _admit(self, side: int, target: End, packet: bytes, dice: random.Random, now: float) -> None:
        path = self._path
        self.carried += 1
        if path.loss and dice.random() < path.loss:
            return
        start = now
        if path.rate < math.inf:
            start = max(now, self._free_at[side])
            if (start - now) * path.rate / 8 > path.queue:
                self.overflowed += 1
                return
            start = self._free_at[side] = start + len(packet) * 8 / path.rate
        arrival = start + path.delay
        if path.reorder and dice.random() < path.reorder:
            arrival = now + path.delay * dice.uniform(0.5, 1.0)  # the unlucky ones overtake
        if path.corrupt and dice.random() < path.corrupt:
            at = dice.randrange(len(packet))
            packet = packet[:at] + bytes([packet[at] ^ 1 << dice.randrange(8)]) + packet[at + 1 :]
        for _ in range(2 if path.duplicate and dice.random() < path.duplicate else 1):
            heapq.heappush(self._flying, (arrival, next(self._order), target, packet))

    def _land(self, now: float) -> None:
        landed: dict[int, tuple[End, list[bytes]]] = {}
        flying = self._flying
        while flying and flying[0][0] <= now:
            _, _, target, packet = heapq.heappop(flying)
            landed.setdefault(id(target), (target, []))[1].append(packet)
        for target, packets in landed.values():
            target.deliver(packets, now)

    def _wait(self) -> None:
        due = min(end.next_timer() for end, _, _ in self._sides)
        if self._flying:
            due = min(due, self._flying[0][0])
        wait = min(max(due - time.monotonic(), 0.0), LONGEST_WAIT)
        if 0 < wait < FINEST_WAIT:
            wait = FINEST_WAIT
        select.select(self._descriptors, [], [], wait)


class Referee:
    """Two namespaces, and transfers between kernel and kernel, or our stack in the place of one of them."""

    def __init__(self) -> None:
        self.a, self.b = KernelEnd("a"), KernelEnd("b")

    def __enter__(self) -> Referee:
        self.a.build()
        self.b.build()
        return self

    def __exit__(self, *_: object) -> None:
        self.a.remove()
        self.b.remove()

    def kernel_to_kernel(self, path: Path, size: int, seed: int = 1, limit: float = 600.0) -> Result:
        host = HOSTS["b"][0]
        with _peers() as started:
            receiver = started(self.b, "listen", "receive", host, PORT, size, seed)
            sender = started(self.a, "connect", "send", host, PORT, size, seed)
            self._discard()
            Pump(self.a, self.b, path, seed).run(lambda: receiver.is_done and sender.is_done, limit)
            got = receiver.result()
            assert (got["bytes"], got["sha256"]) == (size, sender.result()["sha256"])
            return Result(size, got["seconds"])

    def ours_to_kernel(self, path: Path, size: int, seed: int = 1, limit: float = 600.0, family: int = 0) -> Result:
        ours, host = OurEnd("b", seed), HOSTS["a"][family]
        data = random.Random(seed).randbytes(size)
        with _peers() as started:
            receiver = started(self.a, "listen", "receive", host, PORT, size, seed)
            self._discard()
            connection = ours.stack.connect((parse_address(host), PORT), time.monotonic())
            ours.application = _sending(connection, data)
            Pump(self.a, ours, path, seed).run(lambda: receiver.is_done, limit)
            got = receiver.result()
            assert (got["bytes"], got["sha256"]) == (size, hashlib.sha256(data).hexdigest())
            return Result(size, got["seconds"])

    def kernel_to_ours(self, path: Path, size: int, seed: int = 1, limit: float = 600.0, family: int = 0) -> Result:
        ours, host = OurEnd("b", seed), HOSTS["b"][family]
        sink = _Sink(ours.stack)
        ours.application = sink
        with _peers() as started:
            sender = started(self.a, "connect", "send", host, PORT, size, seed)
            self._discard()
            Pump(self.a, ours, path, seed).run(lambda: sender.is_done and sink.seconds > 0, limit)
            assert (sink.count, sink.digest.hexdigest()) == (size, sender.result()["sha256"])
            return Result(size, sink.seconds)

    def _discard(self) -> None:
        """Packets of connections that have ended are not for the next one."""
        for end in (self.a, self.b):
            while end.packets(0.0):
                pass


class _Sink:
    """Accepts one connection and reads it to its end."""

    def __init__(self, stack: Stack) -> None:
        self._listener = stack.listen(PORT)
        self._connection: TcpConnection | None = None
        self._started = 0.0
        self.count, self.seconds = 0, 0.0
        self.digest = hashlib.sha256()

    def __call__(self, now: float) -> None:
        if self._connection is None:
            self._connection = self._listener.accept()
            self._started = now
            return
        if self.seconds:
            return
        while piece := self._connection.read(PIECE):
            self.count += len(piece)
            self.digest.update(piece)
        assert self._connection.error is None, self._connection.error
        if self._connection.at_eof:
            self.seconds = now - self._started
            self._connection.close(now)


def _sending(connection: TcpConnection, data: bytes) -> Callable[[float], None]:
    at, view, is_ended = 0, memoryview(data), False

    def send(now: float) -> None:
        nonlocal at, is_ended
        assert connection.error is None or is_ended, connection.error
        while at < len(view) and connection.writable and (taken := connection.write(view[at : at + PIECE])):
            at += taken
        if at == len(view) and not is_ended:
            is_ended = True
            connection.send_eof(now)

    return send


@contextlib.contextmanager
def _peers() -> Iterator[Callable[..., KernelPeer]]:
    peers: list[KernelPeer] = []

    def start(end: KernelEnd, *arguments: Any) -> KernelPeer:
        peers.append(end.peer(*arguments))
        return peers[-1]

    try:
        yield start
    finally:
        for peer in peers:
            peer.end()


def _ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=not check)


def why_not() -> str:
    """Why the referee cannot stand here; empty when it can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "the kernel referee needs root"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "the kernel referee needs /dev/net/tun"
    name = f"referee-{os.getpid()}-probe"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
    except (OSError, subprocess.CalledProcessError):
        return "the kernel referee needs network namespaces"
    return ""
