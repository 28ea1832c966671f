"""Nodes, deltas and entropy the control tests share."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from ts_base.keys import DiscoPublic, MachinePublic, NodePublic
from ts_control.gojson import from_unix_time
from ts_control.wire import Hostinfo, MapResponse, Node

NOW = 1_800_000_000.0


def seeded(seed: int = 1) -> Callable[[int], bytes]:
    """Entropy that a test can replay."""
    return random.Random(seed).randbytes


def make_node(number: int, **fields: Any) -> Node:
    draw = seeded(number)
    address = f"100.64.{number >> 8}.{number & 255}/32"
    defaults: dict[str, Any] = {
        "id": number,
        "stable_id": str(number),
        "name": f"node-{number}.rig.test.",
        "user": 1,
        "key": NodePublic(draw(32)),
        "machine": MachinePublic(draw(32)),
        "disco_key": DiscoPublic(draw(32)),
        "addresses": (address,),
        "allowed_ips": (address,),
        "hostinfo": Hostinfo(os="linux", hostname=f"node-{number}"),
        "created": from_unix_time(NOW - 1000),
    }
    return Node(**{**defaults, **fields})


def first_map(*numbers: int, **fields: Any) -> MapResponse:
    return MapResponse(node=make_node(1), peers=tuple(make_node(number) for number in numbers), **fields)
