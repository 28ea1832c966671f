"""Anything as a router's answer: NAT-PMP, PCP, SSDP, a description, a SOAP reply."""

from __future__ import annotations

import contextlib

from ts_base.errors import BadPacket
from ts_dataplane import portmap, upnp

GATEWAY = "192.168.1.1"


def fuzz_one(data: bytes) -> None:
    for decode in (
        portmap.decode_pmp_untrusted,
        portmap.decode_pcp_untrusted,
        lambda text: upnp.decode_search_answer_untrusted(text, GATEWAY),
        lambda text: upnp.decode_description_untrusted(text, f"http://{GATEWAY}/"),
        lambda text: upnp.decode_reply_untrusted(text, "NewExternalIPAddress"),
    ):
        with contextlib.suppress(BadPacket):
            decode(data)
    upnp.error_code(data)
    mapper = portmap.PortMapper(bytes)
    mapper.begin(GATEWAY, "192.168.1.9", 41641, 0.0)
    for port in (portmap.GATEWAY_PORT, upnp.SSDP_PORT):
        mapper.receive(data, (GATEWAY, port), 0.1)
        mapper.handle_timer(0.3)


def seeds() -> list[bytes]:
    description = b"<service><serviceType>%s</serviceType><controlURL>/ip</controlURL></service>"
    return [
        bytes.fromhex("0080000000000001cb007209"),
        bytes.fromhex("0081000000000001a2a9c35000001c20"),
        bytes.fromhex("0281000000001c2000000001") + bytes(48),
        b"HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1:5000/desc.xml\r\n\r\n",
        description % upnp.SERVICES[0].encode(),
        b"<u:R><NewExternalIPAddress>203.0.114.9</NewExternalIPAddress><errorCode>725</errorCode>",
    ]
