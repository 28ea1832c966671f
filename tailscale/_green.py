"""gevent and eventlet replace the threads, sockets and polls of a whole process. Where they have, say so at once.

trio needs the real ones: under gevent it finds no `epoll`, under eventlet it cannot be imported. Known before trio is.
"""

from __future__ import annotations

import sys

NEEDED = ("select", "socket", "thread")


def who_patched() -> str:
    """The sentence about what this process cannot do; "" where nothing was replaced."""
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    if gevent is not None and any(gevent.is_module_patched(name) for name in NEEDED):
        who = "gevent"
    elif eventlet is not None and any(eventlet.is_monkey_patched(name) for name in NEEDED):
        who = "eventlet"
    else:
        return ""
    return (
        f"{who} has replaced the threads and sockets of this process, and a device needs the real ones: keep it in "
        "another process, such as `pytailscale proxy`, and dial by that"
    )


def check_threads() -> None:
    """Raise ImportError where a device could not run."""
    sentence = who_patched()
    if sentence:
        raise ImportError(sentence)
