"""Binding a UDP socket to one interface of this machine, by whatever means the system has.

Knows option numbers and their byte order. Refuses to know what is sent and why.
"""

from __future__ import annotations

import socket
import struct
import sys

SO_BINDTODEVICE = 25  # linux/socket.h; allowed to everybody since Linux 5.7
IP_BOUND_IF, IPV6_BOUND_IF = 25, 125  # netinet/in.h, netinet6/in6.h of macOS
IP_UNICAST_IF = IPV6_UNICAST_IF = 31  # ws2ipdef.h


def confine(sock: socket.socket, uplink: str) -> str:
    """Bind `sock` to the interface `uplink`. Returns the address to bind it to next.

    That is "any address", but where the system forbids the first: then the interface's own address, which makes most
    systems send through it. OSError where there is no such interface, or it has no address of the family.
    """
    is_ipv6 = sock.family == socket.AF_INET6
    index = socket.if_nametoindex(uplink)
    try:
        if sys.platform == "linux":
            sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, uplink.encode() + b"\0")
        elif sys.platform == "darwin":
            level, option = (socket.IPPROTO_IPV6, IPV6_BOUND_IF) if is_ipv6 else (socket.IPPROTO_IP, IP_BOUND_IF)
            sock.setsockopt(level, option, index)
        elif sys.platform == "win32":
            # IPv4 wants the index in network byte order, IPv6 in the host's.
            level, order = (socket.IPPROTO_IPV6, "=I") if is_ipv6 else (socket.IPPROTO_IP, "!I")
            sock.setsockopt(level, IP_UNICAST_IF, struct.pack(order, index))
        else:
            return address_of(uplink, is_ipv6=is_ipv6)
    except PermissionError:
        return address_of(uplink, is_ipv6=is_ipv6)
    return "::" if is_ipv6 else "0.0.0.0"


def address_of(uplink: str, *, is_ipv6: bool) -> str:
    """An address of the interface, none of those that only mean something on its wire."""
    import ifaddr  # 15 ms of ctypes that only a forbidden option costs

    for adapter in ifaddr.get_adapters():
        if uplink in (adapter.name, adapter.nice_name):
            for entry in adapter.ips:
                text = entry.ip if isinstance(entry.ip, str) else entry.ip[0]
                if (":" in text) == is_ipv6 and not text.startswith("fe80"):
                    return text
    raise OSError(f"interface {uplink} has no address to bind to")
