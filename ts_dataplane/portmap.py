"""Asking the home router for an open port: the wire formats of NAT-PMP and PCP, and when to say what.

Owns the codecs and `PortMapper`, the machine that probes a gateway, maps, renews at half life and notices a rebooted
router by its epoch. UPnP's texts are in `upnp.py`; sockets and gateway discovery in the shell. RFC 6886 and RFC 6887.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from struct import Struct
from typing import NamedTuple

from ts_base.errors import BadPacket
from ts_base.ip import format_address, is_link_local, is_loopback, is_private, is_tailscale_address, parse_address
from ts_dataplane import upnp

Direct = tuple[str, int]

GATEWAY_PORT = 5351
LIFETIME = 7200
SERVICE_TIMEOUT = 0.25
RETRY_AFTER = 600.0  # what a gateway cannot do is believed for this long
CREATE_TIMEOUT = 5.0
MIN_RENEW = 10.0

OK, NOT_AUTHORISED, ADDRESS_MISMATCH = 0, 2, 12
UDP = 17
PMP, PCP, UPNP = "pmp", "pcp", "upnp"

_PMP_MAP_REQUEST = Struct(">BBHHHI")  # version 0, opcode 1 = UDP, reserved, internal, wanted external, lifetime
_PMP_ANSWER = Struct(">BBHI")  # version 0, opcode + 128, result, seconds since epoch
_PMP_MAP_ANSWER = Struct(">BBHIHHI")  # ... internal port, external port, lifetime
_PCP_REQUEST = Struct(">BBHI16s")  # version 2, opcode, reserved, lifetime, client address
_PCP_ANSWER = Struct(">BBBBII12x")  # version 2, opcode + 128, reserved, result, lifetime, epoch
_PCP_MAP = Struct(">12sB3xHH16s")  # nonce, protocol, internal, external, external address
PCP_ANNOUNCE, PCP_MAP = 0, 1
NONCE_LENGTH = 12


class PmpAddress(NamedTuple):
    result: int
    epoch: int
    address: str


class PmpMapping(NamedTuple):
    result: int
    epoch: int
    internal: int
    external: int
    lifetime: int


class PcpAnswer(NamedTuple):
    """`external` is only there in the answer to a mapping request."""

    opcode: int
    result: int
    lifetime: int
    epoch: int
    nonce: bytes = b""
    internal: int = 0
    external: Direct | None = None


def _mapped(host: str) -> bytes:
    address = parse_address(host)
    return bytes(10) + b"\xff\xff" + address if len(address) == 4 else address


def encode_pmp_address_request() -> bytes:
    return b"\0\0"


def encode_pmp_map_request(internal: int, external: int, lifetime: int = LIFETIME) -> bytes:
    return _PMP_MAP_REQUEST.pack(0, 1, 0, internal, external, lifetime)


def decode_pmp_untrusted(datagram: bytes) -> PmpAddress | PmpMapping:
    if len(datagram) < _PMP_ANSWER.size:
        raise BadPacket("NAT-PMP answer cut short")
    version, opcode, result, epoch = _PMP_ANSWER.unpack_from(datagram)
    if version != 0 or opcode not in (128, 129):
        raise BadPacket("not a NAT-PMP answer")
    if opcode == 128:
        if len(datagram) < 12 and result == OK:
            raise BadPacket("NAT-PMP answer without its address")
        return PmpAddress(result, epoch, format_address(datagram[8:12]) if len(datagram) >= 12 else "0.0.0.0")
    if len(datagram) < _PMP_MAP_ANSWER.size:
        raise BadPacket("NAT-PMP answer without its mapping")
    _, _, _, _, internal, external, lifetime = _PMP_MAP_ANSWER.unpack_from(datagram)
    return PmpMapping(result, epoch, internal, external, lifetime)


def encode_pcp_announce(client: str) -> bytes:
    return _PCP_REQUEST.pack(2, PCP_ANNOUNCE, 0, 0, _mapped(client))


def encode_pcp_map_request(
    nonce: bytes, client: str, internal: int, wanted: Direct | None, lifetime: int = LIFETIME
) -> bytes:
    host, port = wanted or ("0.0.0.0", 0)
    head = _PCP_REQUEST.pack(2, PCP_MAP, 0, lifetime, _mapped(client))
    return head + _PCP_MAP.pack(nonce, UDP, internal, port, _mapped(host))


def decode_pcp_untrusted(datagram: bytes) -> PcpAnswer:
    if len(datagram) < _PCP_ANSWER.size:
        raise BadPacket("PCP answer cut short")
    version, opcode, _, result, lifetime, epoch = _PCP_ANSWER.unpack_from(datagram)
    if version != 2 or not opcode & 0x80:
        raise BadPacket("not a PCP answer")
    opcode &= 0x7F
    if opcode != PCP_MAP:
        return PcpAnswer(opcode, result, lifetime, epoch)
    if len(datagram) < _PCP_ANSWER.size + _PCP_MAP.size:
        raise BadPacket("PCP answer without its mapping")
    nonce, protocol, internal, port, address = _PCP_MAP.unpack_from(datagram, _PCP_ANSWER.size)
    if protocol != UDP:
        raise BadPacket("PCP mapping of another protocol")
    host = format_address(address[12:] if address[:12] == bytes(10) + b"\xff\xff" else address)
    return PcpAnswer(opcode, result, lifetime, epoch, nonce, internal, (host, port))


def is_public(host: str) -> bool:
    """Could a stranger reach this address? Routers behind routers hand out others."""
    try:
        address = parse_address(host)
    except BadPacket:
        return False
    is_odd = not any(address) or is_loopback(address) or is_link_local(address) or address[0] >= 224
    return not (is_odd or is_private(address) or is_tailscale_address(address))


class PortMapperStatistics(NamedTuple):
    is_mapped: bool
    drops: dict[str, int]


class PortMapper:
    """One mapping on one gateway. `begin` anew whenever gateway, address or port changed."""

    def __init__(self, entropy: Callable[[int], bytes], *, accept_private: bool = False) -> None:
        self.drops: Counter[str] = Counter()
        self.external: Direct | None = None
        self.service = ""
        self.upnp_location: str | None = None  # for the shell to ask, where nothing better answered
        self._entropy = entropy
        self._accept_private = accept_private
        self._gateway = self._client = ""
        self._internal = 0
        self._nonce = b""
        self._address = ""  # our public address as NAT-PMP says
        self._answers: set[str] = set()
        self._epochs: dict[str, tuple[int, float]] = {}
        self._decide_at = self._renew_at = self._expire_at = self._give_up_at = math.inf
        self._out: list[tuple[Direct, bytes]] = []

    def begin(self, gateway: str, client: str, internal: int, now: float) -> None:
        """Find out what the gateway speaks, and map `internal` with the best of it."""
        if (gateway, client, internal) != (self._gateway, self._client, self._internal):
            self.forget()
            self._gateway, self._client, self._internal = gateway, client, internal
        self._answers, self.upnp_location = set(), None
        self._nonce = self._nonce or self._entropy(NONCE_LENGTH)
        self._say(encode_pmp_address_request())
        self._say(encode_pcp_announce(client))
        self._out += [(place, upnp.SEARCH) for place in ((gateway, upnp.SSDP_PORT), upnp.SSDP_GROUP)]
        self._decide_at = now + SERVICE_TIMEOUT
        self._renew_at = math.inf

    def forget(self) -> None:
        """The mapping belongs to a network we have left."""
        self.external, self.service, self.upnp_location = None, "", None
        self._epochs.clear()
        self._nonce, self._address, self._gateway = b"", "", ""
        self._decide_at = self._renew_at = self._expire_at = self._give_up_at = math.inf

    def receive(self, datagram: bytes, source: Direct, now: float) -> None:
        if source[0] != self._gateway:
            self.drops["portmap.not_our_gateway"] += 1
            return
        try:
            if source[1] != GATEWAY_PORT:
                self.upnp_location = self.upnp_location or upnp.decode_search_answer_untrusted(datagram, source[0])
            elif datagram[:1] == b"\x02":
                self._on_pcp(decode_pcp_untrusted(datagram), now)
            else:
                self._on_pmp(decode_pmp_untrusted(datagram), now)
        except BadPacket:
            self.drops["portmap.bad_answer"] += 1

    def _on_pmp(self, answer: PmpAddress | PmpMapping, now: float) -> None:
        if not self._keeps_time(PMP, answer.epoch, now):
            return
        if answer.result != OK:
            self.drops["portmap.refused"] += 1
        elif isinstance(answer, PmpAddress):
            self._address = answer.address
            self._answers.add(PMP)
        elif answer.internal == self._internal and PMP in self._answers:
            self._install(PMP, (self._address, answer.external), answer.lifetime, now)

    def _on_pcp(self, answer: PcpAnswer, now: float) -> None:
        if not self._keeps_time(PCP, answer.epoch, now):
            return
        if answer.result != OK:
            self.drops["portmap.refused"] += 1
        elif answer.opcode == PCP_ANNOUNCE:
            self._answers.add(PCP)
        elif answer.nonce == self._nonce and answer.internal == self._internal and answer.external is not None:
            self._install(PCP, answer.external, answer.lifetime, now)
        else:
            self.drops["portmap.not_our_mapping"] += 1

    def _keeps_time(self, service: str, epoch: int, now: float) -> bool:
        """A clock that went back means that the router was restarted and has forgotten our mapping."""
        before = self._epochs.get(service)
        self._epochs[service] = (epoch, now)
        if before is not None and epoch + 2 < before[0] + (now - before[1]) * 7 / 8 and self.service == service:
            self.external, self.service = None, ""
            self.begin(self._gateway, self._client, self._internal, now)
            return False
        return True

    def on_upnp_mapped(self, external: Direct, now: float, lifetime: float = LIFETIME) -> None:
        """The shell has made a mapping by UPnP."""
        self._install(UPNP, external, lifetime, now)

    def _install(self, service: str, external: Direct, lifetime: float, now: float) -> None:
        if not external[1] or not (self._accept_private or is_public(external[0])):
            self.drops["portmap.not_public"] += 1
            return
        self.external, self.service = external, service
        self._renew_at = now + max(MIN_RENEW, lifetime / 2)
        self._expire_at = now + max(2 * MIN_RENEW, lifetime)
        self._give_up_at = math.inf

    def handle_timer(self, now: float) -> None:
        if now >= self._decide_at:
            self._decide_at = math.inf
            self._decide(now)
        if now >= self._renew_at:
            self.begin(self._gateway, self._client, self._internal, now)
        if now >= self._expire_at:
            self._expire_at = math.inf
            self.external, self.service = None, ""
        if now >= self._give_up_at:
            self._give_up_at = math.inf
            self._renew_at = now + RETRY_AFTER

    def _decide(self, now: float) -> None:
        wanted = self.external
        self._give_up_at = now + CREATE_TIMEOUT
        if PMP in self._answers:
            self._say(encode_pmp_map_request(self._internal, wanted[1] if wanted else self._internal))
        elif PCP in self._answers:
            self._say(encode_pcp_map_request(self._nonce, self._client, self._internal, wanted))
        elif self.upnp_location is None:
            self._give_up_at, self._renew_at = math.inf, now + RETRY_AFTER

    @property
    def wants_upnp(self) -> bool:
        """Should the shell ask `upnp_location` now?"""
        return self.upnp_location is not None and not self._answers and self._decide_at == math.inf

    def _say(self, datagram: bytes) -> None:
        self._out.append(((self._gateway, GATEWAY_PORT), datagram))

    def transmit(self, now: float) -> list[tuple[Direct, bytes]]:
        out, self._out = self._out, []
        return out

    def statistics(self) -> PortMapperStatistics:
        return PortMapperStatistics(self.external is not None, dict(self.drops))

    def next_timer(self) -> float:
        return min(self._decide_at, self._renew_at, self._expire_at, self._give_up_at)
