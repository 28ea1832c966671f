"""Kernel TCP over loopback between two processes: no crypto, no tunnel, for orientation only.

Run: python -m bench.kernel [--seconds 3]
"""

from __future__ import annotations

import argparse
import os
import socket
import time

CHUNK = 256 << 10


def serve(listener: socket.socket) -> None:
    """b"u": swallow; b"e": echo. One connection after the other."""
    while True:
        connection, _ = listener.accept()
        with connection:
            if connection.recv(1) == b"u":
                while connection.recv(CHUNK):
                    pass
                connection.sendall(b"!")
            else:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while data := connection.recv(CHUNK):
                    connection.sendall(data)


def stream(to: tuple[str, int], seconds: float) -> float:
    """Mbit/s."""
    block, sent = os.urandom(CHUNK), 0
    with socket.create_connection(to) as connection:
        connection.sendall(b"u")
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            connection.sendall(block)
            sent += CHUNK
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
        return sent * 8 / (time.perf_counter() - began) / 1e6


def round_trip(to: tuple[str, int], seconds: float) -> float:
    """Median microseconds of a 64-byte echo."""
    spent = []
    with socket.create_connection(to) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(b"e")
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            connection.sendall(bytes(64))
            connection.recv(64)
            spent.append(time.perf_counter() - began)
    return sorted(spent)[len(spent) // 2] * 1e6


def connects(to: tuple[str, int], seconds: float) -> float:
    """Connections per second: connect, one byte there and back, close."""
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        with socket.create_connection(to) as connection:
            connection.sendall(b"ex")
            connection.recv(1)
        count += 1
    return count / (time.perf_counter() - began)


def run(seconds: float) -> dict[str, float]:
    listener = socket.create_server(("127.0.0.1", 0))
    child = os.fork()
    if child == 0:
        try:
            serve(listener)
        finally:
            os._exit(0)
    to = listener.getsockname()
    listener.close()
    try:
        return {"up": stream(to, seconds), "rtt": round_trip(to, seconds / 2), "connect": connects(to, seconds / 2)}
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    measured = run(parser.parse_args().seconds)
    print(f"{measured['up']:.0f} Mbit/s, {measured['rtt']:.0f} us, {measured['connect']:.0f} connects/s")


if __name__ == "__main__":
    main()
