"""Finds the Python snippets of the docs, and runs one.

A snippet runs in a tailnet with peers db, web, cache and laptop, and the exit node exit-nl. `tailscale`, `trio`,
`device`, `nursery` and `app` are there unless it makes them itself; in a docstring also what its module knows.
Top-level `await` runs under trio. WORDS says what may stand after ```python.
"""

from __future__ import annotations

import ast
import asyncio
import importlib
import importlib.util
import re
import socket
import types
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import CO_COROUTINE
from pathlib import Path
from typing import Any

import trio

import tailscale

ROOT = Path(__file__).parents[2]
PUBLIC = (
    *("capturing", "certificates", "explanation", "forwarding"),
    *("device", "tcp_sockets", "udp_sockets", "nodes", "status", "events", "errors", "state_file"),
    *("aio", "sync", "http", "funnel", "ingress", "proxy", "serve", "dask", "metrics", "testing", "web"),
)
UNREAD = ("docs/reference/", "docs/decisions.md")  # the first repeats the docstrings, the second has no code to run
FENCE = re.compile(r"^( *)```python *([^\n`]*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
PLACEHOLDER_URL, PLACEHOLDER_KEY = "https://headscale.example.com", re.compile(r"tskey-auth-[\w-]+")
WORDS = {
    "": "runs to its end",
    "asyncio": "the same under asyncio, with a device of tailscale.aio",
    "sync": "the same without an event loop, with a device of tailscale.sync",
    "forever": "still runs after a while; forever=80: and answers a visitor on that port",
    "pytest": "is a test file",
    "no-run": "is not run; a <!-- not run: comment --> in the line above says why",
}
FACES = {
    "tailscale/aio.py": "asyncio",
    "tailscale/mesh/aio_face.py": "asyncio",
    "tailscale/mesh/sync_face.py": "sync",
    "tailscale/proxy/aio_face.py": "asyncio",
    "tailscale/proxy/sync_face.py": "sync",
    "tailscale/sync.py": "sync",
    "tailscale/dask/process_device.py": "sync",
    "tailscale/http/aiohttp_connector.py": "asyncio",
    "tailscale/http/requests_adapter.py": "sync",
    "tailscale/http/urllib3_pools.py": "sync",
}  # what a docstring there means
NOT_REQUIRED = (
    "aiohttp",
    "asyncpg",
    "asyncssh",
    "distributed",
    "fastapi",
    "flask",
    "gunicorn",
    "hypercorn",
    "prometheus_client",
    "psycopg",
    "redis",
    "requests",
    "urllib3",
    "uvicorn",
    "waitress",
)  # the gate installs them
PATIENCE = 10.0
A_WHILE = 0.15
WEB_PORTS = (80, 8000)


@dataclass(frozen=True)
class Snippet:
    """One fenced block. `line` is where its first line of code is."""

    file: str
    line: int
    word: str
    value: str
    source: str
    above: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def is_whole(self) -> bool:
        """Whether the page calls it a whole program, or it looks like one."""
        is_called_so = "whole program" in self.above.lower()
        return is_called_so or self.calls_main or (self.word == "forever" and self.stands_alone)

    @property
    def stands_alone(self) -> bool:
        """Whether it waits for nothing at the top, and makes its device itself."""
        code = compile(self.source, str(self), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        return not code.co_flags & CO_COROUTINE and not _wants(ast.parse(self.source), "device")

    @property
    def calls_main(self) -> bool:
        """Whether it has a `main`, and its last statement begins it."""
        body = ast.parse(self.source).body
        has_main = any(getattr(node, "name", "") == "main" for node in body)
        return has_main and re.search(r"\bmain\b", ast.unparse(body[-1])) is not None


def texts() -> Iterator[tuple[str, int, str]]:
    """(file, number of the first line, text) of every document and public docstring."""
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
    for path in documents:
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(UNREAD):
            yield name, 1, path.read_text()
    for path in public_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node, clean=False)
                if text:
                    yield path.relative_to(ROOT).as_posix(), node.body[0].lineno, text


def public_files() -> list[Path]:
    package = ROOT / "tailscale"
    files = [package / "__init__.py"]
    for name in PUBLIC:
        alone = package / f"{name}.py"
        files += [alone] if alone.exists() else sorted((package / name).rglob("*.py"))
    return files


def all_snippets() -> list[Snippet]:
    return [snippet for text in texts() for snippet in snippets_of(*text)]


def snippets_of(file: str, first_line: int, text: str) -> Iterator[Snippet]:
    for match in FENCE.finditer(text):
        indent, words, source = match.groups()
        word, _, value = (words.strip() or FACES.get(file, "")).partition("=")
        before = text[: match.start()].rstrip("\n")
        line = first_line + text.count("\n", 0, match.start()) + 1
        source = "".join(row.removeprefix(indent) for row in source.splitlines(keepends=True))
        yield Snippet(file, line, word, value, source, before.rsplit("\n", 1)[-1].strip())


def missing_library(source: str) -> str:
    """The first library that the source imports, that we do not require and that is not installed; "" for none."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            tops = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            tops = [(node.module or "").split(".")[0]]
        else:
            continue
        for top in tops:
            if top in NOT_REQUIRED and importlib.util.find_spec(top) is None:
                return top
    return ""


def filled(snippet: Snippet, url: str, key: str) -> str:
    """The source with a server and a key in place of those that a page shows."""
    return PLACEHOLDER_KEY.sub(key, snippet.source.replace(PLACEHOLDER_URL, url))


def run(snippet: Snippet, url: str, key: str) -> None:
    """Run it to its end, or as long as it says it lasts. Raises what it raises."""
    tree = ast.parse(filled(snippet, url, key), str(snippet))
    ast.increment_lineno(tree, snippet.line - 1)
    code = compile(tree, str(ROOT / snippet.file), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names = _globals_of(snippet.file) | {"tailscale": tailscale, "trio": trio, "app": app, "__name__": "__main__"}
    if snippet.word == "asyncio":
        asyncio.run(_under_asyncio(tree, code, names), debug=True)
    elif snippet.word != "sync" and (code.co_flags & CO_COROUTINE or _wants(tree, "device")):
        trio.run(_under_trio, snippet, tree, code, names)
    else:
        _in_a_plain_thread(tree, code, names)
    for thing in names.values():
        if isinstance(thing, socket.socket):
            thing.close()


def _globals_of(file: str) -> dict[str, Any]:
    """What a docstring's module knows, as with doctest; nothing for a page."""
    if not file.endswith(".py"):
        return {}
    return dict(vars(importlib.import_module(file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))))


