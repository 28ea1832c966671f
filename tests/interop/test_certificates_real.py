"""Certificates from Pebble: ours and stock tailscaled's, through our control server and through upstream's."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import tailscale
from tailscale.certificates import Certificate, ControlCertificates
from tests.interop.embedded import embedded_control
from tests.interop.ours import PATHS, environment
from tests.interop.rig import Derper, Pebble, Rig, Tailscaled, pebble

pytestmark = [
    pytest.mark.slow,
    pytest.mark.peers("pebble", "pebble-challtestsrv", "scripted", "tailscaled", "tailscale"),
]
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
    from tailscale.certificates.contexts import server_context

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
