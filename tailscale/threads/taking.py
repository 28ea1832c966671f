"""Taking all dials of this program, and giving them back.

Owns what is replaced for that in the standard library and in the event loops, and that it is put back exactly. One
device at a time: two tailnets have the same addresses. What is done with a dial is `program_dials.py`.
"""

from __future__ import annotations

import asyncio.proactor_events
import asyncio.selector_events
import contextlib
import functools
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Self

from tailscale.errors import DialsTaken, NotCarried
from tailscale.threads.program_dials import ProgramDials, is_name, text_of

if TYPE_CHECKING:
    from tailscale.threads.face import DeviceFace

log = logging.getLogger("tailscale")
Make = Callable[[ProgramDials, Any], Any]
MISSING = object()


class _Replaced:
    """One attribute of a module or class, until it is put back."""

    def __init__(self, owner: Any, name: str, make: Make, dials: ProgramDials) -> None:
        self._owner, self._name = owner, name
        self._own = vars(owner).get(name, MISSING)  # what a class only inherits is deleted again
        original = getattr(owner, name)
        self._ours = functools.wraps(original)(make(dials, original))
        setattr(owner, name, self._ours)

    def put_back(self) -> None:
        if vars(self._owner).get(self._name) is not self._ours:
            where = f"{self._owner.__name__}.{self._name}"
            log.warning("%s was replaced by somebody else meanwhile: it stays theirs, and lets every dial pass", where)
        elif self._own is MISSING:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._own)


# What is put in the places of the originals. Each asks whether the dial is ours, and else does what it always did.


