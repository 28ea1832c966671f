"""Who is in: every client of one proxy has a place, and who is silent makes room for who comes.

A client is quiet while nothing is being done for it: it has not said yet what it wants, or rests between two requests.
Owns the counts; knows neither streams nor languages.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import trio

SPARE = 64  # clients beyond the limit that are still told that there are too many; more are hung up on


class Places:
    """As many as `limit`, and a few that only hear that it is full."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._quiet: dict[trio.CancelScope, None] = {}  # the one that has been quiet longest is first
        self._is_closed = False
        self.open = 0
        self.accepted = 0
        self.hung_up = 0  # quiet ones that made room
        self.turned_away = 0

    @contextlib.contextmanager
    def one(self) -> Iterator[bool | None]:
        """A place while the block lasts. False: only to be told that there is none. None: not even that."""
        has_place = self.open < self._limit or self._make_room()
        self.turned_away += not has_place
        if not has_place and self.open >= self._limit + SPARE:
            yield None
            return
        self.open += 1
        self.accepted += 1
        try:
            yield has_place
        finally:
            self.open -= 1

    def close(self) -> None:
        """Who is quiet goes now; the others go when they are done."""
        self._is_closed = True
        for scope in tuple(self._quiet):
            scope.cancel()

    def _make_room(self) -> bool:
        """Whether somebody leaves. It is gone a turn of the loop later, and `open` may be over the limit until then."""
        longest = next(iter(self._quiet), None)
        if longest is None:
            return False
        del self._quiet[longest]
        self.hung_up += 1
        longest.cancel()
        return True

    @contextlib.contextmanager
    def quiet(self, deadline: float = math.inf) -> Iterator[trio.CancelScope]:
        """The client says nothing yet, and may be hung up on: the scope tells whether it was, or came too late."""
        with trio.CancelScope(deadline=deadline) as scope:
            self._quiet[scope] = None
            if self._is_closed:
                scope.cancel()
            try:
                yield scope
            finally:
                self._quiet.pop(scope, None)
