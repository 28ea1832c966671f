"""What happens to the whole process and concerns every Device in it: SIGTERM and fork.

Owns the one signal handler, and the list of devices that say goodbye before the process dies of it. By default SIGTERM
kills Python at once: control would keep an ephemeral node for minutes, and the next start would be `name-1`. The
handler is ours only where the program has none, and the process still dies of the signal: nothing else is changed.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from tailscale.errors import DeviceClosed

Goodbye = Callable[
    [Callable[[], None]], object
]  # called from the handler; calls back, from any thread, when it is said
PATIENCE = 5.0  # for all goodbyes together, also when a loop is stuck in the program's own code
DIED_OF_SIGTERM = 128 + signal.SIGTERM


class Termination:
    """Who is told of SIGTERM before the process dies of it."""

    def __init__(self) -> None:
        self._goodbyes: dict[object, Goodbye] = {}
        self._waiting_for: set[object] = set()
        self._pid = 0
        self._is_ending = False

    def register(self, goodbye: Goodbye) -> Callable[[], None]:
        """Until the returned function is called."""
        who = object()
        self._goodbyes[who] = goodbye

        def forget() -> None:
            self._goodbyes.pop(who, None)
            if who in self._waiting_for:  # it has closed in the meantime
                self._said(who)

        return forget

    def hear(self) -> None:
        """Take the signal, if it is nobody's. Only the main thread can; others have to live with what is there."""
        if _is_main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._terminate)
            self._pid = os.getpid()

    def let_go(self) -> None:
        """Leave the signal as it was, once no device is there."""
        if not self._goodbyes and _is_main_thread() and signal.getsignal(signal.SIGTERM) == self._terminate:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        if self._is_ending or not self._goodbyes or self._pid != os.getpid():
            _die()
        self._is_ending = True
        self._waiting_for.update(self._goodbyes)
        last_resort = threading.Timer(PATIENCE, os._exit, (DIED_OF_SIGTERM,))
        last_resort.daemon = True
        last_resort.start()
        for who, goodbye in list(self._goodbyes.items()):
            goodbye(lambda who=who: self._said(who))  # type: ignore[misc]

    def _said(self, who: object) -> None:
        self._waiting_for.discard(who)
        if not self._waiting_for:
            os.kill(os.getpid(), signal.SIGTERM)  # heard by the main thread, which alone may give up the handler


TERMINATION = Termination()


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _die() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


class OwnProcess:
    """The process a Device was opened in. A fork has its memory, but neither its threads nor its sockets' readers."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    @property
    def is_here(self) -> bool:
        return os.getpid() == self._pid

    def check(self) -> None:
        """Raise DeviceClosed in any other."""
        if not self.is_here:
            raise DeviceClosed(
                f"this Device was opened by process {self._pid}, of which this one, {os.getpid()}, is a fork: open one "
                "in each process, under a name of its own (multiprocessing: in the initializer, or start with 'spawn')"
            )
