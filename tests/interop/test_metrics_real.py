"""Our metrics beside those of a stock tailscaled: the same names, kinds and labels, and the same bytes at both ends."""

from __future__ import annotations

import functools

import pytest
import trio
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

import tailscale
from tailscale.metrics import exposition
from tests.interop.ours import joined
from tests.interop.rig import Rig

pytestmark = pytest.mark.peers("tailscaled", "tailscale")
MIB = 1 << 20
SENT, PORT = 10 * MIB, 9000
TOLERANCE = 0.03


def families(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def count(found: dict[str, Metric], name: str, path: str) -> float:
    return sum(sample.value for sample in found[name].samples if sample.labels["path"] == path)


async def sink(stream: tailscale.TcpStream) -> None:
    async with stream:
        left = SENT
        while left:
            left -= len(await stream.receive_some())
        await stream.send_all(b"done")
        await stream.receive_some()


@pytest.mark.parametrize("path", ["direct", "derper tls"])
async def test_both_ends_count_the_same(r: Rig, path: str) -> None:
    async with r.derper() as relay, r.headscale(regions=[relay.region]) as control:
        async with (
            joined(control, path=path) as ours,
            r.tailscaled(
                "daemon", control=control, auth_key=await control.auth_key(), relay_only=path != "direct"
            ) as daemon,
            trio.open_nursery() as nursery,
        ):
            listener = await ours.listen(PORT)
            nursery.start_soon(functools.partial(trio.serve_listeners, sink, [listener]))
            if path == "direct":
                await daemon.cli("ping", "--until-direct", "-c", "20", ours.ipv4 or "")
            async with await daemon.connect(ours.ipv4 or "", PORT) as stream:
                await stream.send_all(bytes(SENT))
                assert await stream.receive_some(16) == b"done"
            theirs, told = families(await daemon.cli("metrics", "print")), families(exposition(ours))
            nursery.cancel_scope.cancel()
    label = "direct_ipv4" if path == "direct" else "derp"
    sent, received = (
        count(theirs, "tailscaled_outbound_bytes", label),
        count(told, "tailscaled_inbound_bytes", label),
    )
    assert sent > SENT
    assert received == pytest.approx(sent, rel=TOLERANCE)
    compare_words(theirs, told)


def compare_words(theirs: dict[str, Metric], told: dict[str, Metric]) -> None:
    """What we tell under a name of theirs has its kind and its labels; every path they know is known to us."""
    shared = {name for name in told if name.startswith("tailscaled_")} & theirs.keys()
    assert {name for name in told if name.startswith("tailscaled_")} <= theirs.keys()
    for name in shared:
        assert told[name].type == theirs[name].type, name
        labels = [{tuple(sorted(sample.labels)) for sample in one[name].samples} for one in (told, theirs)]
        assert labels[0] == labels[1] or not theirs[name].samples, name
    for name in ("tailscaled_inbound_bytes", "tailscaled_outbound_packets"):
        paths = [{sample.labels["path"] for sample in one[name].samples} for one in (told, theirs)]
        assert paths[0] == paths[1], name
