"""Ports as they are typed: a number, or the name of a service. Knows no device."""

from __future__ import annotations

import argparse
import socket

# Where the system has no /etc/services, as in small containers.
SERVICES = {"ssh": 22, "smtp": 25, "domain": 53, "http": 80, "https": 443, "mysql": 3306, "postgresql": 5432}
SERVICES |= {"redis": 6379, "mongodb": 27017}


def port(text: str) -> int:
    """`80` or `http`; ValueError for what is neither."""
    value = int(text) if text.isascii() and text.isdigit() else _of_service(text)
    if not 0 < value < 65536:
        raise argparse.ArgumentTypeError(f"{text} is not a port between 1 and 65535")
    return value


def _of_service(name: str) -> int:
    try:
        return socket.getservbyname(name)
    except (OSError, UnicodeError):
        if name in SERVICES:
            return SERVICES[name]
    raise argparse.ArgumentTypeError(f"{name!r} is neither a port nor the name of a service")


def host_maybe_port(text: str) -> tuple[str, int | None]:
    """`db`, `db:5432`, `db:ssh`, `[fd7a::1]:5432`; an IPv6 address without brackets has no port."""
    host, colon, number = text.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")):
        return text.strip("[]"), None
    return host.strip("[]"), port(number)


def host_and_port(text: str) -> tuple[str, int]:
    """The same with the port that it needs."""
    host, number = host_maybe_port(text)
    if not host or number is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host, number
