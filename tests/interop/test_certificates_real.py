"""Certificates from Pebble: ours and stock tailscaled's, through our control server and through upstream's."""

from __future__ import annotations

import contextlib
import os
import ssl
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

import tailscale
import tailscale.http
from tailscale.certificates import Certificate, ControlCertificates
from tailscale.certificates.contexts import server_context
from tailscale.daemon.places import places
from tests.interop import build
from tests.interop.embedded import embedded_control
from tests.interop.ours import PATHS, environment, guarded
from tests.interop.processes import PORTS, Process, poll_until
from tests.interop.rig import Derper, Pebble, Rig, Tailscaled, pebble

pytestmark = [
    pytest.mark.slow,
    pytest.mark.peers("pebble", "pebble-challtestsrv", "scripted", "tailscaled", "tailscale"),
]
ROOT = Path(__file__).parents[2]
HOSTS = ("embedded", "testcontrol")
DAY = 86_400


class Lab:
    """A control server of one of two kinds, whose records Pebble reads."""

    def __init__(self, r: Rig, control: Any, authority: Pebble, domain: str, auth_key: str) -> None:
        self.r, self.control, self.authority, self.domain, self.auth_key = r, control, authority, domain, auth_key
        self.source = ControlCertificates(authority.directory, tls=authority.tls)

    @asynccontextmanager
    async def ours(self, name: str, **options: Any) -> AsyncIterator[tailscale.Device]:
        async with environment(PATHS["direct"]):
            device = tailscale.Device(
                name, control_url=self.control.url, auth_key=self.auth_key, certificates=self.source, **options
            )
        async with device:
            yield device

    @asynccontextmanager
    async def stock(self, name: str) -> AsyncIterator[Tailscaled]:
        async with self.r.tailscaled(name, env=self.authority.environment) as daemon:
            await daemon.up(self.control.url, self.auth_key)
            yield daemon


@asynccontextmanager
async def lab(r: Rig, relay: Derper, kind: str, **options: Any) -> AsyncIterator[Lab]:
    async with pebble(r, **options) as authority:
        if kind == "testcontrol":
            async with r.testcontrol(regions=[relay.region], set_dns=authority.set_txt, same_user=True) as control:
                yield Lab(r, control, authority, "rig.test", "tskey-any")
            return
        async with embedded_control(relay.region) as embedded:
            embedded.do("serve_certificates", authority.publish)
            yield Lab(r, embedded, authority, "tailnet.test", embedded.server.create_auth_key(reusable=True))


async def trusted(lab: Lab, certificate: Certificate) -> None:
    """Pebble's root vouches for it, and OpenSSL takes the pair."""
    context = ssl.create_default_context(cadata=await lab.authority.root_pem())
    one, other = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(one, other, server_hostname=certificate.names[0])
    server = server_context(certificate.chain_pem, certificate.key_pem).wrap_bio(other, one, server_side=True)
    for _ in range(4):
        for end in (client, server):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert client.getpeercert()


@pytest.mark.parametrize("kind", HOSTS)
async def test_first_certificate_is_as_fast_as_stock(r: Rig, relay: Derper, kind: str, tmp_path: Path) -> None:
    async with lab(r, relay, kind) as here, here.ours("ours") as ours, here.stock("stock") as stock:
        started = time.perf_counter()
        certificate = await ours.certificate()
        took = time.perf_counter() - started
        assert certificate.names == (f"ours.{here.domain}",)
        await trusted(here, certificate)
        name, files = f"stock.{here.domain}", (tmp_path / "s.crt", tmp_path / "s.key")
        started = time.perf_counter()
        await stock.cli("cert", f"--cert-file={files[0]}", f"--key-file={files[1]}", name)
        print(f"first certificate through {kind}: ours {1000 * took:.0f} ms,", end=" ")
        print(f"stock {1000 * (time.perf_counter() - started):.0f} ms with its command line")
        await trusted(here, Certificate.read_untrusted(files[0].read_bytes(), files[1].read_bytes()))


@pytest.mark.parametrize("kind", HOSTS)
async def test_nonces_refused_and_authorizations_reused(r: Rig, relay: Derper, kind: str, tmp_path: Path) -> None:
    """Half of all nonces are refused, and every authorization is valid already the second time."""
    async with lab(r, relay, kind, refused_nonces=50, reused_authorizations=100) as here:
        async with here.ours("ours", state=tmp_path / "ours", ephemeral=False) as ours:
            first = await ours.certificate()
            second = await ours.certificate(min_validity=200 * DAY)
            assert second.chain_pem != first.chain_pem
            await trusted(here, second)
            drops = ours.status().drops
            assert drops.get("acme.bad_nonce", 0) > 0
            assert drops.get("acme.replaces_refused", 0) == 0
        (tmp_path / "ours" / "certs" / "acme-account.key.pem").unlink()  # whoever replaces it is another account
        async with here.ours("ours", state=tmp_path / "ours", ephemeral=False) as ours:
            assert (await ours.certificate()).chain_pem == second.chain_pem
            third = await ours.certificate(min_validity=200 * DAY)
            assert third.chain_pem != second.chain_pem
            await trusted(here, third)


