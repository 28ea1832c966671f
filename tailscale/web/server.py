"""The status page's server: four files, a stream of looks, and, where that was allowed, the choice of an exit node.

What the page may load and who may frame it is in HEADERS; who may ask is `entry.py`'s. The files hold no secret.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from tailscale.errors import TailscaleError
from tailscale.foreign_text import harmless_json
from tailscale.http.local import open_listeners, serve_local
from tailscale.http1.asgi import ClientDisconnected
from tailscale.metrics import view
from tailscale.web.entry import Entry

if TYPE_CHECKING:
    from tailscale.device import Device
    from tailscale.http1.asgi import Receive, Scope, Send

DEFAULT_LISTEN = "127.0.0.1:0"
EVERY = 1.0  # seconds between looks
STREAMS_LIMIT = 8  # tabs that look at once
LONGEST_BODY = 4096
FOLDER = Path(__file__).parent / "page"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in ("app", "history", "map", "draw")},
}
# Only what this server has may load; nothing of a name can become script or markup, whatever a browser makes of it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


async def serve_page(
    device: Device,
    listen: str = DEFAULT_LISTEN,
    *,
    changes: bool = False,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the status page on this machine until cancelled. Under `nursery.start` the value is the link to open.

    ```python
    from tailscale.web import serve_page

    link = await nursery.start(serve_page, device)
    ```

    The link works once, and for ten minutes. With `changes` the page may also choose the exit node.
    """
    listeners = await open_listeners(listen)
    host, port = listeners[0].socket.getsockname()[:2]
    site = StatusPage(device, changes)
    task_status.started(f"http://{f'[{host}]' if ':' in host else host}:{port}/#{site.entry.fragment}")
    await serve_local(site, listeners)


class Refusal(Exception):
    """An answer that is none: its status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class StatusPage:
    """One device's page, as an ASGI app."""

    def __init__(self, device: Device, changes: bool) -> None:
        self.entry = Entry(trio.current_time())
        self._device = device
        self._changes = changes
        self._streams = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        headers = dict(scope["headers"])
        try:
            if path in FILES:
                _want(method, "GET", "HEAD")
                name, kind = FILES[path]
                await _answer(send, 200, kind, await trio.Path(FOLDER / name).read_bytes())
                return
            _refuse_strangers(headers)
            if path == "/session":
                _want(method, "POST")
                await self._begin(receive, send)
            elif path in ("/looks", "/exit"):
                if not self.entry.admits(headers.get(b"authorization", b"")):
                    raise Refusal(401, "this page was opened by a link that is used or too old: ask for another")
                _want(method, "GET" if path == "/looks" else "POST")
                await (self._looks(receive, send) if path == "/looks" else self._use_exit(receive, send))
            else:
                raise Refusal(404, "there is nothing here")
        except Refusal as refusal:
            await _answer_json(send, refusal.status, {"error": str(refusal)})

    async def _begin(self, receive: Receive, send: Send) -> None:
        asked = await _json(receive)
        session = self.entry.trade(str(asked.get("link", "")), trio.current_time())
        if not session:
            raise Refusal(401, "this link was used already, or is too old: ask for another")
        await _answer_json(send, 200, {"session": session})

    async def _looks(self, receive: Receive, send: Send) -> None:
        if self._streams >= STREAMS_LIMIT:
            raise Refusal(503, f"{STREAMS_LIMIT} tabs look at once already")
        self._streams += 1
        try:
            start = [(b"content-type", b"application/x-ndjson"), *HEADERS]
            await send({"type": "http.response.start", "status": 200, "headers": start})
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_when_gone, receive, nursery.cancel_scope)
                with suppress(ClientDisconnected):
                    while (line := self._line()) is not None:
                        await send({"type": "http.response.body", "body": line, "more_body": True})
                        await trio.sleep(EVERY)
                nursery.cancel_scope.cancel()
        finally:
            self._streams -= 1
        await send({"type": "http.response.body", "body": b""})

    def _line(self) -> bytes | None:
        """A look as a line of JSON; None once the device is closed."""
        try:
            look = view(self._device)
        except TailscaleError:
            return None
        return harmless_json(json.dumps(look | {"may_change": self._changes}).encode()) + b"\n"

    async def _use_exit(self, receive: Receive, send: Send) -> None:
        if not self._changes:
            raise Refusal(403, "this page only looks: --allow-changes lets it choose the exit node")
        name = (await _json(receive)).get("exit_node")
        known = {one.node.stable_id for one in self._device.exit_nodes}
        if name is not None and (not isinstance(name, str) or name not in known):
            raise Refusal(400, "that is no exit node of this tailnet")
        try:
            await self._device.set(exit_node=name)
        except TailscaleError as error:
            raise Refusal(503, str(error)) from error
        await _answer_json(send, 200, {"exit_node": name})


def _want(method: str, *methods: str) -> None:
    if method not in methods:
        raise Refusal(405, f"this takes {' and '.join(methods)}")


def _refuse_strangers(headers: dict[bytes, bytes]) -> None:
    """No page but ours may ask, even if it learnt a secret. The Host was looked at by `tailscale/http/local.py`."""
    origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
    if origin is not None and origin.lower() != b"http://" + headers.get(b"host", b"").lower():
        raise Refusal(403, "another page asks")
    if site is not None and site.lower() not in (b"same-origin", b"none"):
        raise Refusal(403, "another page asks")


async def _json(receive: Receive) -> dict[str, Any]:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected("the browser went away")
        body += message.get("body", b"")
        if len(body) > LONGEST_BODY:
            raise Refusal(413, f"more than {LONGEST_BODY} bytes")
        if not message.get("more_body"):
            break
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(400, "that is not JSON") from None
    if not isinstance(value, dict):
        raise Refusal(400, "that is not a JSON object")
    return value


async def _cancel_when_gone(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _answer(send: Send, status: int, kind: str, body: bytes) -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode()), *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _answer_json(send: Send, status: int, value: dict[str, Any]) -> None:
    await _answer(send, status, "application/json", json.dumps(value).encode())
