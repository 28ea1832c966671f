"""Who may log in over SSH as whom: the rules that control sends, read and applied to one login.

Owns the meaning of every word of an SSHPolicy: order, principals, users, expiry, environment, what a check asks.
Refuses to know: SSH, sessions, the clock. `now` is control's idea of the time, seconds since 1970: a wrong clock of
ours must not lengthen a grant. What cannot be read grants nothing: to skip a rule might be to skip a refusal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote_plus

import msgspec
from msgspec import field

from ts_base.errors import BadPacket
from ts_base.keys import NodePublic
from ts_control.gojson import GoStruct, decode_json_untrusted, unix_time
from ts_control.wire import CAPABILITY_VERSION

LONGEST_USER = 256
ROOT = "root"
SAME = "="  # as the value of a user: the local user of the same name
PERMISSION = "https://tailscale.com/cap/ssh"  # of our own node: without it the tailnet wants no SSH server here
ENV_ATTRIBUTE = "ssh-env-vars"  # of our own node: without it no rule's acceptEnv counts
REJECTED, TERMINATED, NOT_RECORDED = 1, 2, 3  # events of which control may want to hear
ALWAYS_ACCEPTED = ("TERM", "LANG", "LC_*")
_NEVER_ACCEPTED = re.compile(r"(LD_|DYLD_).*|GOTRACEBACK", re.IGNORECASE)
_ENV_NAME = re.compile(r"[A-Za-z0-9_-]+")
_VARIABLE = re.compile(r"\$(SRC_NODE_IP|SRC_NODE_ID|DST_NODE_IP|DST_NODE_ID|SSH_USER|LOCAL_USER)")


class SSHPrincipal(GoStruct, frozen=True, rename="camel"):
    """Whom a rule is about: any one of what is set."""

    node: str = ""
    node_ip: str = field(default="", name="nodeIP")
    user_login: str = ""
    any: bool = False


class RecordingFailure(GoStruct, frozen=True):
    """What is to happen when a session cannot be recorded."""

    reject_session_with_message: str = ""
    terminate_session_with_message: str = ""
    notify_url: str = ""


class SSHAction(GoStruct, frozen=True, rename="camel"):
    """What happens to those whom a rule matches."""

    message: str = ""
    reject: bool = False
    accept: bool = False
    session_duration: int = 0
    """Nanoseconds; 0 is for ever."""
    allow_agent_forwarding: bool = False
    hold_and_delegate: str = ""
    allow_local_port_forwarding: bool = False
    allow_remote_port_forwarding: bool = False
    recorders: tuple[str, ...] = ()
    on_recording_failure: RecordingFailure | None = None


class SSHRule(GoStruct, frozen=True, rename="camel"):
    """One rule; the first that matches a login decides."""

    rule_expires: datetime | None = None
    principals: tuple[SSHPrincipal | None, ...] = ()
    ssh_users: dict[str, str] = field(default_factory=dict)
    action: SSHAction | None = None
    accept_env: tuple[str, ...] = ()


class SSHPolicy(GoStruct, frozen=True, rename="camel"):
    """Everything control says of SSH to this node."""

    rules: tuple[SSHRule | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Caller:
    """The node that a connection comes from, as the tailnet knows it."""

    number: int
    stable_id: str
    address: str
    login: str
    """Of its owner; "tagged-devices" for a tagged node, whoever made it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the policy says of one login. Without an action it is refused, and `refusal` says so to the caller."""

    action: SSHAction | None = None
    local_user: str = ""
    accept_env: tuple[str, ...] = ()
    refusal: str = ""


LocalUser = Callable[[str], bool]
"""Whether this machine has a user of that name whom somebody may become."""


def read_policy_untrusted(told: Mapping[str, Any] | None) -> SSHPolicy | None:
    """The policy of a netmap; None where control has sent none. BadPacket where one part of it cannot be read."""
    if told is None:
        return None
    try:
        text = msgspec.json.encode(told)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as problem:
        raise BadPacket(f"bad SSHPolicy: {type(problem).__name__}") from None
    return decode_json_untrusted(SSHPolicy, text)


def check_user_untrusted(name: str) -> None:
    """BadPacket for what is no user's name anywhere: it may reach a log, a path, or a program's arguments."""
    if not name or len(name.encode(errors="replace")) > LONGEST_USER:
        raise BadPacket(f"a user's name has 1 to {LONGEST_USER} bytes")
    if name.startswith("-") or "/" in name or not name.isprintable() or name != name.strip():
        raise BadPacket("a user's name has no slash, no control characters, and no dash in front")


def judge(policy: SSHPolicy | None, caller: Caller, user: str, now: float, exists: LocalUser) -> Verdict:
    """The first rule that matches decides; none is a refusal."""
    if policy is None or not policy.rules:
        return Verdict(refusal="this tailnet's policy has no SSH rules for this node")
    is_user_the_reason = False
    for rule in policy.rules:
        if rule is None or rule.action is None or _is_over(rule, now) or not _names(rule, caller):
            continue
        if rule.action.reject:
            return Verdict(rule.action, refusal="the tailnet's policy rejects this connection")
        local_user = _local_user(rule.ssh_users, user, exists)
        if local_user:
            return Verdict(rule.action, local_user, rule.accept_env)
        is_user_the_reason = True
    if is_user_the_reason:
        return Verdict(refusal=f"the tailnet's policy does not let you log in as {user}")
    return Verdict(refusal="the tailnet's policy does not let you connect by SSH")


def _is_over(rule: SSHRule, now: float) -> bool:
    expires = unix_time(rule.rule_expires)
    return expires != 0.0 and expires <= now


def _names(rule: SSHRule, caller: Caller) -> bool:
    for principal in rule.principals:
        if principal is None:
            continue
        if principal.any or (principal.node and principal.node == caller.stable_id):
            return True
        if principal.node_ip and principal.node_ip == caller.address:
            return True
        if principal.user_login and principal.user_login == caller.login:
            return True
    return False


def _local_user(users: Mapping[str, str], user: str, exists: LocalUser) -> str:
    """Whom `user` becomes; "" for nobody. A name that is listed is never looked for under the star."""
    found = users[user] if user in users else users.get("*", "")
    if found != SAME:
        return found
    return user if user != ROOT and exists(user) else ""


def is_terminal(action: SSHAction) -> bool:
    """Whether nobody else is to be asked."""
    return action.accept or action.reject


def must_be_recorded(action: SSHAction) -> str:
    """What the caller is to be told where a session may only begin if it is recorded; "" where it may without."""
    failure = action.on_recording_failure
    if not action.recorders or failure is None:
        return ""
    return failure.reject_session_with_message or failure.terminate_session_with_message


def still_allows(verdict: Verdict, local_user: str) -> bool:
    """Whether a session that runs as `local_user` may go on. Who has been checked is not checked again."""
    action = verdict.action
    if action is None or verdict.refusal or verdict.local_user != local_user:
        return False
    return (action.accept or bool(action.hold_and_delegate)) and not must_be_recorded(action)


def delegation_path(url: str, source: Caller, own: Caller, user: str, local_user: str) -> str:
    """Where to ask on: the path of a check's URL with what it wants to know."""
    values = {
        "SRC_NODE_IP": source.address,
        "SRC_NODE_ID": str(source.number),
        "DST_NODE_IP": own.address,
        "DST_NODE_ID": str(own.number),
        "SSH_USER": user,
        "LOCAL_USER": local_user,
    }
    return _path_of(_VARIABLE.sub(lambda found: quote_plus(values[found[1]]), url))


