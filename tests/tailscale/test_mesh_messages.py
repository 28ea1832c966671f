"""Messages between the devices of one app: acknowledged, in order, from a proven sender."""

from __future__ import annotations

from mesh_scripts import meshes, next_of
from trio.testing import MockClock

from tailscale.testing import Tailnet


async def test_a_message_is_delivered_when_send_returns(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with meshes(tailnet, "a", "b") as (a, b), b.subscribe("chat") as inbox:
        bob = await a.peer("b", timeout=5)
        assert (bob.id, bob.name, bob.online, bob.connected) == (b.id, "b", True, True)
        for number in range(3):
            await bob.send("chat", {"number": number}, timeout=5)
        await a.send("b", "chat", b"bytes", timeout=5)
        got = [await next_of(inbox) for _ in range(4)]
        assert [message.data for message in got] == [*({"number": n} for n in range(3)), b"bytes"]
        assert [message.kind for message in got] == ["message"] * 3 + ["bytes"]
        assert {(message.sender.id, message.sender.node.hostname) for message in got} == {(a.id, "a")}
