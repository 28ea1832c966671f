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
from pathlib import Path

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tailscale.runtime.network import DirectRuns, UdpUnderlay
from tailscale.testing.http_front import READ_SIZE, Answer, Request, Upgrade, serve_http
from tailscale.testing.timekeeper import Timekeeper
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


def region(number: int, address: str, port: int, stun_port: int, pin: str) -> DERPRegion:
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
    )
    return DERPRegion(region_id=number, region_code="test", region_name="Embedded relay", nodes=(node,))


class RelayService:
    """Serves one DerpServer; made anew for every start, as a relay that restarts forgets who was there."""

    def __init__(
        self, private: NodePrivate, *, entropy: Callable[[int], bytes], admit: Callable[[bytes], bool]
    ) -> None:
        self.server = DerpServer(private, entropy=entropy, admit=admit)
        self._wake: dict[int, trio.Event] = {}
        self._scopes: dict[int, trio.CancelScope] = {}
        self._timekeeper = Timekeeper(self.server, self._poke)

    def _poke(self) -> None:
        for connection in self.server.take_ready():
            if connection in self._wake:
                self._wake[connection].set()
        for message in self.server.take_messages():
            if isinstance(message, ClientClosed) and message.connection in self._scopes:
                self._scopes[message.connection].cancel()
        self._timekeeper.look_again()

    async def run_timers(self) -> None:
        """Runs until cancelled."""
        await self._timekeeper.run()

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
        connection = self.server.connect(trio.current_time())
        if connection is None:
            return
        self._wake[connection] = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                self._scopes[connection] = nursery.cancel_scope
                nursery.start_soon(self._write, stream, connection)
                self._poke()
                data = first
                while True:
                    if data:
                        self.server.receive(connection, data, trio.current_time())
                        self._poke()
                    await trio.sleep_until(self.server.pause_until(connection))
                    data = bytes(await stream.receive_some(READ_SIZE))
                    if not data:
                        break
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client is gone; `finally` says so to the server
        finally:
            del self._wake[connection], self._scopes[connection]
            self.server.disconnect(connection, trio.current_time())
            self._poke()

    async def _write(self, stream: trio.abc.Stream, connection: int) -> None:
        while True:
            data = self.server.transmit(connection, trio.current_time())
            if data:
                with trio.move_on_after(WRITE_TIMEOUT) as writing:
                    await stream.send_all(data)
                if writing.cancelled_caught:
                    raise trio.BrokenResourceError("this client does not read")
                continue
            await self._wake[connection].wait()
            self._wake[connection] = trio.Event()


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
