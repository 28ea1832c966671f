"""Exits as one word of a command line or a configuration: `NL`, `NL/ams`, `node:hq,hq-backup`, `tag:exit`, `none`.

Owns the grammar, and sentences that name the nearest valid word. Refuses to know devices.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from ts_proxy.policy import BadPolicy, Policy, make_policy, nearest

GRAMMAR = "a country as in NL, a city of it as in NL/ams, node:NAME,NAME..., tag:NAME, any, none or direct"
FIXED = ("none", "direct", "any")
KINDS = ("node:", "tag:")

Kind = Literal["policy", "none", "direct"]


class Spec(NamedTuple):
    """What somebody wrote: which of three ways, and the policy of the first."""

    kind: Kind
    policy: Policy


def parse_spec(text: str) -> Spec:
    """BadPolicy if it is none, with the word that was likely meant."""
    word = text.strip()
    lower = word.lower()
    if lower in ("none", "direct"):
        return Spec("none" if lower == "none" else "direct", Policy())
    if lower == "any":
        return Spec("policy", Policy())
    kind, separator, rest = word.partition(":")
    if separator:
        return Spec("policy", _named(kind.lower(), rest, word))
    country, separator, city = word.partition("/")
    if not word or (separator and not city.strip()):
        raise BadPolicy(f"{text!r} is no exit: {GRAMMAR}", text)
    if country.strip() in ("*", "") and separator:
        return Spec("policy", make_policy(city=city))
    if len(country.strip()) != 2:
        close = nearest(lower, (*FIXED, *KINDS), 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise BadPolicy(f"{text!r} is no exit: {GRAMMAR}{hint}", text)
    return Spec("policy", make_policy(country=country, city=city))


def _named(kind: str, rest: str, word: str) -> Policy:
    if kind == "node":
        names = rest.split(",")
        if not all(name.strip() for name in names):
            raise BadPolicy(f"{word!r} names no exit: node:hq, or node:hq,hq-backup in order of preference", word)
        return make_policy(nodes=tuple(names))
    if kind == "tag":
        if not rest.strip():
            raise BadPolicy(f"{word!r} names no tag: tag:exit", word)
        return make_policy(tag=f"tag:{rest.strip()}")
    close = nearest(f"{kind}:", KINDS, 1)
    raise BadPolicy(f"{word!r} is no exit: {GRAMMAR}" + (f"; did you mean {close[0]!r}?" if close else ""), word)
