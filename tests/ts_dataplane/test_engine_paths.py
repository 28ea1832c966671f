"""Sorting what comes in, and sending what goes out: datagrams, paths, TSMP, masquerade."""

from __future__ import annotations

from engine_scripts import (
    ACK,
    ALLOW_ALL,
    DIRECT,
    OTHER_PEER,
    PEER,
    RELAYED,
    RST,
    SYN,
    THEM,
    THEM6,
    US,
    US6,
    Desk,
    checksums_hold,
    fragment,
    icmp,
    packet,
    seal,
    tcp,
    udp,
)

from ts_base.ip import ICMP6, TCP, TSMP, UDP, checksum, parse_address, pseudo_header_sum
from ts_base.ip_headers import ip_packet
from ts_dataplane import geneve, stun, tsmp
from ts_dataplane.claims import PeerRoutes
from ts_dataplane.engine import DISCO_LIMIT, STUN_LIMIT, RouteMissing
from ts_dataplane.heard_log import HeardLog
from ts_dataplane.packets import parse, with_source, without_padding
from ts_dataplane.pathless import HELD_DATAGRAMS
from ts_dataplane.spread import EveryPath
from ts_tunnel.messages import SessionEstablished

DISCO = b"TS\xf0\x9f\x92\xac" + bytes(100)
STUN = stun.encode_request(bytes(12))
US_BYTES, THEM_BYTES = parse_address(US), parse_address(THEM)


# The way in


def test_one_run_is_sorted_by_first_bytes():
    desk = Desk(rules=ALLOW_ALL)
    mixed = [DISCO, seal(PEER, tcp(SYN)), STUN, b"\7", b"", b"hello there", seal(PEER, tcp(ACK))]
    desk.engine.receive([(DIRECT, mixed)], 0.0)
    assert desk.stack.received == [tcp(SYN), tcp(ACK)]
    assert desk.engine.take_disco() == [(DISCO, DIRECT)]
    assert desk.engine.take_stun() == [(STUN, DIRECT)]
    assert desk.engine.take_disco() == desk.engine.take_stun() == []
    assert desk.drops == {"engine.stray_byte": 2, "engine.unknown_datagram": 1}


def test_a_relay_delivers_disco_but_never_stun_or_geneve():
    desk = Desk(rules=ALLOW_ALL)
    wrapped = geneve.encode_header(geneve.DISCO, 7) + DISCO
    desk.engine.receive([(RELAYED, [DISCO, STUN, wrapped])], 0.0)
    assert desk.engine.take_disco() == [(DISCO, RELAYED)]
    assert desk.engine.take_stun() == []
    assert desk.drops == {"engine.unknown_datagram": 2}


def test_peer_relayed_datagrams_arrive_by_the_peer_relay_path():
    desk = Desk(rules=ALLOW_ALL)
    data = geneve.encode_header(geneve.WIREGUARD, 99) + seal(PEER, tcp(SYN))
    probe = geneve.encode_header(geneve.DISCO, 99, control=True) + DISCO
    desk.engine.receive([(DIRECT, [data, probe, geneve.encode_header(geneve.WIREGUARD, 99) + b"junk"])], 0.0)
    assert desk.stack.received == [tcp(SYN)]
    assert desk.engine.take_disco() == [(DISCO, (*DIRECT, 99))]
    assert desk.engine.take_heard() == [(PEER, (*DIRECT, 99))]
    assert desk.drops == {"engine.unknown_datagram": 1}


def test_disco_and_stun_are_bounded_and_the_oldest_goes_first():
    desk = Desk()
    desk.engine.receive([(DIRECT, [DISCO + bytes([n % 256]) for n in range(DISCO_LIMIT + 3)])], 0.0)
    desk.engine.receive([(DIRECT, [STUN] * (STUN_LIMIT + 2))], 0.0)
    assert desk.drops == {"engine.disco_full": 3, "engine.stun_full": 2}
    assert desk.engine.take_disco()[0][0] == DISCO + b"\3"
    assert len(desk.engine.take_stun()) == STUN_LIMIT


def test_heard_names_a_peer_only_when_its_path_changes():
    desk = Desk(rules=ALLOW_ALL)
    desk.hear(tcp(ACK))
    assert desk.engine.take_heard() == [(PEER, DIRECT)]
    desk.hear(tcp(ACK))
    assert desk.engine.take_heard() == []
    desk.hear(path=RELAYED)  # nothing inside, but authenticated
    desk.engine.receive([(RELAYED, [seal(PEER, b"")])], 0.0)
    assert desk.engine.take_heard() == [(PEER, RELAYED)]


# The way out


