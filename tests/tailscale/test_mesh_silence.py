"""Who is no member hears nothing: what leaves a device that has a mesh, by three taps, among five hundred nodes.

The capture inside the tunnel, every datagram of the virtual network, and every frame that reaches the relay.
"""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import dpkt
import pytest
import trio
from mesh_scripts import meshes, next_of, until_met
from tailnet_scripts import until, world
from test_capture import packets_in
from trio.testing import MockClock

from bench.crowd import Crowd
from tailscale.mesh import Mesh
from tailscale.testing import Tailnet
from tailscale.testing.servers import REGION
from ts_base.ip import format_address
from ts_derp import frames
from ts_derp.server import DerpServer

OTHERS = 497


class Taps:
    """Where datagrams of the devices went, and for which node keys they gave packets to the relay."""

    def __init__(self, net: Tailnet, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hosts: Counter[str] = Counter()
        self.keys: Counter[bytes] = Counter()
        internet = world(net).internet
        carry, on_run = internet.carry, vars(DerpServer)["_on_run"]

        def carried(source: Any, destination: Any, datagrams: list[bytes], drops: Any) -> None:
            self.hosts[destination[0]] += len(datagrams)
            carry(source, destination, datagrams, drops)

        def relayed(server: DerpServer, client: Any, kind: Any, key: bytes, bodies: Any, now: float) -> None:
            if kind == frames.SEND_PACKET:
                self.keys[bytes(key)] += len(bodies)
            on_run(server, client, kind, key, bodies, now)

        monkeypatch.setattr(internet, "carry", carried)
        monkeypatch.setattr(DerpServer, "_on_run", relayed)


@pytest.mark.slow
async def test_not_one_packet_goes_to_the_497_of_500_that_are_no_members(
    autojump_clock: MockClock, tailnet: Tailnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    Crowd(tailnet.control.server, REGION).enroll(OTHERS)
    others = {format_address(each.addresses[0]) for each in tailnet.control.server.directory}
    taps = Taps(tailnet, monkeypatch)
    device, captured = await tailnet.device("a"), io.BytesIO()
    async with device.capture(captured), Mesh(device, "notes") as a, meshes(tailnet, "b", "c") as (b, c):
        await until_met(a, 2)
        async with (
            b.subscribe("chat"),
            c.subscribe("chat") as inbox,
            a.store("presence") as ours,
            b.store("presence") as theirs,
        ):
            assert len(a.device.peers) == OTHERS + 2
            report = await a.broadcast("chat", "hello")
            assert sorted(peer.node.hostname for peer in report.delivered) == ["b", "c"]
            assert (await next_of(inbox)).data == "hello"
            ours.mine = {"x": 1}
            await until(lambda: list(theirs.items()))
            await trio.sleep(120)
        members = {mesh.device.node.id for mesh in (a, b, c)}
        spoken_to = {
            peer.node.id for peer in a.device.status().peers if peer.bytes_sent or peer.handshake_age is not None
        }
        assert spoken_to == members - {a.device.node.id}
    packets = packets_in(captured.getvalue())
    sent = Counter(format_address(packet.ip.dst) for packet in packets if not packet.is_inbound)
    syns = [
        packet
        for packet in packets
        if isinstance(packet.ip.data, dpkt.tcp.TCP) and packet.ip.data.flags & dpkt.tcp.TH_SYN
    ]
    assert syns
    assert not others & sent.keys()
    assert sent.keys() <= {address for mesh in (b, c) for address in mesh.device.node.addresses}
    assert taps.hosts.total() > 10
    assert not [host for host in taps.hosts if host.startswith("192.0.2.")], "where the crowd says it is"
    known = {tailnet.control.server.directory.find(number).key.raw for number in members}
    assert taps.keys.total() > 0
    assert taps.keys.keys() <= known
