"""Certificates over a whole tailnet, in virtual time: control writes the record, the authority reads it."""

from __future__ import annotations

import contextlib
import os
import ssl
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from cryptography import x509
from tailnet_scripts import beside, until

import tailscale
from tailscale import Device
from tailscale.certificates import Certificate, FileCertificates, Ground, Renewal
from tailscale.certificates.contexts import chosen_by, server_context
from tailscale.certificates.shelf import FolderShelf
from tailscale.http import AsyncTransport, serve
from tailscale.metrics import exposition
from tailscale.testing import Tailnet
from tailscale.testing.certificates import NO_CHECK_TIME
from tailscale.testing.network import EPOCH
from ts_acme.authority import Authority
from ts_acme.chains import ACME_IDENTIFIER
from ts_acme.signing import ENTROPY_LENGTH, key_text, new_key

LIFETIME = 900.0  # of a certificate; every second of virtual time is some work of a device


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
    async with Tailnet(certificates=LIFETIME) as net:
        web, laptop = await net.device("web"), await net.device("laptop")
        listener = await web.listen_tls(443)
        async with beside(partial(trio.serve_listeners, echo, [listener])):
            old = [await greeted(net, laptop, web) for _ in range(3)]
            first = await web.certificate()
            await trio.sleep(0.95 * LIFETIME)
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


async def test_wildcard_is_had_where_control_lets_names_below_resolve(autojump_clock: trio.testing.MockClock) -> None:
    everybody = {"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}
    policy = {**everybody, "nodeAttrs": [{"target": ["*"], "attr": ["dns-subdomain-resolve"]}]}
    async with Tailnet(certificates=True, policy=policy) as net:
        web = await net.device("web")
        below = await web.certificate(f"app.{web.name}")
        assert set(below.names) == {f"*.{web.name}", web.name}
        assert await web.certificate(f"*.{web.name}") is below
        context = await web.tls_context(f"app.{web.name}")
        client = net.certificates.client_context()
        assert handshake(context, client, f"other.{web.name}") == f"*.{web.name}"


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


async def test_http_serve_takes_tailnet_a_context_and_a_function_of_the_name(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["scheme"].encode()})

    async with Tailnet(certificates=True) as net:
        web, laptop = await net.device("web"), await net.device("laptop")
        context, certificate = await web.tls_context(), await web.certificate()
        wanted: list[str | None] = []

        def by_name(name: str | None) -> ssl.SSLContext:
            wanted.append(name)
            if name == "broken.test":
                raise ValueError("the program's own mistake")
            return server_context(certificate.chain_pem, certificate.key_pem)

        for port, tls in ((443, "tailnet"), (444, context), (445, by_name)):
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(serve, app, web, port, tls=tls))  # type: ignore[arg-type]
                transport = AsyncTransport(laptop, verify=net.certificates.client_context())
                async with httpx.AsyncClient(transport=transport) as client:
                    assert (await client.get(f"https://{web.name}:{port}/")).text == "https"
                nursery.cancel_scope.cancel()
        assert wanted == [web.name]
        with pytest.raises(ssl.SSLError, match="INTERNAL_ERROR"):
            handshake(chosen_by(by_name), net.certificates.client_context(), "broken.test")
        with pytest.raises(TypeError, match='or "tailnet", not 7'):
            await serve(app, web, 446, tls=7)  # type: ignore[arg-type]


# --- renewal --------------------------------------------------------------------------------------


async def test_renewal_window_of_the_server_is_heeded_in_time(autojump_clock: trio.testing.MockClock) -> None:
    async with Tailnet(certificates=LIFETIME) as net:
        web = await net.device("web")
        first = await web.certificate()
        await trio.sleep(0.1 * LIFETIME)
        assert await web.certificate() is first
        net.certificates.renew_now()
        await trio.sleep(0.1 * LIFETIME)
        assert (await web.certificate()).expires > first.expires
        drops = web.status().drops
        assert not {name for name in drops if name.startswith(("acme.", "certificates.")) and drops[name]}


