"""Several exits at once: whom a flow goes by, and that nobody else answers in it."""

from __future__ import annotations

import pytest
from engine_scripts import ACK, ALLOW_ALL, DIRECT, SYN, US, US6, Desk, fragment, icmp, packet, tcp, udp

from ts_base.ip import TSMP, parse_address
from ts_dataplane import tsmp
from ts_dataplane.claims import PeerRoutes
from ts_dataplane.engine import RouteMissing
from ts_dataplane.packets import parse, without_padding

USUAL, DUTCH, SWISS, NARROW, PLAIN = 2, 3, 4, 5, 6  # the exit by preference, two to choose, one for IPv4 only, no exit
WEB, WEB6, NET = "9.9.9.9", "2620:fe::9", "10.1.2.3"
BOTH = ("0.0.0.0/0", "::/0")


def exits(*, dutch: bool = True, expired: bool = False) -> tuple[PeerRoutes, ...]:
    own = {number: (f"100.64.0.{number}", f"fd7a:115c:a1e0::{number}") for number in range(2, 7)}
    peers = [
        PeerRoutes(USUAL, own[USUAL], (*own[USUAL], *BOTH)),
        PeerRoutes(DUTCH, own[DUTCH], (*own[DUTCH], *BOTH), expired=expired),
        PeerRoutes(SWISS, own[SWISS], (*own[SWISS], *BOTH, "10.1.0.0/16")),
        PeerRoutes(NARROW, own[NARROW], (*own[NARROW], "0.0.0.0/0")),
        PeerRoutes(PLAIN, own[PLAIN], (*own[PLAIN], "10.0.0.0/8")),
    ]
    return tuple(peer for peer in peers if dutch or peer.peer != DUTCH)


@pytest.fixture
def desk() -> Desk:
    made = Desk(peers=exits(), exit_node=USUAL, accept_routes=True)
    for peer in (USUAL, DUTCH, SWISS, NARROW, PLAIN):
        made.engine.paths[peer] = (("192.0.2.1", peer),)
    return made


def takers(desk: Desk, *packets: bytes, via: int = 0) -> list[int]:
    """The peers that the packets go to."""
    return [path[1] for path, _ in desk.say(*packets, via=via)]


def test_a_flow_goes_by_the_exit_it_names(desk: Desk) -> None:
    for make, us, them in ((tcp, US, WEB), (udp, US, WEB), (tcp, US6, WEB6)):
        out = make(SYN, source=us, destination=them)
        assert takers(desk, out) == [USUAL]
        assert takers(desk, out, via=DUTCH) == [DUTCH]
        assert takers(desk, out, via=SWISS) == [SWISS]
    assert desk.engine.tables.exits == {USUAL, DUTCH, SWISS, NARROW}
    assert desk.drops == {}


def test_a_subnet_may_be_reached_by_a_router_that_is_not_the_usual_one(desk: Desk) -> None:
    out = tcp(SYN, source=US, destination=NET)
    assert takers(desk, out) == [SWISS]  # the longest route
    assert takers(desk, out, via=PLAIN) == [PLAIN]
    assert takers(desk, out, via=DUTCH) == [DUTCH]  # an exit takes what it is given


@pytest.mark.parametrize(
    ("via", "source", "destination"),
    [
        (PLAIN, US, WEB),  # offers no default route
        (NARROW, US6, WEB6),  # not in that family
        (99, US, WEB),  # nobody
        (DUTCH, US, "100.64.0.6"),  # a node is reached directly or not at all
        (DUTCH, US, "224.0.0.1"),
        (DUTCH, US, US),
    ],
)
def test_what_the_named_peer_does_not_take_goes_nowhere(desk: Desk, via: int, source: str, destination: str) -> None:
    assert takers(desk, tcp(SYN, source=source, destination=destination), via=via) == []
    assert desk.drops == {"engine.via_not_an_exit": 1}
    assert desk.engine.take_messages() == [RouteMissing(parse_address(destination), via)]


