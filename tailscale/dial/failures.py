"""What stands in the way of a connection, in the words of its error. Facts in, errors out: nothing is asked here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tailscale.errors import (
    ConnectionRefused,
    ConnectionTimedOut,
    NameNotFound,
    NoRoute,
    PeerKeyExpired,
    PeerOffline,
    TailscaleError,
)
from ts_base.ip import format_address
from ts_control.session import Phase

if TYPE_CHECKING:
    from datetime import datetime

    from tailscale.nodes import Node


OUR_FAULT = {
    Phase.EXPIRED: "our own key has expired, so peers do not talk to us: await device.login(), or extend the key",
    Phase.LOGGED_OUT: "this device is logged out: await device.login() to come back",
    Phase.NEEDS_LOGIN: "this device waits for somebody to log it in: device.health says how",
    Phase.NEEDS_APPROVAL: "this device waits for an administrator's approval, and nobody can see it before",
}
"""What in our own standing with control keeps peers silent, or hides them."""


def unknown_name(problem: NameNotFound, standing: Phase) -> NameNotFound:
    """The same, with what it may be due to."""
    if standing not in OUR_FAULT:
        return problem
    return NameNotFound(problem.name, problem.suggestions, OUR_FAULT[standing], is_temporary=problem.is_temporary)


def no_way_to(node: Node | None, host: str, address: bytes, standing: Phase) -> TailscaleError:
    """Nothing can be sent to `address`, which is `node`'s if anybody's."""
    if node is not None and node.expired:
        return _key_expired(node)
    where = _named(host, address)
    why = OUR_FAULT.get(standing, "is it in this tailnet, does the policy let us see it, and are its routes approved?")
    return NoRoute(f"no peer owns or routes {where}: {why}")


def no_way_via(exit_node: Node | None, host: str, address: bytes, *, is_exit: bool, is_node: bool) -> TailscaleError:
    """The peer named by `via=` takes no packets to `address`, which is a node's own if `is_node`."""
    where = _named(host, address)
    if exit_node is None:
        return NoRoute(f"cannot reach {where}: the node named by via= has left the tailnet")
    if exit_node.expired:
        return _key_expired(exit_node)
    if is_node:
        why = "that is a node of the tailnet, which is reached directly: leave via= out"
    elif is_exit:
        family = "IPv4" if len(address) == 4 else "IPv6"
        why = f"it is an exit node, but not for that address: does it offer {family} too, with that route approved?"
    else:
        why = "it is no exit node: it must offer to be one, and its routes must be approved"
    return NoRoute(f"{exit_node.hostname} takes no packets to {where}: {why}")


def no_exit(exit_node: Node | None) -> TailscaleError:
    """A socket for any destination was asked for, and the peer named by `via=` offers no default route."""
    if exit_node is None:
        return NoRoute("the node named by via= has left the tailnet")
    if exit_node.expired:
        return _key_expired(exit_node)
    return NoRoute(f"{exit_node.hostname} is no exit node: it must offer to be one, and its routes must be approved")


def _key_expired(node: Node) -> TailscaleError:
    since = f" on {node.key_expiry:%Y-%m-%d}" if node.key_expiry else ""
    return PeerKeyExpired(f"the key of {node.hostname} expired{since}: log in on that machine again, or extend its key")


def _named(host: str, address: bytes) -> str:
    text = format_address(address)
    return host if host == text else f"{host} ({text})"


def refusal(host: str, port: int, policy: str = "") -> TailscaleError:
    """The other side said no; `policy` is what it said of its reasons."""
    why = policy or "the machine is there, but nothing listens on that port"
    return ConnectionRefused(f"{host} port {port} refused the connection: {why}", by_policy=bool(policy))


def silence(
    host: str,
    port: int,
    after: str,
    node: Node | None,
    *,
    is_exit: bool = False,
    standing: Phase,
    has_session: bool,
    now: float,
) -> TailscaleError:
    """Nobody answered: say the likeliest reason. `node` has the address or is the exit to it; `now` is wall clock."""
    if standing in OUR_FAULT:
        return ConnectionTimedOut(f"{host} port {port} did not answer{after}: {OUR_FAULT[standing]}")
    if node is None:
        return ConnectionTimedOut(f"{host} port {port} did not answer{after}")
    if node.online is False:
        seen = f" (last seen {_ago(now, node.last_seen)})" if node.last_seen else ""
        return PeerOffline(f"{node.hostname} is offline{seen} and did not answer{after}: start it, or its tailscale")
    if not has_session:
        return ConnectionTimedOut(
            f"{node.hostname} did not answer{after}: no encrypted session could be made with it, over any path. "
            "Is its tailscale running?"
        )
    if is_exit:
        return ConnectionTimedOut(
            f"{host} port {port} did not answer{after} through {node.hostname}: the tailnet policy may not let us use "
            "that exit node, or nobody is there"
        )
    return ConnectionTimedOut(
        f"{node.hostname} port {port} did not answer{after}, though the machine itself does: "
        "the tailnet policy or its own firewall may drop the connection"
    )


def ping_silence(host: str, kind: str, timeout: float, standing: Phase) -> TailscaleError:
    """Nobody answered a ping."""
    why = f": {OUR_FAULT[standing]}" if standing in OUR_FAULT else ""
    return ConnectionTimedOut(f"{host} did not answer a {kind} ping within {timeout:g} s{why}")


def _ago(now: float, moment: datetime) -> str:
    seconds = now - moment.timestamp()
    for size, word in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {word}{'s' if count > 1 else ''} ago"
    return "a moment ago"
