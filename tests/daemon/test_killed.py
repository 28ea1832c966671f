"""kill -9 at every call that changes something, of a daemon's start, run and end: the next one is the same node."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from daemon import daemon_kill_points
from daemon.test_commands_hosted import environment

from tailscale.testing.threaded import TailnetThread

pytestmark = pytest.mark.slow
FEWEST = 25  # calls of a life; some are a matter of who is faster
LEFT = {"state.json", "state.json.daemon", "state.json.lock", "state.json.relays", "state.log", "state.pid"}
LEFT |= {"state.files", "state.json.tailnet-lock"}


@pytest.mark.timeout(240)
def test_killed_at_any_call_the_next_one_is_the_same_node_and_the_only_one(tmp_path: Path) -> None:
    with TailnetThread() as net:
        done = subprocess.run(
            [sys.executable, daemon_kill_points.__file__, str(tmp_path), net.control_url],
            env=environment() | {"TS_AUTHKEY": net.auth_key(reusable=True)},
            capture_output=True,
            text=True,
            check=False,
        )
        enrolled = net.do(lambda: [device.label for device in net.inner.control.server.directory])
    lives = [json.loads(line) for line in done.stdout.splitlines()]
    for series in ("first", "again"):
        its = [life for life in lives if life["name"].startswith(series)]
        assert len(its) > FEWEST, done.stderr
        assert [life["ended"] for life in its] == [signal.SIGKILL] * (len(its) - 1) + [0], done.stderr
    for life in lives:
        check(life, done.stderr)
    assert enrolled == list(dict.fromkeys(life["name"] for life in lives)), "each of them once"
    assert len({life["who"]["id"] for life in lives if life["name"] == "again"}) == 1


def check(life: dict[str, Any], said: str) -> None:
    assert life["then"] == 0, (life, said)
    kept = life["left"] or life["before"]
    assert kept in ("", life["after"]), "a key that was on the disk is the node's key for ever"
    assert life["after"]
    assert set(life["files"]) <= LEFT, "nothing is left to be cleaned up"
    assert life["who"]["addresses"]
