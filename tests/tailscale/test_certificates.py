"""Certificates over a whole tailnet, in virtual time: control writes the record, the authority reads it."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio
from tailnet_scripts import beside

import tailscale
from tailscale import Device
from tailscale.testing import Tailnet

DAY = 86_400.0


async def greeted(net: Tailnet, client: Device, server: Device, port: int = 443) -> tuple[trio.SSLStream[Any], str]:
    """A connection by TLS, and the serial number of the certificate that it was shown."""
    tcp = await client.tcp_connect(server.name, port)
    tls = trio.SSLStream(tcp, net.certificates.client_context(), server_hostname=server.name)
    await tls.do_handshake()
    shown = tls.getpeercert()
    assert shown is not None
    return tls, shown["serialNumber"]


async def echo(stream: trio.abc.Stream) -> None:
    async with stream:
        while data := await stream.receive_some():
            await stream.send_all(data)


async def test_certificate_is_for_the_name_of_the_device(autojump_clock: trio.testing.MockClock) -> None:
    async with Tailnet(certificates=True) as net:
        web = await net.device("web")
        certificate = await web.certificate()
        assert certificate.names == (web.name,) == ("web.tailnet.test",)
        assert certificate.chain_pem.count(b"BEGIN CERTIFICATE") == 2
        assert b"PRIVATE KEY" not in repr(certificate).encode()
        assert await web.certificate("WEB.tailnet.test.") is certificate
        assert net.certificates.server.statistics().certificates == 1
        with pytest.raises(tailscale.CertificateNameRefused, match=r"only for web\.tailnet\.test"):
            await web.certificate("other.test")


async def test_listen_tls_is_trusted_by_a_client_and_says_who_calls(autojump_clock: trio.testing.MockClock) -> None:
    async with Tailnet(certificates=True) as net:
        web, laptop = await net.device("web"), await net.device("laptop")
        callers = []

        async def handle(stream: Any) -> None:
            callers.append(stream.peer.hostname)
            await echo(stream)

        listener = await web.listen_tls(443)
        async with beside(partial(trio.serve_listeners, handle, [listener])):
            tls, _ = await greeted(net, laptop, web)
            await tls.send_all(b"hello")
            assert await tls.receive_some() == b"hello"
            assert callers == ["laptop"]


async def test_renewal_is_shown_to_new_connections_and_loses_none_that_are_open(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with Tailnet(certificates=3 * DAY) as net:
        web, laptop = await net.device("web"), await net.device("laptop")
        listener = await web.listen_tls(443)
        async with beside(partial(trio.serve_listeners, echo, [listener])):
            old = [await greeted(net, laptop, web) for _ in range(3)]
            first = await web.certificate()
            await trio.sleep(3 * DAY - 60)
            tls, serial = await greeted(net, laptop, web)
            assert serial != old[0][1]
            renewed = await web.certificate()
            assert renewed.expires > first.expires
            for stream, _ in old:
                await stream.send_all(b"still here")
                assert await stream.receive_some() == b"still here"
            await tls.aclose()


async def test_where_control_gives_no_names_the_sentence_says_what_to_do(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with Tailnet() as net:
        web = await net.device("web")
        for verb in (web.certificate, web.tls_context, web.listen_tls):
            with pytest.raises(tailscale.CertificateNameRefused, match=r"FileCertificates.*docs/certificates\.md"):
                await verb()  # type: ignore[operator]


async def test_context_refuses_names_that_are_not_ours(autojump_clock: trio.testing.MockClock) -> None:
    async with Tailnet(certificates=True) as net:
        web = await net.device("web")
        context = await web.tls_context()
        ours: Callable[[str | None], str] = lambda name: handshake(context, net.certificates.client_context(), name)  # noqa: E731
        assert ours("web.tailnet.test") == "web.tailnet.test"
        with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
            ours("other.test")


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str | None) -> str:
    """In memory; the first name of the certificate that was shown."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname=name)
    other = server.wrap_bio(to_server, to_client, server_side=True)
    problem: ssl.SSLError | None = None
    for _ in range(4):
        for end in (one, other):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as error:
                if end is one:
                    raise
                problem = error
    if problem is not None:
        raise problem
    shown = one.getpeercert()
    assert shown is not None
    return str(shown["subjectAltName"][0][1])  # type: ignore[index, misc]
