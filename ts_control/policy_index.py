"""A policy applied to the devices there are: which packet filter each one gets, and which peers it may see.

Owns the membership of every rule, kept current one device at a time, so that a joining device costs the number of
rules and not the number of devices. Devices that stand in the same rules share one view object, which is what lets the
server encode a delta once for all of them. Knows nothing of sessions, nor of wire messages but the shape of a rule.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from ts_base.ip import CGNAT, TAILSCALE_ULA, Prefix, format_address, format_prefix, mask, prefix_contains
from ts_control.policy import (
    ANY_ADDRESS,
    EVERYONE,
    EXIT_ROUTES,
    INTERNET,
    MEMBERS,
    PREFIX,
    SELF,
    TAG,
    TAGGED,
    USERS,
    Alias,
    Policy,
    Rule,
    is_same_user,
)

_NOT_INTERNET = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10")


@dataclass(frozen=True, slots=True)
class Subject:
    """What a policy needs to know of one device. A tagged device has no login."""

    id: int
    login: str
    tags: frozenset[str]
    addresses: tuple[bytes, ...]
    routes: tuple[Prefix, ...] = ()  # approved ones, exit routes included

    @property
    def subnets(self) -> tuple[Prefix, ...]:
        return tuple(route for route in self.routes if route not in EXIT_ROUTES)

    @property
    def is_exit_node(self) -> bool:
        return any(route in EXIT_ROUTES for route in self.routes)


def overlaps(left: Prefix, right: Prefix) -> bool:
    shorter, longer = sorted((left, right), key=lambda prefix: prefix[1])
    return prefix_contains(shorter, longer[0])


def prefix_text(prefix: Prefix) -> str:
    """As filters write it: a single address without its length."""
    return format_address(prefix[0]) if prefix[1] == 8 * len(prefix[0]) else format_prefix(prefix)


@cache
def internet() -> tuple[Prefix, ...]:
    """Everything public: 0.0.0.0/0 and 2000::/3 without what is private, link-local or a tailnet's."""
    kept = [ipaddress.IPv4Network("0.0.0.0/0")]
    for text in _NOT_INTERNET:
        hole = ipaddress.IPv4Network(text)
        kept = [
            part
            for network in kept
            for part in (network.address_exclude(hole) if hole.subnet_of(network) else (network,))
        ]
    v4 = tuple((network.network_address.packed, network.prefixlen) for network in sorted(kept))
    return (*v4, (bytes([0x20]) + bytes(15), 3))


def _is_public(prefix: Prefix) -> bool:
    return any(prefix[1] >= length and mask(prefix[0], length) == base for base, length in internet()
               if len(base) == len(prefix[0]))  # fmt: skip


def selects(alias: Alias, subject: Subject) -> bool:
    """Whether `alias`, as a source, target or owner, names this device itself."""
    kind = alias.kind
    if kind in {EVERYONE, ANY_ADDRESS}:
        return True
    if kind == USERS:
        return not subject.tags and any(is_same_user(name, subject.login) for name in alias.names)
    if kind == TAG:
        return not alias.names.isdisjoint(subject.tags)
    if kind == MEMBERS:
        return not subject.tags
    if kind == TAGGED:
        return bool(subject.tags)
    if kind == PREFIX and alias.prefix is not None:
        return any(prefix_contains(alias.prefix, address) for address in subject.addresses)
    return False


def _reach_behind(alias: Alias, subject: Subject) -> bool:
    """Whether `alias` names addresses that are reached through this device, its own apart."""
    if alias.kind == INTERNET:
        return subject.is_exit_node
    if alias.kind == PREFIX and alias.prefix is not None:
        prefix = alias.prefix
        if any(overlaps(prefix, route) for route in subject.subnets):
            return True
        return subject.is_exit_node and _is_public(prefix)
    return False


