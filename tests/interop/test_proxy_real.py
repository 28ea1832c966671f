"""Clients that know nothing of us through our proxy, to servers behind a stock tailscaled: what each sees is right.

curl, OpenSSH through nc, git, headless Chromium, requests, httpx, aiohttp and PySocks, each as its users start it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trio

from tailscale.proxy import NO_EXIT, Exits, Proxy, serve
from tests.interop import natlab
from tests.interop.natlab import inside
from tests.interop.ours import joined
from tests.interop.pattern import pattern
from tests.interop.processes import PORTS, finished, poll_until
from tests.interop.rig import Rig
from tests.interop.test_exits_real import SIZE, WEB, exit_nodes, web_server

pytestmark = [pytest.mark.slow, pytest.mark.peers("tailscaled", "tailscale")]
BODY = pattern(4 << 20)
PAGE = b"<html><body>served by a plain server</body></html>"
USERS = {"alice": "secret"}


class Site(SimpleHTTPRequestHandler):
    """A page, what was uploaded as its hash, and files."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/page":
            self._answer(PAGE)
        elif self.path == "/body":
            self._answer(BODY)
        else:
            super().do_GET()

    def do_PUT(self) -> None:
        self._answer(hashlib.sha256(self._body()).hexdigest().encode())

    do_POST = do_PUT

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: the tests look at what the clients say."""


@contextlib.contextmanager
def site(folder: Path) -> Iterator[int]:
    """The server on loopback, which tailscaled offers to the tailnet under the same port."""
    port = PORTS.take()

    def make(*arguments: object) -> Site:
        return Site(*arguments, directory=str(folder))  # type: ignore[arg-type]

    server = ThreadingHTTPServer(("127.0.0.1", port), make)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Stage:
    proxy: Proxy
    guarded: Proxy
    """Asks for a user."""
    host: str
    name: str
    port: int
    folder: Path
    tsnet: str

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def socks(self) -> str:
        return f"127.0.0.1:{self.proxy.port}"


@contextlib.asynccontextmanager
async def stage(r: Rig, folder: Path) -> AsyncIterator[Stage]:
    async with r.derper() as relay, r.headscale(regions=[relay.region]) as hs:
        key = await hs.auth_key()
        async with (
            r.tailscaled("web", control=hs, auth_key=key) as web,
            r.tsnet(hs, key, "peer") as peer,
            joined(hs, auth_key=key) as device,
            trio.open_nursery() as nursery,
        ):
            proxy = await nursery.start(serve, device, None)

            async def guard(*, task_status: trio.TaskStatus[Proxy]) -> None:
                await serve(device, None, users=USERS, task_status=task_status)

            guarded = await nursery.start(guard)
            with site(folder) as port:
                yield Stage(proxy, guarded, web.ip4, device.peers["web"].name, port, folder, peer.ip4)
            nursery.cancel_scope.cancel()


async def said_by(*command: str, check: bool = True, timeout: float = 60, **environment: str) -> bytes:
    """What a program prints."""
    done = await ran(*command, timeout=timeout, **environment)
    if check:
        assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}, {done.stderr.decode()[-2000:]}"
    return done.stdout


async def ran(*command: str, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess[bytes]:
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return await finished(command, patience=timeout, env=clean | environment)


def needs(*programs: str) -> None:
    for program in programs:
        if shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
            pytest.skip(f"PROXY CLIENTS SKIPPED: no {program} here: bash tests/interop/install_servers.sh")


async def test_curl_by_socks_and_by_http_down_and_up_with_and_without_a_user(r: Rig, tmp_path: Path) -> None:
    needs("curl")
    upload = tmp_path / "upload"
    upload.write_bytes(BODY)
    digest = hashlib.sha256(BODY).hexdigest().encode()
    curl = ("curl", "-sS", "--fail", "--max-time", "50")
    async with stage(r, tmp_path) as s:
        named = f"http://{s.name}:{s.port}"
        http, guarded = f"http://{s.socks}", f"http://127.0.0.1:{s.guarded.port}"
        for way, url in (
            (("--socks5", s.socks), s.url),
            (("--socks5-hostname", s.socks), named),
            (("-x", f"socks5h://alice+session=shop:x@{s.socks}"), named),
            (("-x", http), named),
            (("-x", http, "--proxytunnel"), named),
            (("-x", f"socks5h://127.0.0.1:{s.guarded.port}", "--proxy-user", "alice:secret"), named),
            (("-x", guarded, "--proxy-user", "alice+session=shop+ttl=60:secret"), named),
            (("-x", guarded, "--proxytunnel", "--proxy-user", "alice:secret"), named),
        ):
            assert await said_by(*curl, *way, f"{url}/page") == PAGE, way
            assert hashlib.sha256(await said_by(*curl, *way, f"{url}/body")).hexdigest().encode() == digest, way
            assert await said_by(*curl, *way, "-T", str(upload), f"{url}/up") == digest, way
            post = ("-H", "Transfer-Encoding: chunked", "-H", "Expect: 100-continue")
            assert await said_by(*curl, *way, *post, "--data-binary", f"@{upload}", f"{url}/up") == digest, way
            # Two URLs, one connection.
            assert await said_by(*curl, *way, f"{url}/page", f"{url}/page") == PAGE * 2, way
        for way, code in (
            (("-x", f"socks5h://127.0.0.1:{s.guarded.port}", "--proxy-user", "alice:wrong"), 97),
            (("-x", guarded, "--proxy-user", "alice:wrong"), 22),
            (("--socks5-hostname", f"127.0.0.1:{s.guarded.port}"), 97),
        ):
            assert (await ran(*curl, *way, f"{named}/page")).returncode == code, way
        refused = await ran("curl", "-sv", "-x", http, "--proxytunnel", f"http://{s.host}:1/")
        assert b"proxy-status: pytailscale; error=connection_refused" in refused.stderr.lower()
        unknown = await ran("curl", "-sS", "--socks5-hostname", s.socks, "http://no-such-node/")
        assert b"(4)" in unknown.stderr  # SOCKS code 04: host unreachable
        print(f"curl: 8 ways, 4 MiB down and up twice each, hashes agree; {s.proxy.statistics().requests}")


@contextlib.asynccontextmanager
async def sshd(folder: Path) -> AsyncIterator[int]:
    """OpenSSH's server on loopback, which lets in who has the key `folder/user`."""
    needs("ssh", "ssh-keygen", "sshd")
    for name in ("host", "user"):
        await said_by("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
    (folder / "authorized").write_bytes((folder / "user.pub").read_bytes())
    port = PORTS.take()
    Path("/run/sshd").mkdir(exist_ok=True)
    server = ["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-h", str(folder / "host"), "-p", str(port)]
    for option in ("ListenAddress=127.0.0.1", f"AuthorizedKeysFile={folder / 'authorized'}", "StrictModes=no",
                   "PidFile=none", "PermitRootLogin=yes"):  # fmt: skip
        server += ["-o", option]
    async with trio.open_nursery() as nursery:
        daemon = await nursery.start(partial(trio.run_process, server, stderr=subprocess.DEVNULL, check=False))
        try:
            yield port
        finally:
            daemon.terminate()


async def hashed_by_ssh(folder: Path, host: str, port: int, proxy_command: str, **environment: str) -> str:
    """The hash of four megabytes of zeros, as the machine that ssh reaches makes it."""
    said = await said_by(
        "ssh", "-T", "-F", "/dev/null", "-p", str(port), "-i", str(folder / "user"),
        "-o", f"ProxyCommand={proxy_command}", "-o", "StrictHostKeyChecking=no",
        "-o", "UserKnownHostsFile=/dev/null", host, "head -c 4194304 /dev/zero | sha256sum", **environment,
    )  # fmt: skip
    return said.split()[0].decode()


async def test_openssh_through_nc_by_socks_and_by_connect(r: Rig, tmp_path: Path) -> None:
    needs("nc")
    if b"proxy_protocol" not in (await ran("nc", "-h")).stderr:
        pytest.skip("PROXY CLIENTS SKIPPED: nc is not OpenBSD's: bash tests/interop/install_servers.sh")
    async with sshd(tmp_path) as port, stage(r, tmp_path) as s:
        for kind in ("5", "connect"):
            made = await hashed_by_ssh(tmp_path, s.name, port, f"nc -X {kind} -x {s.socks} %h %p")
            assert made == hashlib.sha256(bytes(4 << 20)).hexdigest()


async def test_git_clones_and_fetches_through_the_http_proxy(r: Rig, tmp_path: Path) -> None:
    needs("git")
    work, bare = tmp_path / "work", tmp_path / "repo.git"
    me = {"GIT_CONFIG_GLOBAL": "/dev/null"}
    me |= {f"GIT_{who}_{what}": "a@b.example" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    await said_by("git", "init", "-q", str(work), **me)
    (work / "file").write_bytes(BODY)
    await said_by("git", "-C", str(work), "add", ".", **me)
    await said_by("git", "-C", str(work), "commit", "-q", "-m", "one", **me)
    await said_by("git", "clone", "-q", "--bare", str(work), str(bare), **me)
    await said_by("git", "-C", str(bare), "update-server-info", **me)
    async with stage(r, tmp_path) as s:
        for number, way in enumerate((f"http://{s.socks}", f"socks5h://{s.socks}")):
            clone = tmp_path / f"clone{number}"
            await said_by("git", "-c", f"http.proxy={way}", "clone", "-q", f"{s.url}/repo.git", str(clone), **me)
            assert (clone / "file").read_bytes() == BODY


async def test_headless_chromium_shows_a_page_by_socks_and_by_http(r: Rig, tmp_path: Path) -> None:
    needs("chromium")
    async with stage(r, tmp_path) as s:
        for kind in ("socks5", "http"):
            shown = await said_by(
                "chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / kind}",
                f"--proxy-server={kind}://{s.socks}", "--dump-dom", f"http://{s.name}:{s.port}/page", timeout=90,
            )  # fmt: skip
            assert b"served by a plain server" in shown
        assert s.proxy.statistics().requests["socks"] >= 1
        assert s.proxy.statistics().requests["http"] >= 1


LIBRARIES = {
    "requests": """
import requests
for way in ("socks5h", "http"):
    proxies = {"http": f"{way}://alice:secret@{proxy}"}
    print(requests.get(url + "/page", proxies=proxies, timeout=30).text)
""",
    "httpx": """
import httpx
for way in ("socks5", "http"):
    with httpx.Client(proxy=f"{way}://alice:secret@{proxy}", timeout=30) as client:
        print(client.get(url + "/page").text)
""",
    "aiohttp_socks": """
import asyncio, aiohttp, aiohttp_socks
async def main():
    for way in ("socks5", "http"):
        connector = aiohttp_socks.ProxyConnector.from_url(f"{way}://alice:secret@{proxy}", rdns=True)
        async with aiohttp.ClientSession(connector=connector) as session:
            async with session.get(url + "/page") as answer:
                print(await answer.text())
asyncio.run(main())
""",
}


@pytest.mark.parametrize("library", LIBRARIES)
async def test_library_fetches_by_both_languages_with_a_user(r: Rig, tmp_path: Path, library: str) -> None:
    if importlib.util.find_spec(library) is None or importlib.util.find_spec("socksio") is None:
        pytest.skip(f"PROXY CLIENTS SKIPPED: no Python package {library} here: pip install --group clients")
    async with stage(r, tmp_path) as s:
        url, proxy = f"http://{s.name}:{s.port}", f"127.0.0.1:{s.guarded.port}"
        program = f"url, proxy = {url!r}, {proxy!r}\n{LIBRARIES[library]}"
        said = await said_by(sys.executable, "-c", program)
        assert said.decode().split("\n")[:2] == [PAGE.decode()] * 2


DATAGRAMS = """
import socks
sock = socks.socksocket(socks.socket.AF_INET, socks.socket.SOCK_DGRAM)
sock.set_proxy(socks.SOCKS5, "127.0.0.1", port)
sock.settimeout(10)
for size in (1, 1200, 9000):
    for attempt in range(5):
        try:
            sock.sendto(bytes([size & 255]) * size, (host, 7))
            data, source = sock.recvfrom(65535)
            break
        except TimeoutError:
            continue
    assert data == bytes([size & 255]) * size and source == (host, 7), (len(data), source)
print("echoed")
"""


async def test_pysocks_sends_datagrams_to_a_tsnet_peer(r: Rig, tmp_path: Path) -> None:
    if importlib.util.find_spec("socks") is None:
        pytest.skip("PROXY CLIENTS SKIPPED: no Python package PySocks here: pip install --group clients")
    async with stage(r, tmp_path) as s:
        program = f"host, port = {s.tsnet!r}, {s.proxy.port}\n{DATAGRAMS}"
        assert await said_by(sys.executable, "-c", program) == b"echoed\n"
        assert s.proxy.statistics().requests == {"udp": 1}


@pytest.mark.root
@pytest.mark.skipif(bool(natlab.why_not()), reason=natlab.why_not() or "-")
async def test_two_ports_lead_out_by_two_stock_exits_at_once(r: Rig) -> None:
    """What left by which is said by the web server that was asked, from which address."""
    async with natlab.lab(r) as (made, hs):
        key = await hs.auth_key()
        async with web_server(made) as port, exit_nodes(r, made, hs, key) as stock:
            with inside(made.site("easy").client):
                async with joined(hs, auth_key=key) as us, trio.open_nursery() as nursery:

                    async def both_offered() -> bool:
                        return len(us.exit_nodes) == len(stock)

                    await poll_until("both exits to be offered", both_offered, 30)
                    seen = {}
                    for name in stock:
                        proxy = await nursery.start(serve, us, "127.0.0.1:0", Exits(us, nodes=[name]))
                        seen[name] = await source_seen(proxy.port, port)
                    refusing = await nursery.start(serve, us, "127.0.0.1:0", NO_EXIT)
                    async with await trio.open_tcp_stream("127.0.0.1", refusing.port) as stream:
                        assert (await socks_reply(stream, port))[1] == 3
                    nursery.cancel_scope.cancel()
    assert seen == {name: one.site.address for name, one in stock.items()}


async def source_seen(proxy_port: int, port: int) -> str:
    async with await trio.open_tcp_stream("127.0.0.1", proxy_port) as stream:
        assert (await socks_reply(stream, port))[1] == 0
        await stream.send_all(f"POST / HTTP/1.1\r\nHost: {WEB}\r\nContent-Length: {SIZE}\r\n\r\n".encode())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, pattern(SIZE))
            received = b"".join([chunk async for chunk in stream])
        head, body = received.split(b"\r\n\r\n", 1)
        assert hashlib.sha256(body).hexdigest() == hashlib.sha256(pattern(SIZE)).hexdigest()
        source: str = json.loads(head.partition(b"X-Seen: ")[2].partition(b"\r\n")[0])["source"]
        return source


async def socks_reply(stream: trio.SocketStream, port: int) -> bytes:
    address = bytes(map(int, WEB.split(".")))
    await stream.send_all(b"\5\1\0\5\1\0\1" + address + port.to_bytes(2, "big"))
    answer = b""
    while len(answer) < 12:
        answer += await stream.receive_some(12 - len(answer))
    return answer[2:]
