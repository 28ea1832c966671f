"""The kinds of routers, each as the nft rules that make it one, and the addresses everybody in a lab knows.

Runs nothing.
"""

from __future__ import annotations

HOSTS = ("10.99.0.1", "10.99.0.2")  # control and the first relay; the second relay (two regions reveal a hard NAT)
HOSTS6 = ("fd00:99::1", "fd00:99::2")  # the same where there is no IPv4 at all
NODE_PORT = 41641


def chain(table: str, kind: str, hook: str, priority: int, *rules: str) -> str:
    """One nft base chain with its rules, as flat commands."""
    name = f"{hook}{abs(priority)}"
    lines = [f"add table {table}", f"add chain {table} {name} {{ type {kind} hook {hook} priority {priority}; }}"]
    return "\n".join([*lines, *(f"add rule {table} {name} {rule}" for rule in rules)]) + "\n"


def source_nat(how: str) -> str:
    return chain("ip nat", "nat", "postrouting", 100, f"oifname wan {how}")


def _destination_nat(match: str) -> str:
    return chain("ip mapped", "nat", "prerouting", -100, f"iifname wan {match} dnat to <client>")


# What a router drops from outside unless it answers something from inside. The input rule matters too:
# an unsolicited packet that reached the connection table would make the next mapping take another port.
_GUARD_ITSELF = chain("inet guard", "filter", "input", 0, "iifname wan ct state new drop")
_FILTER = _GUARD_ITSELF + chain("inet guard", "filter", "forward", 0, "iifname wan ct state new drop")
_SEEN_ADDRESSES_ONLY = (
    "add table ip mapped\nadd set ip mapped seen { type ipv4_addr; flags dynamic; timeout 2m; }\n"
    + chain("ip mapped", "filter", "forward", 1, "oifname wan meta l4proto udp update @seen { ip daddr }")
    + _destination_nat(f"udp dport {NODE_PORT} ip saddr @seen")
    + _GUARD_ITSELF
)
_NO_UDP = chain("inet guard", "filter", "forward", 0, "meta l4proto udp drop")

# kind -> the rules of its router
KINDS: dict[str, str] = {
    "none": "",  # no router: a public address
    "easy": source_nat("masquerade") + _FILTER,
    "hard": source_nat("masquerade fully-random") + _FILTER,
    "cone": source_nat("masquerade") + _destination_nat(f"udp dport {NODE_PORT}"),
    "one2one": source_nat("snat to <wan>") + _destination_nat(""),
    "address": source_nat("masquerade") + _SEEN_ADDRESSES_ONLY,
    "double": source_nat("masquerade") + _FILTER,  # and a second such router above
    "blocked": source_nat("masquerade") + _NO_UDP,
}

# Clients without any IPv4 address, public as IPv6 is; these kinds meet only each other (the control URL is a literal).
KINDS6: dict[str, str] = {"v6": "", "v6wall": _FILTER}  # "v6wall": a router lets in only answers


def rules_of(kind: str, client: str, wan: str) -> str:
    return KINDS[kind].replace("<client>", client).replace("<wan>", wan)


def hosts_for(left: str) -> tuple[str, str]:
    """Where control and relays must be for this kind to reach them."""
    return HOSTS6 if left in KINDS6 else HOSTS
