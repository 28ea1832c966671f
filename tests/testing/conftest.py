"""A clock that jumps when nothing is left to do, but not while a worker thread still has something."""

from __future__ import annotations

import pytest
from trio.testing import MockClock


@pytest.fixture
def autojump_clock() -> MockClock:
    """A device saves its state in a thread, which the clock does not see: it waits a moment before it jumps."""
    return MockClock(autojump_threshold=0.005)
