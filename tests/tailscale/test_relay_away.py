"""While the relay is away and a direct path is free, dials get through; while control is away, the relay is found."""

from __future__ import annotations

import trio
from tailnet_scripts import until
from trio.testing import MockClock

from tailscale.state_file import MemoryStore
from tailscale.testing import Tailnet


async def test_dials_go_direct_while_the_relay_is_away(autojump_clock: MockClock) -> None:
    async with Tailnet(latency=0.005) as net:
        a, b = await net.device("a"), await net.device("b")
        async with await b.listen(80) as listener, trio.open_nursery() as nursery:

            async def swallow(stream: trio.abc.Stream) -> None:
                async with stream:
                    async for _ in stream:
                        pass

            nursery.start_soon(trio.serve_listeners, swallow, [listener])
            await trio.sleep(400)
            await net.relay.stop()
            await trio.sleep(5)
            for _ in range(5):
                began = trio.current_time()
                async with await a.tcp_connect("b", 80) as stream:
                    await stream.send_all(b"x")
                assert trio.current_time() - began < 1.5
                await trio.sleep(130)
            nursery.cancel_scope.cancel()


async def test_a_warm_start_has_its_relay_before_control_answers(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    store = MemoryStore()
    async with tailnet.device("a", state=store, ephemeral=False):
        pass
    await until(lambda: not tailnet.relay.server.server.statistics()["clients"])
    await tailnet.control.stop()
    async with trio.open_nursery() as nursery:

        async def start() -> None:
            async with tailnet.device("a", state=store, ephemeral=False):
                joined.set()
                await trio.sleep_forever()

        joined = trio.Event()
        nursery.start_soon(start)
        await until(lambda: bool(tailnet.relay.server.server.statistics()["homes"]))
        assert not joined.is_set()
        await tailnet.control.start()
        await joined.wait()
        nursery.cancel_scope.cancel()
