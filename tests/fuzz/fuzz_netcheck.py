"""Netcheck and the port mapper under scripts of answers, silence and time: exact timers, an end, bounded output."""

from __future__ import annotations

import math
import random

from ts_dataplane import portmap, stun, upnp
from ts_dataplane.netcheck import STUN_TIMEOUT, Netcheck, RegionTargets

REGIONS = [
    RegionTargets(1, (("192.0.2.1", 3478),), (("2001:db8::1", 3478),)),
    RegionTargets(2, (("192.0.2.2", 3478), ("192.0.2.22", 3478))),
    RegionTargets(3, (), (("2001:db8::3", 3478),)),
    RegionTargets(4),
]
GATEWAY, CLIENT = "192.168.1.1", "192.168.1.9"
STEP = 4


def fuzz_one(data: bytes) -> None:
    """Records of: what 1, detail 1, time 1, length 1, bytes."""
    check, mapper = Netcheck(random.Random(1).randbytes), portmap.PortMapper(random.Random(2).randbytes)
    asked: list[tuple[tuple[str, int], bytes]] = []
    check.begin(REGIONS, 0.0, home=1)
    mapper.begin(GATEWAY, CLIENT, 41641, 0.0)
    now, at = 0.0, 0
    while at + STEP <= len(data):
        what, detail, wait, length = data[at : at + STEP]
        piece, at = data[at + STEP : at + STEP + length % 80], at + STEP + length % 80
        now += wait / 100 if wait < 250 else 400.0
        for machine in (check, mapper):
            if machine.next_timer() <= now:
                machine.handle_timer(now)
                assert machine.next_timer() > now
        for target, questions in check.transmit(now):
            asked += [(target, question) for question in questions]
        _answer(check, asked, what, detail, piece, now)
        port = portmap.GATEWAY_PORT if what & 64 else upnp.SSDP_PORT
        mapper.receive(piece, (GATEWAY, port), now)
        if what & 128:
            check.begin(REGIONS[: detail % 5], now, home=detail % 5, full=bool(detail & 16))
            mapper.begin(GATEWAY, CLIENT, 41641 + detail % 2, now)
        assert len(mapper.transmit(now)) <= 40
        assert mapper.external is None or portmap.is_public(mapper.external[0])
        del asked[:-64]
        assert check.next_timer() <= now + STUN_TIMEOUT or check.next_timer() == math.inf
        check.take_report()


def _answer(
    check: Netcheck, asked: list[tuple[tuple[str, int], bytes]], what: int, detail: int, piece: bytes, now: float
) -> None:
    if what & 1 and asked:
        target, question = asked[detail % len(asked)]
        seen = ("203.0.113.7", detail) if what & 2 else ("2001:db8::77", detail)
        answer = stun.encode_response(stun.decode_request_untrusted(question), seen)
        source = target if what & 4 else ("192.0.2.99", 1)
        check.receive([(answer, source)], now)
    else:
        check.receive([(piece, ("192.0.2.1", 3478))], now)


def seeds() -> list[bytes]:
    answers = b"".join(bytes([7, n, 2, 0]) for n in range(8))
    pmp = bytes.fromhex("0080000000000001cb007209")
    mapped = bytes.fromhex("0081000000000001a2a9c35000001c20")
    found = b"HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1:5000/d.xml\r\n\r\n"
    routers = b"".join(bytes([64, 0, 10, len(piece)]) + piece for piece in (pmp, mapped, mapped))
    return [
        answers,
        answers + bytes([128, 16, 255, 0]) + answers,
        routers + bytes([128, 0, 30, 0]) + routers,
        bytes([0, 0, 1, len(found)]) + found + answers + bytes([0, 0, 200, 0]) * 4,
    ]
