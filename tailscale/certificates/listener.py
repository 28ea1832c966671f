"""TLS on the tailnet: a listener whose streams say who calls, as those of `listen` do.

Owns when a handshake is made (by whoever uses the stream, so that a slow client holds up nobody) and how long it may
take. Refuses to know which certificate is shown.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import trio

from tailscale.certificates.contexts import ACME_TLS

if TYPE_CHECKING:
    from tailscale.nodes import Node
    from tailscale.sockets.tcp import TcpListener, TcpStream

HANDSHAKE_TIMEOUT = 10.0


class TlsStream(trio.abc.Stream):
    """A connection that came in by TLS.

    ```python
    async def handle(stream):
        print(stream.peer.hostname, await stream.receive_some())
    ```
    """

    def __init__(self, tcp: TcpStream, context: ssl.SSLContext) -> None:
        self.tcp = tcp
        self._tls = trio.SSLStream(tcp, context, server_side=True, https_compatible=True)
        self._greeting = trio.Lock()
        self._is_greeted = False

    async def do_handshake(self) -> None:
        """Made by the first reading or writing too. BrokenResourceError where the client does not manage."""
        async with self._greeting:
            if self._is_greeted:
                return
            try:
                with trio.fail_after(HANDSHAKE_TIMEOUT):
                    await self._tls.do_handshake()
            except trio.TooSlowError:
                raise trio.BrokenResourceError(f"no TLS handshake within {HANDSHAKE_TIMEOUT:.0f} s") from None
            if self._tls.selected_alpn_protocol() == ACME_TLS:  # RFC 8737 section 3: it was all about the handshake
                raise trio.BrokenResourceError("that was no client, but somebody who validates our certificate")
            self._is_greeted = True

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Bytes as they come; b"" at the end."""
        await self.do_handshake()
        return bytes(await self._tls.receive_some(max_bytes))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Everything, or an error."""
        await self.do_handshake()
        await self._tls.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.do_handshake()
        await self._tls.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Says goodbye in TLS, where a handshake was made."""
        if self._is_greeted:
            await self._tls.aclose()
        else:
            await trio.aclose_forcefully(self.tcp)

    @property
    def alpn_protocol(self) -> str | None:
        """What was agreed on, after the handshake."""
        return self._tls.selected_alpn_protocol() if self._is_greeted else None

    @property
    def local_address(self) -> tuple[str, int]:
        """Our `(ip, port)`."""
        return self.tcp.local_address

    @property
    def remote_address(self) -> tuple[str, int]:
        """The other side's `(ip, port)`."""
        return self.tcp.remote_address

    @property
    def peer(self) -> Node | None:
        """The node on the other side, as the tailnet knows it."""
        return self.tcp.peer

    def __repr__(self) -> str:
        return f"<TlsStream over {self.tcp!r}>"


class TlsListener(trio.abc.Listener[TlsStream]):
    """Accepts TLS from the tailnet; works with `trio.serve_listeners`."""

    def __init__(self, listener: TcpListener, context: ssl.SSLContext) -> None:
        self._listener = listener
        self.context = context

    async def accept(self) -> TlsStream:
        """The next connection; its handshake is made by whoever uses it."""
        return TlsStream(await self._listener.accept(), self.context)

    async def aclose(self) -> None:
        """Refuse new connections; accepted ones go on."""
        await self._listener.aclose()

    @property
    def port(self) -> int:
        """The port, also when 0 was asked for."""
        return self._listener.port

    def __repr__(self) -> str:
        return f"<TlsListener over {self._listener!r}>"
