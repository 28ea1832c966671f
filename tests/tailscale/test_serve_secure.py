"""HTTPS and TLS-terminated TCP of a Serve, with certificates of a whole tailnet in virtual time."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
from http_scripts import read_all
from serve_scripts import Echo, tcp_server, web_server

from tailscale import Device
from tailscale.serve import Serve, tcp, text
from tailscale.testing import Tailnet


@asynccontextmanager
async def secured(say: Callable[[Serve], object]) -> AsyncIterator[tuple[Tailnet, Device, Device]]:
    async with Tailnet(certificates=True) as net, trio.open_nursery() as nursery:
        caller, web = await net.device("caller"), await net.device("web")
        serve = Serve(web)
        say(serve)
        await nursery.start(serve.run)
        yield net, caller, web
        nursery.cancel_scope.cancel()


async def asked(
    net: Tailnet,
    caller: Device,
    name: str,
    request: bytes,
    port: int = 443,
    offer: tuple[str, ...] = ("http/1.1",),
) -> bytes:
    """By TLS, for a name, until the server hangs up."""
    context = net.certificates.client_context()
    context.set_alpn_protocols(list(offer))
    with trio.fail_after(60):
        async with await caller.tcp_connect("web", port) as below:
            stream = trio.SSLStream(below, context, server_hostname=name, https_compatible=True)
            await stream.send_all(request)
            return await read_all(stream)


GET = b"GET /x HTTP/1.1\r\nHost: lies\r\nConnection: close\r\n\r\n"


async def test_https_is_chosen_by_the_name_in_tls_and_says_so() -> None:
    echo = Echo()
    async with web_server(echo) as url, secured(lambda web: web.https(443, url)) as (net, caller, web):
        assert (await asked(net, caller, web.name, GET)).endswith(b"GET /x ")
        told = echo.headers()
        assert told[b"x-forwarded-proto"] == b"https"
        assert told[b"host"] == told[b"x-forwarded-host"] == b"lies"  # TLS alone decides which site it is
        with pytest.raises(trio.BrokenResourceError) as refused:
            await asked(net, caller, "other.test", GET)
        assert isinstance(refused.value.__cause__, ssl.SSLError)
        assert "INTERNAL_ERROR" in str(refused.value.__cause__)


async def test_tls_is_taken_off_for_a_server_that_has_none() -> None:
    async def shout(stream: trio.SocketStream) -> None:
        await stream.send_all((await stream.receive_some()).upper())
        await stream.aclose()

    async with (
        tcp_server(shout) as place,
        secured(lambda web: web.tcp(5433, tcp(place, tls=True))) as (net, caller, web),
    ):
        assert await asked(net, caller, web.name, b"hello", 5433) == b"HELLO"


async def test_what_is_no_tls_and_what_never_comes_end(autojump_clock: Any) -> None:
    async with secured(lambda web: web.https(443, text("x"))) as (_, caller, _web):
        for first in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b""):
            async with await caller.tcp_connect("web", 443) as stream:
                await stream.send_all(first)
                with trio.fail_after(60), suppress(trio.BrokenResourceError):
                    await read_all(stream)


async def test_plain_http_and_what_is_no_http_are_told_what_is_wrong() -> None:
    async with secured(lambda web: web.https(443, text("x"))) as (net, caller, web):
        async with await caller.tcp_connect("web", 443) as stream:
            await stream.send_all(GET)
            told = await read_all(stream)
            assert told.startswith(b"HTTP/1.0 400 ")
            assert b"an HTTP request to an HTTPS server" in told
        with pytest.raises(trio.BrokenResourceError) as refused:  # RFC 7301, 3.2
            await asked(net, caller, web.name, GET, offer=("imap",))
        assert isinstance(refused.value.__cause__, ssl.SSLError)
        assert not isinstance(refused.value.__cause__, ssl.SSLEOFError)
        assert (await asked(net, caller, web.name, GET)).endswith(b"x")


async def test_context_of_ones_own_is_asked_for_by_name() -> None:
    names = []
    async with Tailnet(certificates=True) as net, trio.open_nursery() as nursery:
        caller, web = await net.device("caller"), await net.device("web")

        async def given(name: str) -> ssl.SSLContext:
            names.append(name)
            return await web.tls_context(name)

        await nursery.start(Serve(web, certificates=given).https(443, text("own")).run)
        assert (await asked(net, caller, web.name, GET)).endswith(b"own")
        assert names == [web.name]
        nursery.cancel_scope.cancel()
