"""Our own connections, past a tunnel of ours that the machine's routes lead into.

Owns binding a socket to the interface it would leave by without the tunnel, and where hosts were last: names may be
looked up through the very tunnel that waits for the connection. Refuses to know how routes are asked for. RFC 8305.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from collections.abc import Callable

import trio

from tailscale.runtime.uplinks import confine
from ts_base.ip import format_address, maybe_address, parse_address

UplinkFor = Callable[[bytes], str]
"""The interface by which an address is reached without the tunnel; "" where none has to be named."""

NAMES_LIMIT = 64
LOOKUP_PATIENCE = 3.0  # then it is tried where the host was last
STAGGER = 0.25  # between attempts, RFC 8305 section 8


class LastAddresses:
    """Where hosts were when they were last reached; the oldest are forgotten."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, bytes] = OrderedDict()

    def of(self, host: str) -> tuple[bytes, ...]:
        if (literal := maybe_address(host)) is not None:
            return (literal,)
        return (self._known[host],) if host in self._known else ()

    def keep(self, host: str, connected: trio.socket.SocketType) -> None:
        if maybe_address(host) is not None:
            return
        try:
            self._known[host] = parse_address(connected.getpeername()[0].partition("%")[0])
        except (OSError, ValueError):
            return  # gone already
        self._known.move_to_end(host)
        if len(self._known) > NAMES_LIMIT:
            self._known.popitem(last=False)


def bind_around(made: trio.socket.SocketType, address: str, uplink_for: UplinkFor) -> None:
    """Have a socket that is to be connected leave by the machine's own way."""
    if uplink := uplink_for(parse_address(address)):
        confine(made, uplink)  # type: ignore[arg-type] # it needs setsockopt alone, which both kinds have


async def open_tcp_around(host: str, port: int, uplink_for: UplinkFor, known: LastAddresses) -> trio.SocketStream:
    """A connection to the first of a host's addresses that takes one. OSError of the first that failed."""
    addresses = await _addresses(host, port, known)
    won: list[trio.SocketStream] = []
    failed: list[OSError] = []

    async def attempt(address: str, has_ended: trio.Event) -> None:
        made = trio.socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        try:
            bind_around(made, address, uplink_for)
            await made.connect((address, port))
        except OSError as error:
            made.close()
            failed.append(error)
        except BaseException:
            made.close()
            raise
        else:
            if won:
                made.close()
            else:
                won.append(trio.SocketStream(made))
                nursery.cancel_scope.cancel()
        has_ended.set()

    async with trio.open_nursery() as nursery:
        for address in addresses:
            has_ended = trio.Event()
            nursery.start_soon(attempt, address, has_ended)
            with trio.move_on_after(STAGGER):
                await has_ended.wait()
    if won:
        return won[0]
    raise failed[0] if failed else OSError(f"{host!a} has no address")


async def _addresses(host: str, port: int, known: LastAddresses) -> list[str]:
    """All of them, the families in turn; where nobody says in time, where the host was last."""
    last = [format_address(address) for address in known.of(host)]
    if maybe_address(host) is not None:
        return last
    found: list[str] = []
    try:
        with trio.move_on_after(LOOKUP_PATIENCE if last else float("inf")):
            told = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found = [str(entry[4][0]) for entry in told]
    except OSError:
        if not last:
            raise
    return list(dict.fromkeys(found)) or last
