"""What tests of Funnel share: a policy, certificates, and a relay written by hand."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import trio
import trustme

from tailscale import Device, Node, TcpStream
from tailscale.peerapi.actor import PORT
from tailscale.peerapi.callers import INGRESS

NAME = "web.example"
PORTS = "https://tailscale.com/cap/funnel-ports?ports=443,8443,10000-10010"
POLICY: dict[str, Any] = {
    "acls": [{"action": "accept", "src": ["autogroup:member", "tag:other"], "dst": ["*:*"]}],
    "grants": [{"src": ["tag:relay"], "dst": ["*"], "app": {INGRESS: []}}],
    "tagOwners": {"tag:relay": ["autogroup:member"], "tag:other": ["autogroup:member"]},
    "nodeAttrs": [{"target": ["*"], "attr": ["https", "funnel", PORTS]}],
}


@cache
def authority() -> trustme.CA:
    return trustme.CA()


@cache
def server_context(*names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(*names).configure_cert(context)
    return context


@cache
def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


def post(
    src: str = "203.0.113.9:5555", target: str = f"{NAME}:443", more: Sequence[str] = (), verb: str = "POST"
) -> str:
    """The request of a relay, as lines."""
    headers = [f"Tailscale-Ingress-Src: {src}"] if src else []
    headers += [f"Tailscale-Ingress-Target: {target}"] if target else []
    return "\r\n".join([f"{verb} /v0/ingress HTTP/1.1", "Host: peer", *headers, *more, "Content-Length: 0", "", ""])


@asynccontextmanager
async def knock(
    relay: Device, target: Device | Node, request: str, early: bytes = b""
) -> AsyncIterator[tuple[int, TcpStream]]:
    """Ask a target as a relay does: the status, and the connection after its head."""
    async with await relay.tcp_connect(target.ipv4 or "", PORT) as stream:
        await stream.send_all(request.encode() + early)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            data = await stream.receive_some(1)
            assert data, head
            head += data
        yield int(head.split(b" ")[1]), stream


async def asked(relay: Device, target: Device, request: str) -> int:
    async with knock(relay, target, request) as (status, _):
        return status


async def fetch(stream: trio.abc.Stream, name: str = NAME, request: bytes = b"ping") -> bytes:
    """What a client that trusts our authority gets over TLS."""
    async with trio.SSLStream(stream, client_context(), server_hostname=name, https_compatible=True) as tls:
        await tls.send_all(request)
        return await until_end(tls)


async def until_end(stream: trio.abc.Stream) -> bytes:
    got = bytearray()
    while data := await stream.receive_some():
        got += data
    return bytes(got)
