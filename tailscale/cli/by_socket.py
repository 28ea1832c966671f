"""What OpenSSH runs as its ProxyCommand: standard input and output, joined with a Unix socket.

A program of its own that imports nothing of ours, so that it is there at once: `python -I -S by_socket.py PATH`.
"""

import os
import socket
import sys
import threading


def join(path: str) -> None:
    """Until the other side has ended."""
    with socket.socket(socket.AF_UNIX) as there:
        there.connect(path)

        def send() -> None:
            while data := os.read(0, 65536):
                there.sendall(data)
            there.shutdown(socket.SHUT_WR)

        threading.Thread(target=send, daemon=True).start()
        while data := there.recv(65536):
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(1, rest) :]


if __name__ == "__main__":
    try:
        join(sys.argv[1])
    except OSError:
        sys.exit(1)