async def test_short_certificate_is_renewed_by_its_window_and_connections_stay(r: Rig, relay: Derper) -> None:
    """Pebble's window for so short a lifetime is over at once: renewal comes by itself, and loses nobody."""
    async with lab(r, relay, "embedded", lifetime=20) as here, here.ours("ours") as ours:
        listener = await ours.listen_tls(443)
        await ours.certificate()
        client = ssl.create_default_context(cadata=await here.authority.root_pem())

        async def echo(stream: trio.abc.Stream) -> None:
            async with stream:
                while data := await stream.receive_some():
                    await stream.send_all(data)

        async with here.ours("caller") as caller, trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, echo, [listener])

            async def connect() -> trio.SSLStream[Any]:
                tcp = await caller.tcp_connect(ours.name, 443)
                tls = trio.SSLStream(tcp, client, server_hostname=ours.name)
                await tls.do_handshake()
                return tls

            old = [await connect() for _ in range(5)]
            shown = {tls.getpeercert(binary_form=True) for tls in old}  # it may be renewed already between two of them

            async def renewed() -> trio.SSLStream[Any] | None:
                tls = await connect()
                if tls.getpeercert(binary_form=True) not in shown:
                    return tls
                await tls.aclose()
                return None

            new = await poll_until("a connection that shows another certificate", renewed, 60)
            for tls in (*old, new):
                await tls.send_all(b"still here")
                assert await tls.receive_some() == b"still here"
            nursery.cancel_scope.cancel()


async def test_curl_trusts_our_page_over_the_tailnet(r: Rig, relay: Derper, tmp_path: Path) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": f"hello by {scope['scheme']}".encode()})

    async with lab(r, relay, "embedded") as here, here.ours("ours") as ours, here.stock("stock") as stock:
        (tmp_path / "root.pem").write_text(await here.authority.root_pem())
        async with trio.open_nursery() as nursery:
            url = await nursery.start(partial(tailscale.http.serve, app, ours, 443, tls="tailnet"))
            command = ["curl", "--silent", "--show-error", "--max-time", "20", "--cacert", str(tmp_path / "root.pem")]
            command += ["--socks5-hostname", f"127.0.0.1:{stock.socks_port}", f"{url}/"]
            done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
            assert (done.returncode, done.stdout) == (0, b"hello by https"), done.stderr
            nursery.cancel_scope.cancel()


async def test_stock_command_line_gets_certificates_of_our_daemon(r: Rig, relay: Derper, tmp_path: Path) -> None:
    async with lab(r, relay, "testcontrol") as here:
        folder = tmp_path / "state"
        words = ["up", "--foreground", "--state", str(folder), "--hostname", "ours", "--control-url", here.control.url]
        env = os.environ | here.authority.environment | {"TS_AUTHKEY": here.auth_key, "PYTHONPATH": str(ROOT)}
        process = Process("ours", [sys.executable, "-m", "tailscale.cli", *words], r.room("daemon"), env=env)
        stock = [str(build.binary("tailscale")), f"--socket={places(folder).socket}"]

        async def run(*words: str) -> tuple[int, bytes]:
            done = await trio.run_process(
                [*stock, *words], capture_stdout=True, capture_stderr=True, check=False, cwd=tmp_path
            )
            return done.returncode, done.stdout + done.stderr

        async def is_up() -> bool:
            process.check()
            return (await run("wait", "--timeout=5s"))[0] == 0

        try:
            await poll_until("our daemon to be usable", is_up, 40)
            code, told = await run("cert", "ours.rig.test")
            assert code == 0, told
            pair = (tmp_path / "ours.rig.test.crt").read_bytes(), (tmp_path / "ours.rig.test.key").read_bytes()
            await trusted(here, Certificate.read_untrusted(*pair))
            code, told = await run("cert", "--min-validity=1h", "--cert-file=-", "--key-file=", "ours.rig.test")
            assert (code, pair[0].strip() in told) == (0, True), told
            code, told = await run("cert", "other.rig.test")
            assert (code, b"only for ours.rig.test" in told) == (1, True), told
        finally:
            await process.stop()


async def test_name_is_proven_by_tls_where_its_port_arrives_here(r: Rig, relay: Derper) -> None:
    """A listener of this machine stands for a relay of Funnel: what connects to it is carried to the device's port.

    The name is nobody's for control, so that there is no other way; where the way is closed, no certificate comes.
    """
    port = PORTS.take()
    async with lab(r, relay, "embedded", tls_port=port) as here, here.ours("ours") as ours, here.ours("relay") as way:
        ours.certificate_keeper().challenges.carried.add("pub.example")
        listener = await ours.listen_tls(443)

        async def carry(outside: trio.SocketStream) -> None:
            async with await way.tcp_connect(ours.name, 443) as inside:
                await tailscale.splice(outside, inside)

        async def serve(stream: trio.abc.Stream) -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.receive_some()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            doors, open_doors = await trio.open_tcp_listeners(port, host="127.0.0.1"), trio.CancelScope()

            async def stand_open() -> None:
                with open_doors:
                    await trio.serve_listeners(guarded(carry), doors)

            nursery.start_soon(stand_open)
            published = len(here.authority.published)
            await trusted(here, await ours.certificate("pub.example"))
            assert len(here.authority.published) == published
            # Our own name is proven by TLS too where it is carried, and by DNS where that fails.
            ours.certificate_keeper().challenges.carried.add(ours.name)
            await trusted(here, await ours.certificate(min_validity=200 * DAY))
            assert len(here.authority.published) == published
            open_doors.cancel()
            for door in doors:
                await door.aclose()
            await trusted(here, await ours.certificate(min_validity=300 * DAY))
            assert len(here.authority.published) == published + 1
            assert ours.status().drops["acme.challenge_failed"] == 1
            nursery.cancel_scope.cancel()
