"""One node's map read twice: by upstream's `tsp`, and by us. Peers, policy, routes, tags, names: nothing may differ.

The first test compares the messages field by field, the second the map we folded from deltas with a full one.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from tailscale.runtime.network import HostNetwork
from tailscale.state_file import MemoryStore
from tests.interop import build
from tests.interop.ours import far_end, joined, tailnet
from tests.interop.processes import poll_until
from tests.interop.rig import Headscale, Rig
from tests.tailscale.tailnet_scripts import runtime_of
from ts_control.client import ControlClient
from ts_control.gojson import decode_json_untrusted, encode_json
from ts_control.netmap import NetMap
from ts_control.wire import CAPABILITY_VERSION, Hostinfo, MapRequest, MapResponse

pytestmark = pytest.mark.peers("tsp")

Json = dict[str, Any]

POLICY = {
    "groups": {"group:ops": ["alice@"]},
    "tagOwners": {"tag:db": ["alice@"], "tag:web": ["alice@"]},
    "hosts": {"lan": "10.44.0.0/24"},
    "acls": [
        {"action": "accept", "src": ["group:ops"], "dst": ["tag:db:22,80-90", "lan:*"]},
        {"action": "accept", "src": ["tag:db", "tag:web"], "dst": ["*:443"], "proto": "tcp"},
        {"action": "accept", "src": ["*"], "dst": ["*:7"]},
    ],
}
OURS_ALONE = {
    "Name",
    "Hostinfo",
    "Cap",
    "DiscoKey",
    "Endpoints",
    "HomeDERP",
    "DERP",
}  # each reader tells these about itself
MOMENT = re.compile(r"^\d{4}-\d\d-\d\dT[\d:]{8}(\.\d+)?Z$")
VOLATILE = {"LastSeen", "Online", "Cap"}  # Headscale fills Cap with the version of whoever asks
PASSING = {"ControlTime", "MapSessionHandle", "Seq", "KeepAlive", "PingRequest"}


def _is_nothing(value: object) -> bool:
    return value in (None, "", 0, False, [], {}) or value == "0001-01-01T00:00:00Z"


def normal(value: Any) -> Any:
    """Without what is empty, which either side may leave out; lists of texts in one order."""
    if isinstance(value, dict):
        kept = {name: normal(item) for name, item in value.items() if name not in VOLATILE}
        return {name: item for name, item in kept.items() if not _is_nothing(item)}
    if isinstance(value, list):
        return [normal(item) for item in value]
    if isinstance(value, str) and MOMENT.match(value):
        return msgspec.convert(value, datetime)  # Go counts nanoseconds, we round to microseconds
    return value


def normal_map(message: Json) -> Json:
    whole: Json = normal({name: value for name, value in message.items() if name not in PASSING})
    whole["Node"] = {name: value for name, value in whole["Node"].items() if name not in OURS_ALONE}
    whole["Peers"] = sorted(whole["Peers"], key=lambda peer: peer["ID"])
    whole["UserProfiles"] = sorted(whole["UserProfiles"], key=lambda user: user["ID"])
    return whole


def differences(ours: Any, theirs: Any, where: str) -> Iterator[str]:
    """Each place where the two differ, with both sides."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in sorted(ours.keys() | theirs.keys()):
            yield from differences(ours.get(name), theirs.get(name), f"{where}.{name}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, (left, right) in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(left, right, f"{where}[{number}]")
    elif ours != theirs:
        yield f"{where}: ours {ours!r}, theirs {theirs!r}"


async def read_by_tsp(hs: Headscale, store: MemoryStore, folder: Path) -> Json:
    """The first message of a stream, as upstream's types print it."""
    assert store.state is not None
    key_file = folder / "server.key"
    tsp = str(build.binary("tsp"))
    await trio.run_process([tsp, "-s", hs.url, "discover-server-key", "-o", str(key_file)])
    node = {
        "node_key": "privkey:" + store.state.node_key.raw.hex(),
        "machine_key": "privkey:" + store.state.machine_key.raw.hex(),
        "server_url": hs.url,
        "server_key": key_file.read_text().strip(),
    }
    (folder / "node.json").write_text(json.dumps(node))
    async with trio.open_nursery() as nursery:
        command = [tsp, "-s", hs.url, "map", "-n", str(folder / "node.json"), "-stream"]
        run = partial(trio.run_process, command, stdout=subprocess.PIPE, check=False)
        process = await nursery.start(run)
        text = b""
        with trio.fail_after(20):
            while True:
                text += await process.stdout.receive_some(1 << 20)
                try:
                    message, _ = json.JSONDecoder().raw_decode(text.decode())
                except ValueError:
                    continue
                break
        nursery.cancel_scope.cancel()
    assert isinstance(message, dict)
    return message


async def read_by_us(hs: Headscale, store: MemoryStore) -> Json:
    state = store.state
    assert state is not None
    request = MapRequest(
        version=CAPABILITY_VERSION,
        stream=True,
        compress="zstd",
        node_key=state.node_key.public,
        hostinfo=Hostinfo(hostname="ours"),
    )
    client = ControlClient(hs.url, HostNetwork(), state.machine_key)
    async with client.connect() as connection, connection.map_stream(request) as stream:
        message: Json = json.loads(encode_json(await stream.receive()))
        return message


async def test_both_read_the_same_map(r: Rig, tmp_path: Path) -> None:
    store = MemoryStore()
    async with (
        tailnet(r, policy=POLICY) as hs,
        far_end(r, hs, "tsnet"),
        joined(hs, "web", auth_key=await hs.auth_key(tags=["tag:web"])),
        joined(hs, "router", advertise_routes=["10.44.0.0/24", "0.0.0.0/0"]),
    ):
        hs.set_extra_records([{"name": "grafana.rig.test", "type": "A", "value": "100.64.0.9"}])
        await hs.tag("db", ["tag:db"])
        await hs.approve_routes("router", ["10.44.0.0/24"])
        async with joined(hs, state=store):
            await hs.wait_node("ours")

        async def at_rest() -> tuple[Json, Json] | None:
            """Both readings, when nothing moved meanwhile."""
            before = normal_map(await read_by_us(hs, store))
            theirs = normal_map(await read_by_tsp(hs, store, tmp_path))
            return (before, theirs) if before == normal_map(await read_by_us(hs, store)) else None

        ours, theirs = await poll_until("the map to rest", at_rest)
        assert len(theirs["Peers"]) == 3
        assert list(differences(ours, theirs, "")) == []


async def test_what_deltas_made_is_what_a_full_map_says(r: Rig, tmp_path: Path) -> None:
    store = MemoryStore()
    async with tailnet(r) as hs, far_end(r, hs, "tsnet"), joined(hs, "web"), joined(hs, "gone"):
        async with joined(hs, state=store) as us:
            await hs.set_policy(POLICY)
            await hs.tag("db", ["tag:db"])
            await hs.rename("web", "shop")
            await hs.delete("gone")
            async with joined(hs, "router", advertise_routes=["10.44.0.0/24"]):
                await hs.approve_routes("router", ["10.44.0.0/24"])

                async def settled() -> bool:
                    await trio.lowlevel.checkpoint()
                    names = {peer.hostname: peer for peer in us.peers.values()}
                    return set(names) == {"db", "shop", "router"} and bool(names["router"].routes)

                await poll_until("every delta", settled)

                async def at_rest() -> tuple[NetMap, NetMap] | None:
                    """What we folded and what is told at once, when nothing moved meanwhile."""
                    folded = runtime_of(us).directory.netmap
                    text = json.dumps(await read_by_tsp(hs, store, tmp_path)).encode()
                    full = NetMap.empty().apply(decode_json_untrusted(MapResponse, text), 0.0)
                    return (folded, full) if runtime_of(us).directory.netmap is folded else None

                folded, full = await poll_until("the map to rest", at_rest)
        assert normal_peers(folded) == normal_peers(full)
        assert folded.packet_filters == full.packet_filters
        assert folded.dns == full.dns
        assert folded.derp_map == full.derp_map
        assert set(folded.user_profiles) >= set(full.user_profiles)


def normal_peers(netmap: NetMap) -> dict[int, Json]:
    return {number: normal(json.loads(encode_json(peer))) for number, peer in netmap.peers.items()}
