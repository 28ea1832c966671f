"""A tailnet policy as people write it: ACLs, grants, groups, tagOwners, hosts, autoApprovers, nodeAttrs.

Owns the language: what each word means and which mistakes are refused, with a sentence that names the place. What the
words select among real nodes is `policy_index`, and `ssh_rules` for logins. Sections about things this server does not
do (tests, posture) are accepted and ignored, so that a production policy can be tried unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ts_base.errors import BadPacket, TailscaleError
from ts_base.ip import ICMP, ICMP6, SCTP, TCP, UDP, Prefix, parse_prefix, prefix_contains
from ts_control.hujson import parse_untrusted

EVERYONE, ANY_ADDRESS, USERS, TAG, PREFIX, MEMBERS, TAGGED, SELF, INTERNET = range(9)
ALL_PORTS = (0, 65535)
_WITH_SELF = frozenset({USERS, MEMBERS})  # the sources autogroup:self may stand beside in a grant
_WITH_SELF_IN_ACLS = _WITH_SELF | {EVERYONE}
EXIT_ROUTES: frozenset[Prefix] = frozenset({(bytes(4), 0), (bytes(16), 0)})

_SECTIONS = {"acls", "grants", "groups", "hosts", "tagOwners", "autoApprovers", "nodeAttrs", "ssh"}
_IGNORED = {"sshTests", "tests", "postures", "defaultSrcPosture", "derpMap", "disableIPv4", "OneCGNATRoute",
            "randomizeClientPort", "ipsets", "extraDNSRecords"}  # fmt: skip
_AUTOGROUPS = {"autogroup:member": MEMBERS, "autogroup:members": MEMBERS, "autogroup:tagged": TAGGED,
               "autogroup:self": SELF, "autogroup:internet": INTERNET, "autogroup:danger-all": ANY_ADDRESS}  # fmt: skip
_PROTOCOLS: Mapping[str, tuple[int, ...]] = {
    "": (), "*": (), "tcp": (TCP,), "udp": (UDP,), "icmp": (ICMP, ICMP6), "ipv6-icmp": (ICMP6,), "sctp": (SCTP,),
    "igmp": (2,), "ipv4": (4,), "egp": (8,), "igp": (9,), "gre": (47,), "esp": (50,), "ah": (51,),
}  # fmt: skip
_TAG_NAME = re.compile(r"tag:[a-zA-Z][a-zA-Z0-9-]*")


# Granting one of these also tells the source that it holds the other side of the same feature.
_COMPANIONS = {"tailscale.com/cap/drive": "tailscale.com/cap/drive-sharer",
               "tailscale.com/cap/relay": "tailscale.com/cap/relay-target"}  # fmt: skip


class PolicyError(TailscaleError, ValueError):
    """A policy that cannot be used; the sentence says where and why."""


@dataclass(frozen=True, slots=True)
class Alias:
    """One word of a source, destination, owner or target list."""

    kind: int
    names: frozenset[str] = frozenset()
    prefix: Prefix | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """One ACL or grant: who may reach what, on which ports of which protocols, with which application capabilities."""

    sources: tuple[Alias, ...]
    destinations: tuple[tuple[Alias, tuple[tuple[int, int], ...]], ...]
    protocols: tuple[int, ...] = ()
    capabilities: Mapping[str, list[Any] | None] = field(default_factory=dict)


NONROOT = "autogroup:nonroot"
LOCALPART = "localpart:*@"
ALWAYS = 0.0  # a check's period: every login is checked
CHECK_PERIOD = 12 * 3600.0
_PERIODS = (60.0, 168 * 3600.0)
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(h|m|s)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0}


@dataclass(frozen=True, slots=True)
class SshEntry:
    """Who may log in where as whom over SSH; `check` says that somebody has to approve it every so many seconds."""

    sources: tuple[Alias, ...]
    destinations: tuple[Alias, ...]
    users: tuple[str, ...]
    check: float | None = None
    accept_env: tuple[str, ...] = ()


def is_valid_tag(text: str) -> bool:
    return _TAG_NAME.fullmatch(text) is not None


def is_same_user(written: str, login: str) -> bool:
    """`alice@` is the user alice, whatever domain the login carries; `user:*@example.com` is everybody of a domain."""
    if written.startswith("user:*@"):
        return login.endswith(written[6:])
    if written.endswith("@"):
        return login == written[:-1] or login.startswith(written)
    return login == written


@dataclass(frozen=True, slots=True)
class Policy:
    """A checked policy. `Policy.parse` is how one is made; `Policy.allow_all()` is what no policy means."""

    rules: tuple[Rule, ...]
    tag_owners: Mapping[str, tuple[Alias, ...]] = field(default_factory=dict)
    route_approvers: tuple[tuple[Prefix, tuple[Alias, ...]], ...] = ()
    exit_approvers: tuple[Alias, ...] = ()
    attributes: tuple[tuple[tuple[Alias, ...], tuple[str, ...]], ...] = ()
    ssh: tuple[SshEntry, ...] = ()
    """In the order in which they count: what is checked comes before what is merely accepted."""

    @classmethod
    def allow_all(cls) -> Policy:
        everyone = Alias(EVERYONE)
        return cls((Rule((everyone,), ((everyone, (ALL_PORTS,)),)),))

    @classmethod
    def parse(cls, source: str | Mapping[str, Any]) -> Policy:
        """Read HuJSON text or the mapping it stands for. Raises PolicyError."""
        if isinstance(source, str):
            try:
                source = parse_untrusted(source)
            except BadPacket as problem:
                raise PolicyError(f"policy: {problem}") from None
        return _Reader(_mapping(source, "policy")).read()

    def may_own(self, tag: str, login: str) -> bool:
        """Whether `login` may put `tag` on a device."""
        owners = self.tag_owners.get(tag, ())
        return any(owner.kind == MEMBERS or any(is_same_user(name, login) for name in owner.names) for owner in owners)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise PolicyError(f"{where}: expected an object")
    return value


def _texts(value: Any, where: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise PolicyError(f"{where}: expected a list of strings")
    return list(value)


def _values(value: Any, where: str) -> list[Any]:
    if value is not None and not isinstance(value, list | tuple):
        raise PolicyError(f"{where}: expected a list")
    return list(value or ())


def _objects(value: Any, where: str) -> list[Mapping[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise PolicyError(f"{where}: expected a list")
    return [_mapping(item, f"{where}[{index}]") for index, item in enumerate(value)]


def _port_ranges(text: str, where: str) -> tuple[tuple[int, int], ...]:
    """`*`, `22`, `80,443`, `8000-8100`."""
    ranges: list[tuple[int, int]] = []
    for part in text.split(","):
        if part.strip() == "*":
            ranges.append(ALL_PORTS)
            continue
        first_text, dash, last_text = part.strip().partition("-")
        if not re.fullmatch(r"[0-9]{1,5}", first_text) or (dash and not re.fullmatch(r"[0-9]{1,5}", last_text)):
            raise PolicyError(f"{where}: {text!r} is not a port, a range or *")
        first, last = int(first_text), int(last_text or first_text)
        if not 0 < first <= last <= 65535:
            raise PolicyError(f"{where}: {text!r} is not a range of ports")
        ranges.append((first, last))
    return tuple(ranges)


def _protocols(text: Any, where: str) -> tuple[int, ...]:
    if isinstance(text, str):
        if text in _PROTOCOLS:
            return _PROTOCOLS[text]
        if re.fullmatch(r"[0-9]{1,3}", text) and 0 < int(text) < 256:
            return (int(text),)
    raise PolicyError(f"{where}: unknown protocol {text!r}")


_SSH_SOURCES = frozenset({USERS, TAG, MEMBERS, TAGGED})
_SSH_TARGETS = frozenset({USERS, TAG, TAGGED, SELF})


def _is_user_word(user: str) -> bool:
    return user == NONROOT or (user.startswith(LOCALPART) and len(user) > len(LOCALPART))


def _check_period(text: Any, where: str) -> float:
    """`12h`, `1h30m`, `always`; from a minute to a week."""
    if text is None:
        return CHECK_PERIOD
    if text == "always":
        return ALWAYS
    parts = _DURATION.findall(text) if isinstance(text, str) else []
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise PolicyError(f"{where}.checkPeriod: {text!r} is neither a duration such as '12h' nor 'always'")
    period = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not _PERIODS[0] <= period <= _PERIODS[1]:
        raise PolicyError(f"{where}.checkPeriod: from 1m to 168h")
    return period


class _Reader:
    """One pass over one policy. Holds the definitions the rules refer to."""

    def __init__(self, source: Mapping[str, Any]) -> None:
        self._source = source
        unknown = set(source) - _SECTIONS - _IGNORED - {key for key in source if key.startswith("_")}
        if unknown:
            raise PolicyError(f"policy: unknown section {min(unknown)!r}")
        self._groups = {
            name: self._users_of(members, f"groups.{name}")
            for name, members in _mapping(source.get("groups") or {}, "groups").items()
        }
        self._hosts = {
            name: self._prefix(text, f"hosts.{name}")
            for name, text in _mapping(source.get("hosts") or {}, "hosts").items()
        }
        self._owners = _mapping(source.get("tagOwners") or {}, "tagOwners")

    def read(self) -> Policy:
        source = self._source
        rules = [self._acl(acl, f"acls[{i}]") for i, acl in enumerate(_objects(source.get("acls"), "acls"))]
        for index, grant in enumerate(_objects(source.get("grants"), "grants")):
            rules += self._grant(grant, f"grants[{index}]")
        if "acls" not in source and "grants" not in source:
            rules = list(Policy.allow_all().rules)  # only naming groups or tags forbids nothing
        approvers = _mapping(source.get("autoApprovers") or {}, "autoApprovers")
        routes = _mapping(approvers.get("routes") or {}, "autoApprovers.routes")
        return Policy(
            rules=tuple(rules),
            tag_owners={tag: self._owners_of(tag, frozenset()) for tag in self._owners},
            route_approvers=tuple(
                (self._prefix(text, "autoApprovers.routes"), self._aliases(names, f"autoApprovers.routes.{text}"))
                for text, names in routes.items()
            ),
            exit_approvers=self._aliases(approvers.get("exitNode"), "autoApprovers.exitNode"),
            attributes=tuple(
                (self._aliases(entry.get("target"), f"nodeAttrs[{i}].target"), tuple(_texts(entry.get("attr"), "attr")))
                for i, entry in enumerate(_objects(source.get("nodeAttrs"), "nodeAttrs"))
            ),
            ssh=tuple(sorted(self._ssh_entries(), key=lambda entry: entry.check is None)),
        )

    def _ssh_entries(self) -> list[SshEntry]:
        return [
            self._ssh_entry(entry, f"ssh[{index}]")
            for index, entry in enumerate(_objects(self._source.get("ssh"), "ssh"))
        ]

    def _ssh_entry(self, entry: Mapping[str, Any], where: str) -> SshEntry:
        action = entry.get("action")
        if action not in {"accept", "check"}:
            raise PolicyError(f"{where}: action must be 'accept' or 'check'")
        if action == "accept" and "checkPeriod" in entry:
            raise PolicyError(f"{where}: checkPeriod only goes with the action 'check'")
        sources = self._aliases(entry.get("src"), f"{where}.src")
        destinations = self._aliases(entry.get("dst"), f"{where}.dst")
        users = _texts(entry.get("users"), f"{where}.users")
        for name, what in (("src", sources), ("dst", destinations), ("users", users)):
            if not what:
                raise PolicyError(f"{where}: {name} is missing")
        if any(alias.kind not in _SSH_SOURCES for alias in sources):
            raise PolicyError(f"{where}.src: only users, groups, tags, autogroup:member and autogroup:tagged log in")
        if any(alias.kind not in _SSH_TARGETS for alias in destinations):
            raise PolicyError(f"{where}.dst: write users, tags or autogroup:self")
        self._check_ssh_pairs(sources, destinations, where)
        for user in users:
            if not user or (user.startswith(("autogroup:", "localpart:")) and not _is_user_word(user)):
                raise PolicyError(f"{where}.users: {user!r} is neither a user, {NONROOT} nor {LOCALPART}example.com")
        check = _check_period(entry.get("checkPeriod"), where) if action == "check" else None
        return SshEntry(
            sources, destinations, tuple(users), check, tuple(_texts(entry.get("acceptEnv"), f"{where}.acceptEnv"))
        )

    @staticmethod
    def _check_ssh_pairs(sources: tuple[Alias, ...], destinations: tuple[Alias, ...], where: str) -> None:
        """People reach their own devices and tagged ones; what is tagged reaches only what is tagged."""
        is_tagged = any(alias.kind in {TAG, TAGGED} for alias in sources)
        for target in destinations:
            if target.kind in {SELF, USERS} and is_tagged:
                raise PolicyError(f"{where}: a tagged device may not log in to devices of users")
            if target.kind == USERS and any(source != target for source in sources):
                raise PolicyError(f"{where}.dst: a user's devices are only for the same user; or write autogroup:self")

    def _users_of(self, members: Any, where: str) -> frozenset[str]:
        if not where.startswith("groups.group:"):
            raise PolicyError(f"{where}: a group's name starts with 'group:'")
        names = _texts(members, where)
        for name in names:
            if "@" not in name:
                raise PolicyError(f"{where}: {name!r} is not a user; write {name + '@'!r}")
        return frozenset(names)

    @staticmethod
    def _prefix(text: Any, where: str) -> Prefix:
        try:
            return parse_prefix(str(text))
        except BadPacket as problem:
            raise PolicyError(f"{where}: {problem}") from None

    def _owners_of(self, tag: str, seen: frozenset[str]) -> tuple[Alias, ...]:
        """A tag may be owned by another tag: whoever owns that one owns this one."""
        if not is_valid_tag(tag):
            raise PolicyError(f"tagOwners: {tag!r} is not a tag")
        owners: list[Alias] = []
        for name in _texts(self._owners.get(tag), f"tagOwners.{tag}"):
            if not name.startswith("tag:"):
                owners.append(self._alias(name, f"tagOwners.{tag}"))
            elif name != tag and name not in seen:
                owners += self._owners_of(name, seen | {tag})
        return tuple(owners)

    def _aliases(self, value: Any, where: str) -> tuple[Alias, ...]:
        return tuple(self._alias(text, where) for text in _texts(value, where))

    def _alias(self, text: str, where: str) -> Alias:
        if text == "*":
            return Alias(EVERYONE)
        if text in _AUTOGROUPS:
            return Alias(_AUTOGROUPS[text])
        if text.startswith("autogroup:"):
            raise PolicyError(f"{where}: {text!r} is not supported here")
        if text.startswith("group:"):
            if text not in self._groups:
                raise PolicyError(f"{where}: group {text!r} is not defined under groups")
            return Alias(USERS, self._groups[text])
        if text.startswith("tag:"):
            if text not in self._owners:
                raise PolicyError(f"{where}: tag {text!r} is not defined under tagOwners")
            return Alias(TAG, frozenset({text}))
        if "@" in text:
            return Alias(USERS, frozenset({text}))
        if text in self._hosts:
            return Alias(PREFIX, prefix=self._hosts[text])
        try:
            return Alias(PREFIX, prefix=parse_prefix(text.strip("[]")))
        except BadPacket:
            raise PolicyError(f"{where}: {text!r} is no user, group, tag, host, address or autogroup") from None

    def _sources(
        self, value: Any, destinations: Iterable[Alias], where: str, with_self: frozenset[int]
    ) -> tuple[Alias, ...]:
        sources = self._aliases(value, where)
        kinds = {alias.kind for alias in destinations}
        if ANY_ADDRESS in kinds:
            raise PolicyError(f"{where}: autogroup:danger-all can only be a source")
        if SELF in kinds and any(alias.kind not in with_self for alias in sources):
            raise PolicyError(f"{where}: autogroup:self only goes with users, groups and autogroup:member as sources")
        for forbidden, name in ((SELF, "autogroup:self"), (INTERNET, "autogroup:internet")):
            if any(alias.kind == forbidden for alias in sources):
                raise PolicyError(f"{where}: {name} can only be a destination")
        return sources

    def _acl(self, acl: Mapping[str, Any], where: str) -> Rule:
        if acl.get("action") != "accept":
            raise PolicyError(f"{where}: action must be 'accept'")
        destinations = []
        for text in _texts(acl.get("dst"), f"{where}.dst"):
            host, colon, ports = text.rpartition(":")
            if not colon or host in {"", "tag", "group", "autogroup"}:
                raise PolicyError(f"{where}.dst: {text!r} has no port; write {text + ':*'!r}")
            destinations.append((self._alias(host, f"{where}.dst"), _port_ranges(ports, f"{where}.dst")))
        return Rule(
            sources=self._sources(
                acl.get("src"), (alias for alias, _ in destinations), f"{where}.src", _WITH_SELF_IN_ACLS
            ),
            destinations=tuple(destinations),
            protocols=_protocols(acl.get("proto", ""), f"{where}.proto"),
        )

    def _grant(self, grant: Mapping[str, Any], where: str) -> list[Rule]:
        if grant.get("via"):
            raise PolicyError(f"{where}.via: routing through chosen nodes is not supported here")
        targets = self._aliases(grant.get("dst"), f"{where}.dst")
        sources = self._sources(grant.get("src"), targets, f"{where}.src", _WITH_SELF)
        rules: list[Rule] = []
        by_protocol: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for text in _texts(grant.get("ip"), f"{where}.ip"):
            protocol, colon, ports = text.rpartition(":")
            known = _protocols(protocol if colon else "", f"{where}.ip")
            by_protocol.setdefault(known, []).extend(_port_ranges(ports, f"{where}.ip"))
        for known, ranges in by_protocol.items():
            rules.append(Rule(sources, tuple((target, tuple(ranges)) for target in targets), known))
        capabilities = _mapping(grant.get("app") or {}, f"{where}.app")
        for name in capabilities:
            if not re.fullmatch(r"(https://)?[a-z0-9.-]+\.[a-z0-9-]+/.+", name):  # the oldest, Taildrop's too, are URLs
                raise PolicyError(f"{where}.app: a capability is named like 'example.com/cap/backup', not {name!r}")
        if capabilities and any(target.kind == INTERNET for target in targets):
            raise PolicyError(f"{where}: 'app' means nothing towards autogroup:internet")
        if capabilities:
            listed = {name: _values(values, f"{where}.app[{name!r}]") for name, values in capabilities.items()}
            rules.append(Rule(sources, tuple((target, ()) for target in targets), (), listed))
            rules += _companion_rules(sources, targets, listed)
        if not rules:
            raise PolicyError(f"{where}: a grant needs 'ip' or 'app'")
        return rules


def _companion_rules(sources: tuple[Alias, ...], targets: tuple[Alias, ...], capabilities: Iterable[str]) -> list[Rule]:
    rules: list[Rule] = []
    for name in sorted(_COMPANIONS.keys() & set(capabilities)):
        companion = {_COMPANIONS[name]: None}
        own = tuple(target for target in targets if target.kind == SELF)
        others = tuple(target for target in targets if target.kind not in {SELF, INTERNET})
        if own:
            rules.append(Rule(sources, tuple((target, ()) for target in own), (), companion))
        if others:
            rules.append(Rule(others, tuple((source, ()) for source in sources), (), companion))
    return rules


def approves(policy: Policy, route: Prefix, login: str, tags: Iterable[str], addresses: Iterable[bytes]) -> bool:
    """Whether autoApprovers lets a device with this owner or these tags advertise `route` without a human."""
    candidates = list(policy.exit_approvers) if route in EXIT_ROUTES else []
    for allowed, aliases in policy.route_approvers:
        if allowed[1] <= route[1] and prefix_contains(allowed, route[0]):
            candidates += aliases
    tag_set = frozenset(tags)
    for alias in candidates:
        if alias.kind in {EVERYONE, ANY_ADDRESS} or (alias.kind == TAG and alias.names & tag_set):
            return True
        if not tag_set and (
            alias.kind == MEMBERS or (alias.kind == USERS and any(is_same_user(name, login) for name in alias.names))
        ):
            return True
        if alias.prefix is not None and any(prefix_contains(alias.prefix, address) for address in addresses):
            return True
    return False
