"""`pytailscale demo`: a whole tailnet on this machine's loopback, told step by step, gone afterwards.

Owns the story; everything in it is done through the public faces that any program uses. Needs no root, no network and
no account, and leaves nothing behind. `demo_show.py` prints it.
"""

from __future__ import annotations

import argparse
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

import trio

from tailscale import __version__
from tailscale.cli.demo_page import fetch_page, page
from tailscale.cli.demo_show import Show
from tailscale.cli.exit_codes import FAILED, OK
from tailscale.cli.peers_table import show_peers
from tailscale.cli.screen import Screen, in_time
from tailscale.errors import ConnectionRefused, ConnectionTimedOut
from tailscale.figures import in_bytes
from tailscale.http import serve
from tailscale.testing import Tailnet

if TYPE_CHECKING:
    from tailscale.device import Device

ECHO_PORT, WEB_PORT, BULK_PORT, SECRET_PORT = 7, 80, 9000, 22
STORY_TIMEOUT = 30.0
BULK_SECONDS = 0.8
BULK_CHUNK = bytes(256 << 10)
DENIAL_TIMEOUT = 1.5
LAPTOP, SERVER = "laptop", "server"
ONLY_WEB = {"acls": [{"action": "accept", "src": ["*"], "dst": [f"*:{WEB_PORT}"]}]}


async def demo(options: argparse.Namespace, screen: Screen) -> int:
    show = Show(screen)
    show.title(f"pytailscale {__version__}: a whole tailnet on this machine, no root, no daemon")
    try:
        await Story(show).tell()
    except Exception as error:
        if not show.has_failed:
            raise
        if options.verbose:
            raise
        del error  # the failing step has said it
        return FAILED
    show.title(f"All of it in {in_time(show.elapsed)}. Your turn: pytailscale login, then pytailscale status.")
    return OK


