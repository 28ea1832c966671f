"""Whether the system may cut a datagram of ours into fragments: one option of a socket, spelled differently everywhere.

Datagrams may be cut, so that a path below 1,360 bytes carries them at all. Large pings may not: that is how a path is
measured, and a message of ICMP, which anybody can forge, must not decide it (RFC 8899).
"""

from __future__ import annotations

import socket
import sys

# linux/in.h, linux/in6.h. PROBE: no fragments, and what ICMP says of the MTU is ignored. OMIT ignores it too, and lets
# this host and routers cut. Routers of IPv6 do not, so that ICMP must be believed there (DONT): this host then cuts.
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER = 10, 23
PMTUDISC_DONT, PMTUDISC_PROBE, PMTUDISC_OMIT = 0, 3, 5
IP_DONTFRAG, IPV6_DONTFRAG = 28, 62  # netinet/in.h of macOS, since 11
IP_DONTFRAGMENT, IPV6_DONTFRAG_WINDOWS = 14, 14  # ws2ipdef.h


def fragment_option(family: int) -> tuple[int, int, int, int] | None:
    """Level, option, and its value where fragments are allowed and where they are not; None on other systems."""
    v6 = family == socket.AF_INET6
    level = socket.IPPROTO_IPV6 if v6 else socket.IPPROTO_IP
    match sys.platform:
        case "linux":
            if v6:
                return level, IPV6_MTU_DISCOVER, PMTUDISC_DONT, PMTUDISC_PROBE
            return level, IP_MTU_DISCOVER, PMTUDISC_OMIT, PMTUDISC_PROBE
        case "darwin":
            return level, IPV6_DONTFRAG if v6 else IP_DONTFRAG, 0, 1
        case "win32":
            return level, IPV6_DONTFRAG_WINDOWS if v6 else IP_DONTFRAGMENT, 0, 1
    return None
