"""Who sends a request to the peer API, as control says it: handlers judge by this and by nothing in the request.

The packet filter lets everybody through to this server, so that each handler authorises by itself. Owns what "the same
user" means. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tailscale.nodes import Node, node_from_wire
from ts_control import wire
from ts_control.netmap import NetMap

INGRESS = "https://tailscale.com/cap/ingress"


@dataclass(frozen=True, slots=True)
class PeerCaller:
    """The node behind a request.

    - `address`: where it speaks from: one of its own addresses, never one that it routes.
    - `is_same_user`: the same person owns it and us. Never true where either side is tagged: control gives all tagged
      nodes one user, who is nobody.
    - `is_unsigned`: the tailnet lock does not vouch for it, or it is jailed: it may do nothing but what its ingress
      capability says.
    - `capabilities`: what the policy grants it towards us.
    """

    node: Node
    address: str
    is_same_user: bool
    is_unsigned: bool
    capabilities: Mapping[str, Any]


def caller_at(netmap: NetMap, peer: wire.Node, address: str, granted: Mapping[str, Any]) -> PeerCaller | None:
    """The caller behind a connection from `address`; None where that is nobody who may ask."""
    if address not in {prefix.partition("/")[0] for prefix in peer.addresses} or peer.expired:
        return None
    # The tailnet's own Funnel relays are both; whoever is either may do nothing but bring what comes from the internet.
    us, unsigned = netmap.self_node, peer.unsigned_peer_api_only or peer.is_jailed
    if peer.is_jailed and INGRESS not in granted:
        return None
    return PeerCaller(
        node=node_from_wire(peer, netmap),
        address=address,
        is_same_user=bool(us.user) and peer.user == us.user and not peer.tags and not us.tags and not unsigned,
        is_unsigned=unsigned,
        capabilities={name: values for name, values in granted.items() if not unsigned or name == INGRESS},
    )


def names_of_us(netmap: NetMap, peer: wire.Node, port: int) -> frozenset[str]:
    """What a Host header of `peer`'s may say: the word `peer`, or an address it knows us by, and the port."""
    masquerades = peer.self_node_v4_masq_addr_for_this_peer, peer.self_node_v6_masq_addr_for_this_peer
    addresses = [prefix.partition("/")[0] for prefix in netmap.self_node.addresses] + [a for a in masquerades if a]
    return frozenset({"peer", *(f"[{a}]:{port}" if ":" in a else f"{a}:{port}" for a in addresses)})