def test_packets_go_to_every_path_of_their_peer():
    desk = Desk()
    desk.engine.paths[PEER] = (DIRECT, RELAYED)
    sent = tcp(ACK, source=US, destination=THEM)
    assert [(path, [without_padding(p) for p in run]) for path, run in desk.say(sent, sent)] == [
        (DIRECT, [sent, sent]),
        (RELAYED, [sent, sent]),
    ]
    assert desk.engine.take_sent() == {PEER}
    assert desk.engine.take_sent() == set()


def test_a_peer_relay_path_is_left_to_the_underlay_to_wrap():
    desk = Desk()
    desk.engine.paths[PEER] = (("192.0.2.9", 7000, 5),)
    ((path, (sent,)),) = desk.say(tcp(ACK, source=US, destination=THEM))
    assert path == ("192.0.2.9", 7000, 5)
    assert without_padding(sent) == tcp(ACK, source=US, destination=THEM)


def test_packets_nobody_has_a_route_for_are_surfaced():
    desk = Desk()
    lost = tcp(SYN, source=US, destination="100.64.9.9")
    assert desk.say(lost, lost) == []
    assert desk.drops == {"engine.no_route": 2}
    assert desk.engine.take_messages() == [RouteMissing(parse_address("100.64.9.9"))]
    assert desk.engine.take_messages() == []
    assert desk.engine.take_sent() == set()


def test_what_is_sealed_before_a_path_is_known_leaves_when_one_appears():
    desk = Desk()
    way = desk.engine.paths.pop(PEER)
    assert desk.say(tcp(ACK, source=US, destination=THEM)) == []
    assert desk.engine.transmit(1.0) == []
    desk.engine.paths[PEER] = way
    (path, datagrams), *more = desk.engine.transmit(2.0)
    assert path == way[0]
    assert len(datagrams) == 1
    assert [path for path, _ in more] == list(way[1:])
    assert desk.engine.transmit(3.0) == []
    assert desk.drops == {}


def test_what_waits_for_a_path_is_bounded_and_counted():
    desk = Desk()
    del desk.engine.paths[PEER]
    for _ in range(HELD_DATAGRAMS + 3):
        assert desk.say(tcp(ACK, source=US, destination=THEM)) == []
    assert desk.drops == {"engine.no_path": 3}


def test_answers_to_strangers_go_back_by_their_path():
    desk = Desk()
    desk.tunnel.replies.append((RELAYED, [b"cookie"]))
    assert desk.engine.transmit(0.0) == [(RELAYED, [b"cookie"])]


def test_only_unfragmented_flows_to_unicast_are_remembered():
    desk = Desk()
    first = udp(53, source=US, destination=THEM, data=bytes(200), sport=4000)
    desk.say(fragment(first, offset=20, more=False), tcp(ACK, source=US, destination=THEM), icmp(8, US, THEM))
    assert len(desk.engine.replies) == 0
    desk.say(fragment(first, offset=0, more=True))
    desk.say(udp(53, source=US6, destination=THEM6))
    assert len(desk.engine.replies) == 2


def test_the_earliest_deadline_of_both_neighbours_counts():
    assert Desk().engine.next_timer() == 7.0


# TSMP


def test_a_ping_is_answered_before_the_filter():
    for peers in (None, (PeerRoutes(PEER, (THEM, THEM6), jailed=True),)):
        desk = Desk(peers=peers, shields_up=True)
        desk.engine.set_services(peerapi_port=41234)
        for us, them in ((US, THEM), (US6, THEM6)):
            ends = parse_address(us), parse_address(them)
            assert desk.hear(tsmp.encode_ping(ends[1], ends[0], b"12345678")) == []
            ((_, (answer,)),) = desk.say()
            whole = without_padding(answer)
            assert whole == tsmp.encode_pong(*ends, b"12345678", 41234)
            assert tsmp.decode_untrusted(PEER, whole, parse(whole)) == tsmp.TsmpPong(PEER, b"12345678", 41234)
        assert desk.engine.take_sent() == set()  # no user data


def test_a_syn_to_our_peer_api_passes_the_filter_and_nothing_else_does():
    for peers, shields_up, admitted in (
        (None, False, True),
        (None, True, False),
        ((PeerRoutes(PEER, (THEM, THEM6), jailed=True),), False, False),
    ):
        desk = Desk(peers=peers, shields_up=shields_up, rules=())
        asked = tcp(SYN, port=7777)
        assert desk.hear(asked) == []
        desk.engine.set_services(peerapi_port=7777)
        assert bool(desk.hear(asked)) is admitted
        assert desk.hear(tcp(SYN, port=7778)) == []
        desk.engine.set_services(peerapi_port=7777, is_published=True)
        assert bool(desk.hear(asked)) is not shields_up, "relays of the internet are jailed"
        desk.engine.set_services(peerapi_port=0)
        assert desk.hear(asked) == []