def test_an_exit_answers_only_while_flows_go_through_it(desk: Desk) -> None:
    answer = tcp(SYN | ACK, source=WEB)
    assert desk.hear(answer, peer=DUTCH) == []
    assert desk.drops == {"filter.not_an_answer": 1}
    desk.use_exit(DUTCH)
    desk.use_exit(DUTCH)
    assert desk.hear(answer, peer=DUTCH) == [answer]
    assert desk.hear(answer, peer=SWISS) == []
    desk.release_exit(DUTCH)
    assert desk.hear(answer, peer=DUTCH) == [answer]
    assert desk.engine.statistics().exits_in_use == 1
    desk.release_exit(DUTCH)
    assert desk.hear(answer, peer=DUTCH) == []
    assert desk.engine.statistics().exits_in_use == 0


def test_the_overlay_is_told_who_speaks_and_whether_it_is_the_usual_one(desk: Desk) -> None:
    desk.use_exit(DUTCH)
    answer, own = tcp(ACK, source=WEB), tcp(ACK, source="100.64.0.3")
    desk.hear(answer, peer=USUAL)
    assert desk.stack.origins == [((USUAL, True), [answer])]
    desk.hear(answer, own, answer, icmp(3, WEB), own, peer=DUTCH)
    # What an exit says for itself is as usual; what it says for the internet is for the flows that go through it.
    assert sorted(desk.stack.origins) == [((DUTCH, False), [answer, answer, icmp(3, WEB)]), ((DUTCH, True), [own, own])]


def test_an_exit_that_opens_something_of_its_own_does_not_speak_for_the_internet_by_the_way() -> None:
    desk = Desk(peers=exits(), exit_node=USUAL, rules=ALLOW_ALL)
    desk.use_exit(DUTCH)
    answer, opening = tcp(ACK, source=WEB), tcp(SYN, source="100.64.0.3")
    desk.hear(answer, opening, answer, opening, answer, peer=DUTCH)
    assert sorted(desk.stack.origins) == [((DUTCH, False), [answer] * 3), ((DUTCH, True), [opening] * 2)]


def test_two_runs_of_one_peer_reach_the_overlay_as_one(desk: Desk) -> None:
    first, second = tcp(ACK, source=WEB), tcp(ACK, source=WEB, data=b"more")
    runs = [(path, [b"\4\0\0\0" + bytes([0, 0, 0, USUAL]) + one]) for path, one in ((DIRECT, first), (DIRECT, second))]
    desk.engine.receive(runs, 0.0)
    assert desk.stack.origins == [((USUAL, True), [first, second])]


def test_udp_by_one_exit_is_not_answered_by_another(desk: Desk) -> None:
    desk.use_exit(DUTCH)
    desk.use_exit(SWISS)
    desk.say(udp(53, source=US, destination=WEB), via=DUTCH)
    answer = udp(4000, source=WEB, sport=53)
    for other in (SWISS, USUAL):
        assert desk.hear(answer, peer=other) == []
    assert desk.drops == {"filter.not_an_answer": 1, "filter.no_rule": 1}
    assert desk.hear(answer, answer, peer=DUTCH) == [answer, answer]
    first = fragment(answer, offset=0, more=True)
    assert desk.hear(first, peer=SWISS) == []
    assert desk.hear(first, peer=DUTCH) == [first]


def test_an_exit_that_may_only_answer_opens_nothing_whatever_the_rules_say() -> None:
    desk = Desk(peers=exits(), rules=ALLOW_ALL)
    desk.use_exit(DUTCH)
    options = b"\x46" + tcp(SYN, source=WEB)[1:20] + b"\1\1\1\0" + tcp(SYN, source=WEB)[20:]
    options = options[:2] + len(options).to_bytes(2, "big") + options[4:]
    for wrong in (tcp(SYN, source=WEB), udp(53, source=WEB), icmp(8, WEB), packet(47, bytes(8), WEB), options):
        assert desk.hear(wrong, peer=DUTCH) == []
    ping = tsmp.encode_ping(parse_address(WEB), parse_address(US), bytes(8))
    assert desk.hear(ping, peer=DUTCH) == []
    assert all(parse(without_padding(one)).protocol == TSMP for _, run in desk.say() for one in run)
    assert sum(desk.drops.values()) == 6


