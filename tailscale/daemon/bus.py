"""`watch-ipn-bus`: upstream's stream of notices, from our events.

Owns which bit of the mask asks for what. A notice says how things are when it is sent, so a reader that was slow misses
steps and no facts. Bits: ipn/backend.go of upstream.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import trio

from tailscale import __version__
from tailscale.daemon import ipn
from tailscale.daemon.answering import Answer, Question, Routes, lines_answer
from tailscale.daemon.keeper import Keeper
from tailscale.daemon.localapi import ROOT, LocalApi
from tailscale.daemon.prefs import Prefs
from tailscale.daemon.serving import Serving
from tailscale.events import (
    Event,
    EventStream,
    HealthChanged,
    Lagged,
    LoginNeeded,
    PeerChanged,
    PeerDown,
    PeerUp,
    StateChanged,
)
from tailscale.taildrop.events import FileArrived

INITIAL_STATE, INITIAL_PREFS, INITIAL_NETMAP = 2, 4, 8
INITIAL_HEALTH, PEER_CHANGES, NO_NETMAP, INITIAL_STATUS = 128, 4096, 8192, 16384


class Bus:
    """The handler."""

    def __init__(self, keeper: Keeper, prefs: Prefs, api: LocalApi, serving: Serving) -> None:
        self._serving = serving
        self._keeper = keeper
        self._prefs = prefs
        self._api = api

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", f"{ROOT}watch-ipn-bus", self._watch)

    async def _watch(self, question: Question) -> Answer:
        await trio.lowlevel.checkpoint()
        mask = int(question.query.get("mask") or 0)
        return lines_answer(self._notices(mask, question.asker.may_write))

    async def _notices(self, mask: int, may_see_login: bool) -> AsyncIterator[dict[str, Any]]:
        stream = self._keeper.events()
        prefs_changed = Nudge(stream)
        self._prefs.watch(prefs_changed)
        try:
            # What `tailscale serve` publishes in the foreground lives as long as its stream of notices.
            with self._serving.session(lambda: stream.put(SessionEnded())) as session:
                told = self._state()  # before the first is sent: what changes while it is being sent is news
                yield self._first(mask, may_see_login, session)
                async with aclosing(self._following(stream, mask, may_see_login, told)) as notices:  # type: ignore[type-var]
                    async for notice in notices:
                        yield notice
        finally:
            self._prefs.unwatch(prefs_changed)
            self._keeper.forget(stream)

    async def _following(
        self, stream: EventStream, mask: int, may_see_login: bool, told: int
    ) -> AsyncIterator[dict[str, Any]]:
        """`told`: the state that who listens has heard of."""
        async for event in stream:
            if isinstance(event, SessionEnded):
                return
            notice = self._notice(event, mask, may_see_login)
            if (state := self._state()) != told:  # whatever the event: one that told so may have been missed
                told = notice["State"] = state
            if notice:
                yield {"Version": __version__, **notice}

    def _first(self, mask: int, may_see_login: bool, session: str) -> dict[str, Any]:
        found: dict[str, Any] = {"Version": __version__}
        if mask & INITIAL_STATE:
            found["SessionID"] = session
            found["State"] = self._state()
            if self._keeper.login_url and may_see_login:
                found["BrowseToURL"] = self._keeper.login_url
        if mask & INITIAL_PREFS:
            found["Prefs"] = self._prefs.to_json()
        if mask & INITIAL_NETMAP:
            found["NetMap"] = self._netmap()
        if mask & INITIAL_HEALTH:
            found["Health"] = self._health()
        if mask & INITIAL_STATUS:
            found["InitialStatus"] = self._api.status_json(peers=True, may_see_login=may_see_login)
        return found

    def _notice(self, event: Event, mask: int, may_see_login: bool) -> dict[str, Any]:
        match event:
            case StateChanged(state="failed", detail=detail):
                return {"ErrMessage": detail}
            case StateChanged(state="running"):
                return {"LoginFinished": {}, "Prefs": self._prefs.to_json()}
            case LoginNeeded(url=url) if may_see_login:
                return {"BrowseToURL": url}
            case HealthChanged():
                return {"Health": self._health()}
            case FileArrived():
                return {"FilesWaiting": {}}
            case PrefsChanged():
                return {"Prefs": self._prefs.to_json()}
            case PeerUp() | PeerDown() | PeerChanged() | Lagged():
                return self._of_peers(event, mask)
        return {}

    def _of_peers(self, event: Event, mask: int) -> dict[str, Any]:
        if mask & PEER_CHANGES and isinstance(event, PeerUp | PeerDown | PeerChanged):
            netmap = self._keeper.netmap()
            node = netmap.peers.get(event.node.id) if netmap is not None else None
            if node is None or netmap is None:
                return {"PeersRemoved": [event.node.id]}
            return {"PeersChanged": [ipn.node_json(node, netmap)]}
        return {"NetMap": self._netmap()} if mask & INITIAL_NETMAP and not mask & NO_NETMAP else {}

    def _state(self) -> int:
        return ipn.STATES.index(self._api.backend_state())

    def _netmap(self) -> dict[str, Any] | None:
        netmap = self._keeper.netmap()
        return ipn.netmap_json(netmap) if netmap is not None else None

    def _health(self) -> dict[str, Any]:
        status = self._keeper.status()
        return ipn.health_json(status.health if status is not None else ())


@dataclass(frozen=True, slots=True)
class PrefsChanged(Event):
    """Preferences are others now."""


@dataclass(frozen=True, slots=True)
class SessionEnded(Event):
    """What this reader published was taken away by somebody else."""


class Nudge:
    """Puts a change of the preferences into a stream of events."""

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream

    def __call__(self) -> None:
        self._stream.put(PrefsChanged())
