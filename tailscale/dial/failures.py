"""What stands in the way of a connection, in the words of its error. Facts in, errors out: nothing is asked here."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tailscale.errors import (
    ConnectionRefused,
    ConnectionTimedOut,
    NameNotFound,
    NoRoute,
    PeerKeyExpired,
    PeerLockedOut,
    PeerOffline,
    TailscaleError,
)
from ts_base.ip import format_address, is_tailscale_address
from ts_control.session import Phase

if TYPE_CHECKING:
    from datetime import datetime

    from tailscale.nodes import Node


EXIT_MISSING = "exit-node-missing"
CLOCK_TOLERANCE = 60.0  # seconds that our clock may be behind control's

OUR_FAULT = {
    Phase.EXPIRED: "our own key has expired, so peers do not talk to us: await device.login(), or extend the key",
    Phase.LOGGED_OUT: "this device is logged out: await device.login() to come back",
    Phase.NEEDS_LOGIN: "this device waits for somebody to log it in: device.health says how",
    Phase.NEEDS_APPROVAL: "this device waits for an administrator's approval, and nobody can see it before",
}
"""What in our own standing with control keeps peers silent, or hides them."""
CODES = {
    Phase.EXPIRED: "key-expired",
    Phase.LOGGED_OUT: "logged-out",
    Phase.NEEDS_LOGIN: "login-needed",
    Phase.NEEDS_APPROVAL: "approval-needed",
}


class Ourselves(NamedTuple):
    """What of our own may be behind a dial that failed."""

    standing: Phase
    clock_behind: float = 0.0  # seconds, against control's clock; negative where ours is ahead
    has_relay: bool = True
    missing_exit: str = ""  # the exit node that was chosen and cannot be used


class Offer(NamedTuple):
    """A peer would route an address to which nobody is sent packets."""

    router: Node
    route: str
    is_approved: bool


def unknown_name(problem: NameNotFound, us: Ourselves) -> NameNotFound:
    """The same, with what it may be due to."""
    detail, fault, temporary = "", "", problem.is_temporary
    if us.standing in OUR_FAULT:
        detail, fault = OUR_FAULT[us.standing], CODES[us.standing]
    elif us.standing is Phase.OFFLINE and not temporary:
        detail = "as far as is known while the control server cannot be reached"
    if not detail:
        return problem
    return NameNotFound(problem.name, problem.suggestions, detail, is_temporary=temporary, fault=fault)


def no_way_to(
    node: Node | None, host: str, address: bytes, us: Ourselves, offer: Offer | None = None
) -> TailscaleError:
    """Nothing can be sent to `address`, which is `node`'s if anybody's."""
    if node is not None and node.expired:
        return _key_expired(node)
    where = _named(host, address)
    if us.standing in OUR_FAULT:
        return NoRoute(f"no peer owns or routes {where}: {OUR_FAULT[us.standing]}", CODES[us.standing])
    if offer is not None and not offer.is_approved:
        why = f"{offer.router.hostname} offers {offer.route}, which is not approved: approve it on the control server"
        return NoRoute(f"nobody routes {where}: {why}", "route-not-approved")
    if offer is not None:
        why = f"{offer.router.hostname} does by {offer.route}, but this device accepts no routes: accept_routes=True"
        return NoRoute(f"nobody routes {where} for us: {why}", "routes-not-accepted")
    if us.missing_exit and not is_tailscale_address(address):
        why = "choose another with device.set(exit_node=...), or None for none; its routes must be approved"
        return NoRoute(f"{where} goes by the exit node {us.missing_exit!r}, which is not there: {why}", EXIT_MISSING)
    if node is not None and format_address(address) in node.addresses:
        why = "it has told neither a relay nor a key for direct paths: if it has just joined, try again in a moment"
        return NoRoute(f"{node.hostname} cannot be sent packets at {where} yet: {why}")
    return NoRoute(
        f"no peer owns or routes {where}: is it in this tailnet, does the policy let us see it, and are its routes "
        "approved?"
    )


def no_way_via(exit_node: Node | None, host: str, address: bytes, *, is_exit: bool, is_node: bool) -> TailscaleError:
    """The peer named by `via=` takes no packets to `address`, which is a node's own if `is_node`."""
    where = _named(host, address)
    if exit_node is None:
        return NoRoute(f"cannot reach {where}: the node named by via= has left the tailnet", EXIT_MISSING)
    if exit_node.expired:
        return _key_expired(exit_node)
    if is_node:
        why = "that is a node of the tailnet, which is reached directly: leave via= out"
    elif is_exit:
        family = "IPv4" if len(address) == 4 else "IPv6"
        why = f"it is an exit node, but not for that address: does it offer {family} too, with that route approved?"
    else:
        why = "it is no exit node: it must offer to be one, and its routes must be approved"
    return NoRoute(f"{exit_node.hostname} takes no packets to {where}: {why}", "" if is_node else "no-exit")


