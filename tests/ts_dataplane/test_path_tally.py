"""What went by each kind of path, in datagrams and bytes."""

from __future__ import annotations

from engine_scripts import DIRECT, PEER, RELAYED, SYN, Desk, seal, tcp

from ts_dataplane import geneve
from ts_dataplane.path_tally import PathCount, PathTally

DISCO = b"TS\xf0\x9f\x92\xac" + bytes(60)


def moved(tally: PathTally) -> dict[str, PathCount]:
    return {label: count for label, count in tally.statistics().items() if count.datagrams}


def test_each_shape_of_path_has_its_label() -> None:
    tally = PathTally()
    tally.add([(("192.0.2.7%wwan0", 1), [b"1", b"22"]), (("2001:db8::7", 1), [b"333"]), ((900, bytes(32)), [b"4444"])])
    tally.add(
        [(("192.0.2.8", 1, 7), [b"55555"]), (("2001:db8::8%eth0", 1, 7), [b"666666"]), ((901, bytes(32)), [b"7"])]
    )
    assert moved(tally) == {
        "direct_ipv4": PathCount(2, 3),
        "direct_ipv6": PathCount(1, 3),
        "derp": PathCount(2, 5),
        "peer_relay_ipv4": PathCount(1, 5),
        "peer_relay_ipv6": PathCount(1, 6),
    }


def test_the_engine_counts_wireguard_and_nothing_else_on_its_way_in() -> None:
    desk = Desk()
    sealed = seal(PEER, tcp(SYN))
    wrapped = geneve.encode_header(geneve.WIREGUARD, 99) + sealed
    desk.engine.receive([(DIRECT, [sealed, DISCO, sealed, b"noise", wrapped]), (RELAYED, [sealed])], 0.0)
    assert moved(desk.engine.received) == {
        "direct_ipv4": PathCount(2, 2 * len(sealed)),
        "derp": PathCount(1, len(sealed)),
        "peer_relay_ipv4": PathCount(1, len(sealed)),
    }


def test_the_engine_counts_what_goes_down_by_every_path_it_takes() -> None:
    desk = Desk()
    desk.engine.paths[PEER] = (DIRECT, RELAYED)
    desk.say(tcp(SYN, source="100.64.0.1", destination="100.64.0.2"))
    assert moved(desk.engine.sent) == {"direct_ipv4": PathCount(1, 56), "derp": PathCount(1, 56)}
    desk.engine.paths[PEER] = ()
    desk.say(tcp(SYN, source="100.64.0.1", destination="100.64.0.2"))
    assert moved(desk.engine.sent)["derp"] == PathCount(1, 56), "what waits for a path has not gone"
