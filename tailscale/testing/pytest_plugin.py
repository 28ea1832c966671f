"""The `tailnet` fixture: an in-process tailnet of the test's own, gone when the test is.

Ask for `autojump_clock` too and minutes pass in no time. Needs pytest-trio (`pip install pytailscale[testing]`).
Importing this module is cheap: suites that never use the fixture load nothing for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tailscale.testing.tailnet import Tailnet


@pytest.fixture
async def tailnet() -> AsyncIterator[Tailnet]:
    """A tailnet in this process: `a = await tailnet.device("a")`."""
    from tailscale.testing.tailnet import Tailnet

    async with Tailnet() as net:
        yield net