def test_a_ping_for_somebody_else_is_not_answered():
    desk = Desk()
    desk.hear(tsmp.encode_ping(THEM_BYTES, parse_address("8.8.8.8"), bytes(8)))
    assert desk.say() == []
    assert desk.drops == {"filter.not_local": 1}


def test_our_ping_comes_back_as_a_message():
    desk = Desk()
    assert desk.engine.ping(PEER, b"abcdefgh")
    assert not desk.engine.ping(99, b"abcdefgh")
    assert desk.engine.take_sent() == {PEER}  # so that its paths are looked after, as for data
    ((_, (asked,)),) = desk.say()
    assert without_padding(asked) == tsmp.encode_ping(US_BYTES, THEM_BYTES, b"abcdefgh")
    desk.hear(tsmp.encode_pong(THEM_BYTES, US_BYTES, b"abcdefgh", 80))
    assert desk.engine.take_messages() == [tsmp.TsmpPong(PEER, b"abcdefgh", 80)]


def test_a_rejected_dial_is_a_message():
    desk = Desk()
    syn = tcp(SYN, 22, source=US, destination=THEM, sport=5000)
    rejected = tsmp.encode_rejected(parse(syn), "A")
    assert desk.hear(rejected, rejected + b"") == []
    expected = tsmp.TsmpReject(PEER, TCP, "A", (US_BYTES, 5000), (THEM_BYTES, 22), False)
    assert desk.engine.take_messages() == [expected, expected]
    desk.hear(ip_packet(THEM_BYTES, US_BYTES, TSMP, rejected[20:] + b"\1"))
    assert desk.engine.take_messages()[0].maybe_broken


def test_a_reject_from_a_stranger_is_not_heard():
    desk = Desk()
    desk.hear(tsmp.encode_rejected(parse(tcp(SYN, 22, source=US, destination=THEM)), "A"), peer=OTHER_PEER)
    assert desk.engine.take_messages() == []
    assert desk.drops == {"filter.not_owner": 1}


def test_refused_connections_are_told_why_in_both_families():
    for prefs, reason in (({}, "A"), ({"shields_up": True}, "S")):
        desk = Desk(**prefs)
        desk.hear(tcp(SYN, 22), tcp(SYN, 22, source=THEM6, destination=US6), udp(22), icmp(8), tcp(RST, 22))
        replies = [without_padding(reply) for _, run in desk.say() for reply in run]
        assert [parse(reply).protocol for reply in replies] == [TSMP, TSMP]
        for reply, us, them in zip(replies, (US, US6), (THEM, THEM6), strict=True):
            message = tsmp.decode_untrusted(0, reply, parse(reply))
            ends = (parse_address(them), 4000), (parse_address(us), 22)
            assert message == tsmp.TsmpReject(0, TCP, reason, *ends, False)


def test_rejects_are_rate_limited():
    desk = Desk()
    desk.hear(*[tcp(SYN, port) for port in range(150)], now=5.0)
    assert sum(len(run) for _, run in desk.say()) == 100
    desk.hear(tcp(SYN, 200), now=5.5)
    assert desk.say() == []
    desk.hear(tcp(SYN, 201), now=6.1)
    assert len(desk.say()) == 1
    assert desk.drops == {"filter.no_rule": 152, "engine.refusals_limited": 51}


def test_spoofed_syns_are_not_answered():
    desk = Desk()
    desk.hear(tcp(SYN), peer=OTHER_PEER)
    assert desk.say() == []


def test_an_advertised_disco_key_is_a_message():
    desk = Desk()
    desk.hear(tsmp.encode_disco_key(THEM_BYTES, US_BYTES, bytes(range(32))))
    assert desk.engine.take_messages() == [tsmp.DiscoKeyAdvertised(PEER, bytes(range(32)))]


def test_each_new_session_begins_with_our_disco_key():
    deaf = PeerRoutes(OTHER_PEER, ("100.64.0.3",), takes_adverts=False)
    peers = PeerRoutes(PEER, (THEM,), masquerade4="100.99.0.1"), deaf
    desk = Desk(peers=peers)
    established = [SessionEstablished(PEER, 1.0), SessionEstablished(OTHER_PEER, 1.0)]
    desk.tunnel.messages += established
    desk.hear(tcp(ACK))
    assert desk.say() == []  # no key is known: nothing is said
    assert desk.engine.take_messages() == established
    desk = Desk(peers=peers, disco_key=bytes(range(32)))
    desk.tunnel.messages += established
    desk.hear(tcp(ACK))
    ((_, (advert,)),) = desk.say()
    known_as = parse_address("100.99.0.1")
    assert without_padding(advert) == tsmp.encode_disco_key(known_as, THEM_BYTES, bytes(range(32)))
    assert desk.engine.take_messages() == established