class Story:
    """The tailnet while it lasts, and what happens in it, in order."""

    def __init__(self, show: Show) -> None:
        self._show = show
        self.net: Tailnet
        self.laptop: Device
        self.server: Device

    async def tell(self) -> None:
        with trio.fail_after(STORY_TIMEOUT):
            await self._tell()

    async def _tell(self) -> None:
        async with AsyncExitStack() as stack:
            await self._start(stack)
            services = await stack.enter_async_context(trio.open_nursery())
            await self._join()
            await self._names()
            await self._talk_by_relay(services)
            await self._web(services)
            await self._go_direct()
            await self._throughput(services)
            await self._denial(services)
            self._status()
            services.cancel_scope.cancel()
            with self._show.step("everything is taken down") as step:
                await stack.aclose()
                step.say("no file, no process and no open port is left")

    async def _start(self, stack: AsyncExitStack) -> None:
        with self._show.step("a control server and a relay start") as step:
            self.net = await stack.enter_async_context(Tailnet(real=True))
            step.say(f"{self.net.control.url} and a relay called 'test', with STUN")

    async def _join(self) -> None:
        with self._show.step("two devices join with auth keys") as step:
            self.net.block_udp(LAPTOP, SERVER)  # as if a firewall stood between them
            self.laptop = await self.net.device(LAPTOP)
            self.server = await self.net.device(SERVER)
            for device in (self.laptop, self.server):
                step.say(f"{device.name:<22} {device.ipv4}  {device.ipv6}")
            await self.laptop.ping(SERVER)  # asked again each second, where a lost first handshake would cost five

    async def _names(self) -> None:
        with self._show.step("a name becomes an address (MagicDNS)") as step:
            for name in (SERVER, self.server.name):
                step.say(f"{name} -> {await self.laptop.resolve(name)}")

    async def _talk_by_relay(self, services: trio.Nursery) -> None:
        with self._show.step("TCP both ways by the relay: a firewall blocks UDP") as step:
            for caller, called in ((self.laptop, self.server), (self.server, self.laptop)):
                services.start_soon(trio.serve_listeners, echo, [await called.listen(ECHO_PORT)])
                began = trio.current_time()
                async with await caller.tcp_connect(called.hostname, ECHO_PORT) as stream:
                    await stream.send_all(b"hello")
                    await stream.send_eof()
                    echoed = b"".join([data async for data in stream])
                    took = in_time(trio.current_time() - began)
                    step.check(echoed == b"hello", f"{called.hostname} echoed {echoed!r}")
                    step.say(
                        f"{caller.hostname} -> {called.hostname}: {echoed.decode()!r} and back in {took}, {stream.path}"
                    )

    async def _web(self, services: trio.Nursery) -> None:
        with self._show.step("a web page that knows who is asking") as step:
            await services.start(serve, page, self.server, WEB_PORT)
            text = await fetch_page(self.laptop, f"http://{SERVER}/")
            step.say(f"GET http://{SERVER}/ -> {text}")
            step.check(LAPTOP in text, "the page does not know its caller")

    async def _go_direct(self) -> None:
        with self._show.step("the firewall opens: from relay to direct") as step:
            before = await self.laptop.ping(SERVER)
            step.say(f"before  {before.path:<28} {in_time(before.latency)}")
            self.net.unblock_udp(LAPTOP, SERVER)
            began = trio.current_time()
            while (after := await self.laptop.ping(SERVER)).path.kind != "direct":
                step.wait(f"still {after.path}")
                await trio.sleep(0.05)
            took = in_time(trio.current_time() - began)
            step.say(f"after   {after.path:<28} {in_time(after.latency)}  (found in {took})")

    async def _throughput(self, services: trio.Nursery) -> None:
        with self._show.step("throughput of one TCP stream, both ends in this process") as step:
            services.start_soon(trio.serve_listeners, send_for_a_while, [await self.server.listen(BULK_PORT)])
            total, began = 0, trio.current_time()
            async with await self.laptop.tcp_connect(SERVER, BULK_PORT) as stream:
                async for data in stream:
                    total += len(data)
                    seconds = trio.current_time() - began
                    step.wait(f"{in_bytes(total)}  {total * 8 / seconds / 1e6:,.0f} Mbit/s")
            seconds = trio.current_time() - began
            step.say(f"{in_bytes(total)} in {in_time(seconds)}: {total * 8 / seconds / 1e6:,.0f} Mbit/s")

    async def _denial(self, services: trio.Nursery) -> None:
        with self._show.step(f"the policy changes: only port {WEB_PORT} is let through") as step:
            services.start_soon(trio.serve_listeners, echo, [await self.server.listen(SECRET_PORT)])
            await self._knock()
            step.say(f"before  port {SECRET_PORT}: open")
            self.net.policy(ONLY_WEB)
            try:
                while True:  # until the new policy has arrived over there
                    await self._knock()
                    await trio.sleep(0.01)
            except (ConnectionRefused, ConnectionTimedOut) as error:
                step.say(f"after   port {SECRET_PORT}: {type(error).__name__}: {error}")
            await fetch_page(self.laptop, f"http://{SERVER}/")
            step.say(f"        port {WEB_PORT}: still served")

    async def _knock(self) -> None:
        async with await self.laptop.tcp_connect(SERVER, SECRET_PORT, timeout=DENIAL_TIMEOUT):
            pass

    def _status(self) -> None:
        with self._show.step("how it stands now, as `pytailscale status` tells it") as step:
            status = self.laptop.status()
            step.say(f"{LAPTOP} is {status.state} in {status.tailnet}, home relay {status.relay}")
        show_peers(self._show.screen, status.peers, indent=self._show.indent)


async def echo(stream: trio.abc.HalfCloseableStream) -> None:
    with suppress(trio.BrokenResourceError):  # a caller whose other address answered first resets this one
        async for data in stream:
            await stream.send_all(data)
    await stream.aclose()


async def send_for_a_while(stream: trio.abc.Stream) -> None:
    with suppress(trio.BrokenResourceError), trio.move_on_after(BULK_SECONDS):
        while True:
            await stream.send_all(BULK_CHUNK)
    await stream.aclose()
