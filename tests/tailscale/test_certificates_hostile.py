"""ACME servers from hell, met by a whole device: a sentence within a bounded time, and the device lives on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import pytest
import trio
from tailnet_scripts import beside, echo_service, echoed

import tailscale
from tailscale.certificates import ControlCertificates
from tailscale.certificates.control import ORDER_TIMEOUT
from tailscale.testing import Tailnet

Serve = Callable[[trio.abc.Stream], Awaitable[None]]


def says(answer: bytes) -> Serve:
    async def serve(stream: trio.abc.Stream) -> None:
        async with stream:
            if await stream.receive_some():
                await stream.send_all(answer)

    return serve


async def hangs(stream: trio.abc.Stream) -> None:
    async with stream:
        while await stream.receive_some():
            pass


async def drips(stream: trio.abc.Stream) -> None:
    """A head that does not end, a byte a second."""
    async with stream:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nx: ")
        while True:
            await stream.send_all(b"y")
            await trio.sleep(1)


async def floods(stream: trio.abc.Stream) -> None:
    async with stream:
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n")
        while True:
            await stream.send_all(bytes(65536))


def with_body(status: str, body: bytes, *lines: str) -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"content-length: {len(body)}", *lines])
    return head.encode() + b"\r\n\r\n" + body


HELL: dict[str, tuple[Serve, str]] = {
    "a page": (says(with_body("200 OK", b"<html>Log in</html>", "content-type: text/html")), "a web page"),
    "a redirect": (says(with_body("302 Found", b"", "location: http://elsewhere.test/")), "HTTP 302"),
    "nonsense": (says(b"\x15\x03\x01\r\n\r\n"), "what is no answer"),
    "silence": (hangs, "did not answer within 30 s"),
    "a head that drips": (drips, "did not answer within 30 s"),
    "a flood": (floods, "more than 65536 bytes"),
    "a hang-up": (says(b""), "broke off"),
    "429 for ever": (says(with_body("429 Too Many Requests", b"slow down", "retry-after: 60")), "HTTP 429"),
    "an empty object": (says(with_body("200 OK", b"{}")), "newNonce"),
    "a bomb": (says(with_body("200 OK", b"[" * 60_000)), "no JSON"),
}


@pytest.mark.parametrize("kind", HELL)
async def test_server_from_hell_is_a_sentence_and_no_more(kind: str, autojump_clock: trio.testing.MockClock) -> None:
    serve, sentence = HELL[kind]
    async with Tailnet(certificates=True) as net:
        bad = net.host("bad-acme")

        async def answer(stream: trio.abc.Stream) -> None:
            with suppress(trio.BrokenResourceError):  # it was hung up on
                await serve(stream)

        async with beside(partial(trio.serve_listeners, answer, [bad.listen_tcp(80)])):
            web = await net.device("web", certificates=ControlCertificates(f"http://{bad.address}/dir"))
            with trio.fail_after(ORDER_TIMEOUT + 10), pytest.raises(tailscale.CertificateError) as raised:
                await web.certificate()
            assert sentence in str(raised.value)
            assert bad.address in str(raised.value)
            assert len(str(raised.value)) < 600
            laptop = await net.device("laptop")
            async with echo_service(web, 7):
                assert await echoed(laptop, "web", 7) == b"hello"


async def test_control_that_refuses_the_record_is_named(autojump_clock: trio.testing.MockClock) -> None:
    async with Tailnet(certificates=True) as net:
        web = await net.device("web")
        net.control.do(net.control.server.serve_certificates, lambda _name, _value: None)
        with pytest.raises(tailscale.CertificateError, match=r"does not believe that web\.tailnet\.test is ours"):
            await web.certificate()
        net.control.do(net.control.server.serve_certificates, None)
        with pytest.raises(tailscale.CertificateError, match="Headscale"):
            await web.certificate()


async def test_control_that_is_away_for_the_record_is_named(autojump_clock: trio.testing.MockClock) -> None:
    async with Tailnet(certificates=True) as net:
        web = await net.device("web")
        await net.control.stop()
        with pytest.raises(tailscale.CertificateError, match="Try again when the control server is there"):
            await web.certificate()
        await net.control.start()
        assert (await web.certificate()).names == (web.name,)
