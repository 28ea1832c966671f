"""The systemd unit of a daemon: its text, and where it goes. Knows no running daemon.

`examples/pytailscale.service` is what this makes for root; a test holds it to that.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

UNIT = """\
[Unit]
Description=pytailscale keeps a device of the tailnet
Documentation=https://github.com/pytailscale/pytailscale/blob/main/docs/daemon.md
Wants=network-online.target
After=network-online.target

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartPreventExitStatus=3 7
RestartSec=5
WatchdogSec=60
TimeoutStartSec=infinity
TimeoutStopSec=15
NoNewPrivileges=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
LockPersonality=yes

[Install]
WantedBy={target}
"""
NAME = "pytailscale.service"


def unit_text(words: list[str], *, is_root: bool) -> str:
    """A unit that runs this interpreter's pytailscale with these words."""
    command = " ".join(map(_quoted, [sys.executable, "-m", "tailscale.cli", "up", "--foreground", *words]))
    return UNIT.format(command=command, target="multi-user.target" if is_root else "default.target")


def unit_path(*, is_root: bool) -> Path:
    """Where systemd looks: the system's units for root, else this user's."""
    if is_root:
        return Path("/etc/systemd/system", NAME)
    base = os.environ.get("XDG_CONFIG_HOME", "").strip() or "~/.config"
    return Path(base).expanduser() / "systemd/user" / NAME


def _quoted(word: str) -> str:
    """As systemd.service(5) reads a command line: its quotes, and its `%` and `$`."""
    word = word.replace("%", "%%").replace("$", "$$")
    if word and not set(word) & set(" \t\"'\\;"):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
