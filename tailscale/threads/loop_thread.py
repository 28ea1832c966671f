"""A trio loop in a thread of its own with one Device in it: what the asyncio and the threaded face stand on.

Owns the thread, the jobs handed to it and its end. A job's result, error and cancellation cross the border; nothing
else does. Keeps running whatever the program's own thread is doing, so a busy notebook cell drops no peer.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import trio

from tailscale._green import who_patched
from tailscale._process import TERMINATION, OwnProcess
from tailscale.carry import LOST, Splice
from tailscale.errors import DeviceClosed, DeviceNotReady, TailscaleError, WrongFace

if TYPE_CHECKING:
    from tailscale.device import Device

T = TypeVar("T")
IN_LOOP_THREAD: ContextVar[bool] = ContextVar("IN_LOOP_THREAD", default=False)
"""Whether it is a device that does this, and not the program; also in the threads that trio has for waiting."""
GOODBYE = 1.0  # what the program wrote last gets this long to leave


class Carried(Protocol):
    """A connection of the program's that crosses between its thread and the loop."""

    def finish(self) -> None:
        """Send what the program has written, then end."""


class Job(Generic[T]):
    """One piece of work in the loop; `future` tells how it went."""

    def __init__(self, thread: LoopThread, work: Callable[[], Awaitable[T]], discard: Callable[[T], object] | None):
        self.future: Future[T] = Future()
        self._thread = thread
        self._work = work
        self._discard = discard
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        try:
            with self._scope:
                result = await self._work()
        except trio.Cancelled:
            self.future.set_exception(DeviceClosed("this Device was closed meanwhile"))
            raise
        except Exception as error:
            self.future.set_exception(error)
            return
        if self._scope.cancelled_caught:
            self.future.set_exception(DeviceClosed("this call was given up"))
        else:
            self.future.set_result(result)

    def give_up(self) -> None:
        """Cancel it; a result that comes anyway belongs to nobody and is closed."""
        self.future.add_done_callback(self._throw_away)
        with contextlib.suppress(DeviceClosed):
            self._thread.call_soon(self._scope.cancel)

    def _throw_away(self, future: Future[T]) -> None:
        if self._discard is not None and future.exception() is None:
            self._discard(future.result())

    def wait(self) -> T:
        """Block until done. Ctrl-C gives the job up."""
        try:
            return self.future.result()
        except TailscaleError as error:  # where the program was, not the thread that did it
            if not self.future.done():
                self.give_up()
            raise error.with_traceback(None) from error.__cause__
        except BaseException:
            if not self.future.done() or self.future.exception() is None:
                self.give_up()
            raise


