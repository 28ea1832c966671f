"""What a user wants of exits: named ones in order, or those of a place or tag. Checked when it is made.

Owns the words, the fingerprint by which a pool of an earlier run is known to belong to the same wish, and the sentence
that shows it. Refuses to know which exits there are.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from ts_base.errors import TailscaleError
from ts_proxy.countries import ALSO_WRITTEN, CODES

Reconnect = Literal["backoff", "fast"]
RECONNECTS = ("backoff", "fast")
LONGEST_WORD = 253  # of a name, a place or a tag
MOST_NODES = 256
LARGEST_POOL = 64


class BadPolicy(TailscaleError, ValueError):
    """What was asked of exits can never be met as it is written; `word` is what is wrong with it."""

    def __init__(self, sentence: str, word: str = "") -> None:
        self.word = word
        super().__init__(sentence)


@dataclass(frozen=True, slots=True)
class Policy:
    """A checked wish: `make_policy` makes them. Words are compared in lower case, but for a country's two letters."""

    nodes: tuple[str, ...] = ()
    country: str = ""
    city: str = ""
    tag: str = ""
    direct_only: bool = False
    sticky: bool = True
    pool: int = 4
    fallback: bool = False
    reconnect: Reconnect = "backoff"
    hedge: float = 1.0
    has_predicate: bool = False
    """A function of the user's has a say too, which is known only where exits are."""

    @property
    def fingerprint(self) -> str:
        """The same for two policies that let the same exits in."""
        filters = (self.nodes, self.country, self.city, self.tag, self.direct_only, self.fallback, self.has_predicate)
        return hashlib.sha256(repr(filters).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        """As `--exit` would say it, with what that cannot say behind it."""
        place = "/".join(word for word in (self.country, self.city) if word)
        named = "node:" + ",".join(self.nodes) if self.nodes else ""
        words = [named, place if self.country else f"*/{self.city}" if self.city else "", self.tag]
        text = (" or " if self.nodes else " and ").join(word for word in words if word) or "any"
        more = [("direct only", self.direct_only), ("as a function says", self.has_predicate)]
        return ", ".join([text, *(word for word, holds in more if holds)])


def make_policy(
    *,
    nodes: Sequence[str] = (),
    country: str = "",
    city: str = "",
    tag: str = "",
    direct_only: bool = False,
    sticky: bool = True,
    pool: int = 4,
    fallback: bool = False,
    reconnect: Reconnect = "backoff",
    hedge: float = 1.0,
    has_predicate: bool = False,
) -> Policy:
    """A policy, or BadPolicy with the sentence that says what to change."""
    names = clean_nodes(nodes)
    if names and not fallback and (country or city or tag):
        raise BadPolicy(
            "nodes= names the exits, and country=, city= and tag= choose among all: leave one out, "
            "or set fallback=True to let the filters choose once every named exit is gone"
        )
    if reconnect not in RECONNECTS:
        raise BadPolicy(f"reconnect={reconnect!r} is not one of {' and '.join(RECONNECTS)}", str(reconnect))
    if not isinstance(pool, int) or not 1 <= pool <= LARGEST_POOL:
        raise BadPolicy(f"pool={pool!r} is not a number of exits between 1 and {LARGEST_POOL}")
    if not isinstance(hedge, int | float) or math.isnan(hedge) or hedge <= 0:
        raise BadPolicy(
            f"hedge={hedge!r} is not a number of seconds above 0; math.inf never tries a second exit beside"
        )
    return Policy(
        nodes=names,
        country=clean_country(country),
        city=clean_word(city, "city"),
        tag=clean_tag(tag),
        direct_only=bool(direct_only),
        sticky=bool(sticky),
        pool=pool,
        fallback=bool(fallback),
        reconnect=reconnect,
        hedge=float(hedge),
        has_predicate=has_predicate,
    )


def clean_nodes(nodes: Sequence[str]) -> tuple[str, ...]:
    """Names of exits in order, each once. An empty list that somebody wrote is not the wish for any exit."""
    if isinstance(nodes, str):
        raise BadPolicy(f"nodes= is a list of names: nodes=[{nodes!r}]", nodes)
    if not nodes:
        if not isinstance(nodes, tuple):
            raise BadPolicy("nodes= is empty: name at least one exit, or leave it out for any")
        return ()
    if len(nodes) > MOST_NODES:
        raise BadPolicy(f"nodes= names {len(nodes)} exits: {MOST_NODES} at most")
    names = [clean_word(name, "nodes").rstrip(".") for name in nodes]
    if not all(names):
        raise BadPolicy("nodes= has an empty name in it: name each exit as device.exit_nodes does")
    return tuple(dict.fromkeys(names))


def clean_country(country: str) -> str:
    """Two letters in capitals, or a country's name in lower case, as control may write it."""
    word = clean_word(country, "country")
    if len(word) != 2:
        if word and not any(letter.isalpha() for letter in word):
            raise BadPolicy(f"country={country!r} is no country: two letters as in 'NL', or its name", country)
        return word
    code = ALSO_WRITTEN.get(word.upper(), word.upper())
    if code not in CODES:
        raise BadPolicy(f"country={country!r} is no country of ISO 3166: two letters as in 'NL', or its name", country)
    return code


def clean_tag(tag: str) -> str:
    """`tag:exit`, also where somebody wrote `exit`."""
    word = clean_word(tag, "tag")
    name = word.removeprefix("tag:")
    if word and not (name[:1].isalpha() and name.isascii() and name.replace("-", "").isalnum()):
        raise BadPolicy(f"tag={tag!r} is no tag: a letter, then letters, digits and dashes, as in 'tag:exit'", tag)
    return f"tag:{name}" if name else ""


def clean_word(word: str, what: str) -> str:
    """One printable word of bounded length, as words are compared."""
    if not isinstance(word, str):
        raise BadPolicy(f"{what}={word!r} is not text", repr(word)[:LONGEST_WORD])
    if len(word) > LONGEST_WORD or not word.isprintable():
        raise BadPolicy(
            f"{what}={word[:LONGEST_WORD]!r} is not a printable word of at most {LONGEST_WORD} letters", word
        )
    if word and not word.strip():
        raise BadPolicy(f"{what}={word!r} is blank: leave it out for any", word)
    return word.strip().lower()


def nearest(word: str, known: Collection[str], count: int = 2) -> tuple[str, ...]:
    """The known words that were most likely meant."""
    by_folded = {other.lower(): other for other in known}
    return tuple(by_folded[close] for close in difflib.get_close_matches(word.lower(), by_folded, count))