async def test_rate_limit_is_said_at_once_and_not_asked_into_again(autojump_clock: trio.testing.MockClock) -> None:
    async with Tailnet(certificates=True) as net:
        web = await net.device("web")
        net.certificates.refuse(retry_after=300.0)
        with pytest.raises(tailscale.CertificateRateLimited, match=r"UTC.*rateLimited: a test said so") as raised:
            await web.certificate()
        assert raised.value.retry_at is not None
        asked = net.certificates.server.statistics().requests
        with pytest.raises(tailscale.CertificateRateLimited):
            await web.certificate()
        assert net.certificates.server.statistics().requests == asked
        net.certificates.accept()
        await trio.sleep(301)
        assert (await web.certificate()).names == (web.name,)


async def test_renewal_that_fails_is_a_warning_and_tried_ever_later(autojump_clock: trio.testing.MockClock) -> None:
    async with Tailnet(certificates=LIFETIME) as net:
        web = await net.device("web")
        first = await web.certificate()
        assert " 1\n" in sample(web, "pytailscale_certificates")
        assert sample(web, "pytailscale_certificate_expiry_timestamp_seconds").endswith(
            f" {first.expires.timestamp():.0f}\n"
        )
        net.certificates.refuse("serverInternal", None)
        await trio.sleep(0.98 * LIFETIME)
        assert sample(web, "pytailscale_certificates_failing").endswith(" 1\n")
        warning = {one.code: one for one in web.health}["certificate-not-renewed"]
        assert "web.tailnet.test expires" in warning.sentence
        assert "a test said so" in warning.sentence
        assert await web.certificate() is first
        assert 2 <= web.status().drops["certificates.renewal_failed"] <= 5
        net.certificates.accept()
        await trio.sleep(70)
        assert (await web.certificate()).expires > first.expires
        assert "certificate-not-renewed" not in {one.code for one in web.health}


def sample(device: Device, name: str) -> str:
    """The line of one metric."""
    return next(line for line in exposition(device).splitlines(keepends=True) if line.startswith(f"{name} "))


async def test_min_validity_replaces_what_is_good_for_less(autojump_clock: trio.testing.MockClock) -> None:
    async with Tailnet(certificates=LIFETIME) as net:
        web = await net.device("web")
        first = await web.certificate()
        await trio.sleep(0.3 * LIFETIME)
        assert await web.certificate(min_validity=0.6 * LIFETIME) is first
        assert (await web.certificate(min_validity=0.8 * LIFETIME)).expires > first.expires


async def test_many_who_want_one_certificate_cost_one_order(autojump_clock: trio.testing.MockClock) -> None:
    async with Tailnet(certificates=True) as net:
        web = await net.device("web")
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(web.certificate)
        assert net.certificates.server.statistics().orders == 1


async def test_control_that_forgot_everything_still_writes_records(autojump_clock: trio.testing.MockClock) -> None:
    async with Tailnet(certificates=True) as net:
        await net.control.restart(forget_devices=True)
        web = await net.device("web")
        assert (await web.certificate()).names == (web.name,)


async def test_authority_that_is_away_is_named(autojump_clock: trio.testing.MockClock) -> None:
    async with Tailnet(certificates=True) as net:
        web = await net.device("web")
        await net.certificates.stop()
        with pytest.raises(tailscale.CertificateError, match=r"no certificate: the ACME server .* cannot be asked"):
            await web.certificate()
        await net.certificates.start()
        assert await web.certificate()


async def test_device_that_is_renamed_has_a_certificate_for_the_next_client_but_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with Tailnet(certificates=True) as net:
        web = await net.device("web")
        context, client = await web.tls_context(), net.certificates.client_context()
        net.rename("web", "shop")
        await until(lambda: web.name == "shop.tailnet.test")
        for _ in range(3):
            with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
                handshake(context, client, "shop.tailnet.test")
        await until(lambda: net.certificates.server.statistics().certificates == 2)
        await until(lambda: web.status().counters.levels["certificates.held"] == 2)
        assert handshake(context, client, "shop.tailnet.test") == "shop.tailnet.test"
        for _ in range(3):  # what is not ours is no wish
            with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
                handshake(context, client, "other.test")
        await trio.sleep(1)
        assert net.certificates.server.statistics().orders == 2


