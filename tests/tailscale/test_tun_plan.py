"""Which routes and rules a machine is given, judged by a slow twin of how the kernel reads them."""

from __future__ import annotations

from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailscale.kernel.netlink import MAIN, Rule
from tailscale.kernel.plan import NEVER_INSIDE, ROUTES_LIMIT, Plan, Surroundings, family_of, make_plan
from tailscale.runtime.tun import SERVICES
from tailscale.tun_options import TunOptions, tun
from ts_base.ip import Prefix, format_prefix, mask, parse_address, parse_prefix, prefix_contains

BASE, PORT = 5300, 41641
LAN = ("192.168.1.7/32", "192.168.1.0/24", "2001:db8:7::7/128", "2001:db8:7::/64", "127.0.0.1/32", "127.0.0.0/8")
INSIDE, LANDED, REFUSED = "tunnel", "as before", "refused"


def prefixes(*texts: str) -> list[Prefix]:
    return [parse_prefix(text) for text in texts]


def plan_of(*claims: str, options: TunOptions | None = None, networks: Collection[str] = LAN, **known: object) -> Plan:
    surroundings = Surroundings(
        own=(parse_address("100.64.0.9"), parse_address("fd7a:115c:a1e0::9")),
        claims=prefixes(*claims),
        services=SERVICES,
        networks=prefixes(*networks),
        control=(parse_address("198.51.100.1"),),
        udp_port=PORT,
        **known,  # type: ignore[arg-type]
    )
    return make_plan(options or tun(), surroundings, BASE)


def way(
    plan: Plan,
    destination: str,
    *,
    source: str = "",
    udp_port: int = 0,
    main: Collection[str] = (*LAN, "0.0.0.0/0", "::/0"),
) -> str:
    """Where the kernel sends a packet: rule by rule, as fib_rules_lookup does."""
    address, at = parse_address(destination), 0
    while True:
        fitting = [
            rule
            for rule in plan.rules
            if rule.family == family_of(len(address))
            and rule.priority >= at
            and matches(rule, address, source, udp_port)
        ]
        if not fitting:
            return LANDED
        rule = min(fitting, key=lambda rule: rule.priority)
        if rule.goto:
            at = rule.goto
            continue
        if rule.is_refusal:
            return REFUSED
        table = plan.routes if rule.table == BASE else prefixes(*main) if rule.table == MAIN else []
        found = [route for route in table if prefix_contains(route, address) and (route[1] or not rule.without_default)]
        if found:
            return INSIDE if rule.table == BASE else LANDED
        at = rule.priority + 1


def matches(rule: Rule, address: bytes, source: str, udp_port: int) -> bool:
    return (
        (rule.destination is None or prefix_contains(rule.destination, address))
        and (rule.source is None or (bool(source) and prefix_contains(rule.source, parse_address(source))))
        and (not rule.udp_port or rule.udp_port == udp_port)
    )


def test_split_tunnel_takes_the_tailnet_and_subnets_only() -> None:
    plan = plan_of("100.64.0.2/32", "10.7.0.0/16", "2001:db8:1::/48", "0.0.0.0/0")
    assert not plan.is_full
    for inside in ("100.64.0.2", "100.100.100.100", "fd7a:115c:a1e0::53", "10.7.3.4", "2001:db8:1::1"):
        assert way(plan, inside) == INSIDE, inside
    for outside in ("8.8.8.8", "2606:4700::1", "192.168.1.1", "10.8.0.1", "198.51.100.1"):
        assert way(plan, outside) == LANDED, outside
    assert way(plan, "10.7.3.4", udp_port=PORT) == LANDED, "a sealed datagram passes the tunnel by"
    assert way(plan, "10.7.3.4", source="192.168.1.7") == LANDED, "who was connected before stays so"
    assert plan.own == {parse_address("100.64.0.9"), parse_address("fd7a:115c:a1e0::9")}


def test_full_tunnel_takes_all_but_what_is_near_or_excluded() -> None:
    plan = plan_of(options=tun(exclude=["203.0.113.0/24"]), wants_exit=True)
    assert plan.is_full
    assert [way(plan, one) for one in ("8.8.8.8", "2606:4700::1")] == [INSIDE, INSIDE]
    near = ("192.168.1.1", "2001:db8:7::1", "203.0.113.5", "198.51.100.1", "169.254.169.254", "224.0.0.251", "fe80::1")
    for outside in near:
        assert way(plan, outside) == LANDED, outside
    assert way(plan, "8.8.8.8", source="192.168.1.7") == LANDED, "who was connected before stays so"
    assert way(plan, "8.8.8.8", source="100.64.0.9") == INSIDE
    assert way(plan, "8.8.8.8", udp_port=PORT) == LANDED
    assert not plan_of(options=tun(split=True), wants_exit=True).is_full