async def _result(code: types.CodeType, names: dict[str, Any]) -> None:
    """Run module code, which is a coroutine where it awaits at the top."""
    awaitable = eval(code, names)
    if awaitable is not None:
        await awaitable


def _wants(tree: ast.AST, name: str) -> bool:
    """Whether the snippet uses a name that it does not make itself."""
    found = [n.ctx for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == name]
    return bool(found) and not any(isinstance(context, ast.Store) for context in found)


async def _under_trio(snippet: Snippet, tree: ast.AST, code: types.CodeType, names: dict[str, Any]) -> None:
    with trio.fail_after(PATIENCE):
        if not _wants(tree, "device"):
            await _in_a_nursery(snippet, code, names)
            return
        async with tailscale.Device("docs") as device:
            await _in_a_nursery(snippet, code, names | {"device": device})


async def _in_a_nursery(snippet: Snippet, code: types.CodeType, names: dict[str, Any]) -> None:
    has_ended = False

    async def body() -> None:
        nonlocal has_ended
        await _result(code, names)
        has_ended = True

    async with trio.open_nursery() as names["nursery"]:
        nursery = names["nursery"]
        if snippet.word == "forever":
            nursery.start_soon(body)
            await _visit(int(snippet.value)) if snippet.value else await trio.sleep(A_WHILE)
            assert not has_ended, f"{snippet} was to run for ever"
        else:
            await body()
        nursery.cancel_scope.cancel()
    for thing in names.values():
        if isinstance(thing, trio.abc.AsyncResource):
            await thing.aclose()


async def _visit(port: int) -> None:
    """Call the snippet's device until it answers; on web ports as a browser would."""
    async with tailscale.Device("visitor") as visitor:
        while True:
            for name in {"docs", "web-app"} & {node.hostname for node in visitor.peers.values()}:
                try:
                    await visitor.ping(name)
                    stream = await visitor.tcp_connect(name, port)
                except OSError:
                    continue  # not listening yet
                async with stream:
                    if port in WEB_PORTS:
                        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    answer = await stream.receive_some()
                assert answer.startswith(b"HTTP/1.1 200") if port in WEB_PORTS else answer, answer
                return
            await trio.sleep(0.02)


async def _under_asyncio(tree: ast.AST, code: types.CodeType, names: dict[str, Any]) -> None:
    async with asyncio.timeout(PATIENCE):
        if not _wants(tree, "device"):
            await _result(code, names)
            return
        from tailscale import aio

        async with aio.Device("docs") as device:
            await _result(code, names | {"device": device})


def _in_a_plain_thread(tree: ast.AST, code: types.CodeType, names: dict[str, Any]) -> None:
    if not _wants(tree, "device"):
        exec(code, names)
        return
    from tailscale import sync

    with sync.Device("docs") as device:
        exec(code, names | {"device": device})


async def app(scope: Any, receive: Any, send: Any) -> None:
    """The app that a page speaks of without showing it."""
    if scope["type"] != "http":
        raise RuntimeError("only http")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
