"""Control's map of relays in the relay room's own words."""

from __future__ import annotations

from ts_control.wire import DERPMap
from ts_derp.regions import RelayMap, RelayNode, RelayRegion


def translate_map(wire: DERPMap) -> RelayMap:
    scores = wire.home_params.region_score if wire.home_params is not None else None
    return RelayMap(
        regions={
            number: RelayRegion(
                id=number,
                code=region.region_code,
                name=region.region_name,
                no_measure_no_home=region.no_measure_no_home,
                nodes=tuple(
                    RelayNode(
                        name=node.name,
                        host_name=node.host_name,
                        cert_name=node.cert_name,
                        ipv4=node.ipv4,
                        ipv6=node.ipv6,
                        stun_port=node.stun_port,
                        stun_only=node.stun_only,
                        derp_port=node.derp_port,
                        insecure_for_tests=node.insecure_for_tests,
                        stun_test_ip=node.stun_test_ip,
                    )
                    for node in region.nodes
                ),
            )
            for number, region in wire.live_regions().items()
        },
        scores=dict(scores or {}),
    )