def test_what_a_full_tunnel_does_not_carry_is_refused_and_not_leaked() -> None:
    narrow = plan_of("100.64.0.2/32", options=tun(mtu=1200), wants_exit=True)
    assert narrow.own == {parse_address("100.64.0.9")}
    assert way(narrow, "8.8.8.8") == INSIDE
    assert way(narrow, "2606:4700::1") == REFUSED
    assert way(narrow, "2606:4700::1", udp_port=PORT) == LANDED
    assert way(narrow, "2001:db8:7::1") == LANDED
    assert way(plan_of(options=tun(mtu=1200)), "2606:4700::1") == LANDED, "a split tunnel leaves IPv6 alone"


@pytest.mark.parametrize(
    ("claim", "why"),
    [
        ("127.0.0.0/8", "loopback"),
        ("127.0.0.1/32", "loopback"),
        ("::1/128", "loopback"),
        ("169.254.0.0/16", "a link"),
        ("169.254.169.254/32", "a link"),
        ("fe80::/64", "a link"),
        ("224.0.0.0/8", "multicast"),
        ("ff02::/16", "multicast"),
        ("240.0.0.0/8", "no host"),
        ("fd00:ec2::254/128", "metadata"),
        ("168.63.129.16/32", "metadata"),
        ("0.0.0.0/1", "no host"),
        ("128.0.0.0/1", "so wide"),
        ("64.0.0.0/2", "so wide"),
        ("2000::/3", "so wide"),
        ("192.168.1.0/24", "network of this machine"),
        ("192.168.1.128/25", "network of this machine"),
        ("192.168.1.7/32", "network of this machine"),
        ("2001:db8:7::/64", "network of this machine"),
        ("198.51.100.1/32", "control server"),
        ("203.0.113.0/25", "excluded"),
    ],
)
def test_hostile_prefix_of_a_peer_is_refused_and_told(claim: str, why: str) -> None:
    plan = plan_of(claim, options=tun(exclude=["203.0.113.0/24"]))
    [(refused, sentence)] = plan.refused.items()
    assert format_prefix(refused) == claim
    assert why in sentence
    assert refused not in plan.routes


def test_default_route_of_a_peer_is_none_until_it_is_chosen() -> None:
    plan = plan_of("0.0.0.0/0", "::/0")
    assert not plan.refused
    assert way(plan, "8.8.8.8") == LANDED


def test_wider_route_takes_no_network_of_ours_along() -> None:
    plan = plan_of("192.168.0.0/16", "168.63.0.0/16", "198.51.0.0/16")
    assert not plan.refused
    assert way(plan, "192.168.7.1") == INSIDE
    for near in ("192.168.1.1", "168.63.129.16", "198.51.100.1"):
        assert way(plan, near) == LANDED, near


def test_machine_inside_carrier_grade_nat_keeps_its_network() -> None:
    lan = ("100.72.1.5/32", "100.72.0.0/16")
    plan = plan_of("100.64.0.2/32", "100.72.9.9/32", networks=lan)
    main = (*lan, "0.0.0.0/0")
    for inside in ("100.64.0.2", "100.72.9.9", "100.100.100.100"):
        assert way(plan, inside, main=main) == INSIDE, inside
    assert way(plan, "100.72.0.1", main=main) == LANDED, "its gateway"


def test_routes_are_bounded_and_the_rest_told() -> None:
    many = [f"10.{n >> 8}.{n & 255}.0/24" for n in range(ROUTES_LIMIT + 10)]
    plan = plan_of(*many)
    assert len(plan.routes) == ROUTES_LIMIT
    assert set(plan.refused.values()) == {"more routes than fit"}


@st.composite
def some_prefix(draw: st.DrawFn) -> str:
    size = draw(st.sampled_from((4, 16)))
    length = draw(st.integers(0, 8 * size))
    address = mask(draw(st.binary(min_size=size, max_size=size)), length)
    return format_prefix((address, length))


@given(st.lists(some_prefix(), max_size=12), st.booleans())
def test_no_netmap_takes_what_is_never_inside(claims: list[str], wants_exit: bool) -> None:
    plan = plan_of(*claims, wants_exit=wants_exit)
    for prefix in NEVER_INSIDE:
        shown = format_prefix(prefix).partition("/")[0]
        assert way(plan, shown) == LANDED
    for near in ("192.168.1.1", "192.168.1.200", "2001:db8:7::99", "198.51.100.1"):
        assert way(plan, near) == LANDED
    assert plan.is_full is wants_exit
    assert way(plan, "100.100.100.100") == INSIDE


@pytest.mark.parametrize(
    "name", ["", "a" * 16, "a/b", "a b", "a:b", "%d", ".", "..", "tun\n", "tün", "-x", "all", "lo", 7]
)
def test_name_that_is_none_is_refused_before_anything_is_made(name: object) -> None:
    with pytest.raises(ValueError, match="name for a network interface"):
        tun(name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{"mtu": 1281}, {"mtu": 100}, {"mtu": "1280"}, {"dns": "yes"}, {"exclude": ["10.0.0.1/8"]}]
)
def test_option_that_cannot_be_meant_says_what_could(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"mtu is|dns is|exclude takes"):
        tun(**options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a list of prefixes"):
        tun(exclude="10.0.0.0/8")
