"""One session as a handler sees it: who, as whom, what for, and three streams.

Owns the values. Everything that happens on the wire is `channels.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tailscale.foreign_text import for_terminal

if TYPE_CHECKING:
    from tailscale.nodes import Node
    from tailscale.ssh.pipes import Reader, SyncReader, SyncWriter, Writer


@dataclass(slots=True)
class Terminal:
    """What the client shows the session in. The size is the newest that it told."""

    name: str
    columns: int
    rows: int


@dataclass(slots=True)
class SessionFacts:
    """What both kinds of session tell."""

    peer: Node
    """The node that logged in."""
    user: str
    """As whom: what the policy makes of the name that was asked for."""
    command: str | None
    """What is to be run; None where a shell was asked for."""
    env: Mapping[str, str]
    """As far as the policy lets it in."""
    terminal: Terminal | None
    """None where output goes to a program."""
    exit_code: int | None = field(default=None, init=False)

    def exit(self, code: int = 0) -> None:
        """Remember the exit code; the session ends when the handler returns, with all that it has written."""
        self.exit_code = int(code) & 0xFF

    def __repr__(self) -> str:
        command = "a shell" if self.command is None else repr(self.command)
        return for_terminal(f"<{type(self).__name__} {self.user} from {self.peer.hostname}: {command}>")


@dataclass(slots=True, repr=False)
class Session(SessionFacts):
    """One session, for a handler that is a coroutine."""

    stdin: Reader = field(kw_only=True)
    stdout: Writer = field(kw_only=True)
    stderr: Writer = field(kw_only=True)
    """Where there is a terminal, the same as `stdout`."""


@dataclass(slots=True, repr=False)
class SyncSession(SessionFacts):
    """One session, for a handler that is a function in a thread."""

    stdin: SyncReader = field(kw_only=True)
    stdout: SyncWriter = field(kw_only=True)
    stderr: SyncWriter = field(kw_only=True)
