"""What a TUN device shall be, as its user says it: checked when it is said, long before anything is made.

Owns the names and defaults of the options, and what a device looks like once it is there. Knows no kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tailscale._spelling import DEFAULT_TUN_NAME
from ts_base.errors import BadPacket
from ts_base.ip import IP6_MINIMUM_MTU, TUNNEL_MTU, Prefix, format_prefix, parse_prefix

SMALLEST_MTU = 576
EXCLUDES_LIMIT = 256
# What Linux takes for an interface, but what only a shell would need quoting for.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
RESERVED = ("all", "default", "lo")

Dns = bool | Literal["auto"]


@dataclass(frozen=True, slots=True)
class TunOptions:
    """How the kernel's own sockets reach the tailnet; made by `tailscale.tun(...)`."""

    name: str = DEFAULT_TUN_NAME
    mtu: int = TUNNEL_MTU
    split: bool = False
    exclude: tuple[str, ...] = ()
    dns: Dns = "auto"

    @property
    def excluded(self) -> frozenset[Prefix]:
        return frozenset(map(parse_prefix, self.exclude))


def tun(
    name: str = DEFAULT_TUN_NAME,
    *,
    mtu: int = TUNNEL_MTU,
    split: bool = False,
    exclude: Iterable[str] = (),
    dns: Dns = "auto",
) -> TunOptions:
    """Let every program of this machine reach the tailnet, by a network interface. Linux, with CAP_NET_ADMIN.

    - `name`: the interface, 1 to 15 letters, digits, dots and dashes.
    - `mtu`: of the interface, at most 1280; below that it has no IPv6.
    - `split`: leave everything but the tailnet and accepted subnets to the machine, although an exit node is chosen.
    - `exclude`: prefixes that never go through the tunnel.
    - `dns`: tell systemd-resolved of the tailnet's names: "auto" where it runs, True insists, False never.

    ```python
    device = tailscale.Device("laptop", overlay=tailscale.tun("ts0", exclude=["192.168.7.0/24"]))
    ```
    """
    if not isinstance(name, str) or not NAME.fullmatch(name) or name in RESERVED:
        raise ValueError(
            f"{name!a} is no name for a network interface: 1 to 15 letters, digits, dots, dashes and underscores, "
            f"such as {DEFAULT_TUN_NAME!r}"
        )
    if type(mtu) is not int or not SMALLEST_MTU <= mtu <= TUNNEL_MTU:
        raise ValueError(f"mtu is a whole number from {SMALLEST_MTU} to {TUNNEL_MTU}, not {mtu!r}")
    if dns not in (True, False, "auto"):
        raise ValueError(f'dns is True, False or "auto", not {dns!r}')
    return TunOptions(name, mtu, bool(split), _clean(exclude), dns)


def _clean(exclude: Iterable[str]) -> tuple[str, ...]:
    if isinstance(exclude, str):
        raise TypeError(f'exclude takes a list of prefixes, such as ["192.168.7.0/24"], not the text {exclude!r}')
    found = []
    for text in exclude:
        try:
            found.append(format_prefix(parse_prefix(text)))
        except BadPacket as problem:
            raise ValueError(f"exclude takes prefixes such as 192.168.7.0/24: {problem}") from None
    if len(found) > EXCLUDES_LIMIT:
        raise ValueError(f"exclude takes {EXCLUDES_LIMIT} prefixes at most, not {len(found)}")
    return tuple(dict.fromkeys(found))


def fits_ipv6(options: TunOptions) -> bool:
    """RFC 8200 section 5: no IPv6 over a link that carries less than 1280 bytes."""
    return options.mtu >= IP6_MINIMUM_MTU


class TunStatus(NamedTuple):
    """A TUN device as it is now."""

    name: str
    mode: Literal["split", "full"]
    """`full` while everything goes through an exit node."""
    mtu: int
    addresses: tuple[str, ...]
    routes: tuple[str, ...]
    exclude: tuple[str, ...]
    refused: Mapping[str, str]
    """Routes of peers that the kernel is not given, and why."""
    dns: str
    """Who looks the tailnet's names up for programs: `resolved`, `by hand` or `off`."""
    restored: int
    """How often something that others took away was put back."""

    def to_dict(self) -> dict[str, object]:
        return {**self._asdict(), "refused": dict(self.refused)}
