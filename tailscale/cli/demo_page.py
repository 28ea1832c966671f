"""The demo's web page: an ASGI app served by one device, fetched with httpx by the other, over the tailnet only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx

from tailscale.http import AsyncTransport

if TYPE_CHECKING:
    from tailscale.device import Device


async def page(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Greet every caller by name."""
    if scope["type"] != "http":
        return
    caller = scope["extensions"]["tailscale"]
    text = f"hello {caller['hostname']}, you belong to {caller['user']}"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": text.encode()})


async def fetch_page(device: Device, url: str) -> str:
    """GET by tailnet name."""
    async with httpx.AsyncClient(transport=AsyncTransport(device)) as client:
        answer = await client.get(url)
        return answer.raise_for_status().text
