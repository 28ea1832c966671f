"""The bare pipeline: what one direction of a tunnel costs when TCP keeps no state at all.

A sender process writes IPv4 and TCP headers with right checksums around 1,240 bytes, seals them, puts the WireGuard
header in front and sends them with UDP_SEGMENT; a receiver process takes them off with UDP_GRO, opens them and reads
the headers. The receiver returns a count per burst, so that the sender stays one window ahead and nothing is lost.
Run: python -m bench.pipeline [--seconds 3] [--mtu 1280]
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import sys
import time
from struct import Struct

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ts_netstack.checksums import fastest_burst_sums

UDP_SEGMENT, UDP_GRO = 103, 104  # linux/udp.h
WINDOW = 2 << 20
BURST = 48
KEY = bytes(range(32))

ip_header = Struct(">BBHHHBBH4s4s").pack
tcp_header = Struct(">HHIIBBHHH").pack
wireguard_header = Struct("<IIQ").pack
nonce_of = Struct("<4xQ").pack
read_counter = Struct("<Q").unpack_from
read_tcp = Struct(">HHIIBBHHH").unpack_from
burst_sums = fastest_burst_sums()
SOURCE, DESTINATION = bytes([100, 64, 0, 1]), bytes([100, 64, 0, 2])


def fold(total: int) -> int:
    return 0xFFFF - total % 0xFFFF


class Sender:
    """Builds one burst at a time."""

    def __init__(self, mtu: int) -> None:
        self._size = mtu - 40
        self._encrypt = ChaCha20Poly1305(KEY).encrypt
        self._counter = self._sequence = 0
        self._source = os.urandom(1 << 20)
        words = ip_header(0x45, 0, mtu, 0, 0x4000, 64, 6, 0, SOURCE, DESTINATION)
        self._ip = words[:10] + fold(int.from_bytes(words, "big")).to_bytes(2, "big") + words[12:]
        pseudo = SOURCE + DESTINATION + b"\0\6" + (mtu - 20).to_bytes(2, "big")
        self._pseudo = int.from_bytes(pseudo, "big") % 0xFFFF
        self._padding = bytes(-mtu % 16)

    def burst(self, count: int) -> bytes:
        size, source, encrypt = self._size, self._source, self._encrypt
        at = self._counter % 64 * 1024
        payloads = [source[i : i + size] for i in range(at, at + count * size, size)]
        sums = burst_sums(payloads)
        fixed = self._pseudo + 443 + 40000 + 0x5010 + 0xFFFF
        pieces: list[bytes] = []
        for payload, total in zip(payloads, sums, strict=True):
            sequence = self._sequence
            check = fold(total + fixed + (sequence >> 16) + (sequence & 0xFFFF))
            packet = b"".join(
                (self._ip, tcp_header(443, 40000, sequence, 0, 0x50, 0x10, 0xFFFF, check, 0), payload, self._padding)
            )
            counter = self._counter
            pieces += (wireguard_header(4, 7, counter), encrypt(nonce_of(counter), packet, None))
            self._counter = counter + 1
            self._sequence = (sequence + size) & 0xFFFFFFFF
        return b"".join(pieces)


def large_buffers(sock: socket.socket) -> None:
    for forced, polite in ((33, socket.SO_RCVBUF), (32, socket.SO_SNDBUF)):  # SO_RCVBUFFORCE, SO_SNDBUFFORCE
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, 7 << 20)
        except OSError:
            sock.setsockopt(socket.SOL_SOCKET, polite, 7 << 20)


def receive(sock: socket.socket) -> None:
    """Until the sender is gone; returns the count of packets after each burst."""
    decrypt = ChaCha20Poly1305(KEY).decrypt
    sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    total = 0
    payload = bytearray()
    while True:
        if not select.select([sock], [], [], 2.0)[0]:
            return
        source = None
        for _ in range(16):
            try:
                data, control, _, source = sock.recvmsg(65535, 32, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            if len(data) < 64:
                return
            size = int.from_bytes(control[0][2], sys.byteorder) if control else len(data)
            for at in range(0, len(data), size):
                datagram = data[at : at + size]
                packet = decrypt(nonce_of(*read_counter(datagram, 8)), datagram[16:], None)
                read_tcp(packet, 20)
                payload += packet[40 : int.from_bytes(packet[2:4], "big")]
                total += 1
        payload.clear()
        if source is not None:
            sock.sendto(total.to_bytes(8, "big"), source)


def run(seconds: float, mtu: int = 1280) -> float:
    """Mbit/s of payload from one process to another."""
    ours = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    theirs = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for sock in (ours, theirs):
        sock.bind(("127.0.0.1", 0))
        large_buffers(sock)
    child = os.fork()
    if child == 0:
        try:
            receive(theirs)
        finally:
            os._exit(0)
    to = theirs.getsockname()
    theirs.close()
    sender = Sender(mtu)
    size = mtu + -mtu % 16 + 32
    count = min(BURST, 65_000 // size)
    option = [(socket.IPPROTO_UDP, UDP_SEGMENT, size.to_bytes(2, sys.byteorder))]
    sent = acknowledged = 0
    window = WINDOW // size
    began = time.perf_counter()
    end = began + seconds
    try:
        while time.perf_counter() < end:
            waits = sent - acknowledged > window
            if select.select([ours], [], [], 0.2 if waits else 0)[0]:
                acknowledged = int.from_bytes(ours.recv(64), "big")
            elif waits:
                acknowledged = sent  # a burst was lost on the way: go on
            if sent - acknowledged <= window:
                ours.sendmsg([sender.burst(count)], option, 0, to)
                sent += count
        took = time.perf_counter() - began
    finally:
        ours.sendto(b"end", to)
        os.waitpid(child, 0)
        ours.close()
    return acknowledged * (mtu - 40) * 8 / took / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--mtu", type=int, default=1280)
    options = parser.parse_args()
    print(f"{run(options.seconds, options.mtu):.0f} Mbit/s")


if __name__ == "__main__":
    main()
