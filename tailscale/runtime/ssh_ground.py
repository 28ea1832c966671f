"""What an SSH server stands on: the rules that control sent, who calls, control to be asked, keys to be kept and shown.

Owns nothing but the order of becoming known: control hears of the host keys before anybody is let in. Refuses to know
the protocol, sessions, and what a verdict leads to.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import trio

from tailscale.nodes import Node, node_from_wire
from tailscale.runtime.bus import Bus
from tailscale.runtime.control_actor import ControlActor
from tailscale.runtime.directory import Directory
from tailscale.runtime.health import Health
from tailscale.runtime.messages import ControlInformed, NetMapChanged, Offer
from tailscale.runtime.offers import offer
from ts_base.errors import BadPacket
from ts_base.ip import is_tailscale_address, parse_address
from ts_control import wire
from ts_control.errors import ControlLost, RequestRefused
from ts_control.gojson import decode_json_untrusted
from ts_control.netmap import NetMap
from ts_control.ssh_policy import (
    ENV_ATTRIBUTE,
    PERMISSION,
    Caller,
    SSHAction,
    SSHPolicy,
    read_policy_untrusted,
    unrecorded_event,
)

log = logging.getLogger("tailscale.ssh")
ENTRY = "ssh-host-key"
TOLD_PATIENCE = 5.0  # for control to hear of something; of keys, who cannot be told now hears later
TAGGED = "tagged-devices"
UNUSABLE = "ssh-unusable"
LONGEST_ACTION = 64 << 10


@dataclass(frozen=True, slots=True)
class Rules:
    """What the policy is judged by at one moment."""

    policy: SSHPolicy | None
    now: float
    environment_counts: bool


class SshGround:
    """One per server; everything but the keys is a question."""

    def __init__(self, bus: Bus, directory: Directory, control: ControlActor, wall_clock: Callable[[], float]) -> None:
        self._bus = bus
        self._directory = directory
        self._control = control
        self._wall_clock = wall_clock
        self._health = Health(bus)
        self._read: tuple[object, SSHPolicy | None] = (None, None)

    def rules(self) -> Rules:
        """The newest; what cannot be read is a policy that lets nobody in."""
        netmap = self._newest()
        told = netmap.ssh_policy if netmap is not None else None
        if told is not self._read[0]:
            try:
                self._read = told, read_policy_untrusted(told)
            except BadPacket as problem:
                log.warning("the tailnet's SSH policy cannot be read, so nobody is let in: %s", problem)
                self._read = told, SSHPolicy()
        offset = netmap.clock_offset if netmap is not None else 0.0
        counts = netmap is not None and ENV_ATTRIBUTE in netmap.self_node.cap_map
        return Rules(self._read[1], self._wall_clock() + offset, counts)

    def _newest(self) -> NetMap | None:
        latest = self._bus.latest(NetMapChanged)
        return latest.netmap if latest is not None else None

    def caller(self, address: str) -> tuple[Caller, Node] | None:
        """The node at an address of its own; None for what is no tailnet address, and for who is behind a router."""
        try:
            raw = parse_address(address)
        except BadPacket:
            return None
        found, netmap = self._directory.wire_node(raw), self._newest()
        if found is None or netmap is None or not is_tailscale_address(raw) or not _has(found, address):
            return None
        return _caller(found, netmap, address), node_from_wire(found, netmap)

    def ourselves(self, address: str) -> Caller:
        """This node, called at one of its addresses."""
        netmap = self._newest()
        return _caller(netmap.self_node, netmap, address) if netmap is not None else Caller(0, "", address, "")

    async def ask(self, path: str, timeout: float) -> SSHAction:
        """What control says of a login that it wants to be asked about. Raises what a request to it raises."""
        answer = await self._control.ask("GET", path, timeout=timeout)
        if len(answer) > LONGEST_ACTION:
            raise BadPacket("an SSH action of more than 64 KiB")
        return decode_json_untrusted(SSHAction, answer)

    async def report_unrecorded(self, action: SSHAction, caller: Caller, users: tuple[str, str]) -> None:
        """Tell control of a session that should be recorded and is not, where it asks for that. Never raises."""
        netmap = self._newest()
        if netmap is None or action.on_recording_failure is None:
            return
        moment = datetime.fromtimestamp(self.rules().now, UTC).strftime("%Y%m%dT%H%M%S")
        connection = f"ssh-conn-{moment}-{secrets.token_hex(5)}"
        try:
            event = unrecorded_event(action, caller, netmap.self_node.key, connection, users)
            if event is not None:
                await self._control.ask("POST", *event, timeout=TOLD_PATIENCE)
        except (ControlLost, RequestRefused, BadPacket) as problem:
            log.warning("control could not be told of a session that is not recorded: %s", problem)

    async def changes(self) -> AsyncIterator[None]:
        """Whenever the rules may have changed, and now and then because some have run out."""
        with self._bus.subscribe(NetMapChanged, name="ssh") as inbox:
            while True:
                with trio.move_on_after(EXPIRY_CHECK):
                    await inbox.receive()
                yield

    # Keys

    def saved_key(self) -> bytes | None:
        """The host key of an earlier run."""
        return self._control.saved.read(ENTRY)

    async def keep_key(self, key: bytes) -> None:
        """Clients remember it: it is written before anybody sees it."""
        self._control.saved.keep(ENTRY, key)
        await self._control.saved.write()

    @asynccontextmanager
    async def advertised(self, keys: tuple[str, ...]) -> AsyncIterator[None]:
        """Peers know these keys while the block runs; control has heard of them when it begins, if it is there."""
        with self._bus.subscribe(ControlInformed, name="ssh-keys") as inbox:
            while len(inbox):
                inbox.take()
            who = f"ssh {id(self)}"  # several servers may run, by the same key or by others
            offer(self._bus, who, Offer(ssh_host_keys=keys))
            try:
                with trio.move_on_after(TOLD_PATIENCE):
                    await inbox.receive()
                yield
            finally:
                offer(self._bus, who, None)
                self._health.clear(UNUSABLE)

    def show_usability(self) -> None:
        """Say so where a server runs that nobody can log in to."""
        netmap, rules = self._newest(), self.rules()
        if netmap is not None and PERMISSION not in netmap.self_node.cap_map:
            self._health.show(
                UNUSABLE,
                "the SSH server is on, but this tailnet does not let this node be one",
                "allow SSH in the tailnet's settings, or stop the server",
            )
        elif rules.policy is None or not rules.policy.rules:
            self._health.show(
                UNUSABLE,
                "the SSH server is on, but the tailnet's policy lets nobody log in here",
                'add an "ssh" section to the policy that names this node under dst',
            )
        else:
            self._health.clear(UNUSABLE)


EXPIRY_CHECK = 30.0  # seconds between looks at rules that run out by the clock


def _has(node: wire.Node, address: str) -> bool:
    return any(text.partition("/")[0] == address for text in node.addresses or ())


def _caller(node: wire.Node, netmap: NetMap, address: str) -> Caller:
    profile = netmap.user_profiles.get(node.user)
    login = TAGGED if node.tags else profile.login_name if profile is not None else ""
    return Caller(node.id, node.stable_id, address, login)
