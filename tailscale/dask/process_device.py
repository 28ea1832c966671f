"""The one Device that all of dask in this process speaks through: lent by the program, or opened at first use.

Owns when it opens and when it closes. One that was opened here is closed when the process ends, after dask has said its
goodbyes; one that was lent is its owner's. A forked child starts without any.
"""

from __future__ import annotations

import os
import threading
from functools import partial
from multiprocessing import util
from typing import TYPE_CHECKING

from tailscale.dask.settings import device_options
from tailscale.device import Device
from tailscale.errors import DeviceClosed, DeviceNotReady
from tailscale.threads.awaiting import outcome
from tailscale.threads.face import thread_of
from tailscale.threads.loop_thread import LoopThread

if TYPE_CHECKING:
    from tailscale import aio, sync

AFTER_DASK = -1  # multiprocessing runs what is below 0 last, when dask's own processes and clients have ended


class ProcessDevice:
    """At most one at a time; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lent: aio.Device | sync.Device | None = None  # kept: one that is lost would leave
        self._own: LoopThread | None = None
        self._is_over = False

    def lend(self, device: aio.Device | sync.Device | None) -> None:
        if device is not None and not device.is_open:
            raise DeviceNotReady("dask can be lent only a Device that is open: enter it first")
        with self._lock:
            self._lent = device

    def present(self) -> Device | None:
        """The Device, when there is one that has joined. Only for what may be read from any thread."""
        thread = self._own if self._lent is None else thread_of(self._lent)
        return thread.device if thread is not None and thread.is_open else None

    async def joined(self) -> LoopThread:
        """The thread of a Device that has joined. Giving up this wait does not give up the joining."""
        thread = self.started()
        await outcome(thread.ready)
        return thread

    def started(self) -> LoopThread:
        """The thread of a Device that has joined, or is about to."""
        with self._lock:
            if self._lent is not None:
                return thread_of(self._lent)
            if self._is_over:
                raise DeviceClosed("this process is ending: dask opens no Device any more")
            if self._own is None or self._own.ended.done():
                hostname, options = device_options()
                self._own = LoopThread(partial(Device, hostname, **options))
                self._own.start()
            return self._own

    def close(self) -> None:
        """Leave the tailnet with the Device that was opened here, if any."""
        with self._lock:
            own, self._own = self._own, None
        if own is not None:
            own.stop()
            own.join()

    def end(self) -> None:
        with self._lock:
            self._is_over = True
        self.close()

    def forget(self) -> None:
        """In a forked child: threads and sockets were not inherited."""
        self._lock = threading.Lock()
        self._lent = self._own = None


PROCESS_DEVICE = ProcessDevice()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=PROCESS_DEVICE.forget)
util.Finalize(None, PROCESS_DEVICE.end, exitpriority=AFTER_DASK)


def use(device: aio.Device | sync.Device | None) -> None:
    """Let all of dask in this process speak through `device`, which stays yours to close; None takes it back.

    Worker processes that dask starts cannot share it: each opens a Device of its own, with the key in `TS_AUTHKEY` or
    in the file that `distributed.comm.ts.auth-key-file` names.

    ```python
    from distributed import LocalCluster

    from tailscale import sync

    with sync.Device("farm") as device:
        tailscale.dask.use(device)
        with LocalCluster(protocol="ts://", processes=False, dashboard_address="127.0.0.1:0") as cluster:
            print(cluster.scheduler_address)
        tailscale.dask.use(None)
    ```
    """
    PROCESS_DEVICE.lend(device)


def close() -> None:
    """Leave the tailnet with the Device that dask opened in this process. Its next use opens another."""
    PROCESS_DEVICE.close()