def _getaddrinfo(dials: ProgramDials, original: Any) -> Any:
    def getaddrinfo(host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
        addresses = dials.addresses_of(host, family, type)
        if addresses is None:
            try:
                return original(host, port, family, type, proto, flags)
            except socket.gaierror as unknown:
                raise dials.nor_here(host) or unknown from None
        flags |= socket.AI_NUMERICHOST
        return [found for one in addresses for found in original(one, port, family, type, proto, flags)]

    return getaddrinfo


def _gethostbyname(dials: ProgramDials, original: Any) -> Any:
    def gethostbyname(hostname: Any) -> Any:
        addresses = dials.addresses_of(hostname, socket.AF_INET, socket.SOCK_STREAM)
        if addresses is not None:
            return addresses[0]
        try:
            return original(hostname)
        except socket.gaierror as unknown:
            raise dials.nor_here(hostname) or unknown from None

    return gethostbyname


def _connect(dials: ProgramDials, original: Any) -> Any:
    def connect(self: socket.socket, address: Any) -> None:
        place = dials.place_of(self, address)
        if place is None:
            original(self, address)
        else:
            dials.connect(original, self, place)

    return connect


def _connect_ex(dials: ProgramDials, original: Any) -> Any:
    connect = super(socket.socket, socket.socket).connect  # the kernel's, which raises

    def connect_ex(self: socket.socket, address: Any) -> Any:
        try:
            place = dials.place_of(self, address)
            if place is not None:
                dials.connect(connect, self, place)
                return 0
        except socket.gaierror:  # as the kernel's, of a name
            raise
        except OSError as problem:
            return problem.errno
        return original(self, address)

    return connect_ex


def _getpeername(dials: ProgramDials, original: Any) -> Any:
    def getpeername(self: socket.socket) -> Any:
        real = original(self)
        far = dials.far_end_of(real)
        return real if far is None else _in_family(far.remote, real)

    return getpeername


def _getsockname(dials: ProgramDials, original: Any) -> Any:
    getpeername = super(socket.socket, socket.socket).getpeername

    def getsockname(self: socket.socket) -> Any:
        real = original(self)
        if dials.are_carried:
            with contextlib.suppress(OSError):  # not connected
                far = dials.far_end_of(getpeername(self))
                return real if far is None else _in_family(far.local, real)
        return real

    return getsockname


def _in_family(address: tuple[str, int], real: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*address, *real[2:])


def _sock_connect(dials: ProgramDials, original: Any) -> Any:
    async def sock_connect(self: asyncio.AbstractEventLoop, sock: socket.socket, address: Any) -> None:
        if dials.is_on and sock.family in (socket.AF_INET, socket.AF_INET6) and is_name(address[0]):
            found = await self.getaddrinfo(*address[:2], family=sock.family, type=sock.type, proto=sock.proto)
            address = found[0][4]
        place = dials.place_of(sock, address)
        if place is None:
            await original(self, sock, address)
        else:
            await dials.connect_in_loop(functools.partial(original, self, sock), sock, place)

    return sock_connect


def _loop_getaddrinfo(dials: ProgramDials, original: Any) -> Any:
    """For uvloop, which resolves in C."""

    async def getaddrinfo(self: asyncio.AbstractEventLoop, host: Any, port: Any, **options: Any) -> Any:
        if is_name(host) and dials.takes(text_of(host)):
            look_up = functools.partial(socket.getaddrinfo, host, port, **options)
            return await self.run_in_executor(None, look_up)
        try:
            return await original(self, host, port, **options)
        except socket.gaierror as unknown:
            raise dials.nor_here(host) or unknown from None

    return getaddrinfo


def _create_connection(dials: ProgramDials, original: Any) -> Any:
    """For uvloop, which dials in C too."""

    async def create_connection(
        self: asyncio.AbstractEventLoop, factory: Any, host: Any = None, port: Any = None, **options: Any
    ) -> Any:
        if not host or not dials.takes(text_of(host)):
            return await original(self, factory, host, port, **options)
        asked = {name: options.pop(name, 0) for name in ("family", "proto", "flags")}
        found = await self.getaddrinfo(host, port, type=socket.SOCK_STREAM, **asked)
        family, kind, proto, _, address = found[0]
        sock = socket.socket(family, kind, proto)
        try:
            sock.setblocking(False)
            if options.pop("local_addr", None) is not None:
                raise NotCarried("local_addr is an address of this machine, and the tailnet knows us by another")
            await self.sock_connect(sock, address)
            if options.get("ssl"):
                options.setdefault("server_hostname", host)
            return await original(self, factory, sock=sock, **options)
        except BaseException:
            sock.close()
            raise

    return create_connection


PLACES: tuple[tuple[Any, str, Make], ...] = (
    (socket, "getaddrinfo", _getaddrinfo),
    (socket, "gethostbyname", _gethostbyname),
    (socket.socket, "connect", _connect),
    (socket.socket, "connect_ex", _connect_ex),
    (socket.socket, "getpeername", _getpeername),
    (socket.socket, "getsockname", _getsockname),
    (asyncio.selector_events.BaseSelectorEventLoop, "sock_connect", _sock_connect),
    (asyncio.proactor_events.BaseProactorEventLoop, "sock_connect", _sock_connect),
)


def _places() -> Iterator[tuple[Any, str, Make]]:
    yield from PLACES
    uvloop = sys.modules.get("uvloop")
    if uvloop is not None:
        yield uvloop.Loop, "getaddrinfo", _loop_getaddrinfo
        yield uvloop.Loop, "sock_connect", _sock_connect
        yield uvloop.Loop, "create_connection", _create_connection


class _Taking:
    """The dials of this program while some device takes them."""

    def __init__(self, face: DeviceFace) -> None:
        self.dials = ProgramDials(face)
        self.holders = 0
        self._replaced = [_Replaced(*place, self.dials) for place in _places()]

    def give_back(self) -> None:
        self.dials.is_on = False  # for who kept one of ours
        for replaced in reversed(self._replaced):
            replaced.put_back()


_lock = threading.Lock()
_taking: _Taking | None = None


class TakenDials:
    """This program's dials, as long as a device takes them. Close it, or use it in a `with` block.

    Of several for one device the last that is closed gives the dials back, whatever their order. Connections that are
    open go on.
    """

    def __init__(self, face: DeviceFace) -> None:
        global _taking
        self._is_held = False
        with _lock:
            if _taking is not None and _taking.dials.face is not face:
                raise DialsTaken(f"this program's dials are taken by {_taking.dials.name!r} already: close that first")
            if _taking is None:
                _taking = _Taking(face)
            _taking.holders += 1
            self._is_held = True

    def close(self) -> None:
        """Everything is as it was before. Once more is no mistake."""
        global _taking
        with _lock:
            if not self._is_held or _taking is None:
                return
            self._is_held = False
            _taking.holders -= 1
            if not _taking.holders:
                _taking.give_back()
                _taking = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