def _path_of(url: str) -> str:
    """Its host is control, whatever it says."""
    scheme, _, rest = url.partition("://")
    path = "/" + rest.partition("/")[2] if rest else scheme
    if not path.startswith("/") or not path.isascii() or not path.isprintable() or " " in path:
        raise BadPacket("the SSH policy asks control at something that is no URL")
    return path.partition("#")[0]


def unrecorded_event(
    action: SSHAction, caller: Caller, own_key: NodePublic, connection: str, users: tuple[str, str]
) -> tuple[str, bytes] | None:
    """Where control wants to hear of a session that is not recorded, and what; None where it does not.

    `users` is who was asked for, and who that is here. Upstream writes every field, empty ones too.
    """
    failure = action.on_recording_failure
    if failure is None or not failure.notify_url or not action.recorders:
        return None
    kind = REJECTED if failure.reject_session_with_message else NOT_RECORDED
    if kind != REJECTED and failure.terminate_session_with_message:
        kind = TERMINATED
    event = {
        "EventType": kind,
        "ConnectionID": connection,
        "CapVersion": CAPABILITY_VERSION,
        "NodeKey": str(own_key),
        "SrcNode": caller.number,
        "SSHUser": users[0],
        "LocalUser": users[1],
        "RecordingAttempts": [
            {"Recorder": each, "FailureMessage": "this server records no sessions"} for each in action.recorders
        ],
    }
    return _path_of(failure.notify_url), msgspec.json.encode(event)


def accepted_environment(asked: Mapping[str, str], patterns: tuple[str, ...], *, policy_counts: bool) -> dict[str, str]:
    """What of a client's environment reaches the session: little, and what the policy lists where that counts."""
    wanted = (*ALWAYS_ACCEPTED, *(patterns if policy_counts else ()))
    return {
        name: value
        for name, value in asked.items()
        if _ENV_NAME.fullmatch(name)
        and not _NEVER_ACCEPTED.fullmatch(name)
        and "\0" not in value
        and any(_fits(name, pattern) for pattern in wanted)
    }


def _fits(name: str, pattern: str) -> bool:
    """`*` is any run of characters, `?` any one. Only the last star is ever taken back: a pattern costs no more."""
    at = place = 0
    star, resume = -1, 0
    while at < len(name):
        if place < len(pattern) and pattern[place] == "*":
            star, resume = place, at
            place += 1
        elif place < len(pattern) and pattern[place] in ("?", name[at]):
            place, at = place + 1, at + 1
        elif star >= 0:
            resume += 1
            place, at = star + 1, resume
        else:
            return False
    return pattern[place:].strip("*") == ""
