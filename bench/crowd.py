"""A control server of ours with a crowd of enrolled peers that never speak, in a process of its own.

Run: python -m bench.crowd --peers 1000 --region '<one DERP region as JSON, lower-cased Go names>'. It prints its URL
and an auth key as one line of JSON and ends when its standard input does. Each line it reads makes one peer move.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from typing import Any

import trio

from tests.interop.embedded import embedded_control
from ts_base.keys import DiscoPrivate, MachinePrivate, NodePrivate
from ts_control.server import ControlServer
from ts_control.wire import Hostinfo, MapRequest, NetInfo
from ts_control.wire_register import RegisterAuth, RegisterRequest

VERSION = 131


class Crowd:
    """Peers as a server knows them: a key, a home relay, an endpoint."""

    def __init__(self, server: ControlServer, home: int) -> None:
        self._server, self._home = server, home
        self._draw = random.Random(1).randbytes
        self._members: list[tuple[MachinePrivate, NodePrivate, Hostinfo]] = []

    def enroll(self, count: int) -> None:
        key = self._server.create_auth_key(reusable=True)
        for number in range(count):
            machine = MachinePrivate.generate(self._draw(32))
            node = NodePrivate.generate(self._draw(32))
            hostinfo = Hostinfo(hostname=f"m{number}", os="linux", net_info=NetInfo(preferred_derp=self._home))
            request = RegisterRequest(
                version=VERSION, node_key=node.public, hostinfo=hostinfo, auth=RegisterAuth(auth_key=key)
            )
            self._server.register(machine.public, request, trio.current_time(), self)
            self._members.append((machine, node, hostinfo))
            self.move(number)

    def move(self, number: int) -> None:
        """The peer says it is at another endpoint."""
        machine, node, hostinfo = self._members[number]
        endpoint = f"192.0.2.{number % 250 + 1}:{1024 + int.from_bytes(self._draw(2), 'big') % 60_000}"
        request = MapRequest(
            version=VERSION,
            node_key=node.public,
            disco_key=DiscoPrivate.generate(self._draw(32)).public,
            hostinfo=hostinfo,
            endpoints=(endpoint,),
            omit_peers=True,
        )
        self._server.request_map(machine.public, request, trio.current_time(), self)


async def run(peers: int, region: dict[str, Any]) -> None:
    async with embedded_control(region) as control:
        crowd = Crowd(control.server, region["regionid"])
        crowd.enroll(peers)
        auth_key = control.server.create_auth_key(reusable=True)
        print(json.dumps({"event": "up", "url": control.url, "auth_key": auth_key}), flush=True)
        moved = 0
        async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
            async for chunk in stdin:
                for _ in range(chunk.count(b"\n")):
                    crowd.move(moved % peers)
                    moved += 1
                control.service.poke()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=1000)
    parser.add_argument("--region", type=json.loads, required=True)
    options = parser.parse_args()
    trio.run(run, options.peers, options.region)


if __name__ == "__main__":
    main()
