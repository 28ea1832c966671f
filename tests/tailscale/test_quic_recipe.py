"""QUIC between two devices: aioquic's own machine over a UdpSocket, as docs/mesh.md says."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trustme
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate
from trio.testing import MockClock

from tailscale import UdpSocket
from tailscale.testing import Tailnet

quic = pytest.importorskip("aioquic.quic.connection", reason="aioquic is not installed")
events = pytest.importorskip("aioquic.quic.events")
PORT = 4433


class Quic:
    """One QUIC connection over a socket of the tailnet. aioquic keeps no time and no sockets: both are here."""

    def __init__(self, connection: Any, socket: UdpSocket, peer: tuple[str, int]) -> None:
        self.connection = connection
        self._socket = socket
        self._peer = peer
        self._due = trio.Event()

    async def run(self, hear: Callable[[Quic, Any], None]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_time, hear)
            while True:
                data, self._peer = await self._socket.receive_from()
                self.connection.receive_datagram(data, self._peer, now=trio.current_time())
                self.flush(hear)

    def flush(self, hear: Callable[[Quic, Any], None]) -> None:
        while (event := self.connection.next_event()) is not None:
            hear(self, event)
        self._due.set()

    async def _keep_time(self, hear: Callable[[Quic, Any], None]) -> None:
        while True:
            self._due = trio.Event()
            for data, address in self.connection.datagrams_to_send(now=trio.current_time()):
                await self._socket.send_to(data, address)
            timer = self.connection.get_timer()
            with trio.move_on_at(timer if timer is not None else float("inf")) as waiting:
                await self._due.wait()
            if waiting.cancelled_caught:
                self.connection.handle_timer(now=trio.current_time())
                self.flush(hear)


async def test_quic_runs_over_a_tailnet(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    from aioquic.buffer import Buffer
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.packet import pull_quic_header

    ca = trustme.CA()
    issued = ca.issue_cert("b", not_after=datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC))
    server = QuicConfiguration(is_client=False, alpn_protocols=["echo"])
    server.certificate = load_pem_x509_certificate(issued.cert_chain_pems[0].bytes())
    server.private_key = load_pem_private_key(issued.private_key_pem.bytes(), None)
    client = QuicConfiguration(alpn_protocols=["echo"], server_name="b", verify_mode=ssl.CERT_REQUIRED)
    client.load_verify_locations(cadata=ca.cert_pem.bytes())
    tailnet_heard = bytearray()
    done = trio.Event()

    def echo(ends: Quic, event: Any) -> None:
        if isinstance(event, events.StreamDataReceived):
            ends.connection.send_stream_data(event.stream_id, event.data, event.end_stream)

    def collect(_: Quic, event: Any) -> None:
        if isinstance(event, events.StreamDataReceived):
            tailnet_heard.extend(event.data)
            if event.end_stream:
                done.set()

    a, b = await tailnet.device("a"), await tailnet.device("b")
    tailnet.link("a", "b", loss=0.02, latency=0.01)
    async with await a.udp() as ours, await b.udp(PORT) as theirs, trio.open_nursery() as nursery:

        async def serve() -> None:
            data, source = await theirs.receive_from()
            header = pull_quic_header(Buffer(data=data), host_cid_length=8)
            machine = quic.QuicConnection(
                configuration=server, original_destination_connection_id=header.destination_cid
            )
            machine.receive_datagram(data, source, now=trio.current_time())
            ends = Quic(machine, theirs, source)
            ends.flush(echo)
            await ends.run(echo)

        nursery.start_soon(serve)
        address = (a.peers["b"].ipv4 or "", PORT)
        dialling = Quic(quic.QuicConnection(configuration=client), ours, address)
        dialling.connection.connect(address, now=trio.current_time())
        dialling.connection.send_stream_data(0, b"hello" * 20_000, end_stream=True)
        nursery.start_soon(dialling.run, collect)
        with trio.fail_after(60):
            await done.wait()
        assert bytes(tailnet_heard) == b"hello" * 20_000
        nursery.cancel_scope.cancel()
