"""Where a daemon's files are: beside the state, named after it; the settings of the default one where settings are.

Owns the names and the default. Imports next to nothing, because every command asks this before anything else is loaded.
"""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

STATE_FILE = "state.json"  # as `tailscale.state_file.FileStore` names it in a directory


class Places(NamedTuple):
    """One daemon's files."""

    state: str
    """The state file itself."""
    socket: str
    pid: str
    log: str
    settings: str


def default_state() -> str:
    """Where the device of this user is kept between commands: what platformdirs says, without its 15 ms."""
    if sys.platform == "win32":
        import platformdirs

        return platformdirs.user_state_dir("pytailscale", appauthor=False)
    if sys.platform == "darwin":
        return os.path.expanduser("~/Library/Application Support/pytailscale")
    base = os.environ.get("XDG_STATE_HOME", "").strip() or os.path.expanduser("~/.local/state")
    return os.path.join(base, "pytailscale")


def default_settings_folder() -> str:
    """Where this user's config.toml is."""
    if sys.platform in ("win32", "darwin"):
        return default_state()
    base = os.environ.get("XDG_CONFIG_HOME", "").strip() or os.path.expanduser("~/.config")
    return os.path.join(base, "pytailscale")


def places(state: str | os.PathLike[str] | None = None) -> Places:
    """The files that belong to a state, which may be named by its file or its directory; None is the default."""
    chosen = os.path.abspath(os.path.expanduser(os.fspath(state) if state is not None else default_state()))
    has_suffix = bool(os.path.splitext(chosen)[1])
    is_file = os.path.isfile(chosen) or (not os.path.exists(chosen) and has_suffix)
    file = chosen if is_file else os.path.join(chosen, STATE_FILE)
    root = os.path.splitext(file)[0]
    folder = os.path.dirname(file) if state is not None else default_settings_folder()
    return Places(file, f"{root}.sock", f"{root}.pid", f"{root}.log", os.path.join(folder, "config.toml"))
