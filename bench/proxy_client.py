"""A client of a SOCKS 5 proxy in a process of its own, on plain sockets: connects, and pulls bytes. One JSON line."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time


def opened(proxy_port: int, host: str, port: int) -> socket.socket:
    """A connection through the proxy, once it has said yes."""
    sock = socket.create_connection(("127.0.0.1", proxy_port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(b"\5\1\0")
    taken(sock, 2)
    name = host.encode()
    sock.sendall(b"\5\1\0\3" + bytes([len(name)]) + name + port.to_bytes(2, "big"))
    answer = taken(sock, 4)
    taken(sock, {1: 6, 4: 18}[answer[3]])
    assert answer[1] == 0, answer
    return sock


def taken(sock: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        got += sock.recv(count - len(got)) or sys.exit("the proxy hung up")
    return got


def connects(proxy_port: int, host: str, port: int, count: int) -> dict[str, float]:
    """One after the other: the median."""
    took = []
    for _ in range(count):
        began = time.perf_counter()
        sock = opened(proxy_port, host, port)
        took.append(time.perf_counter() - began)
        sock.close()
    return {"ms": sorted(took)[count // 2] * 1e3}


def rate(proxy_port: int, host: str, port: int, count: int, at_once: int = 8) -> dict[str, float]:
    """Several at once."""

    def one() -> None:
        for _ in range(count // at_once):
            opened(proxy_port, host, port).close()

    threads = [threading.Thread(target=one) for _ in range(at_once)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"per_second": count / (time.perf_counter() - began)}


def stream(proxy_port: int, host: str, port: int, size: int) -> dict[str, float]:
    """Bytes pulled from a server that sends as many as a line asks for."""
    sock = opened(proxy_port, host, port)
    buffer = memoryview(bytearray(1 << 20))
    began, left = time.perf_counter(), size
    sock.sendall(b"%d\n" % size)
    while left:
        left -= sock.recv_into(buffer) or sys.exit("the proxy hung up")
    return {"mbit_s": size * 8 / (time.perf_counter() - began) / 1e6}


if __name__ == "__main__":
    what, proxy, where, number, amount = sys.argv[1:]
    print(json.dumps({"connects": connects, "rate": rate, "stream": stream}[what](
        int(proxy), where, int(number), int(amount)
    )))  # fmt: skip
