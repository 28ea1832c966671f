"""The file that a command in the daemon writes: opened and named where the command was typed, by whoever typed it.

Owns one file of a light client. The daemon's user, folders and disks may be others; what goes wrong is told to it.
Refuses to write any file that was not among the words: the daemon may be another user's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from tailscale._private_files import Draft
from tailscale.daemon import frames
from tailscale.foreign_text import for_terminal

PUBLIC = b"644"
CERTIFICATE_FILES = (".crt", ".key")


class FileHere:
    """One at a time."""

    def __init__(self, argv: Sequence[str]) -> None:
        words = {part for word in argv for part in (word, word.partition("=")[2]) if part}
        self._named = {os.path.abspath(word) for word in words}
        if "cert" in argv:  # whose files are called after a word, or after the device
            self._named |= {os.path.abspath(f"{word}{end}") for word in words for end in CERTIFICATE_FILES}
            self._named |= {os.path.abspath(f"wildcard_{word[1:]}{end}") for word in words for end in CERTIFICATE_FILES}
        self._draft: Draft | None = None
        self._problem: dict[str, object] = {}

    def heed(self, kind: bytes, payload: bytes) -> bytes | None:
        """What the daemon wants of it; an answer to FILE and to WHOLE, and to the first DATA that does not fit."""
        had_problem = bool(self._problem)
        try:
            if kind == frames.FILE:
                self._problem = {}
                path, _, mode = payload.partition(b"\0")
                is_public = mode == PUBLIC
                self._draft = Draft(self._typed(os.fsdecode(path)), 0o644 if is_public else 0o600)
            elif self._draft is not None and not had_problem:
                if kind == frames.DATA:
                    self._write(self._draft, payload)
                elif kind == frames.WHOLE:
                    self._draft.finish()
                    self._draft = None
        except (OSError, ValueError) as error:
            left = f". {self._draft.left}" if self._draft is not None else ""
            told = f"{getattr(error, 'strerror', None) or error}{left}"
            self._problem = {"errno": getattr(error, "errno", None), "problem": told}
        if kind == frames.ABANDON or self._problem:
            self.abandon()
        if kind in (frames.FILE, frames.WHOLE) or (self._problem and not had_problem):
            return frames.frame(frames.FILED, json.dumps(self._problem).encode())
        return None

    def _typed(self, path: str) -> Path:
        if path not in self._named:
            raise ValueError(f"the daemon asked for a file that was not named: {for_terminal(path)}")
        return Path(path)

    def _write(self, draft: Draft, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[draft.write(left) or 0 :]

    def abandon(self) -> None:
        """Without the daemon nobody knows whether it is whole."""
        if self._draft is not None:
            self._draft.abandon()
            self._draft = None
