"""Writes docs/pictures: screens of the terminal interface over an invented tailnet. Run it after a page has changed.

.venv/bin/python docs/make_pictures.py
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "tailscale"))

from tui_scripts import Told, look  # noqa: E402

from tailscale.tui.app import Top  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
SIZE = (80, 24)
WANTED = {"top-overview": "1", "top-paths": "3", "top-flows": "4"}


async def draw() -> None:
    source = Told()
    async with Top(source).run_test(size=SIZE) as pilot:
        source.say(*(look(second) for second in range(100)))
        for name, key in WANTED.items():
            await pilot.pause()
            await pilot.press(key)
            await pilot.pause()
            picture = pilot.app.export_screenshot(title="pytailscale top")
            # Fonts are not fetched from elsewhere, and the same screen is the same file.
            picture = re.sub(r"@font-face \{.*?\}\n", "", picture, flags=re.DOTALL)
            picture = re.sub(r"terminal-\d+", name, picture)
            (PICTURES / f"{name}.svg").write_text(picture)


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    asyncio.run(draw())
