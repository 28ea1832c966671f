"""Who may use a proxy: names and passwords, or a function that knows them. RFC 1929 and RFC 7617 only carry them.

A refusal takes the same time whether the name or the password was wrong.
"""

from __future__ import annotations

import hmac
import inspect
from collections.abc import Awaitable, Callable, Mapping

import trio

from ts_base.errors import BadPacket
from ts_proxy.user_names import UserName, decode_user_untrusted

Users = Mapping[str, str] | Callable[[str, str], bool | Awaitable[bool]]

PAUSE = 0.2  # before a refusal, so that guessing is slow
NOBODY = "nobody"  # compared with where there is no such user


class Doorkeeper:
    """`users` None lets everybody in; a name may still ask for a session."""

    def __init__(self, users: Users | None) -> None:
        self._users = users
        self.refused = 0

    @property
    def asks(self) -> bool:
        return self._users is not None

    async def let_in(self, name: bytes, password: bytes) -> UserName | None:
        """Who that is; None, after a pause, for who may not come in."""
        try:
            who = decode_user_untrusted(name)
            if await self._knows(who.user, password.decode()):
                return who
        except (BadPacket, UnicodeDecodeError):
            pass
        await self.refuse()
        return None

    async def refuse(self) -> None:
        self.refused += 1
        await trio.sleep(PAUSE)

    async def _knows(self, user: str, password: str) -> bool:
        if self._users is None:
            return True
        if isinstance(self._users, Mapping):
            return _is_right(self._users, user, password)
        answer = self._users(user, password)
        return bool(await answer if inspect.isawaitable(answer) else answer)


def _is_right(users: Mapping[str, str], user: str, password: str) -> bool:
    """A password is compared whether or not there is such a user."""
    is_right = hmac.compare_digest(password.encode(), users.get(user, NOBODY).encode())
    return is_right and user in users
