"""What a handshake message must show before it is worth asymmetric work: macs, cookies under load, budgets.

Owns every bound on what strangers may cost (WireGuard paper, sections 5.3 and 5.4.7), the rule that says when load is
high, and the cookie replies that wait to be sent. Refuses to know peers: who somebody claims to be plays no part.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from ts_base.budget import Budget
from ts_base.who import Path, PathRun, is_relayed
from ts_tunnel.cookie import CookieIssuer, is_mac1_right, mac1_key_of
from ts_tunnel.drops import NO_COOKIE, REPLIES_FULL, TOO_BUSY, WRONG_MAC
from ts_tunnel.params import (
    CALM_INITIATIONS_PER_SECOND,
    COOKIE_REPLIES_PER_SECOND,
    HANDSHAKES_PER_SECOND,
    REPLIES_LIMIT,
    SOURCE_BURST,
    SOURCE_INITIATIONS_PER_SECOND,
    SOURCE_REST_TIME,
    SOURCE_TABLE_LIMIT,
    UNDER_LOAD_STICKINESS,
)


def source_of(path: Path) -> bytes:
    """What a cookie is bound to: the whole path, unambiguously."""
    return repr(path).encode()


def origin_of(path: Path) -> bytes:
    """What shares one rate limit: a host whatever its port, or the sender that a relay vouches for."""
    return path[1] if is_relayed(path) else str(path[0]).encode()


class LoadGauge:
    """Under load: initiations come faster than a calm tailnet sends them, or did so within the last second.

    wireguard-go watches the length of its handshake queue; nothing queues here, so their rate takes its place.
    """

    __slots__ = ("_calm", "_until")

    def __init__(self) -> None:
        self._calm = Budget(CALM_INITIATIONS_PER_SECOND, CALM_INITIATIONS_PER_SECOND)
        self._until = -math.inf

    def on_initiation(self, now: float) -> bool:
        """Count one; are we under load?"""
        if not self._calm.take(now):
            self._until = now + UNDER_LOAD_STICKINESS
        return now < self._until


class SourceBudgets:
    """One bucket per source that proved where it is; sources that rested long enough are forgotten."""

    __slots__ = ("_budgets", "_swept_at")

    def __init__(self) -> None:
        self._budgets: dict[bytes, Budget] = {}
        self._swept_at = -math.inf

    def take(self, source: bytes, now: float) -> bool:
        budget = self._budgets.get(source)
        if budget is None:
            if len(self._budgets) >= SOURCE_TABLE_LIMIT and now - self._swept_at >= SOURCE_REST_TIME:
                self._budgets = {name: held for name, held in self._budgets.items() if not held.is_full(now)}
                self._swept_at = now
            if len(self._budgets) >= SOURCE_TABLE_LIMIT:
                return False
            budget = self._budgets[source] = Budget(SOURCE_INITIATIONS_PER_SECOND, SOURCE_BURST)
        return budget.take(now)

    def __len__(self) -> int:
        return len(self._budgets)


class HandshakeGuard:
    """Judges initiations and responses, cheapest question first."""

    def __init__(self, public: bytes, entropy: Callable[[int], bytes], drops: Counter[str]) -> None:
        self._entropy = entropy
        self._drops = drops
        self._load = LoadGauge()
        self._sources = SourceBudgets()
        # Apart, so that a flood of initiations cannot keep the answers to our own from being read.
        self._initiations = Budget(HANDSHAKES_PER_SECOND, HANDSHAKES_PER_SECOND)
        self._responses = Budget(HANDSHAKES_PER_SECOND, HANDSHAKES_PER_SECOND)
        self._cookie_replies = Budget(COOKIE_REPLIES_PER_SECOND, COOKIE_REPLIES_PER_SECOND)
        self._replies: list[PathRun] = []
        self.use_public(public)

    def use_public(self, public: bytes) -> None:
        """Our own key: macs and cookies are made for it."""
        self._mac1_key = mac1_key_of(public)
        self._cookies = CookieIssuer(public, self._entropy)

    def admits_initiation(self, path: Path, datagram: bytes, sender: int, now: float) -> bool:
        if not is_mac1_right(datagram, self._mac1_key):
            self._drops[WRONG_MAC] += 1
            return False
        if self._load.on_initiation(now):
            if not self._cookies.proves_source(datagram, source_of(path), now):
                self._drops[NO_COOKIE] += 1
                self._offer_cookie(path, datagram, sender, now)
                return False
            if not self._sources.take(origin_of(path), now):
                self._drops[TOO_BUSY] += 1
                return False
        return self._is_within(self._initiations, now)

    def admits_response(self, datagram: bytes, now: float) -> bool:
        """The caller has found the initiation it answers: a stranger must guess 32 bits to come this far."""
        if not is_mac1_right(datagram, self._mac1_key):
            self._drops[WRONG_MAC] += 1
            return False
        return self._is_within(self._responses, now)

    def _is_within(self, budget: Budget, now: float) -> bool:
        if budget.take(now):
            return True
        self._drops[TOO_BUSY] += 1
        return False

    def _offer_cookie(self, path: Path, datagram: bytes, sender: int, now: float) -> None:
        if len(self._replies) >= REPLIES_LIMIT or not self._cookie_replies.take(now):
            self._drops[REPLIES_FULL] += 1
        else:
            self._replies.append((path, [self._cookies.reply(datagram, sender, source_of(path), now)]))

    def take_replies(self) -> list[PathRun]:
        replies, self._replies = self._replies, []
        return replies
