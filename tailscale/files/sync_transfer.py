"""Files under way, for plain threads: a Transfer in the thread of a Device."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Self

from tailscale.errors import DeviceClosed
from tailscale.files.errors import TransferFailed
from tailscale.files.faces import TransferFace, entering, leaving, next_of
from tailscale.threads.face import as_work

if TYPE_CHECKING:
    from tailscale.files.transfers import Progress, TransferReport


class Transfer(TransferFace):
    """Files under way to or from one peer: `report = transfer.wait()`, or `with` and `for`.

    ```python no-run: two devices
    with notes.push("bob", "thesis/") as transfer:
        for progress in transfer:
            print(f"{progress.fraction:.0%} at {progress.name}")
    print(transfer.result.files)
    ```
    """

    def __enter__(self) -> Self:
        transfer = self._transfer = self._thread.submit(as_work(self._make)).wait()
        self._thread.submit(entering(transfer)).wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._thread.submit(leaving(self._transfer)).wait()
            return
        self.cancel()
        with contextlib.suppress(TransferFailed, DeviceClosed):
            self._thread.submit(leaving(self._transfer)).wait()

    def wait(self) -> TransferReport:
        """Do all of it, and say what came of it."""
        with self:
            pass
        return self.result

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Progress:
        try:
            progress: Progress = self._thread.submit(lambda: next_of(self._entered())).wait()
        except DeviceClosed:
            raise StopIteration from None
        return progress
