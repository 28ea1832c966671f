"""What the tests of the threaded and asyncio faces share."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

from tailscale import NameNotFound, NoRoute


def read_all(sock: socket.socket) -> bytes:
    received = bytearray()
    while data := sock.recv(1 << 18):
        received += data
    return bytes(received)


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "tailscale"]


def introduce(*devices: Any) -> None:
    """Wait until all of them know each other."""
    deadline = time.monotonic() + 10
    for asking in devices:
        for asked in devices:
            while asking is not asked and not reaches(asking, asked.hostname):
                assert time.monotonic() < deadline, "the devices never met"
                time.sleep(0.005)


def reaches(device: Any, hostname: str) -> bool:
    try:
        return device.ping(hostname) is not None
    except (NameNotFound, NoRoute):
        return False


def is_busy(device: Any) -> bool:
    """Whether the thread of a device of a face has something to do, or to carry, for the program."""
    thread = device._thread
    return bool(thread._jobs or thread._carried)
