"""Uplinks and the paths through them, as plain values; and the strategies by which datagrams are laid on paths.

```python
from tailscale import Backup, Redundant

await device.set(paths={"nas": Redundant(2), "*": Backup(["wlan0", "wwan0"])})
```
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from ts_dataplane.strategies import Backup as Backup
from ts_dataplane.strategies import Best as Best
from ts_dataplane.strategies import Redundant as Redundant
from ts_dataplane.strategies import Spread as Spread
from ts_dataplane.strategies import Strategy as Strategy
from ts_dataplane.strategies import Stripe as Stripe

STRATEGY_WORDS = "best, backup:UPLINK,UPLINK, redundant, redundant:3, redundant:2:bulk, spread or stripe"


def strategy_from_text(text: str) -> Strategy:
    """A strategy as it is written on a command line and in files; ValueError for what is none.

    ```python
    from tailscale.uplinks import strategy_from_text

    print(strategy_from_text("backup:wlan0,wwan0"))
    ```
    """
    word, *more = text.split(":")
    if word == "backup" and len(more) == 1 and all(more[0].split(",")):
        return Backup(more[0].split(","))
    if word == "redundant" and len(more) <= 2 and more[1:] in ([], ["bulk"]) and all(map(str.isdigit, more[:1])):
        return Redundant(int(more[0]) if more else 2, bulk=len(more) == 2)
    plain: dict[str, Strategy] = {"best": Best(), "backup": Backup(), "spread": Spread(), "stripe": Stripe()}
    if word not in plain or more:
        raise ValueError(f"{text!r} is no strategy: {STRATEGY_WORDS}")
    return plain[word]


@dataclass(frozen=True, slots=True)
class Uplink:
    """An interface of this machine by which the device reaches its peers."""

    name: str
    addresses: tuple[str, ...]
    up: bool
    """It is there, has an address, and its sockets are open."""
    enabled: bool
    """The user's wish; one that is switched off carries nothing."""
    bound: Literal["", "device", "source"]
    """How sockets are bound: to the interface itself, or only to its address; "" where none are open."""
    metered: bool
    weight: float
    """Its share beside others where flows are spread."""
    sent: int
    """Bytes of the tunnel; what relays carry is not among them."""
    received: int
    external: str | None
    """Where others see us by this uplink, "host:port", as far as a STUN server said."""

    @property
    def bytes(self) -> int:
        """Both ways."""
        return self.sent + self.received

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "addresses": list(self.addresses), "bytes": self.bytes}


@dataclass(frozen=True, slots=True)
class PathRecord:
    """One path to a peer, and how it does."""

    uplink: str
    """The interface that it is bound to; "" where the system chooses, and for relays."""
    address: str
    """The peer's (or the relaying peer's) address and port, or the relay's code."""
    kind: Literal["direct", "peer relay", "relay"]
    state: Literal["unknown", "good", "degraded", "suspect", "dead"]
    rtt: float | None
    """Seconds, smoothed."""
    rtt_var: float | None
    rtt_min: float | None
    """The smallest of the last minute."""
    loss: float
    """The share that was lost lately, 0 to 1."""
    rate: float | None
    """Bytes a second that it carried of late, at its busiest; None where it carried nothing."""
    mtu: int
    """The largest packet inside the tunnel that is known to pass; 0 before any large one has."""
    sent: int
    received: int
    since: float
    """For how many seconds it has been in this state."""
    why: str
    in_use: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)
