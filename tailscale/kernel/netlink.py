"""Addresses, routes and rules of the Linux kernel, asked for by rtnetlink over a plain socket.

Owns the few messages that a TUN device needs and how they are spelled. Refuses to know which routes are wanted and
why. Every call is answered by the kernel at once, so none is awaited. RFC 3549; linux/rtnetlink.h, linux/fib_rules.h.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from struct import Struct, pack, unpack_from
from typing import NamedTuple

from ts_base.ip import UDP, Prefix

HEADER = Struct("=IHHII")  # length, type, flags, sequence, port
ATTRIBUTE = Struct("=HH")
LINK, ADDRESS, ROUTE = Struct("=BxHiII"), Struct("=BBBBI"), Struct("=BBBBBBBBI")

REQUEST, ACK, DUMP, REPLACE, EXCL, CREATE = 0x1, 0x4, 0x300, 0x100, 0x200, 0x400
ERROR, DONE = 2, 3
NEW_LINK, DELETE_LINK, GET_LINK = 16, 17, 18
NEW_ADDRESS, DELETE_ADDRESS, GET_ADDRESS = 20, 21, 22
NEW_ROUTE, DELETE_ROUTE, GET_ROUTE = 24, 25, 26
NEW_RULE, DELETE_RULE, GET_RULE = 32, 33, 34

UP = 0x1
IFLA_MTU, IFLA_AF_SPEC, IFLA_INET6_ADDR_GEN_MODE, ADDR_GEN_NONE = 4, 26, 8, 1
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS, NO_DAD, NO_PREFIX_ROUTE = 1, 2, 8, 0x02, 0x200
RTA_DST, RTA_OIF, RTA_TABLE, RTA_IP_PROTO, RTA_SPORT = 1, 4, 15, 27, 28
FRA_DST, FRA_SRC, FRA_GOTO, FRA_PRIORITY, FRA_SUPPRESS_PREFIX = 1, 2, 4, 6, 14
FRA_TABLE, FRA_PROTOCOL, FRA_IP_PROTO, FRA_SPORT_RANGE = 15, 21, 22, 23
TO_TABLE, GO_TO, NOTHING, UNREACHABLE = 1, 2, 3, 7  # what a rule does
UNICAST, UNIVERSE = 1, 0
MAIN = 254
OURS = 177  # rtm_protocol: whose routes and rules these are; iproute2 knows no other owner of the number

SOL_NETLINK, STRICT_CHECK = 270, 12
GROUPS = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x40000  # link; address, route, rule of both families
ANSWER_LIMIT = 1 << 18


class Rule(NamedTuple):
    """One line of `ip rule`: what is looked at, and what follows. `family` is that of its addresses."""

    family: int
    priority: int
    table: int = 0
    goto: int = 0
    source: Prefix | None = None
    destination: Prefix | None = None
    udp_port: int = 0
    without_default: bool = False  # a default route of that table does not count
    is_refusal: bool = False  # whoever comes here is told that there is no way


class Link(NamedTuple):
    """One interface."""

    number: int
    is_up: bool
    mtu: int


class Netlink:
    """One socket to the kernel's tables. A refusal is an OSError that says what was asked."""

    def __init__(self) -> None:
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._socket.setsockopt(SOL_NETLINK, STRICT_CHECK, 1)
        self._socket.settimeout(5.0)

    def close(self) -> None:
        self._socket.close()

    # Links and addresses

    def link(self, index: int) -> Link | None:
        """None where it is gone."""
        try:
            [(_, body)] = self._ask(GET_LINK, REQUEST, LINK.pack(0, 0, index, 0, 0), "an interface")
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.EINVAL):
                return None
            raise
        flags = LINK.unpack_from(body)[3]
        return Link(index, bool(flags & UP), _number(_attributes(body, LINK.size).get(IFLA_MTU, b"")))

    def bring_up(self, index: int, mtu: int) -> None:
        """With this MTU, and without an address of the kernel's own making."""
        generation = _nested(IFLA_AF_SPEC, _nested(socket.AF_INET6, _attribute(IFLA_INET6_ADDR_GEN_MODE, b"\1")))
        head = LINK.pack(0, 0, index, UP, UP)
        try:
            self._do(NEW_LINK, 0, LINK.pack(0, 0, index, 0, 0) + generation, "no address of the kernel's own")
        except OSError as error:  # a kernel without IPv6 makes none anyway
            if error.errno not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL):
                raise
        self._do(NEW_LINK, 0, head + _attribute(IFLA_MTU, pack("=I", mtu)), f"up with an MTU of {mtu}")

    def delete_link(self, index: int) -> None:
        """With its addresses and routes; good also where it is gone already."""
        try:
            self._do(DELETE_LINK, 0, LINK.pack(0, 0, index, 0, 0), "the end of an interface")
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise

    def addresses(self, index: int) -> set[bytes]:
        """Those of one interface, but what the kernel made for its link."""
        found = set()
        for family in (socket.AF_INET, socket.AF_INET6):
            for _, body in self._dump(GET_ADDRESS, ADDRESS.pack(family, 0, 0, 0, index), "addresses"):
                told = _attributes(body, ADDRESS.size)
                if ADDRESS.unpack_from(body)[4] == index:
                    found.add(told.get(IFA_LOCAL) or told.get(IFA_ADDRESS, b""))
        return {address for address in found if address[:2] != b"\xfe\x80"}

    def add_address(self, index: int, address: bytes) -> None:
        self._address(NEW_ADDRESS, CREATE | REPLACE, index, address)

    def delete_address(self, index: int, address: bytes) -> None:
        self._address(DELETE_ADDRESS, 0, index, address)

    def _address(self, kind: int, flags: int, index: int, address: bytes) -> None:
        body = ADDRESS.pack(_family(address), 8 * len(address), 0, 0, index) + _attribute(IFA_LOCAL, address)
        body += _attribute(IFA_ADDRESS, address)
        if kind == NEW_ADDRESS:
            body += _attribute(IFA_FLAGS, pack("=I", NO_DAD | NO_PREFIX_ROUTE))
        self._do(kind, flags, body, f"address {_text(address)}")

    # Routes

    def routes(self, table: int) -> set[tuple[Prefix, int]]:
        """The routes of one table and the interface of each."""
        found = set()
        for family in (socket.AF_INET, socket.AF_INET6):
            ask = ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0) + _attribute(RTA_TABLE, pack("=I", table))
            for kind, body in self._dump(GET_ROUTE, ask, "routes", none_if=errno.ENOENT):
                told = _attributes(body, ROUTE.size)
                if kind == NEW_ROUTE and _number(told.get(RTA_TABLE, b"")) == table:
                    address = told.get(RTA_DST, bytes(4 if family == socket.AF_INET else 16))
                    found.add(((address, ROUTE.unpack_from(body)[1]), _number(told.get(RTA_OIF, b""))))
        return found

    def add_route(self, table: int, prefix: Prefix, index: int) -> None:
        self._route(NEW_ROUTE, CREATE | REPLACE, table, prefix, index)

    def delete_route(self, table: int, prefix: Prefix, index: int) -> None:
        self._route(DELETE_ROUTE, 0, table, prefix, index)

    def _route(self, kind: int, flags: int, table: int, prefix: Prefix, index: int) -> None:
        address, length = prefix
        body = ROUTE.pack(_family(address), length, 0, 0, 0, OURS, UNIVERSE, UNICAST, 0)
        body += _attribute(RTA_TABLE, pack("=I", table)) + _attribute(RTA_OIF, pack("=I", index))
        self._do(kind, flags, body + _attribute(RTA_DST, address), f"route {_text(address)}/{length}")

    def uplink_to(self, destination: bytes, udp_port: int) -> int:
        """The interface by which a datagram of ours leaves for there; 0 for no way, or none but loopback."""
        body = ROUTE.pack(_family(destination), 8 * len(destination), 0, 0, 0, 0, 0, 0, 0)
        body += _attribute(RTA_DST, destination) + _attribute(RTA_IP_PROTO, bytes([UDP]))
        body += _attribute(RTA_SPORT, udp_port.to_bytes(2, "big"))
        try:
            [(_, answer)] = self._ask(GET_ROUTE, REQUEST, body, f"way to {_text(destination)}")
        except OSError:
            return 0
        return _number(_attributes(answer, ROUTE.size).get(RTA_OIF, b""))

    # Rules

    def rules(self) -> list[Rule]:
        """All that bear our mark."""
        found = []
        for family in (socket.AF_INET, socket.AF_INET6):
            for _, body in self._dump(GET_RULE, ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0), "rules"):
                if (rule := _read_rule(family, body)) is not None:
                    found.append(rule)
        return found

    def add_rule(self, rule: Rule) -> None:
        self._do(NEW_RULE, CREATE | EXCL, _rule_body(rule), f"rule {rule.priority}")

    def delete_rule(self, rule: Rule) -> None:
        self._do(DELETE_RULE, 0, _rule_body(rule), f"rule {rule.priority}")

    # Asking

    def _do(self, kind: int, flags: int, body: bytes, what: str) -> None:
        self._ask(kind, REQUEST | ACK | flags, body, what)

    def _dump(self, kind: int, body: bytes, what: str, *, none_if: int = 0) -> list[tuple[int, bytes]]:
        try:
            return self._ask(kind, REQUEST | DUMP, body, what)
        except OSError as error:
            if error.errno in (none_if, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
                return []
            raise

    def _ask(self, kind: int, flags: int, body: bytes, what: str) -> list[tuple[int, bytes]]:
        self._sequence += 1
        self._socket.send(HEADER.pack(HEADER.size + len(body), kind, flags, self._sequence, 0) + body)
        found: list[tuple[int, bytes]] = []
        while True:
            for answer, sequence, told in _messages(self._socket.recv(ANSWER_LIMIT)):
                if sequence != self._sequence:
                    continue  # of a question whose answer was not waited for
                if answer == ERROR:
                    number = -unpack_from("=i", told)[0]
                    if number:
                        raise OSError(number, f"the kernel refuses {what}: {os.strerror(number)}")
                    return found
                if answer == DONE:
                    return found
                found.append((answer, told))
                if not flags & DUMP:
                    return found


def open_news() -> socket.socket:
    """A socket that becomes readable whenever links, addresses, routes or rules change."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    made.bind((0, GROUPS))
    made.setblocking(False)
    return made


# Spelling


def _rule_body(rule: Rule) -> bytes:
    source, destination = rule.source or (b"", 0), rule.destination or (b"", 0)
    action = UNREACHABLE if rule.is_refusal else GO_TO if rule.goto else TO_TABLE if rule.table else NOTHING
    body = ROUTE.pack(rule.family, destination[1], source[1], 0, min(rule.table, 255) % 255, 0, 0, action, 0)
    body += _attribute(FRA_PRIORITY, pack("=I", rule.priority)) + _attribute(FRA_PROTOCOL, bytes([OURS]))
    if rule.table:
        body += _attribute(FRA_TABLE, pack("=I", rule.table))
    if rule.goto:
        body += _attribute(FRA_GOTO, pack("=I", rule.goto))
    if rule.source is not None:
        body += _attribute(FRA_SRC, source[0])
    if rule.destination is not None:
        body += _attribute(FRA_DST, destination[0])
    if rule.udp_port:
        body += _attribute(FRA_IP_PROTO, bytes([UDP]))
        body += _attribute(FRA_SPORT_RANGE, pack("=HH", rule.udp_port, rule.udp_port))
    if rule.without_default:
        body += _attribute(FRA_SUPPRESS_PREFIX, pack("=I", 0))
    return body


def _read_rule(family: int, body: bytes) -> Rule | None:
    _, to_length, from_length, _, table, _, _, action, _ = ROUTE.unpack_from(body)
    told = _attributes(body, ROUTE.size)
    if told.get(FRA_PROTOCOL) != bytes([OURS]):
        return None
    return Rule(
        family=family,
        priority=_number(told.get(FRA_PRIORITY, b"")),
        table=_number(told.get(FRA_TABLE, b"")) or table if action == TO_TABLE else 0,
        goto=_number(told.get(FRA_GOTO, b"")),
        source=(told[FRA_SRC], from_length) if FRA_SRC in told else None,
        destination=(told[FRA_DST], to_length) if FRA_DST in told else None,
        udp_port=unpack_from("=H", told[FRA_SPORT_RANGE])[0] if FRA_SPORT_RANGE in told else 0,
        without_default=told.get(FRA_SUPPRESS_PREFIX) == bytes(4),
        is_refusal=action == UNREACHABLE,
    )


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, sequence and body of each message."""
    at = 0
    while at + HEADER.size <= len(data):
        length, kind, _, sequence, _ = HEADER.unpack_from(data, at)
        if length < HEADER.size:
            return
        yield kind, sequence, data[at + HEADER.size : at + length]
        at += -(-length // 4) * 4


def _attributes(body: bytes, at: int) -> dict[int, bytes]:
    found = {}
    while at + ATTRIBUTE.size <= len(body):
        length, kind = ATTRIBUTE.unpack_from(body, at)
        if length < ATTRIBUTE.size:
            break
        found[kind & 0x3FFF] = body[at + ATTRIBUTE.size : at + length]
        at += -(-length // 4) * 4
    return found


def _attribute(kind: int, value: bytes) -> bytes:
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _nested(kind: int, value: bytes) -> bytes:
    return _attribute(kind | 0x8000, value)


def _number(value: bytes) -> int:
    return int(unpack_from("=I", value)[0]) if len(value) >= 4 else 0


def _family(address: bytes) -> int:
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6


def _text(address: bytes) -> str:
    return socket.inet_ntop(_family(address), address)
