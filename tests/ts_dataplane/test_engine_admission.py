"""What a hostile peer may try, and the name under which it is dropped."""

from __future__ import annotations

import pytest
from engine_scripts import (
    ACK,
    ALLOW_ALL,
    FIN,
    ONLY_80,
    OTHER,
    OTHER6,
    OTHER_PEER,
    PEER,
    PSH,
    RST,
    SYN,
    THEM,
    THEM6,
    US,
    US6,
    Desk,
    fragment,
    icmp,
    packet,
    tcp,
    udp,
)

from ts_base.ip import TCP, UDP, parse_address
from ts_base.ip_headers import ip_packet
from ts_dataplane.claims import PeerRoutes


def test_admitted_packets_lose_their_padding():
    desk = Desk(rules=ALLOW_ALL)
    for whole in (tcp(SYN), tcp(ACK, data=b"abc"), udp(53), tcp(ACK, source=THEM6, destination=US6), icmp(8)):
        assert desk.hear(whole) == [whole]
    assert desk.drops == {}


def test_syn_after_ack_in_one_flow_is_judged_anew():
    desk = Desk()
    assert desk.hear(tcp(ACK), tcp(SYN), tcp(ACK), tcp(SYN | ACK), tcp(SYN | PSH)) == [
        tcp(ACK),
        tcp(ACK),
        tcp(SYN | ACK),
    ]
    assert desk.drops == {"filter.no_rule": 2}


@pytest.mark.parametrize("flags", [ACK, RST, FIN | ACK, SYN | ACK, 0])
def test_segments_that_open_nothing_need_no_rule(flags):
    assert len(Desk().hear(tcp(flags), tcp(flags, source=THEM6, destination=US6))) == 2


def test_a_flow_admitted_for_one_peer_says_nothing_for_another():
    desk = Desk(rules=ALLOW_ALL)
    assert desk.hear(tcp(ACK))
    assert not desk.hear(tcp(ACK), peer=OTHER_PEER)
    assert desk.drops == {"filter.not_owner": 1}


@pytest.mark.parametrize(
    "whole", [tcp(ACK, source=OTHER), udp(1, source=OTHER), icmp(0, OTHER), tcp(ACK, source=OTHER6, destination=US6)]
)
def test_a_peer_may_not_speak_for_another(whole):
    desk = Desk(rules=ALLOW_ALL)
    assert desk.hear(tcp(ACK), whole, tcp(ACK)) == [tcp(ACK), tcp(ACK)]
    assert desk.drops == {"filter.not_owner": 1}


