"""Writes docs/pictures: the terminal interface and the status page over an invented tailnet, for when one has changed.

    .venv/bin/python docs/make_pictures.py

The status page needs a Chromium; without one its pictures stay as they are.
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import trio

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "tailscale")]

from tui_scripts import Told, look  # noqa: E402

from tailscale.tui.app import Top  # noqa: E402
from tailscale.web import serve_page, server  # noqa: E402
from tests.interop import browser  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
SIZE, LOOKS = (80, 24), 100
SCREENS = {"top-overview": "1", "top-paths": "3", "top-flows": "4"}
PAGES = {"web-wide": (1180, 900, True), "web-narrow": (390, 844, False)}


def invented(second: int) -> dict[str, Any]:
    """With names that the fonts of any machine have, and something by the relay."""
    made = look(second)
    made["received"]["derp"] += 4e5 * second
    made["peers"][2]["hostname"] = "ci-runner"
    return made


async def draw_screens() -> None:
    source = Told()
    async with Top(source).run_test(size=SIZE) as pilot:
        source.say(*map(invented, range(LOOKS)))
        for name, key in SCREENS.items():
            await pilot.pause()
            await pilot.press(key)
            await pilot.pause()
            picture = pilot.app.export_screenshot(title="pytailscale top")
            # Fonts are not fetched from elsewhere, and the same screen is the same file.
            picture = re.sub(r"@font-face \{.*?\}\n", "", picture, flags=re.DOTALL)
            picture = re.sub(r"terminal-\d+", name, picture)
            (PICTURES / f"{name}.svg").write_text(picture)


async def draw_pages() -> None:
    for name, (width, height, dark) in PAGES.items():
        looks = map(invented, range(10_000))
        with mock.patch.multiple(server, view=lambda _, looks=looks: next(looks), EVERY=0.005):
            await draw_page(PICTURES / f"{name}.png", width, height, dark)


async def draw_page(path: Path, width: int, height: int, dark: bool) -> None:
    def run(link: str) -> None:
        with browser.browser() as tab:
            tab.resize(width, height, dark=dark)
            tab.open(link)
            tab.until("Number(document.body?.dataset.looks ?? 0) >= 185")
            tab.picture(path)

    async with trio.open_nursery() as nursery:
        link = await nursery.start(serve_page, None)
        await trio.to_thread.run_sync(run, link)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    asyncio.run(draw_screens())
    if browser.chromium() is not None:
        trio.run(draw_pages)
