"""Whom the lock does not vouch for hears nothing: no datagram and no relayed frame goes to it, whatever it sends."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import trio
from tailnet_scripts import until, world
from trio.testing import MockClock

from tailscale.device import Device
from tailscale.testing import Tailnet
from ts_base.keys import NodePublic
from ts_dataplane.disco import Boxes, CallMeMaybe, Message, Ping
from ts_derp import frames
from ts_derp.server import DerpServer

KINDS = {1: "initiation", 2: "response", 4: "data", ord("T"): "disco"}


class Taps:
    """What goes between hosts, and between node keys over the relay, by kind; and what is said in disco messages."""

    def __init__(self, net: Tailnet, monkeypatch: pytest.MonkeyPatch) -> None:
        self.direct: Counter[tuple[str, str, str]] = Counter()
        self.relayed: Counter[tuple[bytes, bytes, str]] = Counter()
        self.sealed: Counter[tuple[bytes, type[Message]]] = Counter()
        self._net = net
        internet = world(net).internet
        carry, on_run, seal = internet.carry, vars(DerpServer)["_on_run"], Boxes.seal

        def carried(source: Any, destination: Any, datagrams: list[bytes], drops: Any) -> None:
            self.direct.update((source[0], destination[0], KINDS.get(one[0], "other")) for one in datagrams)
            carry(source, destination, datagrams, drops)

        def relayed(server: DerpServer, client: Any, kind: Any, key: bytes, bodies: Any, now: float) -> None:
            if kind == frames.SEND_PACKET:
                ends = bytes(client.key), bytes(key)
                self.relayed.update((*ends, KINDS.get(one[0], "other")) for one in bodies)
            on_run(server, client, kind, key, bodies, now)

        def sealing(boxes: Boxes, theirs: bytes, message: Message) -> bytes:
            self.sealed[bytes(theirs), type(message)] += 1
            return seal(boxes, theirs, message)

        monkeypatch.setattr(internet, "carry", carried)
        monkeypatch.setattr(DerpServer, "_on_run", relayed)
        monkeypatch.setattr(Boxes, "seal", sealing)

    def between(self, sender: Device, receiver: Device) -> Counter[str]:
        """By "direct" or "relayed" and kind."""
        found: Counter[str] = Counter()
        hosts = tuple(self._net.host(device.hostname).address for device in (sender, receiver))
        for (source, destination, kind), count in self.direct.items():
            found[f"direct {kind}"] += count if (source, destination) == hosts else 0
        keys = raw_key(sender), raw_key(receiver)
        for (source_key, destination_key, kind), count in self.relayed.items():
            found[f"relayed {kind}"] += count if (source_key, destination_key) == keys else 0
        return +found


def raw_key(device: Device) -> bytes:
    return NodePublic.parse(device.lock.node_key).raw


async def test_unsigned_peer_that_sends_everything_is_sent_nothing(
    autojump_clock: MockClock, tailnet: Tailnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Handshakes, pings of all kinds, CallMeMaybes: over the relay and directly, while a signed peer is talked to."""
    taps = Taps(tailnet, monkeypatch)
    async with tailnet.device("a") as a, tailnet.device("b") as b:
        lock = tailnet.lock()
        await until(lambda: a.lock.enabled and b.lock.enabled)
        async with tailnet.device("c") as c:
            await until(lambda: a.lock.hidden_peers and c.lock.enabled)
            assert c.netmap is not None
            disco = c.netmap.peers[tailnet.id_of(a)].disco_key.raw
            assert (await b.ping("a")).node is not None
            for kind in ("disco", "tsmp", "icmp"):
                with pytest.raises(TimeoutError):
                    await c.ping("a", kind, timeout=10)
            with pytest.raises(OSError):
                await c.tcp_connect("a", 80, timeout=20)
            await trio.sleep(60)
            sent = taps.between(c, a)
            assert {"direct disco", "relayed disco", "relayed initiation"} <= sent.keys()
            assert taps.sealed[disco, CallMeMaybe] > 0
            assert taps.sealed[disco, Ping] > 0
            assert taps.between(b, a)
            assert taps.between(a, b)
            assert not taps.between(a, c)
            assert not taps.between(b, c)
            # The taps are where they should be: once somebody signs, it is answered.
            lock.sign(c)
            await until(lambda: not a.lock.hidden_peers)
            assert (await c.ping("a")).node is not None
            assert taps.between(a, c)
