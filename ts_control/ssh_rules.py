"""The ssh section of a policy, written out for one device: the rules a coordination server sends it.

Owns how an entry becomes rules: one for each, addresses for principals, root refused where it is not named. Knows
nothing of who asks, nor of what becomes of a check (`server_ssh`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ts_base.ip import format_address
from ts_control.policy import LOCALPART, NONROOT, SELF, SshEntry
from ts_control.policy_index import Subject, selects
from ts_control.ssh_policy import ROOT, SAME, SSHAction, SSHPolicy, SSHPrincipal, SSHRule

CHECK_PATH = "/machine/ssh/action/"
_CHECK_QUERY = "$SRC_NODE_ID/to/$DST_NODE_ID?ssh_user=$SSH_USER&local_user=$LOCAL_USER"
ACCEPT = SSHAction(
    accept=True, allow_agent_forwarding=True, allow_local_port_forwarding=True, allow_remote_port_forwarding=True
)


def sources_of(entry: SshEntry, own: Subject, subjects: Iterable[Subject]) -> list[Subject]:
    """The devices that `entry` lets log in to `own`."""
    is_target = any(alias.kind != SELF and selects(alias, own) for alias in entry.destinations)
    is_self = not own.tags and any(alias.kind == SELF for alias in entry.destinations)
    return [
        who
        for who in subjects
        if (is_target or (is_self and not who.tags and who.login == own.login))
        and any(selects(alias, who) for alias in entry.sources)
    ]


def policy_for(entries: Iterable[SshEntry], own: Subject, subjects: Iterable[Subject], url: str) -> SSHPolicy:
    """Every rule of the section that is about `own`. Having none is said as well: that withdraws what was."""
    known = list(subjects)
    rules: list[SSHRule] = []
    for entry in entries:
        check = SSHAction(hold_and_delegate=url + CHECK_PATH + _CHECK_QUERY)
        action = ACCEPT if entry.check is None else check
        for users, who in _grouped(entry, sources_of(entry, own, known)):
            texts = (format_address(address) for one in who for address in one.addresses)
            principals = tuple(SSHPrincipal(node_ip=text) for text in texts)
            rules.append(SSHRule(principals=principals, ssh_users=users, action=action, accept_env=entry.accept_env))
    return SSHPolicy(rules=tuple(rules))


def _grouped(entry: SshEntry, sources: list[Subject]) -> list[tuple[dict[str, str], list[Subject]]]:
    """Together all that may become the same users; by themselves those whose name is in their login."""
    groups: list[tuple[dict[str, str], list[Subject]]] = []
    users = _users(entry.users)
    if users and sources:
        groups.append((users, sources))
    for word in entry.users:
        domain = word.removeprefix(LOCALPART)
        if domain == word:
            continue
        for who in sources:
            name, _, of = who.login.rpartition("@")
            if name and of == domain and not who.tags:
                groups.append(({name: name}, [who]))
    return groups


def _users(words: Iterable[str]) -> dict[str, str]:
    named: Mapping[str, str] = {
        word: word for word in words if word not in {NONROOT, ROOT} and not word.startswith(LOCALPART)
    }
    users = {"*": SAME, **named} if NONROOT in words else dict(named)
    return users | {ROOT: ROOT if ROOT in words else ""} if users or ROOT in words else {}
