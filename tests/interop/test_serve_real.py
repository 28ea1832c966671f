"""What we publish beside what stock tailscaled publishes: one ServeConfig, one list of requests, one caller.

Both are configured by the stock command line and reached by a stock node. Answers are compared header by header, and
what servers behind them are told is too. `pytest -s` prints both.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.interop import build
from tests.interop.ours import guarded
from tests.interop.processes import Process, poll_until
from tests.interop.rig import Headscale, Rig
from tests.interop.rig.tailscaled import Tailscaled
from tests.interop.test_localapi_real import Stock, daemon

pytestmark = [pytest.mark.slow, pytest.mark.peers("tailscale", "tailscaled")]
# Of an answer: those we have and stock has not, and the other way round, for a reason that docs/serve.md gives.
NOT_COMPARED = {"date", "etag"}
# Of a request at the server behind: stock asks for gzip and decodes it again, and does not say that it was there.
NOT_COMPARED_BEHIND = {"accept-encoding", "via", "connection"}


@dataclass
class Behind:
    """A web server of this machine that keeps what it is told."""

    port: int = 0
    heads: list[bytes] = field(default_factory=list)

    async def attend(self, stream: trio.SocketStream) -> None:
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                piece = await stream.receive_some()
                if not piece:
                    return
                data += piece
            head, _, data = data.partition(b"\r\n\r\n")
            self.heads.append(head)
            length = int((re.search(rb"(?i)content-length: (\d+)", head) or [b"", b"0"])[1])
            while len(data) < length:
                data += await stream.receive_some()
            body, data = data[:length], data[length:]
            said = head.partition(b"\r\n")[0] + b" " + body
            if b"/nothing" in head:
                await stream.send_all(b"HTTP/1.1 204 No Content\r\nX-Of-Server: 1\r\n\r\n")
                continue
            answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-Of-Server: 1\r\nKeep-Alive: timeout=5\r\n"
            answer += b"Content-Length: %d\r\n\r\n" % len(said)
            await stream.send_all(answer + (b"" if head.startswith(b"HEAD") else said))

    def told(self) -> tuple[bytes, dict[str, str]]:
        """The last request line, and its headers."""
        line, *rest = self.heads[-1].split(b"\r\n")
        return line, {n.decode().lower(): v.decode().strip() for n, _, v in (row.partition(b":") for row in rest)}


@dataclass
class Pair:
    """Both publishers, and who calls."""

    stock: Tailscaled
    ours: Stock
    caller: Tailscaled
    behind: Behind = field(default_factory=Behind)
    folder: Path = Path()
    names: dict[str, str] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)

    async def both(self, *words: str, stdin: bytes = b"") -> tuple[str, str]:
        """One command of the stock command line, at each."""
        ours = await self.ours(*words, stdin=stdin.replace(b"@NAME@", self.names["ours"].encode()))
        stock = await self.stock.cli(*words, stdin=stdin.replace(b"@NAME@", self.names["stock"].encode()))
        return stock, ours

    async def ask(self, who: str, request: bytes, port: int = 80) -> bytes:
        """What one of them answers, until it hangs up.

        A dial of the caller's may run into its 5 s though both ends are stock's, while paths are found: it dials again.
        """
        with trio.fail_after(30):
            try:
                connected = await self.caller.connect(self.addresses[who], port)
            except ConnectionRefusedError:
                connected = await self.caller.connect(self.addresses[who], port)
            async with connected as stream:
                await stream.send_all(request.replace(b"@NAME@", self.names[who].encode()))
                return b"".join([bytes(piece) async for piece in stream])


@asynccontextmanager
async def pair(r: Rig, hs: Headscale) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        key = await hs.auth_key()
        stock = await stack.enter_async_context(r.tailscaled("stock", control=hs, auth_key=key))
        caller = await stack.enter_async_context(r.tailscaled("caller", control=hs, auth_key=key))
        ours = await stack.enter_async_context(daemon(r, hs, "fresh"))  # as long a name as the other
        yield await stack.enter_async_context(with_server(Pair(stock, ours, caller)))


@asynccontextmanager
async def with_server(made: Pair) -> AsyncIterator[Pair]:
    """What stands behind both."""
    with tempfile.TemporaryDirectory(prefix="pyts-s-") as folder:
        async with trio.open_nursery() as nursery:
            made.folder = Path(folder)
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            made.behind.port = listeners[0].socket.getsockname()[1]
            nursery.start_soon(partial(trio.serve_listeners, guarded(made.behind.attend), listeners))
            status = {"stock": await made.stock.cli("status", "--json"), "ours": await made.ours("status", "--json")}
            for who, told in status.items():
                own = json.loads(told)["Self"]
                made.names[who], made.addresses[who] = own["DNSName"].rstrip("."), own["TailscaleIPs"][0]
            yield made
            nursery.cancel_scope.cancel()


def write_site(folder: Path) -> None:
    (folder / "site" / "sub" / "deep").mkdir(parents=True)
    (folder / "site" / "page.html").write_text("<html><body>page</body></html>")
    (folder / "site" / "style.css").write_text("body {}")
    (folder / "site" / "data.json").write_text('{"a": 1}')
    (folder / "site" / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (folder / "site" / "plain").write_text("words\n")
    (folder / "site" / "big.bin").write_bytes(bytes(range(256)) * 4096)
    (folder / "site" / "sub" / "index.html").write_text("<html>index of sub")
    (folder / "site" / "sub" / "deep" / "leaf.txt").write_text("leaf")
    (folder / "site" / "a b&c.txt").write_text("odd name")
    for path in (folder / "site").rglob("*"):
        os.utime(path, (1_700_000_000, 1_700_000_000))


def config_of(pair: Pair, port: int = 80, kind: str = "HTTP") -> bytes:
    behind = f"http://127.0.0.1:{pair.behind.port}"
    handlers = {
        "/": {"Proxy": behind},
        "/based/": {"Proxy": behind + "/base"},
        "/exact": {"Proxy": behind + "/base?q=1"},
        "/text": {"Text": "hello\n"},
        "/gone": {"Redirect": "301:https://${HOST}/new${REQUEST_URI}"},
        "/found": {"Redirect": "/elsewhere"},
        "/site/": {"Path": str(pair.folder / "site")},
        "/one.html": {"Path": str(pair.folder / "site" / "page.html")},
        "/dead": {"Proxy": "http://127.0.0.1:9"},
        "/nounix": {"Proxy": f"unix:{pair.folder}/none"},
    }
    tcp = {str(port): {kind: True}}
    return json.dumps({"TCP": tcp, "Web": {f"@NAME@:{port}": {"Handlers": handlers}}}).encode()


GET = "GET {} HTTP/1.1\r\nHost: @NAME@\r\nUser-Agent: x\r\nConnection: close\r\n{}\r\n"
REQUESTS: list[tuple[str, str, str]] = [
    # method and path, headers, body
    ("GET /", "", ""),
    ("GET /a/b%20c?d=e&f", "X-Mine: 1\r\n", ""),
    ("POST /post", "Content-Length: 4\r\n", "body"),
    ("HEAD /head", "", ""),
    ("OPTIONS /x", "", ""),
    ("DELETE /nothing", "", ""),
    ("GET /based", "", ""),
    ("GET /based/x/y", "", ""),
    ("GET /basedx", "", ""),
    ("GET /exact", "", ""),
    ("GET /exact/deep?r=2", "", ""),
    ("GET //double", "", ""),
    ("GET /%2e%2e/up", "", ""),
    ("GET /x/..;/y", "", ""),
    ("GET /site/..%2f..%2fetc/passwd", "", ""),
    ("GET /text", "", ""),
    ("HEAD /text", "", ""),
    ("POST /text", "Content-Length: 1\r\n", "x"),
    ("GET /gone?x=1", "", ""),
    ("HEAD /gone", "", ""),
    ("POST /gone", "Content-Length: 0\r\n", ""),
    ("GET /found", "", ""),
    ("GET /site", "", ""),
    ("GET /site/", "", ""),
    ("GET /site/page.html", "", ""),
    ("HEAD /site/page.html", "", ""),
    ("GET /site/style.css", "", ""),
    ("GET /site/data.json", "", ""),
    ("GET /site/image.png", "", ""),
    ("GET /site/plain", "", ""),
    ("GET /site/a%20b&c.txt", "", ""),
    ("GET /site/sub", "", ""),
    ("GET /site/sub/", "", ""),
    ("GET /site/none", "", ""),
    ("GET /site/big.bin", "Range: bytes=10-19\r\n", ""),
    ("GET /site/big.bin", "Range: bytes=-5\r\n", ""),
    ("GET /site/big.bin", "Range: bytes=1048570-\r\n", ""),
    ("GET /site/big.bin", "Range: bytes=9999999-\r\n", ""),
    ("GET /site/big.bin", "Range: nonsense\r\n", ""),
    ("HEAD /site/big.bin", "Range: bytes=0-1\r\n", ""),
    ("GET /site/page.html", "If-Modified-Since: Tue, 14 Nov 2023 22:13:20 GMT\r\n", ""),
    ("GET /site/page.html", "If-Modified-Since: Tue, 14 Nov 2023 22:13:19 GMT\r\n", ""),
    ("GET /site/page.html", "If-Unmodified-Since: Tue, 14 Nov 2023 22:13:19 GMT\r\n", ""),
    ("GET /site/page.html", "If-Range: Tue, 14 Nov 2023 22:13:20 GMT\r\nRange: bytes=0-3\r\n", ""),
    ("GET /site/page.html", "If-Range: Tue, 14 Nov 2023 22:13:21 GMT\r\nRange: bytes=0-3\r\n", ""),
    ("GET /one.html", "", ""),
    ("GET /one.html/", "", ""),
    ("GET /dead", "", ""),
    ("GET /nounix", "", ""),
]
# What we answer otherwise on purpose, and why.
OTHERWISE = {
    ("GET /dead", ""): "the body says what is wrong, where stock's is empty",
    ("GET /nounix", ""): "the same",
    ("HEAD /gone", ""): "a HEAD is told the length that GET has",
    ("GET /site/big.bin", "Range: nonsense\r\n"): "a unit that is not understood is ignored (RFC 9110, 14.2)",
    ("HEAD /site/big.bin", "Range: bytes=0-1\r\n"): "ranges are of GET alone (RFC 9110, 14.2)",
}
HOSTS = ("HOST", "HOST:80", "SHORT", "SHORT:80", "ADDRESS", "other", "localhost")


def split_answer(data: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = data.partition(b"\r\n\r\n")
    line, *rows = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (row.partition(":") for row in rows)}
    if headers.pop("transfer-encoding", "") == "chunked":
        body = b"".join(chunks(body))
    return int(line.split()[1]), headers, body


def chunks(body: bytes) -> list[bytes]:
    found = []
    while body:
        size, _, body = body.partition(b"\r\n")
        found.append(body[: int(size, 16)])
        body = body[int(size, 16) + 2 :]
    return found


async def differences(p: Pair, port: int = 80) -> list[tuple[str, str, dict[str, Any]]]:
    """What is answered otherwise by ours, request by request."""
    wrong = []
    for line, headers, body in REQUESTS:
        request = (GET.replace("GET {}", line).format(headers) + body).encode()
        seen: dict[str, Any] = {}
        for who in ("stock", "ours"):
            before = len(p.behind.heads)
            status, told, answer = split_answer(await p.ask(who, request, port))
            kept = {name: value.replace(p.names[who], "@NAME@") for name, value in told.items()}
            kept = {name: value for name, value in kept.items() if name not in NOT_COMPARED}
            behind: Any = None
            if len(p.behind.heads) > before:
                asked, heard = p.behind.told()
                heard = {n: v.replace(p.names[who], "@NAME@") for n, v in heard.items()}
                behind = asked, {n: v for n, v in heard.items() if n not in NOT_COMPARED_BEHIND}
            body_seen = answer.replace(p.names[who].encode(), b"@NAME@")
            seen[who] = {"status": status, "headers": kept, "body": body_seen, "behind": behind}
        if seen["stock"] != seen["ours"]:
            stock, ours = seen["stock"], seen["ours"]
            differs = {key: (stock[key], ours[key]) for key in stock if stock[key] != ours[key]}
            wrong.append((line, headers, differs))
            print(f"{line} {headers!r}\n   {differs}")
    return wrong


async def test_answers_are_those_of_stock_tailscaled(r: Rig, hs: Headscale) -> None:
    async with pair(r, hs) as p:
        write_site(p.folder)
        await p.both("serve", "set-raw", stdin=config_of(p))
        wrong = await differences(p)
        assert not [one for one in wrong if one[:2] not in OTHERWISE]
        assert {one[:2] for one in wrong} == OTHERWISE.keys()


async def test_hosts_are_chosen_as_stock_chooses_them(r: Rig, hs: Headscale) -> None:
    async with pair(r, hs) as p:
        await p.both("serve", "set-raw", stdin=config_of(p))
        for host in HOSTS:
            answers = {}
            for who in ("stock", "ours"):
                short = p.names[who].partition(".")[0]
                named = host.replace("HOST", p.names[who]).replace("SHORT", short).replace("ADDRESS", p.addresses[who])
                request = f"GET /text HTTP/1.1\r\nHost: {named}\r\nConnection: close\r\n\r\n".encode()
                answers[who] = split_answer(await p.ask(who, request))[0]
            assert answers["stock"] == answers["ours"], (host, answers)


async def test_tcp_and_its_proxy_header_are_those_of_stock(r: Rig, hs: Headscale) -> None:
    async def repeat(stream: trio.SocketStream) -> None:
        data = b""
        while not data.endswith(b"END"):
            data += await stream.receive_some()
        await stream.send_all(data)
        await stream.aclose()

    async with pair(r, hs) as p, trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(partial(trio.serve_listeners, guarded(repeat), listeners))
        await p.both("serve", "--bg", "--tcp=5001", f"tcp://localhost:{port}")
        for version in (1, 2):
            await p.both("serve", "--bg", f"--tcp=500{version + 1}", f"--proxy-protocol={version}", f"localhost:{port}")
        for number in (5001, 5002, 5003):
            heard = {}
            for who in ("stock", "ours"):
                said = await p.ask(who, b"hello END", number)
                header = said.removesuffix(b"hello END")
                if number == 5002:
                    words = header.split()
                    words[4:5] = [b"SOURCE"] if words else []
                    header = b" ".join(words).replace(p.addresses[who].encode(), b"DEST")
                elif number == 5003:
                    header = header[:16] + header[16:20] + header[26:]  # without our address and the caller's port
                heard[who] = header
            assert heard["stock"] == heard["ours"], number
        nursery.cancel_scope.cancel()


async def test_stock_serve_command_line_against_our_daemon(r: Rig, hs: Headscale) -> None:
    async with (
        daemon(r, hs, "ours") as stock,
        r.tailscaled("caller", control=hs, auth_key=await hs.auth_key()) as caller,
    ):
        name = json.loads(await stock("status", "--json"))["Self"]["DNSName"].rstrip(".")
        address = json.loads(await stock("status", "--json"))["Self"]["TailscaleIPs"][0]

        async def page(port: int) -> bytes:
            async with await caller.connect(address, port) as stream:
                await stream.send_all(f"GET / HTTP/1.0\r\nHost: {name}\r\n\r\n".encode())
                return b"".join([bytes(piece) async for piece in stream]).partition(b"\r\n\r\n")[2]

        told = await stock("serve", "--bg", "--http=80", "text:hello")
        assert f"http://{name}/" in told
        assert await page(80) == b"hello"
        assert f"http://{name} (tailnet only)" in await stock("serve", "status")
        assert "Text" in await stock("serve", "status", "--json")
        await stock("serve", "--bg", "--tcp=5432", "tcp://localhost:5433")
        code, told = await stock.run("serve", "--bg", "--http=5432", "3000")
        assert (code, "already serving" in told) == (1, True)
        words = [str(build.binary("tailscale")), f"--socket={stock.socket}", "serve", "--http=81", "text:fore"]
        fore = Process("serve", words, r.room("serve"))

        async def is_there() -> bool | None:
            try:
                return (await page(81)) == b"fore" or None
            except OSError:
                return None

        async def is_gone() -> bool | None:
            return "81" not in json.loads(await stock("serve", "status", "--json")).get("TCP", {}) and not json.loads(
                await stock("serve", "status", "--json")
            ).get("Foreground")

        await poll_until("the page in the foreground", is_there, 30)
        await fore.stop()
        await poll_until("the foreground to end with its command", is_gone, 30)
        await stock("serve", "--tcp=5432", "off")
        await stock("serve", "--http=80", "off")
        assert "No serve config" in await stock("serve", "status")
        await stock("serve", "--bg", "--http=80", "text:hello")
        await stock("serve", "reset")
        assert "No serve config" in await stock("serve", "status")
