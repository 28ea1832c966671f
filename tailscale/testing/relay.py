"""The embedded relay on real or virtual streams, and the STUN responder beside it.

Owns tasks, timers, TLS with a certificate made on the spot, and the upgrade of `GET /derp`. What is relayed is
`ts_derp.server`'s business.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import ssl
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tailscale.runtime.network import DirectRuns, UdpUnderlay
from tailscale.testing.http_front import Answer, Request, Upgrade, serve_http
from tailscale.testing.served_streams import ServedStreams
from ts_base.errors import BadPacket
from ts_base.keys import NodePrivate
from ts_control.wire import DERPNode, DERPRegion
from ts_dataplane.stun import decode_request_untrusted, encode_response
from ts_derp.server import WRITE_TIMEOUT, ClientClosed, DerpServer
from ts_derp.trust import PIN_PREFIX


class Certificate:
    """A self-signed certificate for one address; clients know it by its hash, as the DERP map may say."""

    def __init__(self, address: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
        # Valid on virtual clocks too, wherever they stand.
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC))
            .not_valid_after(datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC))
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address)), x509.DNSName(address)]),
                critical=False,
            )
            .sign(key, hashes.SHA256())
        )
        self.pin = PIN_PREFIX + hashlib.sha256(self._certificate.public_bytes(Encoding.DER)).hexdigest()
        self.context = self._context(key)

    def _context(self, key: ec.EllipticCurvePrivateKey) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with tempfile.TemporaryDirectory() as folder:  # the ssl module reads keys from files only
            chain = Path(folder) / "chain.pem"
            chain.touch(mode=0o600)
            chain.write_bytes(private + self._certificate.public_bytes(Encoding.PEM))
            context.load_cert_chain(chain)
        return context


def region(number: int, address: str, port: int, stun_port: int, pin: str, *, stun_only: bool = False) -> DERPRegion:
    """One region with one node, as the DERP map lists it."""
    node = DERPNode(
        name=f"{number}a",
        region_id=number,
        host_name=address,
        cert_name=pin,
        ipv4=address,
        ipv6="none",
        derp_port=port,
        stun_port=stun_port,
        stun_test_ip=address,
        stun_only=stun_only,
    )
    return DERPRegion(region_id=number, region_code="test", region_name="Embedded relay", nodes=(node,))


class RelayService:
    """Serves one DerpServer; made anew for every start, as a relay that restarts forgets who was there."""

    def __init__(
        self, private: NodePrivate, *, entropy: Callable[[int], bytes], admit: Callable[[bytes], bool]
    ) -> None:
        self.server = DerpServer(private, entropy=entropy, admit=admit)
        self._streams = ServedStreams(self.server, on_poke=self._end_closed, write_timeout=WRITE_TIMEOUT)

    def _end_closed(self) -> None:
        for message in self.server.take_messages():
            if isinstance(message, ClientClosed):
                self._streams.end(message.connection)

    async def run_timers(self) -> None:
        """Runs until cancelled."""
        await self._streams.run_timers()

    async def serve_stream(self, stream: trio.abc.Stream) -> None:
        """One client, TLS already off."""
        await serve_http(stream, self._route)

    def _route(self, request: Request) -> Answer | Upgrade:
        if request.path == "/derp":
            if request.headers.get("upgrade", "").lower() != "derp":
                return Answer(426, b"DERP requires connection upgrade")
            silent = request.headers.get("derp-fast-start") == "1"
            return Upgrade("DERP", self._carry, self.server.upgrade_headers, silent=silent)
        if request.path in {"/derp/probe", "/derp/latency-check", "/generate_204"}:
            return Answer(200 if request.path != "/generate_204" else 204)
        return Answer(404, b"not found")

    async def _carry(self, stream: trio.abc.Stream, first: bytes) -> None:
        number = self.server.connect(trio.current_time())
        if number is not None:
            client = _RelayClient(self.server, number)
            pause_until = partial(self.server.pause_until, number)
            await self._streams.serve(stream, number, client, first, pause_until=pause_until)


class _RelayClient:
    """One connection of the relay, which knows its connections by number and tells itself when one is over."""

    closed = False

    def __init__(self, server: DerpServer, number: int) -> None:
        self.receive = partial(server.receive, number)
        self.transmit = partial(server.transmit, number)
        self.close = partial(server.disconnect, number)


async def answer_stun(port: UdpUnderlay) -> None:
    """Tell whoever asks properly where it is seen from. Runs until cancelled."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(port.run_writers)
        for reader in port.readers():
            nursery.start_soon(_answer_stun, port, reader)


async def _answer_stun(port: UdpUnderlay, reader: Callable[[], Awaitable[DirectRuns]]) -> None:
    while True:
        runs = await reader()
        answers: DirectRuns = []
        for source, datagrams in runs:
            for datagram in datagrams:
                try:
                    transaction = decode_request_untrusted(datagram)
                except BadPacket:
                    continue
                answers.append((source, [encode_response(transaction, source)]))
        port.send_many(answers)
