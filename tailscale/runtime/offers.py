"""What this device offers to others by itself: servers of its own, SSH host keys, routes. Told to control and to peers.

Owns: one retained value on the bus, made of everybody's offers. Refuses to know: who serves what and how.
"""

from __future__ import annotations

from tailscale.runtime.bus import Bus
from tailscale.runtime.messages import Offer, ServicesOffered


def offer(bus: Bus, who: str, what: Offer | None) -> None:
    """From now on `who` offers this, and nothing else; None takes it back."""
    latest = bus.latest(ServicesOffered)
    before = latest.offers if latest is not None else {}
    after = {name: known for name, known in before.items() if name != who}
    if what is not None:
        after[who] = what
    if after != before:
        bus.publish(ServicesOffered(after))
