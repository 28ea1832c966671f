"""`on_flow` for programs that are not trio's: asked where they live, and their handlers are given what they know.

Owns the way of a taken flow out of the loop thread. asyncio's handlers get `(reader, writer)` or a UDP socket; those of
plain threads a socket, in a thread of their own. What happens to a flow then is `carry.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from tailscale.carry import LOST, Splice
from tailscale.sockets.local import LocalStream
from tailscale.sockets.udp import UdpSocket
from tailscale.threads.awaiting import DEFAULT_STREAM_LIMIT, in_loop
from tailscale.threads.bridges import far_end
from tailscale.threads.loopback import TailnetSocket, loopback_pair
from tailscale.threads.udp_aio import UdpSocket as AioUdpSocket
from tailscale.threads.udp_sync import UdpSocket as SyncUdpSocket

if TYPE_CHECKING:
    from tailscale.forwarding import FlowAnswer, IncomingFlow
    from tailscale.sockets.tcp import TcpStream
    from tailscale.threads.loop_thread import LoopThread

THREADS_LIMIT = 256  # handlers of plain threads at once; further ones wait

Program = Callable[..., Any]


def on_flow_in_loop(
    loop: asyncio.AbstractEventLoop, thread: LoopThread, on_flow: Program
) -> Callable[[IncomingFlow], Awaitable[FlowAnswer]]:
    """An `on_flow` of asyncio's: it and its handlers run in `loop`."""
    ask = in_loop(loop, on_flow)

    async def answer(flow: IncomingFlow) -> FlowAnswer:
        said = await ask(flow)
        return partial(_handle_in_loop, loop, thread, said) if callable(said) else said

    return answer


async def _handle_in_loop(
    loop: asyncio.AbstractEventLoop, thread: LoopThread, handler: Program, end: TcpStream | UdpSocket
) -> None:
    if isinstance(end, UdpSocket):
        await in_loop(loop, handler)(AioUdpSocket(end, thread))
        return

    async def use(sock: TailnetSocket) -> None:
        sock.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=sock, limit=DEFAULT_STREAM_LIMIT)
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    await _through_socket(thread, end, in_loop(loop, use))


def on_flow_in_threads(
    thread: Callable[[], LoopThread], on_flow: Program
) -> Callable[[IncomingFlow], Awaitable[FlowAnswer]]:
    """An `on_flow` that blocks: it and its handlers run in threads of their own."""
    limiter: list[trio.CapacityLimiter] = []

    async def run(function: Program, *arguments: object) -> Any:
        if not limiter:
            limiter.append(trio.CapacityLimiter(THREADS_LIMIT))
        call = partial(contextvars.Context().run, function, *arguments)  # it is the program that does this
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=limiter[0])

    async def answer(flow: IncomingFlow) -> FlowAnswer:
        said = await run(on_flow, flow)
        return partial(handle, said) if callable(said) else said

    async def handle(handler: Program, end: TcpStream | UdpSocket) -> None:
        if isinstance(end, UdpSocket):
            await run(handler, SyncUdpSocket(end, thread()))
        else:
            await _through_socket(thread(), end, partial(run, handler))

    return answer


async def _through_socket(
    thread: LoopThread, stream: TcpStream, use: Callable[[TailnetSocket], Awaitable[Any]]
) -> None:
    """Let the program use a socket that stands for `stream`, until it is done and everything has been carried."""
    ours, theirs = loopback_pair()
    sock = TailnetSocket(theirs, far_end(thread, stream))
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_carry, thread, Splice(LocalStream(ours), stream))
        try:
            await use(sock)
        except Exception as error:
            failure = error
            nursery.cancel_scope.cancel()
        finally:
            sock.close()
    if failure is not None:
        raise failure


async def _carry(thread: LoopThread, splice: Splice) -> None:
    with contextlib.suppress(*LOST):  # told to both sides
        await thread.run_splice(splice)
