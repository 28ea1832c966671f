"""A listener that the internet reaches through relays, and peers directly: `Device.listen_funnel`.

Owns the TLS at this end, the queue of those whose handshake is done, and the two ways in. A slow or silent client costs
a task until its deadline, and nobody else anything.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import trio

from tailscale.foreign_text import for_log
from tailscale.funnel.streams import FunnelStream

if TYPE_CHECKING:
    from collections import Counter

    from tailscale.funnel.words import Place
    from tailscale.sockets.tcp import TcpListener, TcpStream

log = logging.getLogger("tailscale.funnel")
HANDSHAKE_PATIENCE = 20.0
BACKLOG = 128  # connections that the program has not accepted
HANDSHAKES = 256  # of peers at once; those from the internet are counted where they arrive
ACME_TLS = "acme-tls/1"
KEEPALIVE = 60.0  # a silent peer is asked this often whether it still exists

TakeBack = Callable[[], None]
Publish = Callable[[str, int, Callable[[FunnelStream], Awaitable[None]], Sequence[str]], TakeBack]
Tls = ssl.SSLContext | Callable[[str], ssl.SSLContext | None]
BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError)


def context_of(tls: Tls) -> ssl.SSLContext:
    """A context that asks the function for another by the name that the client wants; "" where it names none."""
    if isinstance(tls, ssl.SSLContext):
        return tls
    find = tls
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def choose(shaken: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
        try:
            chosen = find(name or "")
        except Exception:
            log.exception("the function given as tls= failed for %s", for_log(name or "no name"))
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        if chosen is None:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        shaken.context = chosen
        return None

    context.sni_callback = choose
    return context


class FunnelListener(trio.abc.Listener[FunnelStream]):
    """Accepts connections from the internet, and from peers unless it was opened with `funnel_only`.

    Works with `trio.serve_listeners`. Closing it refuses new connections; accepted ones go on.
    """

    def __init__(self, publish: Publish, place: Place, tls: Tls, own: TcpListener | None, drops: Counter[str]) -> None:
        self._place, self._own = place, own
        self._context = context_of(tls)
        self._drops = drops
        self._shaken, self._ready = trio.open_memory_channel[FunnelStream](BACKLOG)
        self._scope = trio.CancelScope()
        self._take_back = publish(place.name, place.port, self._take, place.relays)

    @property
    def name(self) -> str:
        """The public name, as browsers ask for it."""
        return self._place.name

    @property
    def port(self) -> int:
        """The port, on the tailnet and at relays."""
        return self._place.port

    async def accept(self) -> FunnelStream:
        """The next connection; its TLS handshake is done."""
        try:
            return await self._ready.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError("this listener was closed") from None

    async def aclose(self) -> None:
        """No new connections; those that were accepted go on."""
        self.shut()
        await trio.lowlevel.checkpoint()

    def shut(self) -> None:
        """Close without being able to wait."""
        self._take_back()
        self._scope.cancel()
        if self._own is not None:
            self._own.shut()
        while True:
            try:
                self._ready.receive_nowait().abort()
            except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                break
        self._shaken.close()

    async def run(self) -> None:
        """Until it is closed, or the device is."""
        try:
            with self._scope:
                if self._own is not None:
                    await self._accept_peers(self._own)
                await trio.sleep_forever()
        finally:
            self.shut()

    async def _accept_peers(self, own: TcpListener) -> None:
        room = trio.Semaphore(HANDSHAKES)
        async with trio.open_nursery() as nursery:
            while True:
                await room.acquire()
                try:
                    nursery.start_soon(self._take_peer, await own.accept(), room)
                except trio.ClosedResourceError:  # the device is closing
                    nursery.cancel_scope.cancel()
                    return

    async def _take_peer(self, tcp: TcpStream, room: trio.Semaphore) -> None:
        tcp.set_keepalive(KEEPALIVE)
        try:
            stream = FunnelStream(tcp, tcp.remote_address, f"{self.name}:{self.port}", peer=tcp.peer)
            await self._shake(stream)
        finally:
            room.release()

    async def _take(self, stream: FunnelStream) -> None:
        """One that a relay brought: it is kept until the program has closed it."""
        shaken = await self._shake(stream)
        if shaken is None:
            return
        ended = shaken.ended
        del shaken  # so that one which the program loses is noticed
        await ended.wait()

    async def _shake(self, raw: FunnelStream) -> FunnelStream | None:
        """Agree on TLS in time and let the program accept it; None for who is turned away."""
        tls = trio.SSLStream(raw, self._context, server_side=True, https_compatible=True)
        try:
            with trio.fail_after(HANDSHAKE_PATIENCE):
                await tls.do_handshake()
        except BROKEN as problem:
            self._drops["funnel.handshake_failed"] += 1
            log.debug("%r: no TLS: %r", raw, problem)
            await self._turn_away(raw)
            return None
        except BaseException:
            raw.abort()
            raise
        if tls.selected_alpn_protocol() == ACME_TLS:  # RFC 8737: it has seen what it came for
            await self._turn_away(raw)
            return None
        stream = FunnelStream(tls, raw.source, raw.target, relay=raw.relay, peer=raw.peer)
        try:
            self._shaken.send_nowait(stream)
        except (trio.WouldBlock, trio.ClosedResourceError):
            self._drops["funnel.backlog_full"] += 1
            stream.abort()
            return None
        return stream

    async def _turn_away(self, raw: FunnelStream) -> None:
        with trio.CancelScope(shield=True):
            await raw.aclose()

    def __repr__(self) -> str:
        return f"<FunnelListener for {self.name}:{self.port}>"


async def open_listener(
    publish: Publish,
    place: Place,
    tls: Tls,
    listening: Awaitable[TcpListener] | None,
    spawn: Callable[..., object],
    drops: Counter[str],
) -> FunnelListener:
    """`Device.listen_funnel`: peers come by `listening`, if they may come at all."""
    own = await listening if listening is not None else None
    try:
        listener = FunnelListener(publish, place, tls, own, drops)
    except BaseException:
        if own is not None:
            own.shut()
        raise
    spawn(listener.run)
    return listener
