"""What `Exits.status()` says, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tailscale.proxy.live import LiveChoice
    from tailscale.status import ExitNode
    from ts_proxy.choice import ExitState
    from ts_proxy.policy import Policy

Standing = Literal["in use", "ready", "lost", "broken", "trial", "unwanted"]


@dataclass(frozen=True, slots=True)
class ExitStanding:
    """One exit node as a policy sees it."""

    exit: ExitNode
    state: Standing
    """"trial": it was broken, and the next connection finds out whether it works again."""
    reason: str
    """Why it is lost, broken or unwanted."""
    failures: int
    """Counted against it since it last worked."""
    again_in: float | None
    """Seconds until it may be tried again; None for at once."""
    dials: int
    """Under way."""
    connections: int
    """Streams and UDP sockets that are open, of those that were made by these exits."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return self.exit.to_dict() | {
            "state": self.state,
            "reason": self.reason,
            "failures": self.failures,
            "again_in": self.again_in,
            "dials": self.dials,
            "connections": self.connections,
        }


@dataclass(frozen=True, slots=True)
class ExitsStatus:
    """One policy's choice at this moment."""

    kind: str
    """"policy", "none" or "direct"."""
    policy: str
    current: ExitNode | None
    reason: str
    """Why that one."""
    pinned: str
    """The exit that `pin` named; "" while the policy decides."""
    pool: tuple[str, ...]
    """Hostnames of the exits used last, the last one first."""
    exits: tuple[ExitStanding, ...]
    """Every exit node of the tailnet: those that the policy wants first, in its order."""
    waiting: int
    """Connections that are not made yet."""
    sessions: int
    """That are remembered."""
    events_dropped: int
    """Of readers of `events()` that were too slow."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "kind": self.kind,
            "policy": self.policy,
            "current": self.current.to_dict() if self.current is not None else None,
            "reason": self.reason,
            "pinned": self.pinned,
            "pool": list(self.pool),
            "exits": [standing.to_dict() for standing in self.exits],
            "waiting": self.waiting,
            "sessions": self.sessions,
            "events_dropped": self.events_dropped,
        }


def describe(kind: str, policy: Policy, live: LiveChoice | None) -> ExitsStatus:
    """The whole of it; nothing but the kind for the two constants."""
    if live is None:
        return ExitsStatus(kind, kind, None, "", "", (), (), 0, 0, 0)
    choice = live.choice
    with live.turn() as now:
        selection = choice.selection(now)
        states = {state.key: state for state in choice.states(now)}
    order = [*selection.order, *(key for key in states if key not in selection.order)]
    standings = [
        _standing(states[key], exit_node, now, is_current=key == choice.current, connections=live.open_through(key))
        for key in order
        if (exit_node := live.exit_of(key)) is not None
    ]
    standings.sort(key=lambda standing: standing.state == "unwanted")
    pool = [exit_node.node.hostname for key in choice.pool.keys if (exit_node := live.exit_of(key)) is not None]
    return ExitsStatus(
        kind=kind,
        policy=str(policy),
        current=live.exit_of(choice.current),
        reason=selection.reason,
        pinned=choice.pinned,
        pool=tuple(pool),
        exits=tuple(standings),
        waiting=live.waiting,
        sessions=len(choice.sessions),
        events_dropped=live.drops.total(),
    )


def _standing(state: ExitState, exit_node: ExitNode, now: float, *, is_current: bool, connections: int) -> ExitStanding:
    return ExitStanding(
        exit=exit_node,
        state=_word(state, is_current=is_current),
        reason=state.why_not or state.reason,
        failures=state.failures,
        again_in=state.again_at - now if state.again_at > now else None,
        dials=state.dials,
        connections=connections,
    )


def _word(state: ExitState, *, is_current: bool) -> Standing:
    if not state.fits:
        return "unwanted"
    if state.breaker == "open":
        return "broken"
    if state.breaker == "half-open":
        return "trial"
    if is_current:
        return "in use"
    return "lost" if state.reason else "ready"
