"""What every test relies on, however the suite was started."""

from __future__ import annotations

import signal

# A shell that starts the suite in the background makes it, and every program it starts, deaf to Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
