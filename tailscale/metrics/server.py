"""A small server for Prometheus and for whoever keeps programs alive: `/metrics`, `/healthz`, `/readyz`.

It listens on this machine only unless told otherwise, answers reading methods, and changes nothing.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import trio

from tailscale.errors import TailscaleError
from tailscale.foreign_text import for_terminal
from tailscale.http.local import open_listeners, serve_local
from tailscale.metrics.text import OPEN_TYPE, PLAIN_TYPE, text_of

if TYPE_CHECKING:
    from tailscale.device import Device
    from tailscale.http1.asgi import Receive, Scope, Send
    from tailscale.status import Status

DEFAULT_LISTEN = "127.0.0.1:9100"
TEXT = "text/plain; charset=utf-8"
USABLE = ("running", "connecting", "offline")  # the states in which a device that has joined can be used
PATHS = "/metrics /healthz /readyz\n"


async def serve_metrics(
    device: Device,
    listen: str = DEFAULT_LISTEN,
    *,
    peers: bool = False,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer `/metrics`, `/healthz` and `/readyz` over HTTP on this machine until cancelled.

    ```python
    from tailscale.metrics import serve_metrics

    url = await nursery.start(serve_metrics, device, "127.0.0.1:0")
    print(url + "/metrics")
    ```

    `/healthz` is 200 while the device lives, `/readyz` while it is joined and usable; both say why not. `peers=True`
    tells of each peer by name.
    """
    listeners = await open_listeners(listen)
    host, port = listeners[0].socket.getsockname()[:2]
    task_status.started(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    await serve_local(functools.partial(answer, device, peers), listeners)


async def answer(device: Device, peers: bool, scope: Scope, receive: Receive, send: Send) -> None:
    """One request, as ASGI has them."""
    headers = dict(scope["headers"])
    status, kind, text = respond(device, peers, scope["method"], scope["path"], headers.get(b"accept", b""))
    sent = [(b"content-type", kind.encode()), (b"content-length", str(len(text.encode())).encode())]
    sent += [(b"allow", b"GET, HEAD")] if status == 405 else []
    await send({"type": "http.response.start", "status": status, "headers": sent})
    await send({"type": "http.response.body", "body": text.encode()})


def respond(device: Device, peers: bool, method: str, path: str, accept: bytes) -> tuple[int, str, str]:
    """Status, content type and body."""
    if path not in PATHS.split():
        return (200, TEXT, PATHS) if path == "/" else (404, TEXT, f"here are: {PATHS}")
    if method not in ("GET", "HEAD"):
        return 405, TEXT, "this is only read\n"
    try:
        status = device.status()
    except TailscaleError as error:
        return 503, TEXT, f"{for_terminal(str(error))}\n"
    if path == "/healthz":
        return 200, TEXT, "alive\n"
    if path == "/readyz":
        reason = why_not_ready(status)
        return (503, TEXT, f"{reason}\n") if reason else (200, TEXT, "ready\n")
    is_open = b"application/openmetrics-text" in accept
    return 200, OPEN_TYPE if is_open else PLAIN_TYPE, text_of(status, peers=peers, is_open=is_open)


def why_not_ready(status: Status) -> str:
    """Why the device cannot be used now; "" when it can. That control is away is no reason: peers are reached."""
    if status.node is None:
        return f"{status.state}: control has not said yet who we are"
    if status.node.expired or status.state not in USABLE:
        return for_terminal("; ".join([status.state, *(warning.sentence for warning in status.health)]))
    return ""
