"""Ten thousand messages of every class whose rate others set, by whoever says them: no inbox grows, the device lives.

Said in one go: no actor gets a turn in between, which is the worst that a rate can do.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from tailnet_scripts import echo_service, echoed, runtime_of, until
from trio.testing import MockClock

from tailscale._assembly import Runtime
from tailscale.runtime import messages
from tailscale.runtime.bus import Message, Rate
from tailscale.testing import Tailnet
from ts_control.session import Phase, PhaseChanged
from ts_dataplane import stun
from ts_dataplane.path_messages import BestPathChanged, NeedStun
from ts_derp.machine import PeerGone, ServerHealth

MANY = 10_000
LONGEST_INBOX = 1024  # the largest limit there is

Say = Callable[[Runtime, int], None]


def say_endpoints(runtime: Runtime, number: int) -> None:
    runtime.probes.last_endpoints = () if number % 2 else runtime.probes.last_endpoints
    runtime.probes.publish_endpoints(trio.current_time())


def hear(runtime: Runtime, message: BestPathChanged | NeedStun) -> None:
    runtime.dataplane._hear(message, trio.current_time())


def say_stun(runtime: Runtime, number: int) -> None:
    answer = stun.encode_response(number.to_bytes(12, "big"), ("203.0.113.5", 5))
    runtime.dataplane.deliver([(("203.0.113.5", 3478), [answer])])


def say_path(runtime: Runtime, number: int) -> None:
    peer = next(iter(runtime.directory.netmap.peers))  # type: ignore[union-attr]
    hear(runtime, BestPathChanged(peer, ("192.0.2.7", number % 5 + 1), 0.01))


def say_net_info(runtime: Runtime, number: int) -> None:
    runtime.probes._published = ()
    runtime.probes.publish_net_info()


def say_netmap(runtime: Runtime, number: int) -> None:
    runtime.bus.publish(messages.NetMapChanged(runtime.directory.netmap))  # type: ignore[arg-type]


def say_tables(runtime: Runtime, number: int) -> None:
    runtime.bus.publish(messages.TablesChanged(runtime.directory.netmap))  # type: ignore[arg-type]


FLOODS: dict[type[Message], Say] = {
    messages.NetMapChanged: say_netmap,
    messages.TablesChanged: say_tables,
    messages.NodeKeyChanged: lambda runtime, _: runtime.bus.publish(messages.NodeKeyChanged(runtime.relays.private)),
    messages.ControlStateChanged: lambda runtime, number: runtime.control._announcements.say_phase(
        PhaseChanged((Phase.OFFLINE, Phase.RUNNING)[number % 2], f"detail {number}")
    ),
    messages.ControlInformed: lambda runtime, number: runtime.bus.publish(
        messages.ControlInformed(number, frozenset())
    ),
    messages.EndpointsChanged: say_endpoints,
    messages.EndpointsConfirmed: lambda runtime, _: runtime.probes.publish_endpoints(trio.current_time()),
    messages.ProbeRequested: lambda runtime, _: hear(runtime, NeedStun("flood")),
    messages.NetInfoChanged: say_net_info,
    messages.RelaysChanged: lambda runtime, _: runtime.relays.say_changed(),
    messages.WarningsChanged: lambda runtime, number: runtime.relays.on_fact(900, ServerHealth(f"complaint {number}")),
    messages.PeerPathChanged: say_path,
    messages.StunArrived: say_stun,
    messages.RelayFrameArrived: lambda runtime, number: runtime.relays.on_fact(
        900, PeerGone(number.to_bytes(32, "big"), 1)
    ),
}


def test_every_message_at_a_rate_of_others_has_its_flood() -> None:
    every = {kind for kind in vars(messages).values() if isinstance(kind, type) and issubclass(kind, Message)}
    assert {kind for kind in every if getattr(kind, "rate", None) is Rate.THEIRS} == set(FLOODS)


@pytest.mark.parametrize("kind", FLOODS, ids=lambda kind: kind.__name__)
async def test_flood_of_one_message_ends_no_device(
    autojump_clock: MockClock, tailnet: Tailnet, kind: type[Message]
) -> None:
    ours, peer = await tailnet.device("ours"), await tailnet.device("peer")
    runtime = runtime_of(ours)
    async with echo_service(peer, 80):
        with runtime.bus.subscribe(kind, name="test") as heard:
            for number in range(MANY):
                FLOODS[kind](runtime, number)
            assert len(heard), f"nobody said {kind.__name__}"
            assert len(heard) <= LONGEST_INBOX
        await trio.sleep(30)
        await until(lambda: ours.status().state == "running")
        assert await echoed(ours, peer.ipv4, 80) == b"hello"
        assert runtime.supervision.statistics().failures == {}
