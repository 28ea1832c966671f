"""What a device that carries for others is told, asks its program, and says of itself.

Plain values: the limits, one flow that somebody wants carried, and the counts. Knows nothing of how it is carried.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tailscale.nodes import Node

EXIT_ROUTES = ("0.0.0.0/0", "::/0")
APPROVE = (
    "approve them where the tailnet is administered (Headscale: headscale nodes approve-routes), or let its policy do "
    "so (autoApprovers); of several routers of one subnet, only the one that control has chosen has it"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardLimits:
    """How much a device carries for others, over all and for each peer.

    What has no place is dropped and counted, or made room for where it says so. Sockets are file descriptors of the
    program: where the system lets it have few, as many as half of them are used, whatever is said here.

    ```python
    limits = tailscale.ForwardLimits(dial_timeout=5, flows_per_peer=64)
    router = tailscale.Device("router", advertise_routes=["192.168.7.0/24"], forward=limits)
    ```
    """

    dials: int = 1024
    """TCP connections being opened at once; the caller says its SYN again."""
    dials_per_peer: int = 256
    dial_timeout: float = 10.0
    """Seconds until a caller is told that nobody answers there."""
    connections: int = 4096
    """TCP connections carried at once."""
    connections_per_peer: int = 1024
    flows: int = 4096
    """UDP flows at once; the one that was silent longest makes room."""
    flows_per_peer: int = 512
    flow_idle: float = 120.0
    """Seconds of silence that end a UDP flow."""
    dns_idle: float = 30.0
    """The same for port 53."""
    pings: int = 20
    """Echo requests under way at once."""
    pings_per_second: float = 10.0
    """Of each peer."""
    keepalive_idle: float = 60.0
    """Seconds of silence after which a caller is asked whether it still exists."""
    keepalive_interval: float = 15.0
    """Seconds between such questions."""
    keepalive_count: int = 9
    """So many without an answer end the connection."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1 << 31:
                raise ValueError(f"{field.name} of ForwardLimits is a number above 0, not {value!r}")
            if field.type == "int" and not isinstance(value, int):
                raise ValueError(f"{field.name} of ForwardLimits is a whole number, not {value!r}")


@dataclass(frozen=True, slots=True)
class IncomingFlow:
    """What a peer wants carried: a TCP connection, or the first datagram of a UDP flow. `on_flow` decides about it."""

    protocol: Literal["tcp", "udp"]
    caller: Node | None
    """Who asks; None where the netmap has lost it at this moment."""
    source: tuple[str, int]
    destination: tuple[str, int]
    """The address behind us. It has passed the guard: never this machine, its links or the tailnet."""


class Refusal(Enum):
    """The answer of `on_flow` to what is not carried."""

    REFUSE = "refuse"


REFUSE = Refusal.REFUSE
"""What `on_flow` returns to refuse a flow: the caller meets a closed port."""

FlowHandler = Callable[[Any], Awaitable[object]]
"""Takes a flow: called with its stream or socket, which is closed when it returns, and reset when it raises."""
FlowAnswer = FlowHandler | Refusal | None
OnFlow = Callable[[IncomingFlow], FlowAnswer | Awaitable[FlowAnswer]]


@dataclass(frozen=True, slots=True)
class Forwarding:
    """What a device carries for others, at one moment.

    ```python
    now = device.forwarding
    print(now.advertised, now.approved, now.flows, now.refused)
    ```
    """

    advertised: tuple[str, ...]
    """Subnets that are offered; an exit node's are `0.0.0.0/0` and `::/0`."""
    approved: tuple[str, ...]
    """Of those, what control lets us: what is really forwarded."""
    tcp: int
    """TCP connections carried now."""
    udp: int
    """UDP flows carried now."""
    dials: int
    """TCP connections being opened now."""
    refused: dict[str, int]
    """What was not carried, by reason: docs/drops.md says what each means."""
    bytes_in: int
    """Carried into the tailnet so far."""
    bytes_out: int
    """Carried out of it so far."""

    @property
    def flows(self) -> int:
        """TCP and UDP together."""
        return self.tcp + self.udp

    @property
    def bytes(self) -> int:
        """Both ways together."""
        return self.bytes_in + self.bytes_out

    @property
    def missing(self) -> tuple[str, ...]:
        """Advertised and not approved: nothing is forwarded there."""
        return tuple(route for route in self.advertised if route not in self.approved)

    @property
    def is_exit_node(self) -> bool:
        """Whether everything outside the tailnet is carried, for peers that choose so."""
        return set(EXIT_ROUTES) <= set(self.approved)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "advertised": list(self.advertised),
            "approved": list(self.approved),
            "tcp": self.tcp,
            "udp": self.udp,
            "dials": self.dials,
            "refused": dict(self.refused),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
        }