def test_unknown_tsmp_and_too_much_of_it_are_counted():
    desk = Desk()
    desk.hear(packet(TSMP, b"z" + bytes(20)), packet(TSMP, b"!" + bytes(6)), packet(TSMP, b"p" + bytes(7)))
    assert desk.drops == {"engine.tsmp_unknown": 2}
    pong = tsmp.encode_pong(THEM_BYTES, US_BYTES, bytes(8), 0)
    desk.hear(*[pong] * 300)
    assert len(desk.engine.take_messages()) == 256
    desk.hear(*[tsmp.encode_ping(THEM_BYTES, US_BYTES, bytes(8))] * 300)
    assert sum(len(run) for _, run in desk.say()) == 256
    assert desk.drops["engine.tsmp_full"] == 45 + 44


# Masquerade


MASQUERADING = PeerRoutes(PEER, (THEM, THEM6), masquerade4="100.99.0.1", masquerade6="fd7a:115c:a1e0::99")


def test_a_masquerading_peer_sees_the_other_address_and_we_do_not():
    desk = Desk(rules=ALLOW_ALL, peers=(MASQUERADING,))
    for us, them, alias in ((US, THEM, "100.99.0.1"), (US6, THEM6, "fd7a:115c:a1e0::99")):
        for make in (tcp, udp):
            first = ACK if make is tcp else 53
            ((_, (sent,)),) = desk.say(make(first, source=us, destination=them))
            assert without_padding(sent) == make(first, source=alias, destination=them)
            assert checksums_hold(without_padding(sent))
            assert desk.hear(make(first, source=them, destination=alias)) == [make(first, source=them, destination=us)]
    assert desk.drops == {}


def test_udp_answers_are_admitted_through_a_masquerade():
    desk = Desk(peers=(MASQUERADING,))
    desk.say(udp(53, source=US, destination=THEM, sport=4000))
    assert desk.hear(udp(4000, source=THEM, destination="100.99.0.1", sport=53))


def test_rewriting_keeps_sums_that_say_none_and_leaves_later_fragments_alone():
    ours, alias = US_BYTES, parse_address("100.99.0.1")
    no_sum = udp(53, source=US, destination=THEM)
    no_sum = no_sum[:26] + b"\0\0" + no_sum[28:]
    assert with_source(no_sum, ours, alias)[26:28] == b"\0\0"
    later = fragment(udp(53, source=US, destination=THEM, data=bytes(100)), offset=20, more=False)
    later = later[:10] + b"\0\0" + later[12:]
    later = later[:10] + checksum(later[:20]).to_bytes(2, "big") + later[12:]
    changed = with_source(later, ours, alias)
    assert changed[20:] == later[20:]
    assert checksum(changed[:20]) % 0xFFFF == 0
    assert with_source(b"", ours, alias) == b""
    assert with_source(tcp(ACK), ours, alias) == tcp(ACK)


def test_rewriting_icmpv6_fixes_its_pseudo_header():
    us, them, alias = parse_address(US6), parse_address(THEM6), parse_address("fd7a:115c:a1e0::99")
    body = bytes([128, 0, 0, 0]) + bytes(range(8))
    body = body[:2] + checksum(body, pseudo_header_sum(us, them, ICMP6, len(body))).to_bytes(2, "big") + body[4:]
    changed = with_source(ip_packet(us, them, ICMP6, body), us, alias)
    assert checksums_hold(changed)
    assert changed[8:24] == alias


def test_a_udp_sum_never_becomes_none_by_rewriting():
    ours = US_BYTES
    for last in range(1, 255):
        alias = bytes([100, 99, 0, last])
        changed = with_source(udp(53, source=US, destination=THEM, data=b""), ours, alias)
        assert changed[26:28] != b"\0\0"
        assert checksums_hold(changed)
    assert parse(changed).protocol == UDP


def test_streams_are_asked_to_divide_only_once_there_were_uplinks():
    desk = Desk(rules=ALLOW_ALL)
    spread = EveryPath(desk.engine.paths)
    for log, has_lanes in ((None, False), (HeardLog(), True), (None, True)):
        desk.engine.follow_uplinks(spread, log)
        desk.engine.transmit(0.0)
        assert (desk.stack.lanes is not None) is has_lanes
