"""`serve_ssh`, for every kind of Device: which loop waits, which runs the handler, and how one ends the other."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, overload

import trio

from tailscale._faces import AsyncWithOnly, wrong_face
from tailscale.device import Device
from tailscale.errors import DeviceClosed
from tailscale.ssh.errors import SshUnavailable
from tailscale.ssh.host_keys import HostKey
from tailscale.threads.awaiting import ended
from tailscale.threads.face import DeviceFace, thread_of
from ts_base.optional import optional

if TYPE_CHECKING:
    from tailscale import aio, sync
    from tailscale.runtime.ssh_ground import SshGround
    from tailscale.ssh.loop import SshLoop
    from tailscale.ssh.programs import Call

Started = Callable[[int], object]
CallMaker = Callable[["SshLoop", trio.Nursery], "Call"]


@overload
def serve_ssh(
    device: Device | aio.Device,
    handler: Callable[..., Any] | None = None,
    port: int = 22,
    shell: bool = False,
    host_key: bytes | str | HostKey | None = None,
    *,
    started: Started | None = None,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> Coroutine[Any, Any, None]: ...
@overload
def serve_ssh(
    device: sync.Device,
    handler: Callable[..., Any] | None = None,
    port: int = 22,
    shell: bool = False,
    host_key: bytes | str | HostKey | None = None,
    *,
    started: Started | None = None,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None: ...
def serve_ssh(
    device: Device | DeviceFace,
    handler: Callable[..., Any] | None = None,
    port: int = 22,
    shell: bool = False,
    host_key: bytes | str | HostKey | None = None,
    *,
    started: Started | None = None,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> Coroutine[Any, Any, None] | None:
    """Be an SSH server for the tailnet until cancelled. The tailnet's policy decides who logs in as whom.

    ```python
    async def handler(session):
        async for line in session.stdin:
            await session.stdout.send_all(line.upper())
        session.exit(0)


    await tailscale.ssh.serve_ssh(device, handler)
    ```

    `handler` is called for each session with a `Session`. With a `tailscale.Device` it is a coroutine under trio, with
    a `tailscale.aio.Device` one in the loop that awaits this; with a `tailscale.sync.Device` it is a function, called
    in a thread with a `SyncSession`, while this call waits. `shell=True` instead gives a shell, sftp and forwards as
    the user who runs the program, and as nobody else.

    A policy without rules for this node lets nobody in: `device.health` says so. The host key is made once and kept in
    the device's state, unless `host_key` is one, an Ed25519 key in PEM; peers are told of it, so that `tailscale ssh`
    and `pytailscale ssh` know this node. `started` is called with the port once it listens; under `nursery.start`
    that is the value. Raises `SshUnavailable` without asyncssh: `pip install "pytailscale[ssh]"`.
    """
    if shell == (handler is not None):
        raise ValueError("serve_ssh takes a handler, or shell=True, and not both")
    if optional("asyncssh", "SSHServer") is None:
        raise SshUnavailable('an SSH server needs asyncssh: pip install "pytailscale[ssh]"')
    key = host_key if isinstance(host_key, HostKey) or host_key is None else HostKey.parse(host_key)

    def tell(number: int) -> None:
        task_status.started(number)
        if started is not None:
            started(number)

    if isinstance(device, Device):
        return _serve(device, _trio_call(handler), port, key, tell)
    if isinstance(device, AsyncWithOnly):
        return _under_asyncio(device, handler, port, key, tell)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(_under_asyncio(device, handler, port, key, tell, in_thread=True))
        return None
    raise wrong_face("`serve_ssh` with a tailscale.sync.Device blocks, and this thread has a running event loop")


def _trio_call(handler: Callable[..., Any] | None) -> CallMaker | None:
    if handler is None:
        return None

    def make(loop: SshLoop, nursery: trio.Nursery) -> Call:
        from tailscale.ssh.programs import under_trio

        return under_trio(handler, loop, nursery)

    return make


async def _serve(device: Device, call: CallMaker | None, port: int, key: HostKey | None, started: Started) -> None:
    """In the device's loop."""
    from tailscale.ssh.channels import Program
    from tailscale.ssh.loop import SshLoop
    from tailscale.ssh.programs import HandlerProgram, ShellProgram
    from tailscale.ssh.server import SshServer
    from tailscale.ssh.shell import Account

    ground = device.ssh_ground()
    key = key or await _own_key(ground)
    account = Account()
    async with (
        ground.advertised((key.public_text,)),
        await device.listen(port) as listener,
        SshLoop() as loop,
        trio.open_nursery() as nursery,
    ):
        program: Program = ShellProgram(account) if call is None else HandlerProgram(call(loop, nursery))
        server = SshServer(ground, loop, key, program, account if call is None else Anybody())
        with device.include("ssh", server):
            started(listener.port)
            with contextlib.suppress(trio.ClosedResourceError):  # the device is closed
                await server.run(listener, nursery)
            nursery.cancel_scope.cancel()


class Anybody:
    """To a handler, a user is a name."""

    def exists(self, name: str) -> bool:
        return True

    def serves(self, name: str) -> bool:
        return True


async def _own_key(ground: SshGround) -> HostKey:
    saved = ground.saved_key()
    if saved is not None:
        with contextlib.suppress(SshUnavailable):
            return HostKey.parse(saved)
    key = HostKey.generate()
    await ground.keep_key(key.private_text())
    return key


async def _under_asyncio(
    device: DeviceFace,
    handler: Callable[..., Any] | None,
    port: int,
    key: HostKey | None,
    started: Started,
    *,
    in_thread: bool = False,
) -> None:
    """The server is a job of the device's thread; this waits for it, and lets the handler run here meanwhile."""
    home, thread = asyncio.get_running_loop(), thread_of(device)
    was_up = threading.Event()

    def on_started(number: int) -> None:
        was_up.set()
        with contextlib.suppress(RuntimeError):  # that loop is gone
            home.call_soon_threadsafe(started, number)

    def make(loop: SshLoop, nursery: trio.Nursery) -> Call:
        from tailscale.ssh.programs import in_threads, under_asyncio

        assert handler is not None
        return in_threads(handler) if in_thread else under_asyncio(handler, home)

    call = make if handler is not None else None
    job = thread.submit(partial(_serve, thread.device, call, port, key, on_started))
    if (cancelled := await ended(job)) is not None:
        raise cancelled
    with contextlib.suppress(*[DeviceClosed] if was_up.is_set() else []):  # as under trio: then it has served its time
        job.future.result()
