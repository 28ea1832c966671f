"""Making connections: from a host and a port to an open stream, or to an error. Its words are in `failures.py`."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import trio

from tailscale.dial import failures
from tailscale.errors import ConnectionRefused, ConnectionReset, NoRoute, TailscaleError
from tailscale.sockets.tcp import TcpListener, TcpStream, describe_problem
from tailscale.sockets.udp import UdpSocket
from ts_netstack.tcp import ConnectionProblem

if TYPE_CHECKING:
    from tailscale.runtime.home import Home

DIAL_TIMEOUT = 30.0
STAGGER = 0.3  # between the addresses of one name, as RFC 8305 does it


def host_and_port(host: str | tuple[str, int], port: int | None) -> tuple[str, int]:
    """Both spellings: `("db", 80)` and `"db", 80`."""
    if port is None:
        if not isinstance(host, tuple):
            raise TypeError("tcp_connect needs a port: tcp_connect('db', 5432)")
        host, port = host
    if not isinstance(host, str) or not isinstance(port, int):
        raise TypeError("host is text and port is a number")
    if not 0 < port < 65536:
        raise OSError(errno.EINVAL, f"port {port} is not between 1 and 65535")
    return host, port


async def tcp_connect(
    home: Home, host: str, port: int, *, timeout: float | None = None, local_port: int = 0
) -> TcpStream:
    """Try the addresses of `host`: those of one peer in turn, those of several as a race."""
    timeout = DIAL_TIMEOUT if timeout is None else timeout
    deadline = trio.current_time() + timeout
    with trio.move_on_at(deadline):
        addresses = await home.destinations(host)
        if local_port or len({home.peer_for(address) for address in addresses}) == 1:
            return await _dial_in_turn(home, addresses, host, port, local_port)
        return await _race(home, addresses, host, port)
    raise _silence(home, host, port, timeout)


async def _dial_in_turn(home: Home, addresses: list[bytes], host: str, port: int, local_port: int) -> TcpStream:
    """One peer's addresses share every path: the second is worth trying only where the first was refused."""
    failures: list[TailscaleError] = []
    for address in addresses:
        try:
            return await _dial(home, address, host, port, local_port)
        except ConnectionRefused as failure:
            failures.append(failure)
    raise failures[0]


async def _race(home: Home, addresses: list[bytes], host: str, port: int) -> TcpStream:
    winner: list[TcpStream] = []
    failures: list[TailscaleError] = []
    failed_one = [trio.Event() for _ in addresses]

    async def attempt(index: int, address: bytes, nursery: trio.Nursery) -> None:
        try:
            stream = await _dial(home, address, host, port, 0)
        except TailscaleError as error:
            failures.append(error)
            failed_one[index].set()
            return
        if winner:
            stream.abort()
            return
        winner.append(stream)
        nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for index, address in enumerate(addresses):
                nursery.start_soon(attempt, index, address, nursery)
                with trio.move_on_after(STAGGER):
                    await failed_one[index].wait()
    except BaseException:
        for stream in winner:  # cancelled in the very moment of success
            stream.abort()
        raise
    if winner:
        return winner[0]
    raise failures[0]


@trio.lowlevel.enable_ki_protection
async def _dial(home: Home, address: bytes, host: str, port: int, local_port: int) -> TcpStream:
    connection = home.stack.connect((address, port), home.now(), local_port=local_port)
    stream = TcpStream(connection, home)
    try:
        with home.replies.rejections(connection) as rejection:
            home.kick()
            await stream.wait_connected()
            if rejection:
                raise failures.refusal(host, port, rejection[0])
    except BaseException:
        stream.abort()
        raise
    match connection.error:
        case None:
            return stream
        case ConnectionProblem.TIMED_OUT:
            raise _silence(home, host, port, None)
        case ConnectionProblem.UNREACHABLE:
            raise NoRoute(f"cannot reach {host} port {port}: the network on its side says it is unreachable")
        case ConnectionProblem.REFUSED:
            raise failures.refusal(host, port)
        case ConnectionProblem.RESET:
            raise ConnectionReset(f"{host} port {port} accepted the connection and reset it at once")
        case problem:
            raise ConnectionRefused(f"cannot connect to {host} port {port}: {describe_problem(problem)}")


def _silence(home: Home, host: str, port: int, timeout: float | None) -> TailscaleError:
    after = f" within {timeout:g} s" if timeout is not None else ""
    node = home.find_node(host)
    has_session = node is not None and home.has_session(node.id)
    return failures.silence(
        host, port, after, node, standing=home.standing, has_session=has_session, now=home.wall_clock()
    )


async def listen(home: Home, port: int, host: str | None, backlog: int) -> TcpListener:
    await trio.lowlevel.checkpoint()
    _check_port(port)
    address = home.own_address(host)
    return TcpListener([home.stack.listen(port, address, backlog)], home)


async def udp(home: Home, port: int, host: str | None) -> UdpSocket:
    await trio.lowlevel.checkpoint()
    _check_port(port)
    return UdpSocket(home.stack.bind_udp(port, home.own_address(host)), home)


def _check_port(port: int) -> None:
    if not isinstance(port, int) or not 0 <= port < 65536:
        raise OSError(errno.EINVAL, f"port {port!r} is not between 0 and 65535")
