"""Which way a connection goes: over the tailnet for what the tailnet knows or routes, else over the host's own network.

With an exit node everything but this very machine goes through the tailnet. A name in the tailnet's own domain is never
shown to the host's resolver.
"""

from __future__ import annotations

import ipaddress
import math
from typing import TYPE_CHECKING

import trio

from tailscale.dns.names import literal_address
from tailscale.errors import ConnectionTimedOut, NameNotFound
from tailscale.nodes import clean_name
from ts_base.ip import format_address, is_tailscale_address

if TYPE_CHECKING:
    from tailscale.dial.dialing import Dialer, Via
    from tailscale.runtime.network import Network


async def connect_anywhere(
    dialer: Dialer,
    network: Network,
    host: str,
    port: int,
    *,
    timeout: float | None = None,
    via: Via = None,
) -> trio.abc.HalfCloseableStream:
    """An open stream to `host`, whichever way it goes."""
    is_tailnet, destination, via = await way_by(dialer, host, via)
    if is_tailnet:
        return await dialer.tcp_connect(destination, port, timeout=timeout, via=via)
    try:
        with trio.move_on_after(math.inf if timeout is None else timeout):
            return await network.open_tcp(destination, port)
        raise ConnectionTimedOut(f"{host} port {port} did not answer within {timeout:g} s over this machine's network")
    except OSError as error:
        close = [] if literal_address(host) or "." in host else dialer.resolver.names.close_to(host)
        if close:
            raise NameNotFound(host, close, detail="nor could this machine's network reach it") from error
        raise


async def way_by(dialer: Dialer, host: str, via: Via) -> tuple[bool, str, Via]:
    """`way_to`, and through which exit: what the tailnet itself has goes as usual, all but this machine by `via`."""
    if via is None or _is_this_machine(host):
        return (*await way_to(dialer, host), None)
    literal = literal_address(host)
    if literal is None and _is_name_of_tailnet(dialer, host):
        return True, host, None
    if literal is None and not _is_split(dialer, host):
        return True, host, via
    addresses = await dialer.resolver.address_bytes(host)
    inside = [a for a in addresses if is_tailscale_address(a) or dialer.reach.is_inside(a)]
    return True, format_address((inside or addresses)[0]), None if inside else via


async def way_to(dialer: Dialer, host: str) -> tuple[bool, str]:
    """Whether to go over the tailnet, and to what: `host` itself, or the address its own resolver gives for it."""
    known = known_way(dialer, host)
    if known is not None:
        return known, host
    addresses = await dialer.resolver.address_bytes(host)
    routed = [a for a in addresses if dialer.reach.routes_to(a)]
    chosen = (routed or addresses)[0]
    return bool(routed) or is_tailscale_address(chosen), format_address(chosen)


def known_way(dialer: Dialer, host: str) -> bool | None:
    """Whether to go over the tailnet, as far as nobody has to be asked; None where the address decides.

    Reads what is replaced and never changed, so that any thread may call it.
    """
    if _is_this_machine(host):
        return False
    if dialer.directory.preferences.exit_node is not None or _is_of_tailnet(dialer, host):
        return True
    return None if _is_split(dialer, host) else False


def _is_this_machine(host: str) -> bool:
    if literal_address(host) is not None:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    name = clean_name(host)
    return name == "localhost" or name.endswith(".localhost")


def _is_of_tailnet(dialer: Dialer, host: str) -> bool:
    literal = literal_address(host)
    if literal is not None:
        # What is in the tailnet's ranges goes by the tailnet or not at all: this machine's network must not see it.
        return is_tailscale_address(literal) or dialer.reach.routes_to(literal) or dialer.identify(literal) is not None
    return _is_name_of_tailnet(dialer, host)


def _is_name_of_tailnet(dialer: Dialer, host: str) -> bool:
    names = dialer.resolver.names
    return names.full_name(host) is not None or ("." in clean_name(host) and names.owns(host))


def _is_split(dialer: Dialer, host: str) -> bool:
    """Whether the tailnet's own resolvers answer for this name."""
    netmap = dialer.directory.netmap
    if literal_address(host) is not None or netmap is None:
        return False
    name = clean_name(host)
    suffixes = (clean_name(suffix) for suffix, servers in netmap.dns.routes.items() if servers)
    return any(name == s or name.endswith(f".{s}") for s in suffixes)
