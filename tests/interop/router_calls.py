"""What a plain program meets when it calls hosts behind a router: run inside a client's namespace, prints JSON.

`python -m tests.interop.router_calls CALL...`; a call is kind:address:port, as tcp:10.77.0.2:7. It knows nothing of
Tailscale: the kernel's sockets, and how each call ended.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import struct
import sys
import time
from typing import Any

PATIENCE = 8.0
DATA = bytes(range(256)) * 4096


def tcp(address: str, port: int) -> dict[str, Any]:
    """1 MiB to an echo, which ends when we have."""
    with socket.create_connection((address, port), PATIENCE) as sock:
        seen, got = hashlib.sha256(), 0
        sock.settimeout(PATIENCE)
        sock.sendall(DATA[:65536])
        for start in range(65536, len(DATA), 65536):
            piece = sock.recv(65536, socket.MSG_WAITALL)
            seen.update(piece)
            got += len(piece)
            sock.sendall(DATA[start : start + 65536])
        sock.shutdown(socket.SHUT_WR)
        while piece := sock.recv(65536):
            seen.update(piece)
            got += len(piece)
    return {"same": seen.digest() == hashlib.sha256(DATA).digest(), "bytes": got}


def who(address: str, port: int) -> dict[str, Any]:
    """Whom the server there sees."""
    with socket.create_connection((address, port), PATIENCE) as sock:
        sock.settimeout(PATIENCE)
        return {"said": sock.recv(100).decode()}


def udp(address: str, port: int, size: int = 1200) -> dict[str, Any]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(2.0)
        sock.connect((address, port))
        for attempt in range(3):
            sock.send(DATA[:size])
            try:
                return {"same": sock.recv(65536) == DATA[:size], "attempt": attempt}
            except TimeoutError:
                continue
    raise TimeoutError


def large(address: str, port: int) -> dict[str, Any]:
    """In fragments."""
    return udp(address, port, 3000)


def ping(address: str, _: int) -> dict[str, Any]:
    """An echo request by a raw socket."""
    body = struct.pack(">BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, 1) + b"payload!"
    total = sum(struct.unpack(f">{len(body) // 2}H", body))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    packet = body[:2] + struct.pack(">H", ~total & 0xFFFF) + body[4:]
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.settimeout(4.0)
        sock.sendto(packet, (address, 0))
        while True:
            data, source = sock.recvfrom(2048)
            told = data[(data[0] & 15) * 4 :]
            if source[0] == address and told[0] == 0:
                return {"same": told[4:] == packet[4:]}


KINDS = {"tcp": tcp, "udp": udp, "large": large, "ping": ping, "who": who}


def ended(call: str) -> dict[str, Any]:
    kind, address, port = call.split(":")
    began = time.monotonic()
    try:
        found = {"end": "ok", **KINDS[kind](address, int(port))}
    except TimeoutError:
        found = {"end": "silence"}
    except OSError as problem:
        found = {"end": errno.errorcode.get(problem.errno or 0, str(problem))}
    return found | {"took": round(time.monotonic() - began, 2)}


def main() -> None:
    print(json.dumps({call: ended(call) for call in sys.argv[1:]}))


if __name__ == "__main__":
    main()
