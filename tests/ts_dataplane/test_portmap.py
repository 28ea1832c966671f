"""NAT-PMP, PCP and UPnP against routers of every temper."""

from __future__ import annotations

import math
import re
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz import fuzz_portmap
from ts_base.errors import BadPacket
from ts_dataplane import portmap, upnp
from ts_dataplane.portmap import GATEWAY_PORT, PCP, PMP, UPNP, PortMapper

GATEWAY, CLIENT, PORT = "192.168.1.1", "192.168.1.9", 41641
ROUTER = (GATEWAY, GATEWAY_PORT)
PUBLIC = bytes([203, 0, 114, 9])


def pmp_address(epoch, address=PUBLIC, result=0):
    return pack(">BBHI", 0, 128, result, epoch) + address


def pmp_mapping(epoch, external=50000, lifetime=7200, result=0, internal=PORT):
    return pack(">BBHIHHI", 0, 129, result, epoch, internal, external, lifetime)


def pcp(opcode, epoch, result=0, lifetime=7200, body=b""):
    return pack(">BBBBII12x", 2, 0x80 | opcode, 0, result, lifetime, epoch) + body


def mapper(now=0.0):
    machine = PortMapper(lambda n: bytes(range(n)))
    machine.begin(GATEWAY, CLIENT, PORT, now)
    return machine


def sent(machine, now):
    return [datagram for place, datagram in machine.transmit(now) if place == ROUTER]


def test_requests_have_the_bytes_of_the_standards():
    assert portmap.encode_pmp_address_request() == b"\0\0"
    assert portmap.encode_pmp_map_request(41641, 0).hex() == "00010000a2a9000000001c20"
    announce = portmap.encode_pcp_announce(CLIENT)
    assert len(announce) == 24
    assert announce.hex() == "0200000000000000" + "00" * 10 + "ffffc0a80109"
    request = portmap.encode_pcp_map_request(bytes(range(12)), CLIENT, PORT, None)
    assert len(request) == 60
    assert request[24:].hex() == "000102030405060708090a0b" + "11000000" + "a2a90000" + "00" * 10 + "ffff00000000"


def test_nat_pmp_maps_and_renews_at_half_life():
    machine = mapper()
    assert sent(machine, 0.0) == [b"\0\0", portmap.encode_pcp_announce(CLIENT)]
    machine.receive(pmp_address(100), ROUTER, 0.01)
    assert machine.next_timer() == 0.25
    machine.handle_timer(0.25)
    assert sent(machine, 0.25) == [portmap.encode_pmp_map_request(PORT, PORT)]
    machine.receive(pmp_mapping(100), ROUTER, 0.26)
    assert (machine.external, machine.service) == (("203.0.114.9", 50000), PMP)
    assert machine.next_timer() == pytest.approx(3600.26)
    machine.handle_timer(3600.26)
    machine.receive(pmp_address(3700), ROUTER, 3600.3)
    machine.handle_timer(3600.6)
    assert sent(machine, 3600.6)[-1] == portmap.encode_pmp_map_request(PORT, 50000)  # the same port again, please


def test_pcp_is_used_where_nothing_older_answers():
    machine = mapper()
    machine.receive(pcp(0, 5), ROUTER, 0.01)
    machine.transmit(0.1)
    machine.handle_timer(0.25)
    (request,) = sent(machine, 0.25)
    assert request[:2] == b"\x02\x01"
    answer = request[24:36] + b"\x11\0\0\0" + pack(">HH", PORT, 40000) + bytes(10) + b"\xff\xff" + PUBLIC
    machine.receive(pcp(1, 5, body=answer), ROUTER, 0.3)
    assert (machine.external, machine.service) == (("203.0.114.9", 40000), PCP)


def test_rebooted_router_is_noticed_by_its_clock():
    machine = mapper()
    machine.receive(pmp_address(100_000), ROUTER, 0.01)
    machine.handle_timer(0.25)
    machine.receive(pmp_mapping(100_000), ROUTER, 0.3)
    machine.transmit(0.3)
    machine.handle_timer(machine.next_timer())
    machine.receive(pmp_address(12), ROUTER, 3601.0)
    assert machine.external is None
    assert sent(machine, 3601.0)  # it starts over at once
    machine.receive(pmp_address(12), ROUTER, 3601.1)
    machine.handle_timer(3601.3)
    machine.receive(pmp_mapping(12, external=50001), ROUTER, 3601.4)
    assert machine.external == ("203.0.114.9", 50001)


