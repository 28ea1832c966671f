"""Funnel against stock tailscaled, as a target behind our relay and as a relay for our target, fetched by curl.

Certificates come from Pebble, which validates through the relay (TLS-ALPN-01): the name leads to this machine, the port
is the relay's.
"""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import trio

import tailscale
from tailscale.certificates import ControlCertificates
from tailscale.ingress import Ingress, ingress
from tailscale.peerapi.actor import PORT
from tailscale.serve import Serve
from tests.interop.embedded import EmbeddedControl, embedded_control
from tests.interop.ours import PATHS, environment, joined, tailnet, tls_for
from tests.interop.processes import PORTS, poll_until
from tests.interop.rig import Derper, Headscale, Pebble, Rig, Tailscaled, pebble
from tests.interop.test_localapi_real import daemon
from ts_control.server_funnel import FunnelRules

pytestmark = [pytest.mark.slow, pytest.mark.peers("pebble", "pebble-challtestsrv", "tailscaled", "tailscale")]
STOCK_NAME, OUR_NAME = "stock.example", "ours.example"
PATIENCE = 60
TOLD = ("x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "tailscale-funnel-request", "tailscale-user-login")


async def show_request(stream: trio.abc.HalfCloseableStream) -> None:
    """A web server that answers with the head it got, as JSON."""
    with contextlib.suppress(OSError, trio.BrokenResourceError):
        async with stream:
            head = b""
            while b"\r\n\r\n" not in head:
                data = await stream.receive_some()
                if not data:
                    return
                head += data
            lines = head.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
            body = json.dumps({"line": lines[0], "headers": headers}).encode()
            await stream.send_all(
                b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )


@contextlib.asynccontextmanager
async def backend() -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, show_request, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def curl(name: str, port: int, ca: Path, *more: str) -> dict[str, Any]:
    command = ["curl", "-sS", "--max-time", "20", "--cacert", str(ca), "--resolve", f"{name}:{port}:127.0.0.1"]
    done = await trio.run_process(
        [*command, *more, f"https://{name}:{port}/page"], capture_stdout=True, capture_stderr=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@contextlib.asynccontextmanager
async def led_by(gate: tailscale.Device, listen: int, to: Any, **options: Any) -> AsyncIterator[Ingress]:
    async with trio.open_nursery() as nursery:
        run = partial(ingress, port=443, **options)
        yield await nursery.start(run, gate, f"127.0.0.1:{listen}", to)
        nursery.cancel_scope.cancel()


def stock_config(name: str, port: int) -> bytes:
    place = f"{name}:443"
    told = {"TCP": {"443": {"HTTPS": True}}, "Web": {place: {"Handlers": {"/": {"Proxy": f"http://127.0.0.1:{port}"}}}}}
    return json.dumps(told | {"AllowFunnel": {place: True}}).encode()


@contextlib.asynccontextmanager
async def stock_target(r: Rig, hs: Headscale, authority: Pebble, port: int) -> AsyncIterator[Tailscaled]:
    """A stock node that publishes a name of ours: under Headscale only the raw config can say so."""
    env = authority.environment | {"TS_ALLOW_SELF_INGRESS": "1"}
    async with r.tailscaled("stock", control=hs, auth_key=await hs.auth_key(), env=env) as stock:
        await stock.cli("serve", "set-raw", stdin=stock_config(STOCK_NAME, port))
        yield stock


async def our_device(hs: Headscale, name: str, authority: Pebble) -> tailscale.Device:
    async with environment(PATHS["direct"]):
        return tailscale.Device(
            name,
            control_url=hs.url,
            tls=tls_for(hs),
            auth_key=await hs.auth_key(),
            certificates=ControlCertificates(authority.directory, tls=authority.tls),
        )


async def until_seen(device: tailscale.Device, *names: str) -> None:
    async def probe() -> bool:
        peers = device.netmap.peers.values() if device.netmap is not None else ()
        ready = {peer.name.partition(".")[0] for peer in peers if peer.hostinfo.services}
        return set(names) <= ready

    await poll_until(f"{names} to announce their peer API", probe, PATIENCE)


async def root_file(authority: Pebble, folder: Path) -> Path:
    path = folder / "root.pem"
    path.write_text(await authority.root_pem())
    return path


async def test_stock_and_ours_are_published_by_our_relay_under_headscale(r: Rig, tmp_path: Path) -> None:
    """Names of one's own, a control server without Funnel, real certificates, and one relay for both kinds of node."""
    listen = PORTS.take()
    async with contextlib.AsyncExitStack() as stack:
        hs = await stack.enter_async_context(tailnet(r))
        authority = await stack.enter_async_context(pebble(r, tls_port=listen))
        port = await stack.enter_async_context(backend())
        await stack.enter_async_context(stock_target(r, hs, authority, port))
        gate = await stack.enter_async_context(joined(hs, "gate"))
        ours = await stack.enter_async_context(await our_device(hs, "ours", authority))
        await until_seen(gate, "stock", "ours")
        names = {STOCK_NAME: "stock", OUR_NAME: "ours"}
        running = await stack.enter_async_context(led_by(gate, listen, names))
        root = await root_file(authority, tmp_path)
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        listener = await ours.listen_funnel(name=OUR_NAME, relays=["gate"], funnel_only=True)
        nursery.start_soon(trio.serve_listeners, show_request, [listener])

        theirs = await curl(STOCK_NAME, listen, root)
        mine = await curl(OUR_NAME, listen, root)
        assert (theirs["line"], mine["line"]) == ("GET /page HTTP/1.1",) * 2
        assert theirs["headers"]["tailscale-funnel-request"] == "?1"
        assert theirs["headers"]["x-forwarded-for"] == "127.0.0.1"
        assert authority.published == [], "both names were proven through the relay"
        assert ours.status().counters.levels["funnel.arrived"] >= 2, "the validator's and curl's"
        print(running.statistics())


async def test_headers_behind_ours_are_those_behind_stock(r: Rig, tmp_path: Path) -> None:
    """One ServeConfig on both, one relay, one list of requests: what the web server behind is told is compared."""
    listen = PORTS.take()
    async with contextlib.AsyncExitStack() as stack:
        hs = await stack.enter_async_context(tailnet(r))
        authority = await stack.enter_async_context(pebble(r, tls_port=listen))
        port = await stack.enter_async_context(backend())
        await stack.enter_async_context(stock_target(r, hs, authority, port))
        gate = await stack.enter_async_context(joined(hs, "gate"))
        ours = await stack.enter_async_context(await our_device(hs, "ours", authority))
        await until_seen(gate, "stock", "ours")
        await stack.enter_async_context(led_by(gate, listen, {STOCK_NAME: "stock", OUR_NAME: "ours"}))
        root = await root_file(authority, tmp_path)
        await stack.enter_async_context(environment({"TS_ALLOW_SELF_INGRESS": "1"}))
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        await nursery.start(Serve.from_json(ours, stock_config(OUR_NAME, port)).run)
        for more in ADDED:
            theirs = await curl(STOCK_NAME, listen, root, *more)
            mine = await curl(OUR_NAME, listen, root, *more)
            told = [{name: head["headers"].get(name) for name in TOLD} for head in (theirs, mine)]
            told[0]["x-forwarded-host"] = str(told[0]["x-forwarded-host"]).replace(STOCK_NAME, OUR_NAME)
            print(more, told[1])
            assert told[0] == told[1], more
            assert "root" not in json.dumps(mine["headers"]), more
        assert authority.published == []


ADDED = [
    (),
    ("-H", "Tailscale-User-Login: root"),
    ("-H", "X-Forwarded-For: 198.51.100.7"),
    ("-H", "Forwarded: for=198.51.100.7", "-H", "X-Forwarded-Proto: gopher"),
    ("-H", "Tailscale-Funnel-Request: ?0", "-H", "Tailscale-User-Name: root"),
    ("--http1.1", "-H", "Tailscale-Ingress-Src: 198.51.100.7:1"),
]


def lying(sources: str = "203.0.113.9:5555", target: str = f"{OUR_NAME}:443", host: str = "peer") -> bytes:
    """What a relay that is a few lines of a script sends."""
    lines = [f"POST /v0/ingress HTTP/1.1\r\nHost: {host}", f"Tailscale-Ingress-Src: {sources}"]
    return "\r\n".join([*lines, f"Tailscale-Ingress-Target: {target}", "Content-Length: 0", "", ""]).encode()


async def answered(stream: trio.abc.Stream, request: bytes) -> bytes:
    with trio.fail_after(PATIENCE):
        await stream.send_all(request)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            data = await stream.receive_some(1)
            assert data, head
            head += data
        return head


async def fetched(stream: trio.abc.Stream, name: str, context: ssl.SSLContext) -> dict[str, Any]:
    """The page, over a connection that has been taken over."""
    async with trio.SSLStream(stream, context, server_hostname=name, https_compatible=True) as tls:
        with trio.fail_after(PATIENCE):
            await tls.send_all(f"GET /page HTTP/1.1\r\nHost: {name}\r\nTailscale-User-Login: root\r\n\r\n".encode())
            got = b""
            while data := await tls.receive_some():
                got += data
    found: dict[str, Any] = json.loads(got.partition(b"\r\n\r\n")[2])
    return found


REQUESTS: list[tuple[str, bytes]] = [
    ("no source", lying().replace(b"Tailscale-Ingress-Src: 203.0.113.9:5555\r\n", b"")),
    ("no target", lying().replace(b"Tailscale-Ingress-Target: ours.example:443\r\n", b"")),
    ("a source without a port", lying("203.0.113.9")),
    ("a name as source", lying("evil.example:80")),
    ("two sources in one", lying("203.0.113.9:80, 198.51.100.7:80")),
    ("an IPv6 source without brackets", lying("2001:db8::9:80")),
    ("a target without a port", lying(target=OUR_NAME)),
    ("another port", lying(target=f"{OUR_NAME}:8443")),
    ("another name", lying(target="other.example:443")),
    ("GET", lying().replace(b"POST", b"GET")),
    ("a page of the web", lying().replace(b"Content-Length", b"Origin: https://evil.example\r\nContent-Length")),
    ("as it should be", lying()),
]


async def test_a_relay_of_a_few_lines_is_answered_by_ours_as_by_stock(r: Rig, tmp_path: Path) -> None:
    """The relay stands on stock tailscaled. Both targets are told the same lies and the truth; answers are compared."""
    async with contextlib.AsyncExitStack() as stack:
        hs = await stack.enter_async_context(tailnet(r))
        await hs.user("bob")
        authority = await stack.enter_async_context(pebble(r))
        port = await stack.enter_async_context(backend())
        certificate, key = r.ca.leaf(OUR_NAME, STOCK_NAME)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        trusting = ssl.create_default_context(cafile=str(r.ca.pem))
        stock = await stack.enter_async_context(stock_target(r, hs, authority, port))
        await stock.cli("serve", "set-raw", stdin=stock_config(OUR_NAME, port))
        gate = await stack.enter_async_context(r.tailscaled("gate", control=hs, auth_key=await hs.auth_key()))
        foreign = await hs.auth_key("bob")
        stranger = await stack.enter_async_context(r.tailscaled("stranger", control=hs, auth_key=foreign))
        ours = await stack.enter_async_context(joined(hs))
        await until_seen(ours, "stock", "gate", "stranger")
        their_ip, their_port = _place(ours, "stock")
        await stack.enter_async_context(environment({"TS_ALLOW_SELF_INGRESS": "1"}))
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        listener = await ours.listen_funnel(name=OUR_NAME, tls=context, funnel_only=True)
        nursery.start_soon(trio.serve_listeners, show_request, [listener])

        for who, relay_node in (("gate", gate), ("stranger", stranger)):
            for what, request in REQUESTS:
                async with await relay_node.connect(their_ip, their_port) as stream:
                    theirs = await answered(stream, request)
                async with await relay_node.connect(str(ours.ipv4), PORT) as stream:
                    mine = await answered(stream, request)
                print(f"{who}, {what}: stock {theirs[9:12].decode()}, ours {mine[9:12].decode()}")
                assert mine[9:12] == theirs[9:12], (who, what)
                if theirs[9:12] == b"101":
                    assert mine == theirs, "and no other header"
        taken = await gate.connect(str(ours.ipv4), PORT)
        await answered(taken, lying())
        page = await fetched(taken, OUR_NAME, trusting)
        assert page["line"] == "GET /page HTTP/1.1"
        drops = ours.status().drops
        assert drops["funnel.no_capability"] == len(REQUESTS) - 1, "the stranger's; a page of the web got no further"


def _place(device: tailscale.Device, name: str) -> tuple[str, int]:
    assert device.netmap is not None
    node = next(peer for peer in device.netmap.peers.values() if peer.name.startswith(f"{name}."))
    port = next(service.port for service in node.hostinfo.services if service.proto == "peerapi4")
    return next(a.partition("/")[0] for a in node.addresses if ":" not in a), port


async def test_stock_turns_funnel_on_against_our_control_and_our_relay_leads_to_it(
    r: Rig, relay: Derper, tmp_path: Path
) -> None:
    """`tailscale funnel` as it is typed: our control server allows it, and names who may be a relay."""
    listen = PORTS.take()
    async with contextlib.AsyncExitStack() as stack:
        authority = await stack.enter_async_context(pebble(r, tls_port=listen))
        control = await stack.enter_async_context(embedded_control(relay.region))
        port = await stack.enter_async_context(backend())
        control.do("serve_certificates", authority.publish)
        key = control.server.create_auth_key(reusable=True)
        stock = await stack.enter_async_context(r.tailscaled("stock", env=authority.environment))
        await stock.up(control.url, key)
        said = await stock.cli("funnel", "--bg", str(port), check=False)
        assert "does not let this node use funnel: it lacks funnel" in said, said

        async with environment(PATHS["direct"]):
            gate = tailscale.Device("gate", control_url=control.url, auth_key=key)
        await stack.enter_async_context(gate)
        control.do("allow_funnel", FunnelRules(tuple(gate.node.addresses)))
        name = "stock.tailnet.test"

        async def may() -> bool:
            return "funnel" in json.dumps((await stock.status())["Self"].get("CapMap", {}))

        await poll_until("stock to hear that it may", may, PATIENCE)
        said = await stock.cli("funnel", "--bg", str(port))
        assert f"https://{name}/" in said, said
        await until_seen(gate, "stock")
        node = next(peer for peer in gate.netmap.peers.values() if peer.name.startswith("stock."))

        async def told() -> bool:
            return bool(gate.netmap.peers[node.id].hostinfo.ingress_enabled)

        await poll_until("stock to say that it is published", told, PATIENCE)
        await stack.enter_async_context(led_by(gate, listen, "stock"))
        page = await curl(name, listen, await root_file(authority, tmp_path))
        assert page["headers"]["tailscale-funnel-request"] == "?1"
        await stock.cli("funnel", "--https=443", "off")
        command = ["curl", "-sS", "--resolve", f"{name}:{listen}:127.0.0.1", f"https://{name}:{listen}/"]
        done = await trio.run_process(command, capture_stderr=True, check=False)
        assert b"unrecognized name" in done.stderr.lower(), done.stderr


class AsHeadscale:
    """Our control server, as those ask who start a daemon."""

    def __init__(self, control: EmbeddedControl) -> None:
        self.url, self._control = control.url, control

    async def auth_key(self) -> str:
        await trio.lowlevel.checkpoint()
        return self._control.server.create_auth_key(reusable=True)


async def test_stock_funnel_command_line_against_our_daemon(r: Rig, relay: Derper) -> None:
    async with (
        embedded_control(relay.region) as control,
        backend() as port,
        daemon(r, cast(Headscale, AsHeadscale(control)), "ours") as stock,
    ):
        words = ("funnel", "--bg", "--tcp=8443", f"tcp://localhost:{port}")
        assert "Funnel needs HTTPS" in (await stock.run(*words))[1]
        control.do("allow_funnel", FunnelRules(()))

        async def may() -> bool:
            return "funnel" in json.dumps(json.loads(await stock("status", "--json"))["Self"].get("CapMap", {}))

        await poll_until("our daemon to hear that it may", may, PATIENCE)
        assert "Available on the internet" in await stock(*words)
        assert "Funnel on" in await stock("funnel", "status")
        told = json.loads(await stock("funnel", "status", "--json"))
        assert told["AllowFunnel"] == {"ours.tailnet.test:8443": True}
        await stock("funnel", "--tcp=8443", "off")  # which leaves a port of TCP among those that Funnel is on for
        await stock("funnel", "reset")
        assert "No serve config" in await stock("funnel", "status")
