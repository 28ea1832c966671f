"""One HTTP client of a proxy: request after request, each answered, passed on or turned into a tunnel. RFC 9110, 9112.

What a request means is `ts_proxy/http_rules.py`'s; its bytes are h11's, and `framing.py` refuses what h11 forgives. A
request that two readers could end at different bytes ends the connection.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import h11
import trio

from tailscale.carry import LOST, Stream, reset
from tailscale.foreign_text import for_log
from tailscale.http.passing import Ending, Exchange, Upstream, WireClient
from tailscale.http1 import framing
from tailscale.http1.asgi import ClientDisconnected
from tailscale.http1.limits import Limits
from tailscale.http1.wire import Wire
from tailscale.proxy.outcomes import BUSY, ClientGone, Outcome, ProxyLoop
from tailscale.proxy.requests import Kind, Request
from tailscale.proxy.service import NOBODY, Client, Service
from ts_base.errors import BadPacket
from ts_proxy import http_rules
from ts_proxy.http_rules import Forward, OwnPage, Refusal, Tunnel
from ts_proxy.user_names import UserName

Asked = Forward | OwnPage | Refusal | Tunnel

log = logging.getLogger("tailscale.proxy")
RESTING = 75.0  # seconds between two requests of one connection
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
LOGIN = [("proxy-authenticate", 'Basic realm="pytailscale", charset="UTF-8"')]
PAGE = (
    "This is a proxy into a tailnet, by pytailscale. It speaks SOCKS 5 and HTTP: enter this address and port as "
    "a proxy in your program."
)


async def converse(service: Service, client: Client) -> None:
    """Until the client or the proxy has had enough."""
    conversation = _Conversation(service, client)
    try:
        await conversation.run()
    except ClientDisconnected as problem:
        raise ClientGone from problem
    finally:
        await conversation.end()


class _Conversation:
    def __init__(self, service: Service, client: Client) -> None:
        limits = service.limits
        self._service = service
        self._client = client
        self._wire = Wire(client.stream, Limits(head=limits.head, stall_timeout=limits.idle))
        self._upstream: Upstream | None = None  # of the last request, while it may carry the next

    async def run(self) -> None:
        while (request := await self._next_request()) is not None:
            if not await self._answer(request):
                break
            self._wire.http.start_next_cycle()

    async def end(self) -> None:
        if self._upstream is not None:
            await reset(self._upstream.stream)

    async def _next_request(self) -> h11.Request | None:
        """The head of the next request; None when there is none to come."""
        wire, limits = self._wire, self._service.limits
        wire.begin_head()
        if self._client.early:
            wire.feed(self._client.take())
        try:
            if not wire.has_input:
                with self._service.places.quiet(trio.current_time() + RESTING):
                    wire.feed(await wire.read_some())
            if not wire.has_input:
                return None
            event = None
            with self._service.places.quiet(trio.current_time() + limits.head_timeout) as awaited:
                event = await wire.next_event(limits.idle)
            if awaited.cancelled_caught:
                await self._refuse(408, "the request took too long to arrive")
            elif isinstance(event, h11.Request):
                return event
        except h11.RemoteProtocolError as error:
            await self._refuse(error.error_status_hint, str(error))
        return None

    async def _refuse(
        self, status: int, sentence: str, outcome: Outcome | None = None, more: Sequence[tuple[str, str]] = (),
        *, has_body: bool = True,
    ) -> None:  # fmt: skip
        """The answer to what is not passed on, after which the connection ends."""
        sentence, head = for_log(sentence), list(more)
        if outcome is not None:
            details = "".join(c for c in sentence if c.isascii() and c not in '"\\')  # RFC 9651, 3.3.3
            head.append(("proxy-status", f'pytailscale; error={outcome.error}; details="{details}"'))
        if outcome is BUSY:
            head.append(("retry-after", "1"))
        await self._wire.refuse(status, sentence, has_body=has_body, more=head)
        await self._wire.finish()

    # What becomes of one request

    async def _answer(self, request: h11.Request) -> bool:
        """Whether another request may follow."""
        headers = [(bytes(name), bytes(value)) for name, value in request.headers]
        asked = self._judge(request, headers)
        has_body = request.method != b"HEAD"
        if isinstance(asked, Refusal):
            await self._refuse(*asked, has_body=has_body)
            return False
        if isinstance(asked, OwnPage):
            await self._refuse(200, PAGE, has_body=has_body)
            return False
        who = await self._who(headers)
        if who is None:
            await self._refuse(407, "this proxy asks for a user name and a password", None, LOGIN, has_body=has_body)
            return False
        kind: Kind = "connect" if isinstance(asked, Tunnel) else "http"
        wanted = self._client.request(kind, *asked.destination, who=who, method=bytes(request.method).decode())
        try:
            if http_rules.has_looped(headers):
                raise ProxyLoop("the request has come through this proxy before: Via says so")
            if isinstance(asked, Forward):
                return await self._forward(asked, wanted, request, headers)
            await self._tunnel(wanted)
        except (ClientGone, ClientDisconnected):
            raise
        except h11.RemoteProtocolError as problem:
            await self._refuse(problem.error_status_hint, str(problem), has_body=has_body)
        except Exception as problem:
            outcome = self._service.fail(problem, wanted)
            await self._refuse(outcome.status, str(problem), outcome, has_body=has_body)
        return False

    def _judge(self, request: h11.Request, headers: http_rules.Headers) -> Asked:
        head = self._wire.take_head()
        if len(head) > self._service.limits.head:  # h11 measures what is not whole yet
            return Refusal(431, "the request has too long a head")
        if request.http_version not in (b"1.0", b"1.1"):
            return Refusal(505, "this proxy speaks HTTP/1.1")
        if problem := framing.objection(head, request.http_version):
            return Refusal(400, problem)
        return http_rules.read_request(request.method, request.target, headers)

    async def _who(self, headers: http_rules.Headers) -> UserName | None:
        """Who asks; None for nobody who may."""
        doorkeeper = self._service.doorkeeper
        said = [value for name, value in headers if name == b"proxy-authorization"]
        if not said:
            return None if doorkeeper.asks else NOBODY
        try:
            user, password = http_rules.decode_basic_untrusted(said[0])
        except BadPacket:
            if doorkeeper.asks:
                await doorkeeper.refuse()
                return None
            return NOBODY
        return await doorkeeper.let_in(user, password)

    async def _tunnel(self, wanted: Request) -> None:
        """What comes behind the head of a CONNECT is the tunnel's, never another request."""
        client = self._client
        client.early += self._wire.http.trailing_data[0]
        far = await self._service.connect(client, wanted)
        try:
            await client.send(ESTABLISHED)
        except BaseException:
            await reset(far)
            raise
        await carried(self._service, client, far, client.take())

    async def _forward(
        self, asked: Forward, wanted: Request, request: h11.Request, headers: http_rules.Headers
    ) -> bool:
        hops = http_rules.next_hops(bytes(request.method), headers)
        if hops == 0:
            await self._refuse(200 if request.method == b"OPTIONS" else 405, "this is as far as Max-Forwards goes")
            return False
        if hops is not None:
            headers = http_rules.with_hops(headers, hops - 1)
        upstream = await self._upstream_for(wanted)
        client = WireClient(self._wire, is_modern=request.http_version == b"1.1")
        exchange = Exchange(client, upstream, self._service.relay.count)
        head = http_rules.request_head(asked, headers, http_version=request.http_version)
        ending = await exchange.run(h11.Request(method=request.method, target=asked.target, headers=head))
        if ending is Ending.SWITCHED:
            early = bytes(self._wire.http.trailing_data[0])
            await carried(self._service, self._client, upstream.stream, early)
            return False
        if ending is Ending.BROKEN:
            await reset(self._client.stream)
            return False
        if upstream.is_reusable:
            upstream.begin_again()
            self._upstream = upstream
        else:
            await upstream.stream.aclose()
        if ending is Ending.LAST:
            await self._wire.finish()
        return ending is Ending.WHOLE

    async def _upstream_for(self, wanted: Request) -> Upstream:
        """The connection of the request before, if it leads to the same place for the same client; else a new one."""
        key = wanted.host, wanted.port, self._service.gate.session_of(wanted)
        known, self._upstream = self._upstream, None
        if known is not None and known.key == key and known.is_alive:
            try:
                self._service.admit(self._client, wanted)
                await self._service.gate.check(wanted)
            except BaseException:
                await reset(known.stream)
                raise
            return known
        if known is not None:
            await reset(known.stream)
        far = await self._service.connect(self._client, wanted)
        if self._client.early:
            self._wire.feed(self._client.take())
        return Upstream(far, key, self._service.limits.head, self._service.limits.idle)


async def carried(service: Service, client: Client, far: Stream, early: bytes) -> None:
    """A tunnel, to its end; that it broke has been told to both sides."""
    try:
        await service.relay.carry(client.stream, far, early)
    except LOST as problem:
        raise ClientGone from problem
