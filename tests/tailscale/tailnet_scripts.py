"""What tests over a whole tailnet share: an echo service, a way to wait for a fact, counts of what may leak."""

from __future__ import annotations

import functools
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from tailscale import Device, TcpListener, TcpStream
from tailscale._assembly import Runtime


async def echo_stream(stream: TcpStream) -> None:
    async with stream:
        try:
            async for chunk in stream:
                await stream.send_all(chunk)
        except trio.BrokenResourceError:
            return


@asynccontextmanager
async def echo_service(device: Device, port: int = 0, *, host: str | None = None) -> AsyncIterator[TcpListener]:
    """Everything that connects hears itself, until the block is left."""
    listener = await device.listen(port, host=host)
    async with beside(functools.partial(trio.serve_listeners, echo_stream, [listener])):
        yield listener


@asynccontextmanager
async def beside(task: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Run `task` while the block runs. What the block raises comes out as it is, not in a group."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task)
            yield
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


async def echoed(client: Device, host: str, port: int, text: bytes = b"hello", timeout: float = 10) -> bytes:
    """What comes back from an echo service."""
    async with await client.tcp_connect(host, port, timeout=timeout) as stream:
        await stream.send_all(text)
        await stream.send_eof()
        got = bytearray()
        async for chunk in stream:
            got += chunk
        return bytes(got)


async def until(fact: Callable[[], Any], patience: float = 10.0) -> Any:
    """Wait until `fact()` is true: under a mock clock this costs nothing."""
    with trio.fail_after(patience):
        while not (found := fact()):  # noqa: ASYNC110 - a fact of any kind
            await trio.sleep(0.01)
        return found


def runtime_of(device: Device) -> Runtime:
    """What it runs on."""
    return device._ready()


def held_by(device: Device) -> dict[str, int]:
    """Everything of a running device that grows with use and must shrink again."""
    runtime = runtime_of(device)
    answers, stack = runtime.answers, runtime.stack
    stack._sweep_closed()
    return {
        "connections": stack.connections,
        "listeners": len(stack._tcp.listeners),
        "udp ports": len(stack._udp.ports),
        "exits": sum(stack.exits_in_use.values()),
        "pings": len(answers._pings),
        "dials": len(answers._dials),
        "event readers": len(runtime.readers),
        "bus readers": len(runtime.bus._inboxes),
        "tasks": count_tasks(runtime._nursery),
    }


def count_tasks(nursery: trio.Nursery | None) -> int:
    """Tasks below a nursery."""
    if nursery is None:
        return 0
    return sum(1 + sum(map(count_tasks, task.child_nurseries)) for task in nursery.child_tasks)


def collect() -> None:
    for _ in range(3):
        gc.collect()


def module_of(one: object) -> str:
    """Where its type is from; a few types of libraries hide theirs behind a descriptor."""
    module = type(one).__module__
    return module if isinstance(module, str) else ""


def attributes(one: Any) -> Iterator[tuple[str, Any]]:
    """The fields of an object, in a dict or in slots."""
    yield from getattr(one, "__dict__", {}).items()
    for made in type(one).__mro__:
        slots = made.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            plain = f"_{made.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name
            if name not in ("__weakref__", "__dict__") and hasattr(one, plain):
                yield plain, getattr(one, plain)
