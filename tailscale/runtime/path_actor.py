"""Feeds the path finder with what control, the probes and the relays say, and keeps our addresses fresh while in use.

The packet loop drives the finder directly (`dataplane.py`), and hears what it says.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable

import trio

from tailscale.runtime.bus import Bus
from tailscale.runtime.messages import (
    EndpointsChanged,
    EndpointsConfirmed,
    NetInfoChanged,
    NetMapChanged,
    NetworkChanged,
    ProbeRequested,
    RelayFrameArrived,
)
from tailscale.runtime.translate_peers import PEERS_PER_STEP, PeerTranslator, batched
from ts_base.errors import BadPacket
from ts_base.who import PeerId
from ts_dataplane.candidates import parse_endpoint_untrusted
from ts_dataplane.endpoints import PORT_MAPPED, STUN
from ts_dataplane.paths import PathFinder
from ts_derp.machine import PeerGone
from ts_tunnel.messages import PeerSilence

WATCH_INTERVAL = 5.0
RESTUN_LEAST, RESTUN_SPREAD = 20, 6  # seconds; below the 30 after which Linux routers forget a mapping


def restun_delay() -> float:
    return RESTUN_LEAST + secrets.randbelow(RESTUN_SPREAD * 1000) / 1000


def direct_paths(endpoints: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """The addresses of an endpoint list whose entries are ("host:port", type)."""
    paths = []
    for text, _ in endpoints:
        try:
            paths.append(parse_endpoint_untrusted(text))
        except BadPacket:
            continue
    return paths


def hard_router(found: NetInfoChanged | None, endpoints: Iterable[tuple[str, int]]) -> str:
    """The public IPv4 address of our router, if that gives every destination another port; empty otherwise.

    A port that the router has mapped for us is the same for everybody.
    """
    listed = list(endpoints)
    if found is None or not found.mapping_varies_by_destination or any(kind == PORT_MAPPED for _, kind in listed):
        return ""
    seen = direct_paths([entry for entry in listed if entry[1] == STUN])
    return next((host for host, _ in seen if ":" not in host), "")


@trio.lowlevel.enable_ki_protection
async def run_paths(
    bus: Bus,
    finder: PathFinder,
    flush: Callable[[float], None],
    *,
    silence_of: Callable[[PeerId], PeerSilence] | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Keep the finder's facts current.

    Owns: the translation, the re-STUN clock. Hears: NetMapChanged, EndpointsChanged, EndpointsConfirmed,
    NetInfoChanged, NetworkChanged, RelayFrameArrived. Says: ProbeRequested. What the finder then wants sent and said
    leaves by `flush`; `silence_of` tells what a peer owes the tunnel.
    """
    kinds = (NetMapChanged, EndpointsChanged, EndpointsConfirmed, NetInfoChanged, NetworkChanged, RelayFrameArrived)
    translator: PeerTranslator | None = None
    with bus.subscribe(*kinds, name="paths") as inbox:
        task_status.started()
        restun_at = watch_at = math.inf
        while True:
            message = None
            with trio.move_on_at(min(restun_at, watch_at)):
                message = await inbox.receive()
            now = trio.current_time()
            match message:
                case NetMapChanged(netmap):
                    if translator is None:  # started, perhaps again: an earlier life knew other peers
                        translator = PeerTranslator()
                        finder.keep_peers(netmap.peers, now)
                    changed, removed = translator.follow(netmap)
                    finder.change_peers({}, removed, now)
                    for few in batched(changed, PEERS_PER_STEP):
                        finder.change_peers(translator.facts(few), (), trio.current_time())
                        if len(few) == PEERS_PER_STEP:
                            await trio.lowlevel.checkpoint()
                    if netmap.peers:
                        restun_at = min(restun_at, now + RESTUN_LEAST)
                        watch_at = min(watch_at, now + WATCH_INTERVAL) if silence_of is not None else math.inf
                case EndpointsChanged(endpoints) | EndpointsConfirmed(endpoints):
                    finder.set_endpoints(direct_paths(endpoints), now)
                    finder.set_hard_router(hard_router(bus.latest(NetInfoChanged), endpoints))
                    restun_at = now + restun_delay()
                case NetInfoChanged() as found:
                    known = bus.latest(EndpointsChanged)
                    finder.set_hard_router(hard_router(found, () if known is None else known.endpoints))
                case NetworkChanged(rebound):
                    if rebound:
                        finder.on_network_changed(now)
                case RelayFrameArrived(region, PeerGone() as gone):
                    finder.on_relay_gone(region, gone.peer, now)
            if now >= restun_at:
                restun_at = now + restun_delay()
                if finder.is_active(now):
                    bus.publish(ProbeRequested("periodic"))
            if silence_of is not None and now >= watch_at:
                watch_at = now + WATCH_INTERVAL
                for peer in finder.trusted_peers(now):
                    finder.judge_silence(peer, silence_of(peer), now)
            flush(now)
