"""Our own coordination server on loopback as the rig likes control servers: with a `url`, over one of its relays."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from tailscale.testing.control import ControlService
from ts_control.server import ControlServer
from ts_control.wire import DERPMap, DERPNode, DERPRegion


def derp_map(region: dict[str, Any]) -> DERPMap:
    """A map of one region, given as the rig describes its relay: Go's names in lower case."""
    node = region["nodes"][0]
    listed = DERPNode(
        name=node["name"],
        region_id=node["regionid"],
        host_name=node["hostname"],
        cert_name=node["certname"],
        ipv4=node["ipv4"],
        ipv6=node["ipv6"],
        derp_port=node["derpport"],
        stun_port=node["stunport"],
        stun_test_ip=node["stuntestip"],
    )
    number, code, name = region["regionid"], region["regioncode"], region["regionname"]
    return DERPMap(regions={number: DERPRegion(region_id=number, region_code=code, region_name=name, nodes=(listed,))})


class EmbeddedControl:
    """The server, its service, and the few questions tests put to it."""

    def __init__(self, region: dict[str, Any], port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.server = ControlServer(entropy=os.urandom, wall_clock=time.time, url=self.url)
        self.server.set_derp_map(derp_map(region), trio.current_time())
        self.service = ControlService(self.server, entropy=os.urandom)

    def do(self, name: str, *arguments: Any, **named: Any) -> Any:
        result = getattr(self.server, name)(*arguments, trio.current_time(), **named)
        self.service.poke()
        return result

    def id_of(self, label: str) -> int:
        device = self.server.directory.by_label(label)
        assert device is not None
        return device.id


@asynccontextmanager
async def embedded_control(region: dict[str, Any]) -> AsyncIterator[EmbeddedControl]:
    """It serves until the block is left."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        control = EmbeddedControl(region, listeners[0].socket.getsockname()[1])
        nursery.start_soon(control.service.run_timers)
        nursery.start_soon(trio.serve_listeners, control.service.serve_stream, listeners)
        yield control
        nursery.cancel_scope.cancel()