@pytest.mark.parametrize("source", [US, "0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "0.1.2.3"])
def test_martians_are_refused_even_from_an_exit_node(source):
    exit_node = PeerRoutes(PEER, (THEM,), (THEM, "0.0.0.0/0", "::/0"))
    desk = Desk(rules=ALLOW_ALL, peers=(exit_node,), exit_node=PEER)
    assert desk.hear(tcp(ACK, source="9.9.9.9"))
    assert not desk.hear(tcp(ACK, source=source))
    assert desk.drops == {"filter.not_owner": 1}


def test_an_exit_node_may_not_speak_for_another_peer():
    peers = (PeerRoutes(PEER, (THEM,), (THEM, "0.0.0.0/0")), PeerRoutes(OTHER_PEER, (OTHER,)))
    desk = Desk(rules=ALLOW_ALL, peers=peers, exit_node=PEER)
    assert not desk.hear(tcp(ACK, source=OTHER))


@pytest.mark.parametrize(
    ("destination", "reason"),
    [
        ("224.0.0.1", "filter.multicast"),
        ("169.254.1.1", "filter.link_local"),
        ("169.254.169.254", "filter.not_local"),
        ("127.0.0.1", "filter.not_local"),
        ("255.255.255.255", "filter.not_local"),
        (OTHER, "filter.not_local"),
    ],
)
def test_destinations_that_are_not_ours_are_named(destination, reason):
    desk = Desk(rules=ALLOW_ALL)
    assert not desk.hear(tcp(ACK, destination=destination), udp(5, destination=destination))
    assert desk.drops == {reason: 2}


@pytest.mark.parametrize(
    ("destination", "reason"),
    [("ff02::1", "filter.multicast"), ("fe80::1", "filter.link_local"), ("::1", "filter.not_local")],
)
def test_ipv6_destinations_that_are_not_ours_are_named(destination, reason):
    desk = Desk(rules=ALLOW_ALL)
    assert not desk.hear(tcp(ACK, source=THEM6, destination=destination))
    assert desk.drops == {reason: 1}


@pytest.mark.parametrize("rules", [(), ALLOW_ALL])
@pytest.mark.parametrize("size", [20, 24, 27, 28, 39])
def test_tiny_first_fragments_are_unknown(rules, size):
    whole = fragment(tcp(ACK), offset=0, more=True)[:size]
    whole = whole[:2] + size.to_bytes(2, "big") + whole[4:]
    desk = Desk(rules=rules)
    assert not desk.hear(whole)
    assert desk.drops == {"filter.unknown_protocol": 1}


def test_later_fragments_may_not_reach_into_a_header():
    desk = Desk()
    late = tcp(ACK, data=bytes(80))
    assert not desk.hear(*(fragment(late, offset=offset, more=False) for offset in range(1, 10)))
    assert desk.drops == {"filter.unknown_protocol": 9}
    assert desk.hear(fragment(late, offset=10, more=True))  # as upstream: harmless without its first part


def test_first_fragments_are_judged_by_their_ports():
    desk = Desk(rules=ONLY_80)
    first = [fragment(udp(port, data=bytes(64)), offset=0, more=True) for port in (80, 81)]
    assert desk.hear(*first) == first[:1]
    syn = [fragment(tcp(SYN, port, data=bytes(64)), offset=0, more=True) for port in (80, 81)]
    assert desk.hear(*syn) == syn[:1]
    assert desk.drops == {"filter.no_rule": 2}


def test_a_fragment_does_not_ride_on_the_flow_before_it():
    desk = Desk(rules=ONLY_80)
    whole = udp(80, data=bytes(64))
    assert desk.hear(whole, fragment(whole, offset=3, more=False)) == [whole]
    assert desk.drops == {"filter.unknown_protocol": 1}


def test_fragments_from_a_stranger_are_spoofed():
    desk = Desk(rules=ALLOW_ALL)
    assert not desk.hear(fragment(udp(1, source=OTHER, data=bytes(99)), offset=20, more=False))
    assert desk.drops == {"filter.not_owner": 1}


@pytest.mark.parametrize(
    "option",
    [
        b"\x83\x07\x04\x01\x02\x03\x04\x00",
        b"\x89\x07\x04\x01\x02\x03\x04\x00",
        b"\x01\x44\x01\x00",
        b"\x01\x01\x01\x07",
    ],
)
def test_source_routes_and_broken_options_are_refused(option):
    plain = tcp(ACK)
    whole = bytes([0x45 + len(option) // 4]) + plain[1:20] + option + plain[20:]
    whole = whole[:2] + len(whole).to_bytes(2, "big") + whole[4:]
    desk = Desk(rules=ALLOW_ALL)
    assert not desk.hear(whole)
    assert desk.drops == {"engine.source_routed": 1}


def test_harmless_options_are_judged_like_none():
    plain = tcp(SYN, 81)
    whole = b"\x46" + plain[1:20] + b"\x01\x01\x01\x00" + plain[20:]
    whole = whole[:2] + len(whole).to_bytes(2, "big") + whole[4:]
    assert Desk(rules=ALLOW_ALL).hear(whole) == [whole]
    desk = Desk(rules=ONLY_80)
    assert not desk.hear(whole)
    assert desk.drops == {"filter.no_rule": 1}


@pytest.mark.parametrize("header", [0, 43, 51, 60, 135])
def test_ipv6_extension_headers_meet_no_rule(header):
    inner = tcp(ACK, source=THEM6, destination=US6)[40:]
    whole = packet(header, bytes([TCP, 0]) + bytes(6) + inner, THEM6, US6)
    desk = Desk(rules=ALLOW_ALL)
    assert not desk.hear(whole)
    assert desk.drops == {"filter.unknown_protocol" if header == 0 else "filter.no_rule": 1}


def test_ipv6_fragments_follow_the_same_rules():
    desk = Desk(rules=ONLY_80)

    def piece(port: int, offset: int, more: int, size: int = 64) -> bytes:
        body = udp(port, THEM6, US6, bytes(96))[40:][:size]
        return packet(44, bytes([UDP, 0]) + (offset << 3 | more).to_bytes(2, "big") + bytes(4) + body, THEM6, US6)

    assert desk.hear(piece(80, 0, 1), piece(80, 10, 0)) == [piece(80, 0, 1), piece(80, 10, 0)]
    assert not desk.hear(piece(81, 0, 1), piece(80, 9, 0), piece(80, 0, 1, size=7))
    assert desk.drops == {"filter.no_rule": 1, "filter.unknown_protocol": 2}


def test_runts_and_lies_about_length_are_malformed():
    whole, six = tcp(ACK, data=bytes(12)), tcp(ACK, source=THEM6, destination=US6)
    wrong = [
        whole[:16],
        b"\x45" + bytes(15),
        whole[:2] + (999).to_bytes(2, "big") + whole[4:],
        whole[:2] + (19).to_bytes(2, "big") + whole[4:],
        b"\x44" + whole[1:],
        b"\x4f" + whole[1:2] + (40).to_bytes(2, "big") + whole[4:],
        b"\x00" + whole[1:],
        b"\x75" + whole[1:],
        six[:32],
        six[:4] + (999).to_bytes(2, "big") + six[6:],
        b"\xff" * 48,
    ]
    desk = Desk(rules=ALLOW_ALL)
    assert not desk.hear(*wrong)
    assert desk.drops == {"engine.malformed": len(wrong)}


def test_lengths_below_a_tcp_header_are_not_read_from_padding():
    whole = tcp(ACK)
    desk = Desk(rules=ALLOW_ALL)
    assert not desk.hear(whole[:2] + (39).to_bytes(2, "big") + whole[4:])
    six = tcp(ACK, source=THEM6, destination=US6)
    assert not desk.hear(six[:4] + (19).to_bytes(2, "big") + six[6:])
    assert desk.drops == {"filter.unknown_protocol": 2}


def test_icmp_answers_pass_and_questions_need_a_rule():
    desk = Desk()
    assert desk.hear(icmp(0), icmp(3), icmp(11)) == [icmp(0), icmp(3), icmp(11)]
    assert not desk.hear(icmp(8))
    assert desk.drops == {"filter.no_rule": 1}
    assert Desk(rules=ONLY_80).hear(icmp(8))  # any open port opens ping


def test_udp_replies_pass_until_the_tables_and_beyond():
    desk = Desk()
    assert not desk.hear(udp(4000, sport=53))
    desk.say(udp(53, source=US, destination=THEM, sport=4000))
    assert desk.hear(udp(4000, sport=53))
    assert not desk.hear(udp(4000, sport=54))
    assert not desk.hear(udp(4000, sport=53, source=THEM), peer=OTHER_PEER)
    desk.engine.tables = desk.engine.tables.with_peers([PeerRoutes(9, ("100.64.0.9",))])
    assert desk.hear(udp(4000, sport=53))
    assert desk.drops == {"filter.no_rule": 2, "filter.not_owner": 1}


def test_reply_flows_are_bounded():
    desk = Desk()
    for port in range(1, 20_000):
        desk.engine.replies.record((UDP, port.to_bytes(12, "big")))
    assert len(desk.engine.replies) == 16_384
    assert desk.engine.replies.forgotten == 19_999 - 16_384


def test_shields_up_and_jail_admit_only_answers():
    shielded = Desk(rules=ALLOW_ALL, shields_up=True)
    jailed = Desk(rules=ALLOW_ALL, peers=(PeerRoutes(PEER, (THEM,), jailed=True),))
    for desk in (shielded, jailed):
        desk.say(udp(53, source=US, destination=THEM, sport=4000))
        assert desk.hear(tcp(SYN), tcp(ACK), udp(9), udp(4000, sport=53), icmp(8), icmp(0)) == [
            tcp(ACK),
            udp(4000, sport=53),
            icmp(0),
        ]
        assert desk.drops == {"filter.no_rule": 3}


def test_nothing_is_admitted_before_the_first_tables():
    desk = Desk()
    desk.engine.tables = type(desk.engine.tables).empty()
    assert not desk.hear(tcp(ACK), icmp(0))
    assert desk.drops == {"filter.not_owner": 2}


def test_new_rules_apply_to_the_next_packet():
    desk = Desk(rules=ALLOW_ALL)
    assert desk.hear(tcp(SYN))
    desk.engine.tables = Desk().engine.tables
    assert not desk.hear(tcp(SYN))
    assert desk.hear(tcp(ACK))


def test_the_verdict_cache_is_bounded(monkeypatch):
    monkeypatch.setattr("ts_dataplane.tables.VERDICTS", 8)
    desk = Desk(rules=ALLOW_ALL)
    for port in range(100):
        assert desk.hear(udp(port))
    assert len(desk.engine.tables._verdicts) <= 8


def test_other_protocols_need_a_rule_that_names_them():
    whole = ip_packet(parse_address(THEM), parse_address(US), 47, bytes(20))
    desk = Desk(rules=ALLOW_ALL)
    assert not desk.hear(whole)
    assert desk.drops == {"filter.no_rule": 1}
