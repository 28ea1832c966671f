"""HTTP/2 and gRPC through what we publish, beside the same through stock tailscaled: grpcio and curl ask both.

grpcio is at both ends: its server speaks HTTP/2 without TLS on loopback, its client TLS with whoever publishes that.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import trio

import tailscale
from tests.interop.rig import Derper, Rig
from tests.interop.test_serve_https_real import BOTH, SecurePair, listening, secure_pair
from tests.interop.test_serve_real import NOT_COMPARED_BEHIND

pytestmark = [
    pytest.mark.skipif(find_spec("grpc") is None, reason="the group `web` is not installed"),
    pytest.mark.slow,
    pytest.mark.peers("pebble", "pebble-challtestsrv", "tailscale", "tailscaled"),
]
SIDES = str(Path(__file__).with_name("grpc_sides.py"))


@asynccontextmanager
async def bridged(p: SecurePair, who: str) -> AsyncIterator[int]:
    """A port of loopback that leads to the HTTPS of one of them, through stock tailscaled."""

    async def carry(near: trio.SocketStream) -> None:
        far = await p.caller.connect(p.addresses[who], 443)
        await tailscale.splice(near, far)

    async with listening(carry) as port:
        yield port


@asynccontextmanager
async def grpc_server() -> AsyncIterator[int]:
    line = [sys.executable, SIDES, "serve"]
    async with trio.open_nursery() as nursery:
        start = partial(trio.run_process, line, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        server = await nursery.start(start)
        yield int(await server.stdout.receive_some())
        await server.stdin.aclose()


async def test_grpc_goes_through_as_through_stock(r: Rig, relay: Derper, tmp_path: Path) -> None:
    root = tmp_path / "root.pem"
    async with grpc_server() as server, secure_pair(r, relay) as p:
        root.write_text(p.root)
        await p.both("serve", "--bg", "--https=443", f"http://127.0.0.1:{server}")
        went = {}
        for who in BOTH:
            async with bridged(p, who) as port:
                line = [sys.executable, SIDES, "ask", str(port), str(root), p.names[who]]
                with trio.fail_after(90):
                    done = await trio.run_process(line, capture_stdout=True)
                went[who] = json.loads(done.stdout)
    assert went["ours"]["big"]
    assert went["ours"]["cancelled"]
    assert went["ours"]["late"] == ["DEADLINE_EXCEEDED", ""]
    assert went["ours"]["refused"] == ["NOT_FOUND", "there is none, für niemanden"]
    assert went["ours"]["unknown"] == ["UNIMPLEMENTED", "Method not found!"]
    for one in went.values():
        one["told"] = sorted({*one["told"]} - NOT_COMPARED_BEHIND)
    assert went["ours"] == went["stock"]


async def test_curl_speaks_http2_with_both(r: Rig, relay: Derper, tmp_path: Path) -> None:
    async with secure_pair(r, relay) as p:
        await p.both("serve", "--bg", "--https=443", "text:hello")
        (tmp_path / "root.pem").write_text(p.root)
        said = {}
        for who in BOTH:
            async with bridged(p, who) as port:
                name = p.names[who]
                form = "%{http_version} %{response_code} %{content_type} %{num_connects}"
                line = ["curl", "-sS", "--http2", "--cacert", str(tmp_path / "root.pem"), "-w", form]
                line += ["--connect-to", f"{name}:443:127.0.0.1:{port}", f"https://{name}/", f"https://{name}/x"]
                done = await trio.run_process(line, capture_stdout=True, stderr=subprocess.STDOUT)
                said[who] = done.stdout.decode()
    assert said["ours"] == "hello2 200 text/plain; charset=utf-8 1hello2 200 text/plain; charset=utf-8 0"
    assert said["ours"] == said["stock"]
