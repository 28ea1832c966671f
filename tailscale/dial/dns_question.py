"""One question put to the device's own resolver, by the same way as programs that ask 100.100.100.100."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tailscale.dns import wire
from tailscale.dns.resolvers import wire_name
from tailscale.dns_reply import DnsRecord, DnsReply
from ts_base.errors import BadPacket

if TYPE_CHECKING:
    from tailscale.dns.resolvers import NameResolver
    from tailscale.dns.responder import Responder

IDENTIFIER = 1  # nobody else hears of it


async def ask(resolver: NameResolver, responder: Responder, name: str, kind: str) -> DnsReply:
    """What came of it. ValueError for a type that has no name, NameNotFound for what can be no name at all."""
    number = wire.TYPES.get(kind.upper())
    if number is None:
        raise ValueError(f"record type {kind!r} is not one of {', '.join(wire.TYPES)}")
    asked = wire_name(name)
    message = await responder.answer(wire.encode_question(asked, number, IDENTIFIER), over_udp=False)
    if message is None:
        raise OSError("the resolver of this device is answering as many questions as it can")
    try:
        code, records = wire.decode_records_untrusted(message)
    except BadPacket:
        code, records = wire.SERVER_FAILURE, []
    exit_node = resolver.exit_for(asked)
    servers = tuple(server.addr for server in resolver.servers_for(asked))
    return DnsReply(
        name=name,
        type=kind.upper(),
        code=wire.CODES[code] if code < len(wire.CODES) else str(code),
        answers=tuple(
            DnsRecord(record.name, wire.NAMES_OF_TYPES.get(record.kind, str(record.kind)), record.ttl, record.body)
            for record in records
        ),
        resolvers=(resolver.exit_text(exit_node), *servers) if exit_node else servers,
        message=message,
    )