@pytest.mark.parametrize(
    "answers",
    [
        [pmp_address(1, result=2)],
        [pmp_address(1), pmp_mapping(1, result=2)],
        [pmp_address(1, bytes([10, 0, 0, 1])), pmp_mapping(1)],
        [pmp_address(1, bytes(4)), pmp_mapping(1)],
        [pmp_address(1), pmp_mapping(1, external=0)],
        [pmp_address(1), pmp_mapping(1, internal=1)],
        [pcp(0, 1, result=12)],
        [pcp(0, 1), pcp(1, 1, body=bytes(12) + b"\x11" + bytes(23))],
        [b""],
        [b"\0\x80"],
        [b"\x02\x81"],
    ],
)
def test_useless_answers_make_no_mapping(answers):
    machine = mapper()
    for number, answer in enumerate(answers):
        machine.receive(answer, ROUTER, 0.01 + number)
        if machine.next_timer() <= 0.25:
            machine.handle_timer(0.25)
    assert machine.external is None


def test_answer_from_elsewhere_is_not_read():
    machine = mapper()
    machine.receive(pmp_address(1), ("192.168.1.66", GATEWAY_PORT), 0.01)
    machine.handle_timer(0.25)
    assert machine.drops["portmap.not_our_gateway"] == 1
    assert len(sent(machine, 0.25)) == 2


def test_silent_gateway_is_asked_again_after_ten_minutes():
    machine = mapper()
    machine.transmit(0.0)
    machine.handle_timer(0.25)
    assert machine.next_timer() == 600.25
    machine.handle_timer(600.25)
    assert sent(machine, 600.25)


def test_lost_mapping_answer_does_not_end_the_machine():
    machine = mapper()
    machine.receive(pmp_address(1), ROUTER, 0.01)
    for _ in range(4):
        now = machine.next_timer()
        assert math.isfinite(now)
        machine.handle_timer(now)


SSDP = b"HTTP/1.1 200 OK\r\nST: x\r\nLOCATION: http://192.168.1.1:5000/desc.xml\r\n\r\n"


def test_upnp_is_left_to_the_shell_and_renewed():
    machine = mapper()
    machine.receive(SSDP, (GATEWAY, 1900), 0.1)
    machine.handle_timer(0.25)
    assert machine.wants_upnp
    machine.on_upnp_mapped(("203.0.114.9", PORT), 0.5)
    assert (machine.external, machine.service, machine.next_timer()) == (("203.0.114.9", PORT), UPNP, 3600.5)


@pytest.mark.parametrize(
    "location",
    [b"http://192.168.1.66/x", b"https://192.168.1.1/x", b"http://192.168.1.1:99999/x", b"http://[::1/", b"x"],
)
def test_search_answer_that_points_elsewhere_is_refused(location):
    with pytest.raises(BadPacket):
        upnp.decode_search_answer_untrusted(b"HTTP/1.1 200 OK\r\nLOCATION: " + location + b"\r\n\r\n", GATEWAY)


DESCRIPTION = b"""<?xml version="1.0"?><root><device><serviceList>
<service><serviceType>urn:schemas-upnp-org:service:WANPPPConnection:1</serviceType><controlURL>/ppp</controlURL></service>
<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType><controlURL>/ip</controlURL></service>
</serviceList></device></root>"""


def test_best_service_of_a_description_is_found():
    point = upnp.decode_description_untrusted(DESCRIPTION, "http://192.168.1.1:5000/desc.xml")
    assert point == upnp.ControlPoint("http://192.168.1.1:5000/ip", upnp.SERVICES[1])
    with pytest.raises(BadPacket):
        upnp.decode_description_untrusted(re.sub(b"/(ip|ppp)", b"http://evil/", DESCRIPTION), "http://192.168.1.1/")


def test_soap_call_and_reply():
    headers, body = upnp.encode_call(upnp.SERVICES[1], "AddPortMapping", upnp.mapping_arguments(1, 2, CLIENT))
    assert headers["SOAPAction"] == f'"{upnp.SERVICES[1]}#AddPortMapping"'
    assert b"<NewInternalClient>192.168.1.9</NewInternalClient>" in body
    assert b"<NewLeaseDuration>7200</NewLeaseDuration>" in body
    assert upnp.decode_reply_untrusted(
        b"<u:R><NewExternalIPAddress>203.0.114.9</NewExternalIPAddress>", "NewExternalIPAddress"
    )
    assert upnp.error_code(b"<errorCode>725</errorCode>") == 725
    with pytest.raises(BadPacket):
        upnp.decode_reply_untrusted(b"<x/>", "NewExternalIPAddress")


@given(st.binary(max_size=120))
def test_noise_raises_only_bad_packet(noise):
    fuzz_portmap.fuzz_one(noise)
