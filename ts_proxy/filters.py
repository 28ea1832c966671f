"""Which exits a policy lets in, and why not the others.

Owns what is known of one exit at a moment. Refuses to know which of those that fit is taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ts_proxy.policy import Policy, nearest


class Candidate(NamedTuple):
    """One exit node as it is right now. Words are in lower case, as a policy's are."""

    key: str
    """What never changes: the stable id."""
    names: tuple[str, ...]
    """All that `nodes` may call it: hostname first, then full name, addresses and id."""
    country: str = ""
    country_code: str = ""
    city: str = ""
    city_code: str = ""
    tags: tuple[str, ...] = ()
    priority: int = 0
    is_online: bool = True
    """False when control says that it is not."""
    is_direct: bool = False
    latency: float | None = None
    is_welcome: bool = True
    """False when a function of the user's does not want it."""

    @property
    def name(self) -> str:
        return self.names[0] if self.names else self.key


def place_in(policy: Policy, candidate: Candidate) -> int | None:
    """Its rank among the named exits, the lower the better; None if it is not named."""
    places = [policy.nodes.index(name) for name in candidate.names if name in policy.nodes]
    return min(places) if places else None


def fits(policy: Policy, candidate: Candidate) -> bool:
    """Whether the policy would ever use it, on a path as it is now."""
    return why_not(policy, candidate) == ""


def why_not(policy: Policy, candidate: Candidate) -> str:
    """What keeps it out, for people; empty if nothing does."""
    if not candidate.is_welcome:
        return "the where= function does not want it"
    if policy.nodes and place_in(policy, candidate) is None and not policy.fallback:
        return "it is not among the named exits"
    if not policy.nodes or place_in(policy, candidate) is None:
        if policy.country and policy.country.lower() not in (candidate.country_code, candidate.country):
            return f"it is in {candidate.country_code.upper() or candidate.country or 'an unknown country'}"
        if policy.city and policy.city not in (candidate.city_code, candidate.city):
            return f"it is in {candidate.city_code or candidate.city or 'an unknown city'}"
        if policy.tag and policy.tag not in candidate.tags:
            return f"it is not tagged {policy.tag}"
    return ""


def suggestions(policy: Policy, known: Iterable[Candidate]) -> tuple[str, ...]:
    """Words of exits that are there, close to those of the policy that no exit has."""
    exits = tuple(known)
    words: list[str] = []
    all_names = [name for one in exits for name in one.names[:1]]
    for node in policy.nodes:
        if not any(node in one.names for one in exits):
            words += nearest(node, all_names)
    if policy.country and not any(policy.country.lower() in (one.country_code, one.country) for one in exits):
        words += nearest(policy.country, [one.country for one in exits if one.country])
    if policy.city and not any(policy.city in (one.city_code, one.city) for one in exits):
        words += nearest(policy.city, [word for one in exits for word in (one.city, one.city_code) if word])
    if policy.tag and not any(policy.tag in one.tags for one in exits):
        words += nearest(policy.tag, [tag for one in exits for tag in one.tags])
    return tuple(dict.fromkeys(words))