# --- what is kept ---------------------------------------------------------------------------------


async def test_state_folder_holds_the_pair_as_tailscaled_does(tmp_path: Path) -> None:
    async with Tailnet(real=True, certificates=True) as net:
        async with net.device("web", state=tmp_path / "web", ephemeral=False) as web:
            first = await web.certificate()
            assert "certificates-in-memory" not in {one.code for one in web.health}
        folder = tmp_path / "web" / "certs"
        modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
        assert modes["web.tailnet.test.key"] == modes["acme-account.key.pem"] == 0o600
        assert modes["web.tailnet.test.crt"] == 0o644
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / "acme-account.key.pem").read_bytes().startswith(b"-----BEGIN EC PRIVATE KEY-----")
        async with net.device("web", state=tmp_path / "web", ephemeral=False) as web:
            assert (await web.certificate()).chain_pem == first.chain_pem
            assert net.certificates.server.statistics().certificates == 1
        (folder / "acme-account.key.pem").unlink()  # another account: what is replaced is not its own
        (folder / "web.tailnet.test.crt").write_bytes(b"nonsense")
        async with net.device("web", state=tmp_path / "web", ephemeral=False) as web:
            assert (await web.certificate()).chain_pem != first.chain_pem
        (folder / "web.tailnet.test.key").chmod(0o644)
        async with net.device("web", state=tmp_path / "web", ephemeral=False) as web:
            with pytest.raises(tailscale.CertificateError, match="chmod 600"):
                await web.certificate()


async def test_certificates_outlive_the_device_in_any_store(autojump_clock: trio.testing.MockClock) -> None:
    async with Tailnet(certificates=True) as net:
        store = tailscale.MemoryStore()
        async with net.device("web", state=store, ephemeral=False) as web:
            first = await web.certificate()
            assert "certificates-in-memory" in {one.code for one in web.health}
        async with net.device("web", state=store, ephemeral=False) as web:
            assert (await web.certificate()).chain_pem == first.chain_pem