def no_exit(exit_node: Node | None) -> TailscaleError:
    """A socket for any destination was asked for, and the peer named by `via=` offers no default route."""
    if exit_node is None:
        return NoRoute("the node named by via= has left the tailnet", EXIT_MISSING)
    if exit_node.expired:
        return _key_expired(exit_node)
    why = "it must offer to be one, and its routes must be approved"
    return NoRoute(f"{exit_node.hostname} is no exit node: {why}", "no-exit")


def _key_expired(node: Node) -> TailscaleError:
    if node.locked_out:
        return PeerLockedOut(
            f"{node.hostname} is locked out of this tailnet: {node.locked_out}. Sign its node key on a machine that "
            "the lock trusts (tailscale lock sign)"
        )
    since = f" on {node.key_expiry:%Y-%m-%d}" if node.key_expiry else ""
    return PeerKeyExpired(f"the key of {node.hostname} expired{since}: log in on that machine again, or extend its key")


def _named(host: str, address: bytes) -> str:
    text = format_address(address)
    return host if host == text else f"{host} ({text})"


def refusal(host: str, port: int, policy: str = "") -> TailscaleError:
    """The other side said no; `policy` is what it said of its reasons."""
    why = policy or "the machine is there, but nothing listens on that port"
    return ConnectionRefused(f"{host} port {port} refused the connection: {why}", "policy-there" if policy else "")


def unreachable_behind(host: str, port: int) -> TailscaleError:
    """Whoever routes the address knows no way to it."""
    return NoRoute(
        f"cannot reach {host} port {port}: the network on its side says it is unreachable", "port-unreachable"
    )


def silence(
    host: str,
    port: int,
    after: str,
    node: Node | None,
    *,
    is_exit: bool = False,
    us: Ourselves,
    has_session: bool,
    now: float,
) -> TailscaleError:
    """Nobody answered: say the likeliest reason. `node` has the address or is the exit to it; `now` is wall clock."""
    if us.standing in OUR_FAULT:
        why = OUR_FAULT[us.standing]
        return ConnectionTimedOut(f"{host} port {port} did not answer{after}: {why}", CODES[us.standing])
    if node is None:
        return ConnectionTimedOut(f"{host} port {port} did not answer{after}")
    if node.online is False:
        seen = f" (last seen {_ago(now, node.last_seen)})" if node.last_seen else ""
        return PeerOffline(f"{node.hostname} is offline{seen} and did not answer{after}: start it, or its tailscale")
    if not has_session:
        why, fault = no_session(us)
        return ConnectionTimedOut(
            f"{node.hostname} did not answer{after}: no encrypted session could be made with it, over any path. {why}",
            fault,
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


def no_session(us: Ourselves) -> tuple[str, str]:
    """Why a peer may not answer handshakes, and that fault's code."""
    # WireGuard's handshakes carry the time, and one from before the last is taken for a replay (whitepaper 5.1).
    if us.clock_behind > CLOCK_TOLERANCE:
        behind = f"this machine's clock is {in_words(us.clock_behind)} behind the control server's"
        return f"{behind[0].upper()}{behind[1:]}, and peers refuse handshakes from the past: set it", "clock-wrong"
    if not us.has_relay:
        return "No relay can be reached from here: let TCP 443 out to the tailnet's relays", "relay-home-unreachable"
    return "Is its tailscale running?", "peer-silent"


def ping_silence(host: str, kind: str, timeout: float, us: Ourselves) -> TailscaleError:
    """Nobody answered a ping."""
    silent = f"{host} did not answer a {kind} ping within {timeout:g} s"
    if us.standing in OUR_FAULT:
        return ConnectionTimedOut(f"{silent}: {OUR_FAULT[us.standing]}", CODES[us.standing])
    return ConnectionTimedOut(silent, "peer-silent")


def in_words(seconds: float) -> str:
    """How long, as people say it."""
    for size, word in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {word}{'s' if count > 1 else ''}"
    return f"{seconds:.0f} s"


def _ago(now: float, moment: datetime) -> str:
    seconds = now - moment.timestamp()
    return f"{in_words(seconds)} ago" if seconds >= 60 else "a moment ago"