@pytest.mark.parametrize("source", [US, "127.0.0.1", "0.0.0.0", "224.0.0.1", "100.64.0.4", "100.64.0.2"])
def test_an_exit_in_use_speaks_for_no_node_and_no_martian(desk: Desk, source: str) -> None:
    desk.use_exit(DUTCH)
    assert desk.hear(tcp(ACK, source=source), icmp(3, source), peer=DUTCH) == []
    assert desk.drops == {"filter.not_owner": 2}


def test_an_exit_in_use_reaches_nobody_but_us(desk: Desk) -> None:
    desk.use_exit(DUTCH)
    assert desk.hear(tcp(ACK, source=WEB, destination="100.64.0.77"), peer=DUTCH) == []
    assert desk.hear(icmp(3, WEB, "100.64.0.77"), peer=DUTCH) == []
    assert desk.drops == {"filter.not_owner": 1, "filter.not_local": 1}


@pytest.mark.parametrize("change", ["leaves", "expires", "withdraws"])
def test_an_exit_that_is_none_any_more_is_not_heard_and_not_sent_to(desk: Desk, change: str) -> None:
    desk.use_exit(DUTCH)
    out, answer = udp(53, source=US, destination=WEB), udp(4000, source=WEB, sport=53)
    assert takers(desk, out, via=DUTCH) == [DUTCH]
    assert desk.hear(answer, peer=DUTCH)
    dutch = next(peer for peer in exits() if peer.peer == DUTCH)
    tables = desk.engine.tables
    if change == "leaves":
        desk.engine.tables = tables.with_peers(removed=[DUTCH])
    elif change == "expires":
        desk.engine.tables = tables.with_peers([dutch._replace(expired=True)])
    else:
        desk.engine.tables = tables.with_peers([dutch._replace(allowed=None)])
    assert desk.engine.tables.exits == {USUAL, SWISS, NARROW}
    assert desk.hear(answer, tcp(ACK, source=WEB), icmp(3, WEB), peer=DUTCH) == []
    assert takers(desk, out, via=DUTCH) == []
    assert desk.drops == {"filter.not_owner": 3, "engine.via_not_an_exit": 1}
    desk.engine.tables = desk.engine.tables.with_peers([dutch])  # and back, by a delta
    assert takers(desk, out, via=DUTCH) == [DUTCH]
    assert desk.hear(answer, peer=DUTCH)


def test_without_an_exit_by_preference_a_named_one_works_all_the_same() -> None:
    desk = Desk(peers=exits())
    desk.engine.paths[SWISS] = (DIRECT,)
    desk.use_exit(SWISS)
    assert desk.say(tcp(SYN, source=US, destination=WEB)) == []
    assert desk.say(tcp(SYN, source=US, destination=WEB), via=SWISS)
    assert desk.hear(tcp(SYN | ACK, source=WEB), peer=SWISS)
    assert not desk.engine.tables.exit_is_missing


def test_a_masquerading_exit_is_spoken_to_by_the_name_it_knows() -> None:
    routes = PeerRoutes(DUTCH, ("100.64.0.3",), ("100.64.0.3", "0.0.0.0/0"), masquerade4="100.99.0.1")
    desk = Desk(peers=(routes,))
    desk.engine.paths[DUTCH] = (DIRECT,)
    desk.use_exit(DUTCH)
    ((_, (sent,)),) = desk.say(udp(53, source=US, destination=WEB), via=DUTCH)
    assert without_padding(sent) == udp(53, source="100.99.0.1", destination=WEB)
    answer = udp(4000, source=WEB, destination="100.99.0.1", sport=53)
    assert desk.hear(answer, peer=DUTCH) == [udp(4000, source=WEB, sport=53)]


def test_a_flow_known_through_one_exit_costs_one_look_for_a_run(desk: Desk) -> None:
    desk.use_exit(DUTCH)
    run = [tcp(ACK, source=WEB, data=b"x" * 100)] * 48
    assert desk.hear(*run, peer=DUTCH) == run
    assert desk.engine.statistics().tables.verdicts == 1
