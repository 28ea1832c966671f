"""No event loop: a blocking socket over the tailnet, as a script or a notebook wants it.

TS_AUTHKEY=... python sync_client.py db 5432
"""

from __future__ import annotations

import sys

from tailscale import sync


def main(host: str, port: int) -> None:
    with sync.Device("script") as device, device.connect(host, port) as sock:
        sock.sendall(b"hello")
        print(sock.recv(100).decode())


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]))
