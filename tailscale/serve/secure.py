"""TLS of a port that serves several names: which one the client asks for is read before its certificate is fetched.

Owns the first bytes of a connection. No name, or one that is not served, gets the alert internal_error, as stock nodes
send it. Where certificates come from is handed in.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from tailscale.carry import Stream
from tailscale.http.connections import PROTOCOLS
from tailscale.sockets.early import EarlyStream
from ts_base.client_hello import (
    INTERNAL_ERROR,
    NO_APPLICATION_PROTOCOL,
    BadHello,
    ClientHello,
    HelloReader,
    encode_alert,
)

if TYPE_CHECKING:
    from tailscale.device import Device

Certificates = Callable[[str], Awaitable[ssl.SSLContext]]
"""The context for a name. Errors that it raises are told in the log, and end the connection."""
WEB = frozenset(name.encode() for name in PROTOCOLS)
PROVING = (b"acme-tls/1",)  # RFC 8737, 3: what a validator speaks, and nothing else
REFUSAL = encode_alert(INTERNAL_ERROR)  # as stock nodes refuse
METHODS = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"OPTIONS ", b"DELETE ", b"PATCH ")
NOT_PLAIN = (
    b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"  # as stock nodes say it
)


class OfDevice:
    """The certificates of a device, as it renews them."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._contexts: dict[str, ssl.SSLContext] = {}

    async def for_web(self, name: str) -> ssl.SSLContext:
        """One that also proves names to an authority, where a connection from the internet asks it to."""
        context = self._contexts.get(name)
        if context is None:
            context = await self._device.tls_context(name)
            context.set_alpn_protocols(PROTOCOLS)
            self._contexts[name] = context
        return context

    def for_validator(self) -> ssl.SSLContext:
        """One for an authority that looks whether a name leads here, for which there may be no certificate yet."""
        from tailscale.certificates.contexts import FollowingContext  # few prove a name so

        return FollowingContext(self._device.certificate_keeper())

    async def for_bytes(self, name: str) -> ssl.SSLContext:
        """One that shows that name's certificate, whatever the client asks for."""
        from tailscale.certificates.contexts import server_context  # few take TLS off

        certificate = await self._device.certificate(name)
        return await trio.to_thread.run_sync(server_context, certificate.chain_pem, certificate.key_pem)


class Given:
    """Those that a program hands in."""

    def __init__(self, certificates: Certificates) -> None:
        self.for_web = self.for_bytes = certificates

    def for_validator(self) -> ssl.SSLContext:
        """Whoever hands certificates in proves names by other ways."""
        raise NoSuchName("an authority looks whether a name leads here, whose certificate is not this device's affair")


class NoSuchName(ConnectionError):
    """A client that asks for a name that is not served here."""


async def hear_hello(stream: Stream, is_served: Callable[[str], bool]) -> tuple[ClientHello, Stream]:
    """What a TLS client asks for, and the stream with nothing of it taken. Raises NoSuchName."""
    reader = HelloReader()
    while data := bytes(await stream.receive_some()):
        try:
            hello = reader.receive_untrusted(data)
        except BadHello as problem:
            await stream.send_all(NOT_PLAIN if reader.received.startswith(METHODS) else REFUSAL)
            raise NoSuchName(f"a first message that leads nowhere: {problem}") from None
        if hello is not None:
            if not is_served(hello.name):
                await stream.send_all(REFUSAL)
                raise NoSuchName(f"{hello.name!r} is not served here")
            # RFC 7301, 3.2: a client that speaks nothing we do is told so; OpenSSL would go on without any protocol.
            if hello.protocols and hello.protocols != PROVING and not WEB.intersection(hello.protocols):
                await stream.send_all(encode_alert(NO_APPLICATION_PROTOCOL))
                raise NoSuchName(f"a client of {hello.name!r} speaks no HTTP but {list(hello.protocols)}")
            return hello, EarlyStream(stream, bytes(reader.received))
    raise NoSuchName("a client did not say hello")
