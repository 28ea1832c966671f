"""A port of a Service that this device hosts: a listener at whatever addresses control gives the service.

Owns those listeners, which come and go with control's word, and what the program has not accepted. Refuses to know how
control is told.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from functools import partial

import trio

from tailscale.errors import ServiceUnavailable
from tailscale.runtime.bus import Bus
from tailscale.runtime.directory import Directory
from tailscale.runtime.messages import Offer, ServicesOffered, TablesChanged
from tailscale.runtime.offers import offer
from tailscale.sockets.tcp import TcpListener, TcpStream
from ts_base.ip import format_address
from ts_control.services import addresses_in, label_of

log = logging.getLogger("tailscale")
Listen = Callable[[int, bytes], TcpListener]


class ServiceListener(trio.abc.Listener[TcpStream]):
    """Accepts connections to a service of the tailnet; works with `trio.serve_listeners`.

    It may be opened before control has let this device host the service: `addresses` is empty until then. Closing it
    refuses new connections and withdraws the port, and the service with its last one; accepted connections go on.
    """

    def __init__(
        self, service: str, port: int, name: str, listen: Listen, offered: Callable[[Offer | None], None]
    ) -> None:
        self.service, self.port, self.name = service, port, name
        self._listen, self._offered = listen, offered
        self._open: dict[bytes, TcpListener] = {}
        self._put, self._arrived = trio.open_memory_channel[TcpStream](0)
        self._scope = trio.CancelScope()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it is reached at this moment."""
        return tuple(map(format_address, self._open))

    async def accept(self) -> TcpStream:
        """The next connection."""
        try:
            return await self._arrived.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError("this listener was closed") from None

    def drain(self) -> None:
        """Tell control to send nobody new to this host's part of the service; who comes all the same is accepted."""
        self._offered(Offer(hosted=((self.service, self.port),), is_draining=True))

    def advertise(self) -> None:
        """Be a host like any other again, after `drain`."""
        self._offered(Offer(hosted=((self.service, self.port),)))

    async def aclose(self) -> None:
        """No new connections; those that were accepted go on."""
        self.shut()
        await trio.lowlevel.checkpoint()

    def shut(self) -> None:
        """Close without being able to wait."""
        self._offered(None)
        self._offered = _nothing
        self._scope.cancel()
        for listener in self._open.values():
            listener.shut()
        self._open.clear()
        self._put.close()

    async def run(self, bus: Bus) -> None:
        """Follow what control says, until it is closed or the device is."""
        try:
            with self._scope, bus.subscribe(TablesChanged, name=f"{self.service}:{self.port}") as inbox:
                async with trio.open_nursery() as nursery:
                    while True:
                        message = await inbox.receive()
                        assert isinstance(message, TablesChanged)
                        wanted = addresses_in(message.netmap.self_node.cap_map).get(self.service, ())
                        self._follow(wanted, nursery)
        finally:
            self.shut()

    def _follow(self, wanted: tuple[bytes, ...], nursery: trio.Nursery) -> None:
        for address in [address for address in self._open if address not in wanted]:
            self._open.pop(address).shut()
        for address in wanted:
            if address in self._open:
                continue
            try:
                listener = self._open[address] = self._listen(self.port, address)
            except OSError as problem:  # control has taken the address away again, or a socket is bound to it
                log.warning(
                    "%s:%d cannot be hosted at %s: %s", self.service, self.port, format_address(address), problem
                )
            else:
                nursery.start_soon(self._accept, listener)

    async def _accept(self, listener: TcpListener) -> None:
        """One address, until its listener is shut: by `_follow`, by `shut`, or by a device that closes."""
        while True:
            try:
                stream = await listener.accept()
            except trio.ClosedResourceError:
                return
            try:
                await self._put.send(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                stream.abort()
                return
            except BaseException:
                stream.abort()
                raise

    def __repr__(self) -> str:
        return f"<ServiceListener for {self.service}:{self.port}>"


def _nothing(_: Offer | None) -> None:
    """It was taken back."""


def open_service(directory: Directory, bus: Bus, listen: Listen, service: str, port: int) -> ServiceListener:
    """Tell control that this device hosts a port of a service. Who opens it has to run it."""
    label = label_of(service)
    if type(port) is not int or not 0 < port < 65536:
        raise ValueError(f"a service's port is a number from 1 to 65535, not {port!r}: its clients have to know it")
    own = directory.known_netmap().self_node
    if not own.tags:
        raise ServiceUnavailable(
            f"{service} cannot be hosted by this device, which has no tags: join with tags=[...] or an auth key that "
            "has some, and let the policy's autoApprovers or an administrator approve it as a host"
        )
    who, known = f"service {service} {port}", bus.latest(ServicesOffered)
    if known is not None and who in known.offers:
        raise OSError(errno.EADDRINUSE, f"{service}:{port} is listened on already")
    offer(bus, who, Offer(hosted=((service, port),)))
    name = f"{label}.{own.name.partition('.')[2].rstrip('.')}"
    return ServiceListener(service, port, name, listen, partial(offer, bus, who))
