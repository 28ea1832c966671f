"""A whole SOCKS 5 negotiation from a hostile client, in pieces, and its datagrams: a request, or BadPacket and a reply.

The first byte says how long the pieces are, and whether there are users. Nothing read is ever read twice.
"""

from __future__ import annotations

from ts_base.errors import BadPacket
from ts_base.ip import maybe_address
from ts_proxy.socks5 import (
    Command,
    Credentials,
    Reply,
    Socks5Server,
    SocksRequest,
    decode_datagram_untrusted,
    encode_datagram,
    is_fragment,
)
from ts_proxy.user_names import decode_user_untrusted

LONGEST_ANSWER = 2 + 2 + 10


def fuzz_one(data: bytes) -> None:
    _datagram(data)
    if not data:
        return
    size = (data[0] & 0x3F) + 1
    machine = Socks5Server(needs_user=bool(data[0] & 0x40))
    sent = b""
    rest = data[1:]
    try:
        while True:
            event = machine.receive(rest[:size])
            rest = rest[size:]
            if isinstance(event, Credentials):
                _user(event.user)
                if data[0] & 0x80:
                    machine.reject()
                    break
                machine.accept()
                event = machine.receive(b"")
            sent += machine.transmit()
            if isinstance(event, SocksRequest):
                _request(event)
                machine.reply(Reply.SUCCEEDED, ("100.64.0.1", 1))
                machine.take_rest()
                break
            if not rest:
                break
    except BadPacket:
        pass
    sent += machine.transmit()
    assert len(sent) <= LONGEST_ANSWER


def _user(written: bytes) -> None:
    try:
        who = decode_user_untrusted(written)
    except BadPacket:
        return
    assert who.session.isprintable()
    assert who.ttl >= 0


def _request(request: SocksRequest) -> None:
    assert request.command in (Command.CONNECT, Command.UDP_ASSOCIATE)
    host, port = request.destination
    assert 0 <= port < 65536
    assert host.isascii()
    assert host.isprintable()
    assert maybe_address(host) is not None or 0 < len(host) <= 253


def _datagram(data: bytes) -> None:
    is_fragment(data)
    try:
        (host, port), payload = decode_datagram_untrusted(data)
    except BadPacket:
        return
    assert 0 < port < 65536
    if maybe_address(host) is not None:
        again = decode_datagram_untrusted(encode_datagram(host, port, payload))
        assert again == ((host, port), payload)


def seeds() -> list[bytes]:
    address = b"\1\x64\x40\0\7\0\x50"
    name = b"\3\x0bexample.com\1\xbb"
    six = b"\4" + bytes(15) + b"\1\0\x50"
    greeting, login = b"\5\2\0\2", b"\1\x12alice+session=shop\6secret"
    made = [bytes((0x3F,)) + greeting + login + b"\5\1\0" + name + b"early"]
    made += [bytes((flags,)) + b"\5\1\0\5\3\0" + address for flags in (0, 1, 0x3F, 0x40, 0xFF)]
    made += [b"\x3f\5\1\0\5\1\0" + six, b"\x3f\4\1\0\x50\1\2\3\4\0", b"\x3f\5\1\0\5\1\0\3\x09\xc3\xbc.example\0\x50"]
    return [*made, *(b"\0\0\0" + one + b"payload" for one in (address, name, six)), b"\0\0\1" + address]
