"""What a device offers by itself reaches its peers: by control's map, and in the answers to their pings."""

from __future__ import annotations

import pytest
from tailnet_scripts import runtime_of, until
from trio.testing import MockClock

from tailscale.runtime.messages import Offer
from tailscale.runtime.offers import offer
from tailscale.testing import Tailnet
from ts_control.errors import RequestRefused
from ts_control.wire import Service


async def test_an_offered_peer_api_is_known_to_peers(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a", peerapi=False), await tailnet.device("b", peerapi=False)
    runtime = runtime_of(b)
    offer(runtime.bus, "peerapi", Offer(services=(Service(proto="peerapi4", port=41234),)))
    await until(lambda: runtime.dataplane.engine.peerapi_port == 41234)

    def told_ports() -> set[int]:
        netmap = runtime_of(a).directory.netmap
        peers = netmap.peers.values() if netmap is not None else ()
        return {service.port for peer in peers for service in peer.hostinfo.services}

    await until(lambda: told_ports() == {41234})
    offer(runtime.bus, "peerapi", None)
    await until(lambda: runtime.dataplane.engine.peerapi_port == 0)


async def test_the_embedded_control_server_answers_what_it_is_asked(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    control = runtime_of(await tailnet.device("a")).control
    for path, status in (("/machine/whoami", 501), ("/machine/webclient/action", 404)):
        with pytest.raises(RequestRefused) as refusal:
            await control.ask("GET", path)
        assert refusal.value.status == status
