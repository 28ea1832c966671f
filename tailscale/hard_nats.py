"""What opening a direct path through a hard NAT may cost.

Plain values, checked. How it is opened, and why it costs that, is said in `ts_dataplane/hard_nats.py`.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

from ts_dataplane.hard_nats import HardNatLimits

LARGEST = HardNatLimits(sockets=1024, seconds=60.0, probes=20_000, rate=1000.0, rest=86_400.0)
LEAST_REST = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HardNats:
    """What one attempt to open a direct path through a hard NAT may cost, on either side of it.

    A router is hard if it uses another port for every destination, as those of cloud networks, CI runners and mobile
    carriers do. `hard_nats=False` forbids both sides of it; then such peers stay on the relay.

    ```python
    device = tailscale.Device("runner", hard_nats=tailscale.HardNats(probes=1500, rate=100))
    ```
    """

    sockets: int = 256
    """Sockets open at once where our own router is the hard one. At most a quarter of those the program may have."""
    seconds: float = 15.0
    """How long an attempt lasts at most."""
    probes: int = 3000
    """Small datagrams that an attempt may send, and ask the peer to send, to one address."""
    rate: float = 200.0
    """Of them a second, over all peers."""
    rest: float = 600.0
    """Seconds without any further attempt towards that peer and that address after one that failed."""

    def __post_init__(self) -> None:
        for name, value, largest in zip(HardNatLimits._fields, astuple(self), LARGEST, strict=True):
            whole = name in {"sockets", "probes"}
            if (
                isinstance(value, bool)
                or not isinstance(value, int if whole else (int, float))
                or not 0 < value <= largest
            ):
                kind = "whole number" if whole else "number"
                raise ValueError(f"{name} of HardNats is a {kind} above 0 and at most {largest:g}, not {value!r}")
        if self.rest < LEAST_REST:
            raise ValueError(f"rest of HardNats is at least {LEAST_REST:g} seconds, not {self.rest!r}")


def limits_of(hard_nats: bool | HardNats) -> HardNatLimits:
    """As the path finder takes them; TypeError for what is none."""
    if isinstance(hard_nats, HardNats):
        return HardNatLimits(*astuple(hard_nats))
    if hard_nats is True:
        return HardNatLimits()
    if hard_nats is False:
        return HardNatLimits(sockets=0)
    raise TypeError(f"hard_nats is True, False or a HardNats, not {hard_nats!r}")
