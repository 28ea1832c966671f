"""Keeps tables, sessions and addresses as the newest netmap says.

Compiles off the packet path, in steps with checkpoints, and lands by assignment. What the netmap means to packets is
said in `translate_tables.py`.
"""

from __future__ import annotations

import re

import trio

from tailscale._config import Preferences
from tailscale.runtime.bus import Bus
from tailscale.runtime.dataplane import Dataplane
from tailscale.runtime.health import Health
from tailscale.runtime.messages import (
    InterfacesChanged,
    NetMapChanged,
    PreferencesChanged,
    ServicesOffered,
    TablesChanged,
)
from tailscale.runtime.stepping import in_steps
from tailscale.runtime.translate_peers import PEERS_PER_STEP, batched, restarted
from tailscale.runtime.translate_tables import TablesCompiler, service_addresses
from tailscale.runtime.udp_facts import ALL_OFFLOADS, Offloads
from ts_control.netmap import NetMap, peers_changed
from ts_control.wire import CapMap
from ts_tunnel.endpoint import Endpoint

HEARS = NetMapChanged, PreferencesChanged, ServicesOffered, InterfacesChanged


@trio.lowlevel.enable_ki_protection
async def run_netmap(
    bus: Bus,
    dataplane: Dataplane,
    endpoint: Endpoint,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Keep tables, peers, addresses current. Owns: the compiler. Hears: netmap, wishes, offers, networks. Says: health.

    Started again it tells everything anew: what an earlier life told, wholly or in part, is told over.
    """
    compiler = TablesCompiler()
    exit_was_missing, minutes_behind, offloads = None, None, ALL_OFFLOADS
    known: NetMap | None = None
    with bus.subscribe(*HEARS, name="netmap") as inbox:
        task_status.started()
        while True:
            message = await inbox.receive()
            if isinstance(message, ServicesOffered):
                services = message.peerapi_port, message.is_published
                dataplane.engine.set_services(peerapi_port=services[0], is_published=services[1])
                continue
            if isinstance(message, InterfacesChanged):
                compiler.set_near(message.prefixes)
            heard, wanted = bus.latest(NetMapChanged), bus.latest(PreferencesChanged)
            if heard is None or wanted is None:
                continue
            netmap, preferences = heard.netmap, wanted.preferences
            tables = await in_steps(compiler.steps(netmap, preferences))
            dataplane.use_tables(tables)
            dataplane.set_addresses(tables.own, service_addresses(netmap.self_node))
            await _tell_peers(endpoint, known, netmap)
            known = netmap
            _show_name(Health(bus), preferences, netmap.self_node.name.partition(".")[0])
            bus.publish(TablesChanged(netmap))
            dataplane.kick()
            offloads = _limit_offloads(dataplane, netmap.self_node.cap_map, offloads)
            if (minutes := round(netmap.clock_offset / 60)) != minutes_behind:
                minutes_behind = minutes
                _show_clock(Health(bus), minutes)
            if tables.exit_is_missing != exit_was_missing:
                exit_was_missing = tables.exit_is_missing
                _show_exit_node(Health(bus), preferences, exit_was_missing)


async def _tell_peers(endpoint: Endpoint, known: NetMap | None, netmap: NetMap) -> None:
    """Whose keys the tunnel takes: a few at a time, so that ten thousand of them hold nobody up."""
    if known is None:
        endpoint.keep_peers(netmap.peers)
        known = NetMap.empty()
    changed, removed = peers_changed(known, netmap)
    endpoint.change_peers({}, removed, trio.current_time())
    for few in batched(changed, PEERS_PER_STEP):
        endpoint.change_peers({peer: netmap.peers[peer].key.raw for peer in few}, (), trio.current_time())
        if len(few) == PEERS_PER_STEP:
            await trio.lowlevel.checkpoint()
    for peer in restarted(known.peers, netmap.peers, changed):
        endpoint.distrust_sessions(peer)


def _limit_offloads(dataplane: Dataplane, attributes: CapMap, before: Offloads) -> Offloads:
    """What control leaves us of the kernel's help: it knows kernels that damage what they segment or join."""
    allowed = Offloads(
        segmentation="disable-udp-gso" not in attributes,
        coalescing="disable-udp-gro" not in attributes,
        equal_tail="never-gso-equal-tail" not in attributes,
    )
    if allowed != before and dataplane.underlay.udp is not None:
        dataplane.underlay.udp.limit(allowed)
    return allowed


def _show_name(health: Health, preferences: Preferences, given: str) -> None:
    """`worker-1` for `worker`: control gives a name to one device only, and there is one already."""
    asked = preferences.hostname
    if not preferences.wants_the_name or not re.fullmatch(re.escape(asked) + r"-[0-9]+", given):
        health.clear("name-taken")
        return
    health.show(
        "name-taken",
        f"this device asked for the name {asked!r} and is {given!r}: another device has that name",
        "remove the other one from the tailnet or give this one another hostname=; a device that ends without leaving, "
        "killed or cut off, keeps its name for a while: state= lets the next run be the same device",
    )


def _show_exit_node(health: Health, preferences: Preferences, missing: bool) -> None:
    if not missing:
        health.clear("exit-node-missing")
        return
    health.show(
        "exit-node-missing",
        f"the exit node {preferences.exit_node!r} is not there: traffic to the internet is held back, not leaked",
        "choose another with device.set(exit_node=...), or None for none; its routes must be approved",
    )


def _show_clock(health: Health, behind: int) -> None:
    """In whole minutes: a clock that drifts is not news with every message."""
    if not behind:
        health.clear("clock-wrong")
        return
    side = "behind" if behind > 0 else "ahead of"
    sentence = f"this machine's clock is {abs(behind)} min {side} the control server's"
    health.show("clock-wrong", sentence, "set it (timedatectl set-ntp true): peers refuse handshakes from the past")
