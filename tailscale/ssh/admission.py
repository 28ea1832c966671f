"""Whether somebody may log in: the policy's word, and control's where the policy wants somebody to look at it first.

Owns the conversation about a login that is checked. Refuses to know the wire: banners go out by a call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec
import trio

from tailscale.foreign_text import for_log
from tailscale.nodes import Node
from tailscale.runtime.ssh_ground import SshGround
from tailscale.sockets.socket_device import Address
from ts_base.errors import BadPacket
from ts_control.errors import ControlLost, RequestRefused
from ts_control.ssh_policy import (
    Caller,
    SSHAction,
    check_user_untrusted,
    delegation_path,
    is_terminal,
    judge,
    must_be_recorded,
    still_allows,
)

log = logging.getLogger("tailscale.ssh")
HOLD_PATIENCE = 30 * 60.0
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
LONGEST_MESSAGE = 4096
MOST_STEPS = 64  # actions in a row that ask for another one at once
Banner = Callable[[str], object]


class Users(Protocol):
    """As whom somebody may be here."""

    def exists(self, name: str) -> bool:
        """What `=` in a policy may mean."""

    def serves(self, name: str) -> bool:
        """Whether anything is done here as that user, once the policy has said so."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """Somebody is let in."""

    node: Node
    local_user: str
    action: SSHAction
    accept_env: tuple[str, ...]
    remote: Address
    local: Address


class Refused(Exception):
    """Nobody is let in; the sentence is for the caller."""


class Admission:
    """For one connection."""

    def __init__(self, ground: SshGround, remote: Address, local: Address, users: Users) -> None:
        self._ground = ground
        self._remote, self._local = remote, local
        self._users = users
        self._user = ""

    async def admit(self, user: str, banner: Banner) -> Admitted:
        """Raises Refused. What the caller is to read meanwhile goes to `banner`."""
        await trio.lowlevel.checkpoint()
        try:
            check_user_untrusted(user)
        except BadPacket as problem:
            raise Refused(str(problem)) from None
        self._user = user
        found = self._ground.caller(self._remote[0])
        if found is None:
            raise Refused("only nodes of the tailnet log in, at addresses of their own")
        caller, node = found
        rules = self._ground.rules()
        verdict = judge(rules.policy, caller, user, rules.now, self._users.exists)
        action = verdict.action
        if action is not None and action.message:
            banner(_readable(action.message))
        if verdict.refusal or action is None:
            raise Refused(verdict.refusal)
        if not self._users.serves(verdict.local_user):
            raise Refused(f"this server does nothing as {verdict.local_user!a}")
        if not is_terminal(action):
            first, action = action, await self._ask_on(action, caller, verdict.local_user, banner)
            if not action.recorders:  # what the first one wants to be recorded stays so
                changes = {"recorders": first.recorders, "on_recording_failure": first.on_recording_failure}
                action = msgspec.structs.replace(action, **changes)
            if not self.is_still_valid(verdict.local_user):
                raise Refused("the tailnet's policy has changed meanwhile")
        if action.recorders:
            await self._ground.report_unrecorded(action, caller, (user, verdict.local_user))
        if unrecorded := must_be_recorded(action):
            raise Refused(f"sessions must be recorded here, and this server cannot: {_readable(unrecorded)}")
        if action.recorders:
            log.warning("a session of %s is not recorded, as the policy would like: this server cannot", node.hostname)
        accepted = verdict.accept_env if rules.environment_counts else ()
        return Admitted(node, verdict.local_user, action, accepted, self._remote, self._local)

    def is_still_valid(self, local_user: str) -> bool:
        """Whether the rules of this moment would let the same caller in as the same user."""
        found = self._ground.caller(self._remote[0])
        if found is None:
            return False
        rules = self._ground.rules()
        return still_allows(judge(rules.policy, found[0], self._user, rules.now, self._users.exists), local_user)

    async def _ask_on(self, action: SSHAction, caller: Caller, local_user: str, banner: Banner) -> SSHAction:
        """Control sends one action after the other until one of them decides."""
        own = self._ground.ourselves(self._local[0])
        deadline, steps, pause = trio.current_time() + HOLD_PATIENCE, 0, FIRST_PAUSE
        while not is_terminal(action):
            if not action.hold_and_delegate or steps >= MOST_STEPS:
                raise Refused("the tailnet's policy says neither yes nor no")
            try:
                path = delegation_path(action.hold_and_delegate, caller, own, self._user, local_user)
            except BadPacket as problem:
                raise Refused(str(problem)) from None
            left = deadline - trio.current_time()
            if left <= 0:
                raise Refused("nobody has approved this login within half an hour")
            try:
                action = await self._ground.ask(path, left)
            except (ControlLost, RequestRefused, BadPacket) as problem:
                log.info("control was asked about a login: %s", problem)
                await trio.sleep(min(pause, max(0.0, deadline - trio.current_time())))
                pause = min(pause * 2, LONGEST_PAUSE)
                continue
            steps, pause = steps + 1, FIRST_PAUSE
            if action.message:
                banner(_readable(action.message))
        if action.reject:
            raise Refused("this login was rejected")
        return action


def _readable(text: str) -> str:
    """Lines stay lines; what would command a terminal is written as an escape."""
    return "\n".join(for_log(line) for line in text[:LONGEST_MESSAGE].splitlines()) + "\n"