class _RuleMembers:
    """One rule and the devices that stand in it."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.sources: dict[int, Subject] = {}  # those whose own addresses the sources name
        self.behind: set[int] = set()  # those that only route addresses the sources name
        self.targets: set[int] = set()
        self.is_self = any(alias.kind == SELF for alias, _ in rule.destinations)
        self.everyone = any(alias.kind in {EVERYONE, ANY_ADDRESS} for alias in rule.sources)
        self.version = 0
        self._texts: list[str] | None = None

    def put(self, subject: Subject) -> None:
        self.remove(subject.id)
        rule = self.rule
        if any(selects(alias, subject) for alias in rule.sources):
            self.sources[subject.id] = subject
            self._forget_texts(subject)
        elif any(_reach_behind(alias, subject) for alias in rule.sources):
            self.behind.add(subject.id)
        for alias, _ in rule.destinations:
            if alias.kind != SELF and (selects(alias, subject) or _reach_behind(alias, subject)):
                self.targets.add(subject.id)
                break

    def remove(self, subject_id: int) -> None:
        gone = self.sources.pop(subject_id, None)
        if gone is not None:
            self._forget_texts(gone)
        self.behind.discard(subject_id)
        self.targets.discard(subject_id)

    def _forget_texts(self, subject: Subject) -> None:
        # With `*` among the sources only a subnet route changes what is written down.
        if not self.everyone or subject.subnets:
            self._texts = None
            self.version += 1

    def source_texts(self) -> list[str]:
        if self._texts is None:
            texts: set[str] = set()
            for alias in self.rule.sources:
                if alias.kind == EVERYONE:
                    texts |= {format_prefix(CGNAT), format_prefix(TAILSCALE_ULA)}
                    texts |= {format_prefix(route) for who in self.sources.values() for route in who.subnets}
                elif alias.kind == ANY_ADDRESS:
                    texts.add("*")
                elif alias.kind == PREFIX and alias.prefix is not None:
                    texts.add(prefix_text(alias.prefix))
            if not self.everyone:
                named = [alias for alias in self.rule.sources if alias.kind != PREFIX]
                for who in self.sources.values():
                    if any(selects(alias, who) for alias in named):
                        texts |= {format_address(address) for address in who.addresses}
            self._texts = sorted(texts)
        return self._texts

    def own_devices(self, subject: Subject) -> list[Subject]:
        """For autogroup:self: the sources that belong to the same user."""
        if subject.tags:
            return []
        return [who for who in self.sources.values() if not who.tags and who.login == subject.login]


class PolicyIndex:
    """`put` and `remove` devices; ask for views and filters."""

    def __init__(self, policy: Policy, subjects: Iterable[Subject] = ()) -> None:
        self.policy = policy
        self._rules = [_RuleMembers(rule) for rule in policy.rules]
        self._subjects: dict[int, Subject] = {}
        self._views: dict[tuple[Any, ...], frozenset[int]] = {}
        self._has_self = any(members.is_self for members in self._rules)
        for subject in subjects:
            self.put(subject)

    def put(self, subject: Subject) -> bool:
        """Add a device or replace what is known of it; True when that may change views or filters."""
        if self._subjects.get(subject.id) == subject:
            return False
        self._subjects[subject.id] = subject
        for members in self._rules:
            members.put(subject)
        self._views.clear()
        return True

    def remove(self, subject_id: int) -> None:
        if self._subjects.pop(subject_id, None) is not None:
            for members in self._rules:
                members.remove(subject_id)
            self._views.clear()

    def subjects(self) -> list[Subject]:
        return list(self._subjects.values())

    def view(self, subject_id: int) -> frozenset[int]:
        """Who this device may know of, itself possibly among them. Equal standing gives the same object."""
        subject = self._subjects[subject_id]
        standing: tuple[Any, ...] = tuple(
            (subject_id in members.sources or subject_id in members.behind, subject_id in members.targets)
            for members in self._rules
        )
        if self._has_self:
            standing = (*standing, "" if subject.tags else subject.login)
        known = self._views.get(standing)
        if known is None:
            known = self._views[standing] = frozenset(self._seen_by(subject))
        return known

    def _seen_by(self, subject: Subject) -> set[int]:
        seen: set[int] = set()
        for members in self._rules:
            if subject.id in members.sources or subject.id in members.behind:
                seen |= members.targets
            if subject.id in members.targets:
                seen |= members.sources.keys()
                seen |= members.behind
            if members.is_self and not subject.tags:
                # Both directions: what my user's sources reach, and what reaches me, are all devices of my user.
                own = {who.id for who in members.own_devices(subject)}
                seen |= own
                if subject.id in own:
                    seen |= {i for i, who in self._subjects.items() if not who.tags and who.login == subject.login}
        return seen

    def filter_version(self, subject_id: int) -> tuple[Any, ...]:
        """Changes whenever `filter_for` may; cheap enough to ask for on every change."""
        subject = self._subjects[subject_id]
        return (
            self,  # another policy counts its rules anew
            subject,
            tuple(
                (index, members.version)
                for index, members in enumerate(self._rules)
                if members.is_self or subject_id in members.targets
            ),
        )

    def filter_for(self, subject_id: int) -> list[dict[str, Any]]:
        """The packet filter of one device, in the shape of `tailcfg.FilterRule`."""
        subject = self._subjects[subject_id]
        rules: list[dict[str, Any]] = []
        for members in self._rules:
            if subject_id in members.targets:
                targets = [(alias, ports) for alias, ports in members.rule.destinations if alias.kind != SELF]
                rules += _written(members.rule, members.source_texts(), targets, subject)
            if members.is_self and not subject.tags:
                sources = sorted(format_address(a) for who in members.own_devices(subject) for a in who.addresses)
                own = [(alias, ports) for alias, ports in members.rule.destinations if alias.kind == SELF]
                rules += _written(members.rule, sources, own, subject)
        return rules

    def attributes(self, subject_id: int) -> list[str]:
        """The node attributes the policy gives one device."""
        subject = self._subjects[subject_id]
        return sorted(
            {
                attribute
                for targets, attributes in self.policy.attributes
                if any(selects(alias, subject) for alias in targets)
                for attribute in attributes
            }
        )


def _written(
    rule: Rule,
    sources: list[str],
    destinations: Iterable[tuple[Alias, tuple[tuple[int, int], ...]]],
    subject: Subject,
) -> list[dict[str, Any]]:
    """One filter rule as it goes to `subject`: only destinations that are it, or lie behind it."""
    if not sources:
        return []
    if rule.capabilities:
        grants = sorted({format_prefix(p) for alias, _ in destinations for p in _granted_prefixes(alias, subject)})
        grant = {"Dsts": grants, "CapMap": dict(rule.capabilities)}
        return [{"SrcIPs": sources, "CapGrant": [grant]}] if grants else []
    ports = [
        {"IP": text, "Ports": {"First": first, "Last": last}}
        for alias, ranges in destinations
        for text in _target_texts(alias, subject)
        for first, last in ranges
    ]
    if not ports:
        return []
    written: dict[str, Any] = {"SrcIPs": sources, "DstPorts": ports}
    if rule.protocols:
        written["IPProto"] = list(rule.protocols)
    return [written]


def _target_texts(alias: Alias, subject: Subject) -> list[str]:
    if alias.kind == EVERYONE:
        return ["*"]
    if alias.kind == INTERNET:
        return [format_prefix(prefix) for prefix in internet()] if subject.is_exit_node else []
    if alias.kind == PREFIX and alias.prefix is not None:
        reached = selects(alias, subject) or _reach_behind(alias, subject)
        return [prefix_text(alias.prefix)] if reached else []
    if alias.kind == SELF or selects(alias, subject):
        return [format_address(address) for address in subject.addresses]
    return []


def _granted_prefixes(alias: Alias, subject: Subject) -> list[Prefix]:
    """Capabilities are granted towards a device's own addresses; a wider destination is narrowed to them."""
    if alias.kind == SELF or selects(alias, subject):
        inside = [
            address for address in subject.addresses if alias.prefix is None or prefix_contains(alias.prefix, address)
        ]
        return [(address, 8 * len(address)) for address in inside]
    if alias.kind == PREFIX and alias.prefix is not None and any(overlaps(alias.prefix, r) for r in subject.subnets):
        return [alias.prefix]
    return []