HOLDER = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(descriptor, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


async def test_one_order_at_a_time_across_processes(tmp_path: Path) -> None:
    """Another process holds the name and leaves a certificate: it is taken, and none is ordered."""
    async with Tailnet(real=True, certificates=True) as net:
        web = await net.device("web", state=tmp_path / "web", ephemeral=False)
        folder = tmp_path / "web" / "certs"
        folder.mkdir(mode=0o700)
        command = [sys.executable, "-c", HOLDER, str(folder / f"{web.name}.lock")]
        got: list[Certificate] = []

        async def want() -> None:
            got.append(await web.certificate())

        async with trio.open_nursery() as nursery:
            other = await nursery.start(partial(trio.run_process, command, stdin=PIPE, stdout=PIPE))
            assert (await other.stdout.receive_some()).strip() == b"held"
            nursery.start_soon(want)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert net.certificates.server.statistics().orders == 0
            key = new_key(os.urandom(ENTROPY_LENGTH))
            chain = net.certificates.server.authority.issue(key.public_key(), [web.name], 86_400)
            FolderShelf(folder).keep_pair(web.name, chain, key_text(key))
            await other.stdin.aclose()
        assert got[0].chain_pem.strip() == chain.strip()
        assert net.certificates.server.statistics().orders == 0


# --- files of the user ----------------------------------------------------------------------------


async def test_files_of_the_user_are_shown_and_read_again(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    authority = Authority(os.urandom, lambda: EPOCH)
    pair = tmp_path / "web.crt", tmp_path / "web.key"

    def write(*names: str) -> bytes:
        key = new_key(os.urandom(ENTROPY_LENGTH))
        chain = authority.issue(key.public_key(), names, 86_400)
        pair[0].write_bytes(chain)
        pair[1].write_bytes(key_text(key))
        return chain

    first = write("web.corp.example", "web")
    async with Tailnet() as net:
        web = await net.device("web", certificates=FileCertificates(pair))
        context = await web.tls_context()
        assert (await web.certificate()).names == ("web.corp.example", "web")
        assert (await web.certificate("web")).chain_pem.strip() == first.strip()
        client = ssl.create_default_context(cadata=authority.root_pem.decode())
        client.verify_flags |= NO_CHECK_TIME
        for name in ("web.corp.example", "web"):
            assert handshake(context, client, name) == "web.corp.example"
        second = write("web.corp.example", "web")
        await trio.sleep(130)
        assert (await web.certificate()).chain_pem.strip() == second.strip()
        pair[1].write_bytes(b"nonsense")
        await trio.sleep(130)
        assert {one.code for one in web.health} == {"certificate-not-renewed"}
        assert handshake(context, client, "web") == "web.corp.example"


async def test_files_that_cannot_be_used_are_named(autojump_clock: trio.testing.MockClock, tmp_path: Path) -> None:
    async with Tailnet() as net:
        source = FileCertificates((tmp_path / "no.crt", tmp_path / "no.key"))
        web = await net.device("web", certificates=source)
        with pytest.raises(tailscale.CertificateError, match=r"no\.crt cannot be read: No such file"):
            await web.certificate()
        (tmp_path / "no.crt").write_bytes(Authority(os.urandom, lambda: EPOCH).root_pem)
        (tmp_path / "no.key").write_bytes(b"")
        with pytest.raises(tailscale.CertificateError, match="no pair that can be used"):
            await web.certificate()
    with pytest.raises(ValueError, match="needs a pair"):
        FileCertificates()


class Broken(FileCertificates):
    """A source of the program's own, with a mistake in it."""

    async def renewal(self, certificate: Certificate, ground: Ground) -> Renewal:
        raise ValueError("the program's own mistake")


async def test_source_with_a_mistake_ends_nothing(autojump_clock: trio.testing.MockClock, tmp_path: Path) -> None:
    pair = tmp_path / "web.crt", tmp_path / "web.key"
    key = new_key(os.urandom(ENTROPY_LENGTH))
    pair[0].write_bytes(Authority(os.urandom, lambda: EPOCH).issue(key.public_key(), ["web.test"], 86_400))
    pair[1].write_bytes(key_text(key))
    async with Tailnet() as net:
        web = await net.device("web", certificates=Broken(pair))
        assert (await web.certificate()).names == ("web.test",)
        await trio.sleep(400)
        assert "its source raised ValueError" in web.health[0].sentence
        assert (await web.certificate()).names == ("web.test",)
        assert web.state == "running"


# --- proof by TLS ---------------------------------------------------------------------------------


async def test_context_answers_who_validates_and_nobody_else(autojump_clock: trio.testing.MockClock) -> None:
    async with Tailnet(certificates=True) as net:
        web = await net.device("web")
        context = await web.tls_context()
        validator = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        validator.check_hostname, validator.verify_mode = False, ssl.CERT_NONE
        validator.set_alpn_protocols(["acme-tls/1"])
        digest = bytes(range(32))
        with web.certificate_keeper().challenges.answering("pub.example", digest):
            shown, protocol = proven(context, validator, "pub.example")
            assert protocol == "acme-tls/1"
            extension = shown.extensions.get_extension_for_oid(ACME_IDENTIFIER)
            assert extension.critical
            assert extension.value.value == b"\x04\x20" + digest  # type: ignore[attr-defined]
            names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert names.get_values_for_type(x509.DNSName) == ["pub.example"]
            assert handshake(context, net.certificates.client_context(), web.name) == web.name
            with pytest.raises(ssl.SSLError, match="CALLBACK_FAILED"):
                proven(context, validator, "other.example")
        shown, protocol = proven(context, validator, web.name)
        assert protocol is None


def proven(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> tuple[x509.Certificate, str | None]:
    """The certificate that a validator is shown; its first message arrives in pieces."""
    to_server, to_client, slowly = ssl.MemoryBIO(), ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, slowly, server_hostname=name)
    other = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [one, other]
    while waiting:
        for end in tuple(waiting):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                waiting.remove(end)
            to_server.write(slowly.read(50))
    der = one.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der), one.selected_alpn_protocol()
