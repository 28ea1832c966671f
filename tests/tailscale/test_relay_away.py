"""While the relay is away and a direct path is free, dials get through: found by a compressed day of soaking."""

from __future__ import annotations

import trio
from trio.testing import MockClock

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
