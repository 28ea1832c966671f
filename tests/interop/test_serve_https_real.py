"""HTTPS that we publish beside HTTPS that stock tailscaled publishes, with certificates of Pebble.

Our control server has their names proven. The requests are those of `test_serve_real.py`. `pytest -s` prints
what differs.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import pytest
import trio

from tests.interop.embedded import embedded_control
from tests.interop.ourdaemon import daemon
from tests.interop.ours import guarded
from tests.interop.rig import Derper, Headscale, Rig, pebble
from tests.interop.test_funnel_real import AsHeadscale
from tests.interop.test_serve_real import (
    NOT_COMPARED,
    NOT_COMPARED_BEHIND,
    OTHERWISE,
    Pair,
    config_of,
    differences,
    split_answer,
    with_server,
    write_site,
)
from ts_base.client_hello import ALERT, DECODE_ERROR, FATAL, INTERNAL_ERROR, NO_APPLICATION_PROTOCOL, encode_alert

pytestmark = [
    pytest.mark.slow,
    pytest.mark.peers("pebble", "pebble-challtestsrv", "tailscale", "tailscaled"),
]
BOTH = ("stock", "ours")
SNI = "its own name"


@dataclass
class SecurePair(Pair):
    """Both, asked by TLS, and believed by Pebble's root alone."""

    root: str = ""
    ended_otherwise: list[tuple[str, bytes]] = field(default_factory=list)

    def client(self, *protocols: str) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=self.root)
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return context

    @asynccontextmanager
    async def secure(
        self, who: str, port: int, context: ssl.SSLContext, name: str | None = SNI
    ) -> AsyncIterator[trio.SSLStream[Any]]:
        """TLS with one of them: for its own name, another one or none."""
        named = self.names[who] if name == SNI else name
        with trio.fail_after(60):
            async with await self.caller.connect(self.addresses[who], port) as tcp:
                stream = trio.SSLStream(tcp, context, server_hostname=named)
                await stream.do_handshake()
                yield stream

    async def ask(self, who: str, request: bytes, port: int = 443) -> bytes:
        """What one of them answers, until it says goodbye as TLS does: an end without that raises."""
        async with self.secure(who, port, self.client("http/1.1")) as stream:
            await stream.send_all(request.replace(b"@NAME@", self.names[who].encode()))
            told = b""
            try:
                async for piece in stream:
                    told += piece
            except trio.BrokenResourceError:
                self.ended_otherwise.append((who, request.partition(b"\r")[0]))
            return told

    async def meets(self, who: str, port: int, context: ssl.SSLContext, name: str | None = SNI) -> str:
        """How a handshake ends: what was chosen, or which alert."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(incoming, outgoing, server_hostname=self.names[who] if name == SNI else name)
        data = b""
        with trio.fail_after(60):
            async with await self.caller.connect(self.addresses[who], port) as tcp:
                while True:
                    try:
                        client.do_handshake()
                    except ssl.SSLWantReadError:
                        await tcp.send_all(outgoing.read())
                    except ssl.SSLError:
                        assert data[0] == ALERT, data
                        return f"alert {data[6]}"
                    else:
                        return f"{client.version()} {client.selected_alpn_protocol()}"
                    try:
                        data = bytes(await tcp.receive_some())
                    except trio.BrokenResourceError:
                        return "reset"
                    if not data:
                        return "end"
                    incoming.write(data)

    async def says(self, who: str, port: int, data: bytes) -> bytes:
        """What comes back for bytes that are no TLS, until the connection ends."""
        with trio.fail_after(60):
            async with await self.caller.connect(self.addresses[who], port) as tcp:
                await tcp.send_all(data)
                told = b""
                try:
                    async for piece in tcp:
                        told += piece
                except trio.BrokenResourceError:
                    told += b" (reset)"
                return told


@asynccontextmanager
async def secure_pair(r: Rig, relay: Derper) -> AsyncIterator[SecurePair]:
    async with AsyncExitStack() as stack:
        authority = await stack.enter_async_context(pebble(r))
        embedded = await stack.enter_async_context(embedded_control(relay.region))
        embedded.do("serve_certificates", authority.publish)
        control = cast(Headscale, AsHeadscale(embedded))
        stock = await stack.enter_async_context(r.tailscaled("stock", env=authority.environment))
        caller = await stack.enter_async_context(r.tailscaled("caller"))
        for each in (stock, caller):
            await each.up(control.url, await control.auth_key())
        ours = await stack.enter_async_context(daemon(r, control, "fresh", env=authority.environment))
        made = SecurePair(stock, ours, caller, root=await authority.root_pem())
        yield cast(SecurePair, await stack.enter_async_context(with_server(made)))


async def test_answers_over_https_are_those_of_stock_tailscaled(r: Rig, relay: Derper) -> None:
    async with secure_pair(r, relay) as p:
        write_site(p.folder)
        await p.both("serve", "set-raw", stdin=config_of(p, 443, "HTTPS"))
        wrong = await differences(p, 443)
        assert {who for who, _ in p.ended_otherwise} <= {"ours"}  # docs/serve.md says so
        _, told = p.behind.told()
        assert (told["x-forwarded-proto"], "tailscale-user-login" in told) == ("https", True)
        assert not [one for one in wrong if one[:2] not in OTHERWISE]
        assert {one[:2] for one in wrong} == OTHERWISE.keys()
        for host in ("other", p.addresses["stock"], ""):  # TLS alone decides which site it is
            request = f"GET /text HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
            assert {split_answer(await p.ask(who, request))[0] for who in BOTH} == {200}, host


# What a client offers, and how it goes at each. Where ours differs, docs/serve.md says so.
OFFERS: dict[tuple[str, ...], tuple[str, str]] = {
    (): ("TLSv1.3 None", "TLSv1.3 None"),
    ("http/1.1",): ("TLSv1.3 http/1.1", "TLSv1.3 http/1.1"),
    ("h2", "http/1.1"): ("TLSv1.3 h2", "TLSv1.3 h2"),
    ("h2",): ("TLSv1.3 h2", "TLSv1.3 h2"),
    ("other/1",): (f"alert {NO_APPLICATION_PROTOCOL}",) * 2,
}
PLAIN = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
NONSENSE = (bytes(100), b"\x16\x03\x03\0\x04\x01\0\0\0")  # the second is an empty ClientHello


async def test_tls_is_agreed_on_as_stock_agrees(r: Rig, relay: Derper) -> None:
    async def wait(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            pass

    async with secure_pair(r, relay) as p, listening(wait) as server:
        for line in (("--https=443", "text:hello"), ("--tls-terminated-tcp=5001", f"tcp://localhost:{server}")):
            await p.both("serve", "--bg", *line)
        for offer, expected in OFFERS.items():
            met = tuple([await p.meets(who, 443, p.client(*offer)) for who in BOTH])
            assert met == expected, offer
            bare = [await p.meets(who, 5001, p.client(*offer)) for who in BOTH]
            assert bare == ["TLSv1.3 None"] * 2, offer
        for port in (443, 5001):
            for name in (None, "other.tailnet.test", "localhost"):
                context = p.client()
                context.check_hostname = False
                met = tuple([await p.meets(who, port, context, name) for who in BOTH])
                expected = f"alert {INTERNAL_ERROR}" if port == 443 else "TLSv1.3 None"  # bytes have no names
                assert met == (expected,) * 2, (port, name)
            old = p.client()
            old.maximum_version = ssl.TLSVersion.TLSv1_2
            assert {await p.meets(who, port, old) for who in BOTH} == {"TLSv1.2 None"}
        plain = [await p.says(who, 443, PLAIN) for who in BOTH]
        assert plain == [b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"] * 2
        for data in NONSENSE:  # ours ends with the same alert each time, stock with another one, or none
            assert await p.says("ours", 443, data) == encode_alert(INTERNAL_ERROR)
            assert (await p.says("stock", 443, data))[5:] in (b"", bytes((FATAL, DECODE_ERROR)))


async def test_websockets_over_tls_are_those_of_stock(r: Rig, relay: Derper) -> None:
    heads = []

    async def switch(stream: trio.SocketStream) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += await stream.receive_some()
        heads.append(data)
        answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        await stream.send_all(answer + b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nfirst")
        while data := await stream.receive_some():
            await stream.send_all(data.upper())
            if data.endswith(b"end"):
                return

    request = (
        "GET /chat?x=1 HTTP/1.1\r\nHost: @NAME@\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nUser-Agent: x\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nX-Forwarded-For: lies\r\n\r\n"
    )
    async with secure_pair(r, relay) as p, listening(switch) as port:
        await p.both("serve", "--bg", "--https=443", f"http://127.0.0.1:{port}")
        seen, told = {}, {}
        for who in BOTH:
            async with p.secure(who, 443, p.client("http/1.1")) as stream:
                await stream.send_all(request.replace("@NAME@", p.names[who]).encode())
                answer = b""
                while not answer.endswith(b"first"):
                    answer += await stream.receive_some()
                await stream.send_all(b"the end")
                while not answer.endswith(b"THE END"):
                    answer += await stream.receive_some()
                status, headers, body = split_answer(answer)
                seen[who] = status, {n: v for n, v in headers.items() if n not in NOT_COMPARED}, body
            line, *rows = heads[-1].replace(p.names[who].encode(), b"@NAME@").strip().split(b"\r\n")
            named = {n.decode().lower(): v.strip() for n, _, v in (row.partition(b":") for row in rows)}
            told[who] = line, {n: v for n, v in named.items() if n not in NOT_COMPARED_BEHIND}
        assert seen["stock"] == seen["ours"]
        assert told["stock"] == told["ours"]
        assert told["ours"][1]["x-forwarded-proto"] == b"https"


async def test_tcp_without_its_tls_and_its_proxy_header_are_those_of_stock(r: Rig, relay: Derper) -> None:
    async def repeat(stream: trio.SocketStream) -> None:
        data = b""
        while not data.endswith(b"END"):
            data += await stream.receive_some()
        await stream.send_all(data)
        await stream.aclose()

    async with secure_pair(r, relay) as p, listening(repeat) as port:
        for version, number in ((0, 5001), (1, 5002), (2, 5003)):
            proxied = (f"--proxy-protocol={version}",) if version else ()
            await p.both("serve", "--bg", f"--tls-terminated-tcp={number}", *proxied, f"tcp://localhost:{port}")
            heard = {}
            for who in BOTH:
                said = await p.ask(who, b"hello END", number)
                assert said.endswith(b"hello END"), (who, said)
                header = said.removesuffix(b"hello END")
                if version == 1:
                    words = header.split()
                    words[4:5] = [b"SOURCE"]
                    header = b" ".join(words).replace(p.addresses[who].encode(), b"DEST")
                elif version == 2:
                    header = header[:20] + header[26:]  # without our address and the caller's port
                heard[who] = header
            assert heard["stock"] == heard["ours"], version


@asynccontextmanager
async def listening(attend: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[int]:
    """A server of this machine; its port."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(partial(trio.serve_listeners, guarded(attend), listeners))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()
