"""One end of one kernel TCP connection, run inside a namespace: `referee_peer.py {listen|connect} {send|receive} ...`.

Prints "ready" when it listens, then one JSON line: seconds from connected to done, bytes, SHA-256. Stands alone: it
imports nothing of the project.
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import sys
import time

PIECE = 1 << 20
PATIENCE = 1200.0


def main() -> None:
    opening, role, host, port, size, seed = sys.argv[1:]
    connected = (_listen if opening == "listen" else _connect)(host, int(port))
    connected.settimeout(PATIENCE)
    assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"cubic"
    started = time.monotonic()
    digest, count = hashlib.sha256(), 0
    if role == "send":
        data = random.Random(int(seed)).randbytes(int(size))
        digest.update(data)
        count = len(data)
        started = time.monotonic()
        connected.sendall(data)
        connected.shutdown(socket.SHUT_WR)
        connected.recv(1)  # the other side has seen our end
    else:
        while piece := connected.recv(PIECE):
            digest.update(piece)
            count += len(piece)
    seconds = time.monotonic() - started
    connected.close()
    print(json.dumps({"seconds": seconds, "bytes": count, "sha256": digest.hexdigest()}), flush=True)


def _socket(host: str) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")  # whatever the system's own choice is
    made.settimeout(PATIENCE)
    return made


def _connect(host: str, port: int) -> socket.socket:
    made = _socket(host)
    made.connect((host, port))
    return made


def _listen(host: str, port: int) -> socket.socket:
    with _socket(host) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1)
        print("ready", flush=True)
        return listener.accept()[0]


if __name__ == "__main__":
    main()
