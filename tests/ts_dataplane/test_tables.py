"""Which peer gets a packet and who may speak for an address (dataplane notes H.2)."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ts_base.ip import TCP, UDP, parse_address, prefix_contains
from ts_dataplane.claims import PeerRoutes
from ts_dataplane.filter import Grant, Rule, run_through
from ts_dataplane.tables import CLAIMANTS, NO_SUCH_PEER, Tables, compile_tables_steps

OWN = ("100.64.0.1/32", "fd7a:115c:a1e0::1/128")
A, B, C = (f"100.64.0.{n}" for n in (2, 3, 4))


def tables(*peers: PeerRoutes, **prefs) -> Tables:
    return run_through(compile_tables_steps(own=OWN, peers=peers, **prefs))


def hop(built: Tables, address: str) -> int | None:
    return built.peer_for(parse_address(address))


def accepts(built: Tables, peer: int, source: str) -> bool:
    return built.accepts(peer, parse_address(source))


def test_addresses_are_routed_to_their_node():
    built = tables(PeerRoutes(2, (A, "fd7a:115c:a1e0::2")), PeerRoutes(3, (B,)))
    assert [hop(built, at) for at in (A, B, C, "fd7a:115c:a1e0::2", "8.8.8.8")] == [2, 3, None, 2, None]
    assert accepts(built, 2, A)
    assert not accepts(built, 3, A)


def test_subnet_routes_need_accept_routes():
    router = PeerRoutes(2, (A,), (A, "10.0.0.0/8", "10.1.2.3/32"))
    for accept in (False, True):
        built = tables(router, accept_routes=accept)
        assert hop(built, A) == 2
        assert (hop(built, "10.9.9.9") == 2) is accept
        assert (hop(built, "10.1.2.3") == 2) is accept
        assert accepts(built, 2, "10.9.9.9") is accept


def test_single_tailscale_addresses_beyond_addresses_are_services_not_subnets():
    built = tables(
        PeerRoutes(2, (A,), (A, "100.100.1.1/32", "fd7a:115c:a1e0::77/128", "100.115.92.7/32", "100.99.0.0/24"))
    )
    assert hop(built, "100.100.1.1") == 2
    assert hop(built, "fd7a:115c:a1e0::77") == 2
    assert hop(built, "100.115.92.7") is None  # ChromeOS
    assert hop(built, "100.99.0.1") is None


def test_an_address_that_is_not_allowed_is_not_routable():
    assert hop(tables(PeerRoutes(2, (A, B), (A,))), B) is None


def test_default_routes_are_used_only_when_chosen():
    exits = [PeerRoutes(n, (address,), (address, "0.0.0.0/0", "::/0")) for n, address in ((2, A), (3, B))]
    assert hop(tables(*exits, accept_routes=True), "8.8.8.8") is None
    built = tables(*exits, exit_node=3)
    assert hop(built, "8.8.8.8") == 3
    assert hop(built, "2001:db8::1") == 3
    assert accepts(built, 3, "8.8.8.8")
    assert not accepts(built, 2, "8.8.8.8")
    assert not built.exit_is_missing
    assert hop(built, "224.0.0.1") is None
    assert hop(built, "169.254.1.1") is None


@pytest.mark.parametrize("chosen", [NO_SUCH_PEER, 9, 3])
def test_a_chosen_exit_that_cannot_serve_black_holes(chosen):
    no_exit = PeerRoutes(3, (B,))
    built = tables(PeerRoutes(2, (A,), (A, "0.0.0.0/0", "::/0")), no_exit, exit_node=chosen)
    assert hop(built, "8.8.8.8") is None
    assert built.exit_is_missing
    assert not tables().exit_is_missing


def test_expired_and_unreachable_peers_contribute_nothing():
    built = tables(PeerRoutes(2, (A,), expired=True), PeerRoutes(3, (B,), reachable=False))
    assert hop(built, A) is hop(built, B) is None
    assert not accepts(built, 2, A)


def test_the_lowest_id_wins_a_tie_and_both_may_speak():
    routers = [PeerRoutes(n, (address,), (address, "10.0.0.0/8")) for n, address in ((7, A), (4, B))]
    built = tables(*routers, accept_routes=True)
    assert hop(built, "10.0.0.1") == 4
    assert accepts(built, 7, "10.0.0.1")
    assert accepts(built, 4, "10.0.0.1")
    assert hop(built.with_peers(removed=[4]), "10.0.0.1") == 7


def test_the_longest_prefix_wins_and_the_wider_owner_may_still_speak():
    built = tables(PeerRoutes(2, (A,), (A, "10.0.0.0/8")), PeerRoutes(3, (B,), (B, "10.1.0.0/16")), accept_routes=True)
    assert (hop(built, "10.1.2.3"), hop(built, "10.2.0.1")) == (3, 2)
    assert accepts(built, 2, "10.1.2.3")
    assert not accepts(built, 3, "10.2.0.1")


def test_bad_prefixes_are_skipped_and_reported():
    built = tables(PeerRoutes(2, (A,), (A, "10.0.0.1/8", "nonsense", "10.0.0.0/8")), accept_routes=True)
    assert hop(built, "10.0.0.1") == 2
    assert len(built.problems) == 2


def test_nobody_may_claim_our_own_addresses():
    built = tables(PeerRoutes(2, (A,), (A, "100.64.0.1/32")))
    assert hop(built, "100.64.0.1") is None
    assert not accepts(built, 2, "100.64.0.1")


def test_two_peers_with_one_address_collide_only_while_both_are_there():
    built = tables(PeerRoutes(2, (A,)), PeerRoutes(3, (A, B)))
    assert hop(built, A) == 2
    later = built.with_peers(removed=[2])
    assert hop(later, A) == 3
    assert hop(built, A) == 2  # the older snapshot has not changed
    assert hop(later.with_peers([PeerRoutes(3, (B,))]), A) is None


@pytest.mark.parametrize("prefix", [C, "10.0.0.0/8"])
@pytest.mark.parametrize("order", [1, -1])
def test_a_crowd_that_claims_one_prefix_costs_what_a_few_do(prefix: str, order: int) -> None:
    crowd = [PeerRoutes(n, (f"100.65.{n >> 8}.{n & 255}", prefix)) for n in range(1, 1001)][::order]
    built = tables(*crowd, accept_routes=True)
    address = prefix.partition("/")[0]
    assert [n for n in range(1, 1001) if accepts(built, n, address)] == list(range(1, CLAIMANTS + 1))
    assert built.problems
    assert all("claim it already" in problem for problem in built.problems)
    assert hop(built, "100.65.3.232") == 1000  # their own addresses are theirs
    alone = built.with_peers(removed=range(1, 1000))
    assert hop(alone, address) is None
    assert hop(alone.with_peers(crowd), address) == 1
    assert not built.with_peers(removed=range(1, 1001)).peers


def test_a_delta_gives_what_compiling_anew_gives():
    source = random.Random(3)
    pool = [f"10.{n}.0.0/16" for n in range(6)] + ["10.0.0.0/8", "0.0.0.0/0"]

    def peer(number: int) -> PeerRoutes:
        own = f"100.64.1.{number}"
        return PeerRoutes(number, (own,), (own, *source.sample(pool, 3)), expired=source.random() < 0.2)

    current = {n: peer(n) for n in range(1, 8)}
    prefs = {"accept_routes": True, "exit_node": 3}
    built = tables(*current.values(), **prefs)
    for _ in range(40):
        number = source.randrange(1, 10)
        if source.random() < 0.3:
            current.pop(number, None)
            built = built.with_peers(removed=[number])
        else:
            current[number] = peer(number)
            built = built.with_peers([current[number]])
        anew = tables(*current.values(), **prefs)
        assert built._hosts == anew._hosts
        assert dict(built._routes.items()) == dict(anew._routes.items())
        assert built.peers == anew.peers


def test_an_advertised_default_route_offers_the_internet_only():
    built = tables(local=("0.0.0.0/0", "::/0", "10.5.0.0/16"))
    local = [at for at in ("8.8.8.8", "10.5.1.1", "10.6.1.1", "192.168.1.1", "100.64.0.9", "100.64.0.1", "224.0.0.1",
                           "2001:db8::1", "fe80::1", "fd7a:115c:a1e0::9", "fd7a:115c:a1e0::1")
             if built.is_local(parse_address(at))]  # fmt: skip
    assert local == ["8.8.8.8", "10.5.1.1", "100.64.0.1", "2001:db8::1", "fd7a:115c:a1e0::1"]


def test_capability_sources_follow_the_owner_of_the_exact_address():
    rules = (Rule(("cap:example.com/x",), (("*", 80, 80),)),)
    holder = PeerRoutes(2, (A,), (A, "10.0.0.0/8"), capabilities=frozenset({"example.com/x"}))
    built = tables(holder, PeerRoutes(3, (B,)), rules=rules, accept_routes=True)

    def verdict(peer: int, source: str) -> str:
        flow = parse_address(source) + parse_address("100.64.0.1") + b"\x10\0\0\x50"
        return built.verdict(peer, UDP, False, flow)

    assert verdict(2, A) == ""
    assert verdict(3, B) == "filter.no_rule"
    assert verdict(2, "10.1.1.1") == "filter.no_rule"  # behind the holder, not the holder
    assert verdict(3, A) == "filter.not_owner"


def test_capabilities_are_the_union_of_grants_towards_one_address():
    rules = (
        Rule(("*",), grants=(Grant(("100.64.0.1/32",), {"drive": ("1",), "": ("x",)}),)),
        Rule(("100.64.0.2",), grants=(Grant(("0.0.0.0/0", "bad"), {"drive": ("2", "3"), "ssh": ()}),)),
        Rule(("100.64.0.3",), grants=(Grant(("0.0.0.0/0",), {"admin": ()}),)),
    )
    built = tables(PeerRoutes(2, (A,)), rules=rules)
    us, elsewhere = parse_address("100.64.0.1"), parse_address("100.64.0.9")
    assert built.capabilities(parse_address(A), us) == {"drive": ("1", "2", "3"), "ssh": ()}
    assert built.capabilities(parse_address(A), elsewhere) == {"drive": ("2", "3"), "ssh": ()}
    assert built.capabilities(parse_address("fd7a::1"), us) == {"drive": ("1",)}
    assert len(built.problems) == 1
    assert tables(rules=rules, shields_up=True).capabilities(parse_address(A), us) == {}


def test_a_filter_that_admits_unsigned_peers_is_not_used():
    rules = (Rule(("100.64.0.0/10",), (("*", 80, 80),)),)
    flow = parse_address(B) + parse_address("100.64.0.1") + b"\x10\0\0\x50"
    built = tables(PeerRoutes(2, (A,), unsigned=True), PeerRoutes(3, (B,)), rules=rules)
    assert built.verdict(3, UDP, False, flow) == "filter.no_rule"
    assert built.problems
    healed = built.with_peers([PeerRoutes(2, (A,))])
    assert healed.verdict(3, UDP, False, flow) == ""


def test_ten_thousand_peers_are_compiled_in_many_small_steps():
    peers = [PeerRoutes(n + 1, (f"100.65.{n >> 8}.{n & 255}",)) for n in range(10_000)]
    rules = [Rule(tuple(peer.addresses[0] for peer in peers), (("*", 1, 2),))]
    pauses = sum(1 for _ in compile_tables_steps(own=OWN, peers=peers, rules=rules))
    assert 15 <= pauses <= 60


def test_next_hops_are_bounded(monkeypatch):
    monkeypatch.setattr("ts_dataplane.tables.NEXT_HOPS", 16)
    built = tables(PeerRoutes(2, (A,), (A, "10.0.0.0/8")), accept_routes=True)
    for n in range(200):
        assert built.peer_for(bytes([10, 0, 0, n])) == 2
    assert built.statistics().next_hops <= 16


prefixes = st.sampled_from([f"10.{a}.0.0/{n}" for a in (0, 64, 128) for n in (8, 9, 10, 16) if n > 8 or a == 0])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), prefixes), max_size=12), st.integers(0, 255))
def test_routes_agree_with_a_slow_scan(claims, octet):
    allowed: dict[int, set[str]] = {}
    for peer, prefix in claims:
        allowed.setdefault(peer, set()).add(prefix)
    built = tables(*(PeerRoutes(n, (), tuple(routes)) for n, routes in allowed.items()), accept_routes=True)
    address = bytes([10, octet, 3, 4])
    covering = [
        (-int(text.split("/")[1]), peer)
        for peer, text in claims
        if prefix_contains((parse_address(text.split("/")[0]), int(text.split("/")[1])), address)
    ]
    assert built.peer_for(address) == (min(covering)[1] if covering else None)
    for peer in range(1, 6):
        assert built.accepts(peer, address) == any(owner == peer for _, owner in covering)


def test_a_thousand_connections_to_one_service_are_one_remembered_verdict():
    us, them = parse_address("100.64.0.1"), parse_address("100.64.0.2")
    tables = run_through(
        compile_tables_steps(
            own=["100.64.0.1/32"],
            peers=[PeerRoutes(7, ("100.64.0.2/32",))],
            rules=[Rule(("*",), (("*", 80, 80),))],
        )
    )
    for port in range(20_000, 21_000):
        ports = port.to_bytes(2, "big")
        assert tables.verdict(7, TCP, True, them + us + ports + (80).to_bytes(2, "big")) == ""
        assert tables.verdict(7, TCP, True, them + us + ports + (81).to_bytes(2, "big")) != ""
        assert tables.verdict(7, TCP, False, them + us + (80).to_bytes(2, "big") + ports) == ""
    assert len(tables._verdicts) == 3
