"""What systemd wants to hear of a service: that it is ready, how it is, that it ends. sd_notify(3).

Says nothing where nobody listens ($NOTIFY_SOCKET unset). A socket that cannot be reached costs a log line.
"""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger("tailscale.daemon")


def notify(**facts: str) -> bool:
    """`notify(READY="1", STATUS="joined")`; True if it was sent."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    text = "\n".join(f"{name}={' '.join(value.split())}" for name, value in facts.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
            speaker.connect("\0" + address[1:] if address.startswith("@") else address)
            speaker.send(text.encode())
    except OSError as error:
        log.warning("systemd cannot be told: %s", error)
        return False
    return True


def watchdog_interval() -> float | None:
    """Seconds between signs of life, if systemd wants any: half of what it waits (sd_watchdog_enabled(3))."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    is_ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(microseconds) / 2e6 if microseconds.isdigit() and int(microseconds) and is_ours else None
