"""Echo requests by the machine's own network: by an ICMP socket for everybody, a raw one, or the `ping` program.

Owns the question which of these the system lets us have, answered once for each family. Refuses to know who asks and
why. RFC 792, 4443; Linux: `net.ipv4.ping_group_range` says who may open the first kind.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import socket
import subprocess
import sys
from struct import Struct

import trio

from ts_base.ip import checksum

ECHO4, REPLY4, ECHO6, REPLY6 = 8, 0, 128, 129
IP4_HEADER = 20
BODY = b"pytailscale"
_HEADER = Struct(">BBHHH")
NOBODY_MAY = (
    "this machine lets us send no echo request: neither ICMP sockets (net.ipv4.ping_group_range), nor raw ones, nor "
    "a ping program"
)


class HostPing:
    """One per network. What worked is remembered for each family; where nothing did, all is tried anew."""

    def __init__(self) -> None:
        self._ways: dict[int, str] = {}
        self._numbers = itertools.count(1)

    async def ask(self, address: str, timeout: float) -> bool:
        """Whether `address` answers in time. PermissionError where nothing lets us ask, OSError where it fails."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with trio.move_on_after(timeout):
            for way in self._candidates(family):
                try:
                    if way == "program":
                        answered = await ask_program(address, timeout)
                    else:
                        kind = socket.SOCK_DGRAM if way == "datagram" else socket.SOCK_RAW
                        answered = await self._by_socket(address, family, kind)
                except PermissionError:
                    continue
                except OSError as problem:
                    if problem.errno in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EAFNOSUPPORT):
                        continue
                    raise
                self._ways[family] = way
                return answered
            self._ways.pop(family, None)
            raise PermissionError(errno.EPERM, NOBODY_MAY)
        return False

    def _candidates(self, family: int) -> tuple[str, ...]:
        """What is known to work; where nothing did, everything, for permissions change."""
        known = self._ways.get(family)
        return (known,) if known is not None else ("datagram", "raw", "program")

    async def _by_socket(self, address: str, family: int, kind: int) -> bool:
        number = next(self._numbers) & 0xFFFF
        is_ip4 = family == socket.AF_INET
        protocol = socket.IPPROTO_ICMP if is_ip4 else socket.IPPROTO_ICMPV6
        mine = os.getpid() & 0xFFFF
        with trio.socket.socket(family, kind, protocol) as sock:
            await sock.connect((address, 0))
            await sock.send(_request(is_ip4, mine, number))
            while True:
                data = await sock.recv(2048)
                if is_ip4 and kind == socket.SOCK_RAW:
                    data = data[(data[0] & 15) * 4 :] if len(data) > IP4_HEADER else b""
                if len(data) < _HEADER.size:
                    continue
                told, _, _, identifier, sequence = _HEADER.unpack_from(data)
                # The kernel chooses the identifier of a datagram socket, and shows it nobody else's answers.
                is_mine = kind == socket.SOCK_DGRAM or identifier == mine
                if told == (REPLY4 if is_ip4 else REPLY6) and sequence == number and is_mine:
                    return True


def _request(is_ip4: bool, identifier: int, number: int) -> bytes:
    """The kernel fills in the checksum where IPv6 is spoken."""
    kind = ECHO4 if is_ip4 else ECHO6
    bare = _HEADER.pack(kind, 0, 0, identifier, number) + BODY
    return _HEADER.pack(kind, 0, checksum(bare) if is_ip4 else 0, identifier, number) + BODY


async def ask_program(address: str, timeout: float) -> bool:
    """Whether `ping` says so. It may itself lack the permission: then it fails with something else than 0 and 1."""
    program = shutil.which("ping")
    if program is None:
        raise PermissionError(errno.EPERM, "there is no ping program")
    seconds = max(1, round(timeout))
    if sys.platform == "win32":
        command = [program, "-n", "1", "-w", str(seconds * 1000), address]
    elif sys.platform == "darwin":
        command = [program, "-c", "1", "-t", str(seconds), address]
    else:
        command = [program, "-n", "-c", "1", "-W", str(seconds), address]
    nowhere = subprocess.DEVNULL
    done = await trio.run_process(command, stdin=nowhere, stdout=nowhere, stderr=nowhere, check=False)
    if done.returncode not in (0, 1):
        raise PermissionError(errno.EPERM, "the ping program is not allowed to")
    return done.returncode == 0
