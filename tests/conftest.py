"""What every test relies on, however the suite was started."""

from __future__ import annotations

import gc
import signal

from hypothesis import settings

# A shell that starts the suite in the background makes it, and every program it starts, deaf to Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every machine, however slow it is. `pytest --hypothesis-profile=explore` looks for new ones.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("same")


def pytest_collection_finish() -> None:
    """Thousands of tests and what they import stay for good: no garbage collection looks at them again."""
    gc.collect()
    gc.freeze()
