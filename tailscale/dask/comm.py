"""The comm backend `ts://`: distributed's own framing and serialization over connections of the tailnet.

Owns dials, listeners and addresses. A connection is a real socket that our Device carries, so tornado's streams and
distributed's `TCP` do the rest: frames are written from where they lie and read into where they stay.
"""

from __future__ import annotations

import ipaddress
from functools import partial
from typing import TYPE_CHECKING, Any

import dask.config
from distributed.comm.addressing import parse_host_port, unparse_host_port
from distributed.comm.core import CommClosedError, Connector, FatalCommClosedError
from distributed.comm.registry import Backend as CommBackend
from distributed.comm.tcp import MAX_BUFFER_SIZE, TCP, BaseTCPListener, convert_stream_closed_error
from tornado.iostream import IOStream, StreamClosedError
from tornado.tcpserver import TCPServer

from tailscale.dask import settings
from tailscale.dask.process_device import PROCESS_DEVICE
from tailscale.errors import (
    AuthKeyRejected,
    ControlUnreachable,
    DeviceClosed,
    DeviceFailed,
    LoginRequired,
    TailscaleError,
)
from tailscale.threads import bridges
from tailscale.threads.awaiting import finished
from tailscale.threads.loopback import TailnetSocket

if TYPE_CHECKING:
    from tailscale.device import Device
    from tailscale.threads.loopback import TailnetListener

SCHEME = "ts"
PREFIX = f"{SCHEME}://"
THIS_MACHINE = "127.0.0.1"
REMEMBERED = 1024  # names and their addresses
SOME_OTHER_TIME = (ControlUnreachable, DeviceClosed, DeviceFailed)  # what dask may try again; dials are OSErrors anyway


class Comm(TCP):
    """distributed's `TCP`, whose writes wait until what they wrote has left for the tailnet."""

    async def write(self, msg: Any, serializers: Any = None, on_error: str = "message") -> int:
        size: int = await super().write(msg, serializers=serializers, on_error=on_error)
        stream = self.stream
        if stream is not None and stream.writing():
            try:
                await stream.write(b"")
            except StreamClosedError as error:
                self.abort()
                convert_stream_closed_error(self, error)
            except BaseException:  # part of the message may be gone already
                self.abort()
                raise
        return size


class TailnetConnector(Connector):
    """Dials `name:port` or `address:port`."""

    async def connect(self, address: str, deserialize: bool = True, **_: Any) -> Comm:
        host, port = parse_host_port(address)
        try:
            thread = await PROCESS_DEVICE.joined()
            dial = partial(bridges.connect, thread, partial(thread.device.tcp_connect, host, port))
            sock = await finished(thread.submit(dial, TailnetSocket.close))
        except (TailscaleError, OSError) as problem:
            raise _as_comm_error(PREFIX + address, problem) from problem
        stream = IOStream(sock, max_buffer_size=MAX_BUFFER_SIZE)
        return Comm(stream, PREFIX + unparse_host_port(*sock.getsockname()), PREFIX + address, deserialize)


def _as_comm_error(address: str, problem: Exception) -> CommClosedError:
    """dask tries the first kind again until its time is up. What only a person can mend is told at once."""
    is_fatal = isinstance(problem, TailscaleError) and not isinstance(problem, (OSError, *SOME_OTHER_TIME))
    if is_fatal or isinstance(problem, (AuthKeyRejected, LoginRequired)):
        return FatalCommClosedError(f"cannot connect to {address}: {problem}")
    return CommClosedError(f"cannot connect to {address}: {problem}")


class Listener(BaseTCPListener):
    """Listens on the tailnet; the addresses of the machine itself mean all of ours there."""

    prefix = PREFIX
    comm_class = Comm
    encrypted = True  # by the tunnel, both ends authenticated: `require-encryption` is met

    async def start(self) -> None:
        thread = await PROCESS_DEVICE.joined()
        host = _own_host(thread.device, self.ip)
        backlog = int(dask.config.get("distributed.comm.socket-backlog"))
        listening = partial(bridges.listen, thread, self.port, host, backlog)
        sock: TailnetListener = await finished(thread.submit(listening, lambda door: door.close()))
        sock.setblocking(False)
        self._contact = thread.device.hostname if settings.contact_by_name() else sock.getsockname()[0]
        self.tcp_server = TCPServer(max_buffer_size=MAX_BUFFER_SIZE)
        self.tcp_server.handle_stream = self._handle_stream
        self.tcp_server.add_sockets([sock])
        self.get_host_port()

    def _get_server_args(self, **_: Any) -> dict[str, Any]:
        return {}

    async def _prepare_stream(self, stream: IOStream, address: str) -> IOStream:
        return stream

    @property
    def contact_address(self) -> str:
        """What others dial: our address in the tailnet, or our name there."""
        return f"{PREFIX}{unparse_host_port(self._contact, self.get_host_port()[1])}"


def _own_host(device: Device, host: str) -> str | None:
    """Where to listen: one of our addresses, or None for all of them."""
    if host in (device.ipv4, device.ipv6):
        return host
    if host in ("", "localhost", device.hostname, device.name) or _is_address(host):
        return None  # a nanny passes an address of the machine on
    raise settings.UnusableSetting(
        f"cannot listen at {PREFIX}{host}: this device is called {device.hostname}; leave the host away"
    )


class Backend(CommBackend):
    """The scheme `ts`. distributed makes one when it meets the first `ts://` address."""

    def __init__(self) -> None:
        settings.register()
        self._addresses: dict[str, str] = {}

    def get_connector(self) -> TailnetConnector:
        return TailnetConnector()

    def get_listener(self, loc: str, handle_comm: Any, deserialize: bool, **options: Any) -> Listener:
        return Listener(loc, handle_comm, deserialize, **options)

    def get_address_host(self, loc: str) -> str:
        """Which machine `loc` is on, as an address of the tailnet; the machine's own for where a server is to listen.

        A name is looked up in the netmap. One that cannot be, for there is no Device yet, is asked for by a nanny that
        looks for the address it should listen at: any of the machine's means all of ours.
        """
        host, port = parse_host_port(loc, 0)
        if not host or not port:
            return THIS_MACHINE
        if _is_address(host):
            return str(host)
        device = PROCESS_DEVICE.present()
        return THIS_MACHINE if device is None else self._address_of(device, host)

    def _address_of(self, device: Device, name: str) -> str:
        """Remembered: dask asks for every piece of data, to prefer what is near."""
        if name not in self._addresses:
            node = device.node if name in (device.hostname, device.name) else device.peers.get(name)
            address = (node.ipv4 or node.ipv6) if node is not None else None
            if address is None:
                return name
            if len(self._addresses) >= REMEMBERED:
                self._addresses.clear()
            self._addresses[name] = address
        return self._addresses[name]

    def get_address_host_port(self, loc: str) -> tuple[str, int]:
        host, port = parse_host_port(loc)
        return host, port

    def resolve_address(self, loc: str) -> str:
        """Names stay: what they mean is decided by each dial."""
        return loc

    def get_local_address_for(self, loc: str) -> str:
        device = PROCESS_DEVICE.present()
        return (device.ipv4 or device.ipv6 or "") if device is not None else ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
