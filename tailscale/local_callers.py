"""Whose connection a server of this machine has before it: the addresses that its socket shows, and who they stand for.

Owns the table of connections of the tailnet that are carried to servers of this machine, of every Device of the
process, from before their first byte until they end. What is not in it is nobody's: an address alone proves nothing.
An address of this machine that stood for somebody is not used again for a while, so that a request that is still being
answered is never taken for that of the next. May be asked from any thread. Refuses to know who has which address.
"""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass

Address = tuple[str, int]
RETIRED = 8192  # addresses that stood for somebody not long ago
V4_MAPPED = "::ffff:"


@dataclass(frozen=True, eq=False, slots=True)
class Caller:
    """One connection. `source` and `door` are what the server sees as the peer's address and as its own."""

    owner: object
    source: Address
    door: Address
    remote: Address
    """The caller's address in the tailnet of `owner`."""


class LocalCallers:
    """One for the process: so is the space of its addresses."""

    def __init__(self) -> None:
        self._callers: dict[Address, list[Caller]] = {}
        self._retired: dict[Address, None] = {}
        self._lock = threading.Lock()

    def begin(self, owner: object, source: Address, door: Address, remote: Address) -> Caller:
        """From now on `source` stands for `remote`. OSError (EADDRINUSE) where it may not yet."""
        caller = Caller(owner, plain(source), plain(door), plain(remote))
        with self._lock:
            is_own = caller.source == caller.remote  # the tailnet's own address is always the same node's
            if not is_own and (caller.source in self._callers or caller.source in self._retired):
                raise OSError(errno.EADDRINUSE, "that address stood for somebody else not long ago")
            self._callers.setdefault(caller.source, []).append(caller)
        return caller

    def end(self, caller: Caller) -> None:
        """To be called before the address is given back to the system."""
        with self._lock:
            standing = self._callers.get(caller.source, [])
            if caller not in standing:
                return  # a child's table began empty
            standing.remove(caller)
            if not standing:
                del self._callers[caller.source]
            if caller.source != caller.remote:
                self._retired[caller.source] = None
                if len(self._retired) > RETIRED:
                    del self._retired[next(iter(self._retired))]

    def find(self, owner: object, source: Address, door: Address | None = None) -> Address | None:
        """Whom `source` stands for. Without a `door` only where all that have this address agree.

        With port 0, for servers that do not say which: only an address of the tailnet itself, while it is connected.
        """
        source, door = plain(source), plain(door) if door is not None else None
        with self._lock:
            if source[1]:
                standing = list(self._callers.get(source, ()))
            else:
                known = (one for found in self._callers.values() for one in found)
                standing = [one for one in known if one.source == one.remote and one.source[0] == source[0]]
        remotes = {one.remote for one in standing if one.owner is owner and door in (None, one.door)}
        if not source[1]:
            return source if remotes else None
        return remotes.pop() if len(remotes) == 1 else None

    def forget(self) -> None:
        """A child process has none of the connections, nor the thread that may have held the lock."""
        self._callers, self._retired, self._lock = {}, {}, threading.Lock()


def plain(address: tuple[object, ...]) -> Address:
    """Host and port as everybody writes them: no zone, and IPv4 as IPv4 on a socket of both kinds."""
    host = str(address[0]).partition("%")[0]
    if host.lower().startswith(V4_MAPPED) and "." in host:
        host = host[len(V4_MAPPED) :]
    return host, int(str(address[1]))


CALLERS = LocalCallers()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=CALLERS.forget)
