"""The host keys that peers say they have, as OpenSSH's known_hosts has them. Control vouches for who says it.

Owns the spellings a person may use for a peer, and that nothing a peer says can be more than a key in one line. Needs
no SSH library.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ts_control.netmap import NetMap
from ts_control.wire import Node

KEYS_LIMIT = 16  # of one peer
_KEY = re.compile(r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)) ([A-Za-z0-9+/]{16,2048}={0,2})(?: .*)?")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9a-fA-F:.]{2,45}")


def host_keys(node: Node) -> tuple[str, ...]:
    """What is a key of what it says."""
    found = (_KEY.fullmatch(text) for text in node.hostinfo.ssh_host_keys[:KEYS_LIMIT])
    return tuple(f"{match[1]} {match[2]}" for match in found if match is not None)


def spellings(node: Node, domain: str) -> tuple[str, ...]:
    """Its whole name with and without the last dot, its short name, its addresses."""
    full = node.name.rstrip(".")
    short = full.removesuffix(f".{domain}") if domain else full.partition(".")[0]
    names = [full, f"{full}.", short, full.partition(".")[0]]
    addresses = [text.partition("/")[0] for text in node.addresses or ()]
    return tuple(dict.fromkeys(name for name in (*names, *addresses) if _NAME.fullmatch(name)))


def known_hosts(netmap: NetMap, nodes: Iterable[Node] | None = None) -> str:
    """One line for each name and key."""
    domain = netmap.self_node.name.rstrip(".").partition(".")[2]
    lines = [
        f"{name} {key}"
        for node in (netmap.peers.values() if nodes is None else nodes)
        for key in host_keys(node)
        for name in spellings(node, domain)
    ]
    return "".join(f"{line}\n" for line in lines)
