"""Certificates in the two other faces: asyncio's streams, blocking sockets, and servers of others with our context."""

from __future__ import annotations

import asyncio
import ssl
import threading

import pytest

from tailscale import CertificateNameRefused
from tailscale.testing import aio, sync


def test_blocking_sockets_speak_tls_by_the_devices_certificate() -> None:
    with sync.Tailnet(certificates=True) as net:
        web, laptop = net.device("web"), net.device("laptop")
        certificate = web.certificate()
        assert certificate.names == (web.name,)
        client = net.certificates.client_context()
        with web.listen_tls(443) as listener:

            def answer() -> None:
                for sock, address in listener:
                    with sock:
                        sock.sendall(f"{sock.recv(100).decode()} from {web.whois(address).node.hostname}".encode())
                    return

            thread = threading.Thread(target=answer)
            thread.start()
            with client.wrap_socket(laptop.tcp_connect("web", 443), server_hostname=web.name) as sock:
                sock.sendall(b"hello")
                assert sock.recv(100) == b"hello from laptop"
            thread.join()
        with pytest.raises(CertificateNameRefused):
            web.tls_context("other.test")


def test_asyncio_streams_speak_tls_by_the_devices_certificate() -> None:
    async def main() -> None:
        async with aio.Tailnet(certificates=True) as net:
            web, laptop = await net.device("web"), await net.device("laptop")
            client = net.certificates.client_context()
            assert (await web.certificate()).names == (web.name,)

            async def ask(port: int) -> bytes:
                reader, writer = await laptop.open_connection(web.name, port, ssl=client, server_hostname=web.name)
                writer.write(b"hello")
                answer = await reader.read(100)
                writer.close()
                return answer

            async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.write(await reader.read(100))
                await writer.drain()
                writer.close()

            async with await web.listen_tls(443) as listener:
                asking = asyncio.create_task(ask(443))
                async for reader, writer in listener:
                    assert writer.get_extra_info("peername")[0] == laptop.ipv4
                    await echo(reader, writer)
                    break
                assert await asking == b"hello"
            with pytest.raises(OSError, match="was closed"):
                await listener.accept()
            context = await web.tls_context()
            assert isinstance(context, ssl.SSLContext)
            async with await web.start_server(echo, 444, ssl=context):
                assert await ask(444) == b"hello"

    asyncio.run(main())
