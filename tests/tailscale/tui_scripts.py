"""What the tests of the terminal interface share: a source that is told what to say, looks at an invented tailnet."""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import AsyncIterator
from typing import Any

from tailscale.tui.app import Top
from tailscale.tui.drawing import Row

BEGAN = 1_800_000_000.0
PEERS = (
    ("db", "direct", "direct 192.0.2.7:41641", 0.0031, "linux", "tag:db", 1.9e9, 84e6),
    ("phone", "relay", "relay fra", None, "iOS", "ada@example.com", 3.1e6, 41e6),
    ("日本-build", "peer relay", "peer relay 198.51.100.4:7777", 0.0412, "linux", "tag:ci", 512.0, 0.0),
    ("exit-nl", "direct", "direct [2001:db8::9]:41641", 0.019, "linux", "tag:exit", 7.2e8, 6.6e8),
)
WARNING = {
    "code": "no-udp4-bind",
    "sentence": "no UDP socket can be opened: everything goes through relays, which is slower",
    "remedy": "allow UDP for this program in the firewall",
}


def look(second: int = 0, **changes: Any) -> dict[str, Any]:
    """The invented tailnet after so many seconds; what it carries rises and falls in waves."""
    wave = [sum(2e6 * (1 + math.sin(s / 5)) for s in range(second)), 3e5 * second]
    peers = [peer(number, *facts) for number, facts in enumerate(PEERS)]
    peers[0]["received"] += wave[0]
    peers[0]["sent"] += wave[1]
    view = {
        "at": BEGAN + second,
        "state": "running",
        "name": "laptop.tail1234.ts.net",
        "hostname": "laptop",
        "addresses": ["100.64.0.1", "fd7a:115c:a1e0::1"],
        "user": "ada@example.com",
        "tags": [],
        "key_expiry": None,
        "tailnet": "example.com",
        "control_url": "https://controlplane.example",
        "relay": "fra",
        "udp_port": 41641,
        "endpoints": ["192.0.2.1:41641"],
        "exit_node": "exit-nl",
        "health": [],
        "received": {"direct_ipv4": 2e9 + wave[0], "direct_ipv6": 7e8, "derp": 3e6, "peer_relay_ipv4": 512},
        "sent": {"direct_ipv4": 9e7 + wave[1], "direct_ipv6": 6e8, "derp": 4e7, "peer_relay_ipv4": 0},
        "drops": {"filter.no_rule": 17, "tunnel.replayed": 3},
        "open": {"tcp": 3, "udp": 1, "listeners": 2},
        "count": {"peers": 5, "online": 4, "direct": 2, "relay": 1, "peer relay": 1},
        "peers": [*peers, quiet()],
        "flows": flows(wave),
        "transfers": [],
        "exits": [
            exit_node("exit-nl", "Netherlands", "Amsterdam", True),
            exit_node("exit-se", "Sweden", "Malmö", False),
        ],
    }
    return copy.deepcopy(view | changes)


def peer(
    number: int,
    name: str,
    kind: str,
    path: str,
    latency: float | None,
    os: str,
    owner: str,
    received: float,
    sent: float,
) -> dict[str, Any]:
    return {
        "id": f"n{number}",
        "name": f"{name}.tail1234.ts.net",
        "hostname": name,
        "address": f"100.64.0.{number + 2}",
        "online": True,
        "expired": False,
        "os": os,
        "owner": owner,
        "routes": 0,
        "is_exit": name.startswith("exit"),
        "has_spoken": True,
        "kind": kind,
        "path": path,
        "latency": latency,
        "received": received,
        "sent": sent,
    }


def quiet() -> dict[str, Any]:
    """A peer that is offline and was never spoken with."""
    made = peer(9, "old-nas", "", "", None, "linux", "ada@example.com", 0, 0)
    return made | {"online": False, "has_spoken": False}


def flows(wave: list[float]) -> list[dict[str, Any]]:
    def flow(peer: str, port: int, at: int, received: float | None, sent: float | None, **more: Any) -> dict[str, Any]:
        return {
            "protocol": "udp" if received is None else "tcp",
            "local": ["100.64.0.1", at],
            "remote": ["100.64.0.2", port],
            "peer": peer,
            "via": "",
            "port": port,
            "is_inbound": False,
            "is_forwarded": False,
            "bytes_received": received,
            "bytes_sent": sent,
        } | more

    return [
        flow("db", 5432, 40001, 1.8e9 + wave[0], 8e7 + wave[1]),
        flow("db", 5432, 40002, 5e6, 2e5),
        flow("phone", 22, 22, 90_000, 400_000, is_inbound=True),
        flow("", 443, 40003, 7e8, 6e8, via="exit-nl", remote=["203.0.113.5", 443]),
        flow("db", 53, 40004, None, None),
    ]


def exit_node(name: str, country: str, city: str, is_used: bool) -> dict[str, Any]:
    return {
        "id": "n3" if is_used else "n8",
        "node": name,
        "country": country,
        "country_code": country[:2].upper(),
        "city": city,
        "city_code": "",
        "priority": 0,
        "online": is_used,
        "path": "direct 192.0.2.9:41641" if is_used else "",
        "latency": 0.019 if is_used else None,
        "is_used": is_used,
    }


class Told:
    """A source that says what a test puts into it."""

    def __init__(self) -> None:
        self.pinned: list[str] = []
        self._looks: asyncio.Queue[dict[str, Any] | str] = asyncio.Queue()
        self._news: asyncio.Queue[Row] = asyncio.Queue()

    def say(self, *looks: dict[str, Any] | str) -> None:
        for one in looks:
            self._looks.put_nowait(one)

    def happen(self, at: str, what: str) -> None:
        self._news.put_nowait(Row(None, ((at, "dim"), (what, "cyan"))))

    async def looks(self) -> AsyncIterator[dict[str, Any] | str]:
        while True:
            yield await self._looks.get()

    async def news(self) -> AsyncIterator[Row]:
        while True:
            yield await self._news.get()

    async def pin(self, exit_node: str) -> str:
        self.pinned.append(exit_node)
        return f"exit node: {exit_node}" if exit_node else "no exit node"


def screen_of(app: Top) -> str:
    """What a person would see, as text."""
    lines = [strip.text.rstrip() for strip in app.screen._compositor.render_strips()]
    return "\n".join(lines) + "\n"