class LoopThread:
    """Starts with `start`, ends with `stop`, once."""

    def __init__(self, make_device: Callable[[], Device], handle_sigterm: bool = True) -> None:
        self._make_device = make_device
        self._handle_sigterm = handle_sigterm
        self._device: Device | None = None
        self._thread: threading.Thread | None = None
        self._is_unattended = False  # nobody has begun to close it, or said that he will
        self._started = threading.Event()  # the loop runs, or never will
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery | None = None
        self._scope = trio.CancelScope()
        self._asked_to_stop = trio.Event()
        self._jobs: set[Job[Any]] = set()
        self._carried: set[Carried] = set()
        self._carried_one = trio.Event()
        self._process = OwnProcess()
        self.ready: Future[None] = Future()
        self.ended: Future[None] = Future()

    # From any thread

    def start(self) -> None:
        """`ready` tells when the device is usable, or why it is not."""
        if self._thread is not None:
            what = "has been closed" if self.ended.done() else "is being opened already"
            raise DeviceClosed(f"this Device {what}, and one can be opened once: make a new one")
        if sentence := who_patched():
            raise WrongFace(sentence)
        self._device = self._make_device()
        self._process = OwnProcess()
        if self._handle_sigterm:  # here, where it may be the main thread; the device itself is in another
            TERMINATION.hear()
        self._thread = threading.Thread(target=self._run, name="tailscale", daemon=True)
        self._is_unattended = True
        self._thread.start()

    @property
    def has_started(self) -> bool:
        return self._thread is not None

    @property
    def is_left_open(self) -> bool:
        """Whether it runs, in this process, and nobody has begun to close it."""
        return self._is_unattended and not self.ended.done() and self._process.is_here

    @property
    def is_open(self) -> bool:
        """The device is usable."""
        return self.ready.done() and self.ready.exception() is None and not self.ended.done()

    def attend(self) -> None:
        """Whoever calls this will close it, whatever becomes of the program's loop."""
        self._is_unattended = False

    def stop(self) -> None:
        """Ask it to end; `ended` tells when it has. Before it is ready this gives up starting."""
        self._is_unattended = False
        if self._thread is None:
            return
        with contextlib.suppress(DeviceClosed):
            self.call_soon(self._stop)

    def join(self) -> None:
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
            TERMINATION.let_go()

    def check_process(self) -> None:
        """DeviceClosed in a child process, which has no such thread."""
        self._process.check()

    def call_soon(self, function: Callable[..., object], *arguments: object) -> None:
        """Run a plain function in the loop."""
        if self._thread is None:
            raise DeviceNotReady("this Device has not been entered: use it inside `with`")
        self._process.check()
        if self._token is None:
            self._started.wait()
        try:
            if self._token is None:
                raise trio.RunFinishedError
            self._token.run_sync_soon(function, *arguments)
        except trio.RunFinishedError:
            raise DeviceClosed("this Device has been closed: make a new one") from None

    def submit(self, work: Callable[[], Awaitable[T]], discard: Callable[[T], object] | None = None) -> Job[T]:
        """Run `await work()` in the loop."""
        job = Job(self, work, discard)
        self._jobs.add(job)
        job.future.add_done_callback(lambda _: self._jobs.discard(job))
        try:
            self.call_soon(self._start_job, job)
        except Exception:
            self._jobs.discard(job)
            raise
        return job

    @property
    def device(self) -> Device:
        """The Device; touch it only inside the loop."""
        if self._device is None:
            raise DeviceNotReady("this Device has not been entered: use it inside `with`")
        return self._device

    # Inside the loop

    def _run(self) -> None:
        IN_LOOP_THREAD.set(True)
        try:
            trio.run(self._main)
        except BaseException as error:
            outcome: BaseException | None = error
        else:
            outcome = None
        self._started.set()
        for job in tuple(self._jobs):
            job.future.set_exception(DeviceClosed("this Device was closed meanwhile"))
        if not self.ready.done():
            self.ready.set_exception(outcome or DeviceClosed("this Device was closed before it was ready"))
            outcome = None
        if outcome is not None:
            self.ended.set_exception(outcome)
        else:
            self.ended.set_result(None)

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._started.set()
        with self._scope:
            async with self.device, trio.open_nursery() as nursery:
                self._nursery = nursery
                self.ready.set_result(None)
                try:
                    await self._asked_to_stop.wait()
                    await self._let_all_finish()
                finally:
                    self._nursery = None
                nursery.cancel_scope.cancel()

    def _stop(self) -> None:
        self._asked_to_stop.set()
        if not self.ready.done():
            self._scope.cancel()

    def _start_job(self, job: Job[Any]) -> None:
        if self._nursery is None:
            if not job.future.done():
                job.future.set_exception(DeviceClosed("this Device has been closed: make a new one"))
            return
        self._nursery.start_soon(job.run)

    def spawn(self, function: Callable[..., Awaitable[Any]], *arguments: object) -> trio.CancelScope:
        """A task that lives until it ends, is cancelled by the returned scope, or the device closes."""
        if self._nursery is None:
            raise DeviceClosed("this Device has been closed: make a new one")
        scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                await function(*arguments)

        self._nursery.start_soon(run)
        return scope

    def join_streams(self, splice: Splice) -> None:
        """Run a splice in the background, as long as it has something to carry."""
        self.spawn(self._run_quietly, splice)

    async def _run_quietly(self, splice: Splice) -> None:
        with contextlib.suppress(*LOST):  # told to both sides
            await self.run_splice(splice)

    async def run_splice(self, splice: Splice) -> None:
        """Run a splice that is given time to finish when the device closes."""
        self.carry(splice)
        try:
            await splice.run()
        finally:
            self.carried(splice)

    def carry(self, one: Carried) -> None:
        """From now on it is given time to finish when the device closes, until `carried`."""
        self._carried.add(one)

    def carried(self, one: Carried) -> None:
        """It has ended."""
        self._carried.discard(one)
        self._carried_one.set()

    async def _let_all_finish(self) -> None:
        for one in tuple(self._carried):
            one.finish()
        with trio.move_on_after(GOODBYE):
            while self._carried:
                self._carried_one = trio.Event()
                await self._carried_one.wait()
