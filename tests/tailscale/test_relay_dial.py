"""Which relays are believed, and the way through a proxy, over TLS on memory streams."""

from __future__ import annotations

import contextlib
import datetime
import os
import ssl
from typing import Any

import pytest
import trio
import trustme
from relay_scripts import MemoryNetwork, MemoryRelay
from trio.testing import MockClock, memory_stream_pair

from tailscale.testing.relay import Certificate
from ts_base.keys import NodePrivate
from ts_derp.client import DerpClient
from ts_derp.dial import proxy_for
from ts_derp.errors import RelayUnreachable
from ts_derp.machine import DerpMachine
from ts_derp.regions import RelayNode, RelayRegion
from ts_derp.trust import Trust

LATER = datetime.datetime(2120, 1, 1, tzinfo=datetime.UTC).timestamp()


class TlsRelay(MemoryRelay):
    """A relay that speaks TLS with this context."""

    def __init__(self, nursery: trio.Nursery, context: Any) -> None:
        super().__init__(nursery)
        self._context = context

    async def _serve(self, stream: Any) -> None:
        with contextlib.suppress(trio.BrokenResourceError):  # the client did not like us
            await super()._serve(trio.SSLStream(stream, self._context, server_side=True))  # type: ignore[arg-type]


class ProxyNetwork(MemoryNetwork):
    """Its one host is a proxy that tunnels to a relay, or answers something else."""

    def __init__(self, relay: MemoryRelay, answer: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> None:
        super().__init__()
        self.relay, self.answer, self.asked = relay, answer, b""

    async def open_tcp(self, host: str, port: int) -> trio.StapledStream:
        self.dialled.append((trio.current_time(), host, port))
        ours, theirs = memory_stream_pair()
        self.relay.nursery.start_soon(self._tunnel, theirs)
        return ours

    async def _tunnel(self, stream: trio.StapledStream) -> None:
        while b"\r\n\r\n" not in self.asked:
            self.asked += await stream.receive_some(4096)
        await stream.send_all(self.answer)
        if b"200" in self.answer:
            await self.relay._serve(stream)


async def dial(network: MemoryNetwork, node: RelayNode, trust: Trust) -> None:
    machine = DerpMachine(NodePrivate.generate(os.urandom(32)), entropy=os.urandom)
    client = await DerpClient.dial(network, RelayRegion(1, nodes=(node,)), machine, trust)
    with trio.move_on_after(1):
        await client.run(lambda runs: None, lambda fact: None)
    assert machine.greeted


async def believed(context: Any, node: RelayNode, trust: Trust, *, wall_clock: float | None = None) -> str:
    """The empty string, or why not."""
    async with trio.open_nursery() as nursery:
        network = MemoryNetwork()
        network.add(node.host_name, TlsRelay(nursery, context))
        if wall_clock is not None:
            network.wall_clock = lambda: wall_clock  # type: ignore[method-assign]
        try:
            await dial(network, node, trust)
        except RelayUnreachable as error:
            return str(error)
        finally:
            nursery.cancel_scope.cancel()
    return ""


async def test_a_pin_stands_for_the_whole_chain(autojump_clock: MockClock) -> None:
    made = Certificate("192.0.2.1")
    good = RelayNode("n", "192.0.2.1", cert_name=made.pin)
    assert await believed(made.context, good, Trust()) == ""
    wrong = RelayNode("n", "192.0.2.1", cert_name="sha256-raw:" + "ab" * 32)
    assert "not the pinned one" in await believed(made.context, wrong, Trust())
    elsewhere = RelayNode("n", "192.0.2.2", cert_name=made.pin)
    assert "another name" in await believed(made.context, elsewhere, Trust())
    assert "expired" in await believed(made.context, good, Trust(), wall_clock=LATER)


def private_ca(*names: str) -> tuple[Any, Any]:
    """The context of a server with a certificate for `names`, and one that trusts its authority."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert(*names).configure_cert(server)
    authority.configure_trust(client)
    return server, client


async def test_a_private_authority_is_believed_for_the_right_name_only(autojump_clock: MockClock) -> None:
    server, client = private_ca("relay.example", "*.wild.example")
    assert await believed(server, RelayNode("n", "relay.example"), Trust(client)) == ""
    assert "CERTIFICATE_VERIFY_FAILED" in await believed(server, RelayNode("n", "relay.example"), Trust())
    assert "CERTIFICATE_VERIFY_FAILED" in await believed(server, RelayNode("n", "other.example"), Trust(client))


@pytest.mark.parametrize(
    ("cert_name", "believed_in"),
    [
        ("relay.example", True),
        ("RELAY.example.", True),
        ("a.wild.example", True),
        ("wild.example", False),
        ("a.b.wild.example", False),
        ("other.example", False),
        ("192.0.2.1", False),
    ],
)
async def test_cert_name_replaces_the_host_name(autojump_clock: MockClock, cert_name: str, believed_in: bool) -> None:
    server, client = private_ca("relay.example", "*.wild.example")
    node = RelayNode("n", "some.host", cert_name=cert_name)
    assert (await believed(server, node, Trust(client)) == "") is believed_in
    assert "CERTIFICATE_VERIFY_FAILED" in await believed(server, node, Trust())


async def test_insecure_for_tests_needs_our_own_consent(autojump_clock: MockClock) -> None:
    made = Certificate("192.0.2.1")
    node = RelayNode("n", "192.0.2.1", insecure_for_tests=True)
    assert "CERTIFICATE_VERIFY_FAILED" in await believed(made.context, node, Trust())
    assert await believed(made.context, node, Trust(allow_insecure=True)) == ""
    assert "CERTIFICATE_VERIFY_FAILED" in await believed(
        made.context, RelayNode("n", "192.0.2.1"), Trust(allow_insecure=True)
    )


async def test_the_way_through_a_proxy(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:s%40cret@proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "near.example")
    made = Certificate("192.0.2.1")
    async with trio.open_nursery() as nursery:
        network = ProxyNetwork(TlsRelay(nursery, made.context))
        await dial(network, RelayNode("n", "192.0.2.1", cert_name=made.pin, ipv4="192.0.2.1"), Trust())
        assert network.dialled[0][1:] == ("proxy.example", 3128)
        assert network.asked.startswith(b"CONNECT 192.0.2.1:443 HTTP/1.1\r\n")
        assert b"Basic dXNlcjpzQGNyZXQ=" in network.asked
        nursery.cancel_scope.cancel()


async def test_a_proxy_that_refuses_is_named_without_its_password(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy.example:3128")
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with trio.open_nursery() as nursery:
        network = ProxyNetwork(MemoryRelay(nursery), b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
        with pytest.raises(RelayUnreachable, match=r"proxy\.example answered CONNECT with 407") as error:
            await dial(network, RelayNode("n", "relay.example"), Trust())
        assert "secret" not in str(error.value)
        nursery.cancel_scope.cancel()


def test_no_proxy_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "near.example,10.0.0.1")
    assert proxy_for("far.example") == "http://proxy.example:3128"
    assert proxy_for("near.example") is None
    monkeypatch.delenv("HTTPS_PROXY")
    monkeypatch.delenv("https_proxy", raising=False)
    assert proxy_for("far.example") is None
