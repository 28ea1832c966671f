"""Clients that others wrote, at a site that a Serve publishes: curl, websockets, and a Chromium that looks at the page.

The server behind is uvicorn in a process of its own, with an app that has a page and a WebSocket.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tailscale import sync
from tailscale.serve import Serve, files
from tailscale.testing.threaded import TailnetThread
from tests.interop.browser import MISSING, browser, chromium
from tests.interop.processes import PORTS
from tests.interop.test_real_clients import library
from tests.tailscale.thread_scripts import introduce

pytestmark = [pytest.mark.interop, pytest.mark.peerless]
PATIENCE = 30.0
APP = '''
import json
PAGE = b"""<!doctype html><title>wait</title><script>
const said = [];
const chat = new WebSocket(`ws://${location.host}/app/ws`);
chat.onmessage = event => { said.push(event.data); document.title = said.join(" "); };
const part = {headers: {Range: "bytes=10-19"}};
chat.onopen = () => fetch("/site/big.bin", part).then(r => r.text()).then(t => chat.send(t));
</script>"""
async def app(scope, receive, send):
    headers = {n.decode(): v.decode() for n, v in scope.get("headers", [])}
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": headers.get("tailscale-user-login", "nobody")})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"].upper()})
    elif scope["type"] == "http":
        told = json.dumps(headers).encode() if scope["path"] == "/headers" else PAGE
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": told})
'''


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    library("uvicorn")
    folder = tmp_path_factory.mktemp("behind")
    (folder / "behind.py").write_text(APP)
    port = PORTS.take()
    words = ["-m", "uvicorn", "behind:app", "--port", str(port), "--log-level", "warning", "--no-proxy-headers"]
    process = subprocess.Popen([sys.executable, *words], cwd=folder)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.fixture(scope="module")
def door(behind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[sync.Device, int]]:
    """A caller, and a port of this machine that leads to the published site."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "big.bin").write_bytes(b"abcdefghijklmnopqrstuvwxyz" * 1000)
    with TailnetThread() as net, sync.Device("caller", **net.options()) as caller:
        with sync.Device("web", **net.options()) as device:
            introduce(caller, device)
            up = threading.Event()
            web = Serve(device).http(80, {"/app": behind, "/site": files(folder)})
            serving = threading.Thread(target=lambda: web.run(started=lambda _: up.set()))
            serving.start()
            assert up.wait(PATIENCE), "the site was not up in time"
            with caller.forward("web", 80) as way:
                until_answered(way.port)
                yield caller, way.port
        serving.join(PATIENCE)


def until_answered(port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if curl(port, "/app/headers", check=False).returncode == 0:
            return
        time.sleep(0.1)
    raise AssertionError("uvicorn behind the site did not answer in time")


def curl(port: int, path: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [
        "curl",
        "--silent",
        "--show-error",
        "--fail",
        "--max-time",
        "20",
        "--connect-to",
        f"web:80:127.0.0.1:{port}",
    ]
    return subprocess.run([*command, *words, f"http://web{path}"], capture_output=True, text=True, check=check)


def test_curl_follows_resumes_uploads_and_forges_nothing(door: tuple[sync.Device, int], tmp_path: Path) -> None:
    caller, port = door
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    told = json.loads(
        curl(port, "/app/headers", "-H", "Tailscale-User-Login: root", "-H", "X_Forwarded_For: 6.6.6.6").stdout
    )
    assert told["tailscale-user-login"] == caller.node.user
    assert told["x-forwarded-for"] == str(caller.ipv4)
    assert "6.6.6.6" not in json.dumps(told)
    assert curl(port, "/site/big.bin", "--range", "10-19").stdout == "klmnopqrst"
    part = tmp_path / "part"
    part.write_bytes(b"abcdefghij")
    curl(port, "/site/big.bin", "--continue-at", "-", "--output", str(part))
    assert part.read_bytes() == b"abcdefghijklmnopqrstuvwxyz" * 1000
    assert "big.bin" in curl(port, "/site", "--location").stdout
    blob = tmp_path / "blob"
    blob.write_bytes(os.urandom(3_000_000))
    assert curl(port, "/app/headers", "--data-binary", f"@{blob}", "-H", "Expect: 100-continue").returncode == 0


def test_websockets_pass_and_say_who_calls(door: tuple[sync.Device, int]) -> None:
    client: Any = library("websockets.sync.client")
    caller, _ = door
    sock = caller.connect("web", 80, timeout=20)
    with client.connect("ws://web/app/ws", sock=sock, proxy=None) as chat:
        assert chat.recv(20) == caller.node.user
        for size in (10, 70_000):
            chat.send("x" * size)
            assert chat.recv(20) == "X" * size


@pytest.mark.skipif(chromium() is None, reason=MISSING)
def test_a_browser_shows_the_page_its_socket_and_its_file(door: tuple[sync.Device, int]) -> None:
    caller, port = door
    with browser(f"--host-resolver-rules=MAP web 127.0.0.1:{port}") as tab:
        tab.open("http://web/app/")
        with contextlib.suppress(AssertionError):
            tab.until("document.title.includes('KLMNOPQRST')")
        assert tab.ask("document.title") == f"{caller.node.user} KLMNOPQRST", tab.said
