"""A connection to a published name, as programs hold it. Knows neither relays nor requests."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import trio

from tailscale.foreign_text import for_terminal

if TYPE_CHECKING:
    from tailscale.nodes import Node
    from tailscale.sockets.socket_device import Address, Bytes


class FunnelStream(trio.abc.HalfCloseableStream):
    """A connection from the internet that a relay brought, or one of a peer where peers may come too.

    - `source`: who it is from, `(ip, port)`. Of the internet that is what the relay says, and it identifies nobody.
    - `target`: the name and port that were asked for, as `web.example:443`.
    - `relay`: the node that brought it; None where a peer came itself.
    - `peer`: that peer; None for whoever came from the internet.

    Closing it delivers what was sent. TLS cannot end one direction only: `send_eof` closes it.
    """

    def __init__(
        self, stream: Any, source: Address, target: str, *, relay: Node | None = None, peer: Node | None = None
    ) -> None:
        self.source, self.target = source, target
        self.relay, self.peer = relay, peer
        self._stream = stream
        self._is_tls = isinstance(stream, trio.SSLStream)
        self._ended = trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    @property
    def is_funnel(self) -> bool:
        """Whether it came from the internet."""
        return self.relay is not None

    @property
    def alpn_protocol(self) -> str | None:
        """What the two sides of TLS have agreed to speak, as in "h2"; None without."""
        return self._stream.selected_alpn_protocol() if self._is_tls else None

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Bytes, or b"" when the other side has finished sending."""
        data: bytes | bytearray = await self._stream.receive_some(max_bytes)
        return data

    async def send_all(self, data: Bytes) -> None:
        """Hand over all of `data`, waiting while there is no room."""
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room."""
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Say that nothing more will be sent."""
        if self._is_tls:
            await self.aclose()
        else:
            await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close it."""
        try:
            await self._stream.aclose()
        finally:
            self._ended.set()

    def abort(self) -> None:
        """Reset the connection at once."""
        self._transport.abort()
        self._ended.set()

    def reset_with_device(self) -> None:
        """A device that closes before this stream does resets it."""
        self._transport.reset_with_device()

    @property
    def remote_address(self) -> Address:
        """`source`, by the name that other streams have for it."""
        return self.source

    @property
    def local_address(self) -> Address:
        """Our end of the connection on the tailnet."""
        address: Address = self._transport.local_address
        return address

    def set_keepalive(self, idle: float | None, interval: float = 75.0, count: int = 9) -> None:
        """Probe a silent node on the other side, which may be a relay, after `idle` seconds; None turns that off."""
        self._transport.set_keepalive(idle, interval, count)

    @property
    def _transport(self) -> Any:
        """The connection of the tailnet, whatever wraps it."""
        transport = self._stream
        while isinstance(transport, trio.SSLStream):
            transport = transport.transport_stream
        return transport

    @property
    def ended(self) -> trio.Event:
        """Set once it is closed here."""
        return self._ended

    def __del__(self) -> None:
        ended = getattr(self, "_ended", None)  # one that was never finished has none
        if ended is None or ended.is_set():
            return
        try:
            self._token.run_sync_soon(ended.set)  # whoever keeps the connection closes it then
        except trio.RunFinishedError:
            return
        warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        host, port = self.source
        way = "" if self.relay is None else f" by {self.relay.hostname}"
        return for_terminal(f"<FunnelStream to {self.target} from {host} port {port}{way}>")
