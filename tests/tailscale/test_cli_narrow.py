"""What commands print on terminals of 40 and 80 columns, with rich and without: golden screens."""

from __future__ import annotations

import io
import re
import sys
from argparse import Namespace
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tailscale import Counters, Explanation, HealthWarning, Node, PathInfo, PeerStatus, PingResult, Status
from tailscale.cli.doctor import Report
from tailscale.cli.failures import explain
from tailscale.cli.findings import Finding, bad, good
from tailscale.cli.pinging import Tally
from tailscale.cli.queries import say_status
from tailscale.cli.run import report
from tailscale.cli.screen import Screen
from tailscale.cli.why import say as say_why
from tailscale.errors import ControlUnreachable, LoginRequired
from tailscale.explanation import Step

GOLDEN = Path(__file__).parent / "golden_screens"
STYLE = re.compile(r"\x1b\[[\d;]*m")
OPTIONS = Namespace(json=False, online=False, watch=None, verbose=0)
SEEN = datetime(2026, 11, 30, 9, 30, tzinfo=UTC)
LOST = ControlUnreachable(
    "the control server http://192.0.2.9 did not let us in within 30 s: cannot connect to 192.0.2.9:80: Connection "
    "refused. Check control_url= (or TS_CONTROL_URL) and the network; ready_timeout= sets the patience"
)


class Terminal(io.StringIO):
    """Of so many columns."""

    encoding = "utf-8"  # type: ignore[assignment]
    wants_style = True

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns

    def isatty(self) -> bool:
        return True


def node(name: str, number: int, online: bool = True, **more: object) -> Node:
    addresses = (f"100.64.0.{number}", f"fd7a:115c:a1e0::{number}")
    facts = {"user": "alice@example.com", "os": "linux", "last_seen": None if online else SEEN} | more
    return Node(
        id=number, stable_id=f"n{number}", name=f"{name}.rig.example", hostname=name, addresses=addresses,
        online=online, tags=(), expired=False, key_expiry=None, routes=(), **facts,  # type: ignore[arg-type]
    )  # fmt: skip


def status_of(*peers: PeerStatus) -> Status:
    health = (HealthWarning("udp-blocked", "no UDP gets out of this network", "let UDP out to port 3478"),)
    counters = Counters({}, {}, {}, {})
    return Status("running", node("laptop", 1), "192.0.2.9", "https://headscale.example", "fra", 41641, (), peers,
                  health, counters)  # fmt: skip


DIRECT = PathInfo("direct", "192.0.2.7:41641")
SPOKEN = PeerStatus(node("database-primary", 2), DIRECT, 0.0123, 5_000_000, 700, 3.0)
SILENT = PeerStatus(node("web", 3), DIRECT, None, 0, 0, None)
AWAY = PeerStatus(node("old-nas", 4, online=False), PathInfo(), None, 0, 0, None)


def show_status(screen: Screen) -> None:
    say_status(status_of(SPOKEN, SILENT, AWAY), OPTIONS, screen)


def show_status_of_a_new_device(screen: Screen) -> None:
    say_status(status_of(SILENT, AWAY), OPTIONS, screen)


def show_doctor(screen: Screen) -> None:
    doctor = Report(OPTIONS, screen)
    doctor.add("Python", [good("CPython 3.11.7, OpenSSL 3.0.19 27 Jan 2026")])
    doctor.add("control", [bad(LOST)])
    doctor.add("relays", [Finding("warn", "no relay answered", "let TCP 443 out to the tailnet's relays")])
    doctor.finish()


def show_why(screen: Screen) -> None:
    steps = (
        Step("name", "ok", "db is 100.64.0.2, fd7a:115c:a1e0::2"),
        Step("tcp", "bad", "it answered, and nothing listens on port 5432 there", "port-closed"),
    )
    verdict = "db port 5432 refused the connection: nothing listens there"
    say_why(Explanation("db", 5432, "tcp", steps, verdict, "port-closed", False), screen)


def show_ping(screen: Screen) -> None:
    tally = Tally()
    tally.sent = 4
    for path, latency in ((PathInfo("relay", "fra"), 0.031), (DIRECT, 0.0012), (DIRECT, 0.0014)):
        tally.add(PingResult(latency, path, "disco", SPOKEN.node))
    tally.say(screen)


def show_failures(screen: Screen) -> None:
    report(LOST, OPTIONS, screen)
    report(LoginRequired("https://headscale.example/register/nodekey-0123456789abcdef0123456789"), OPTIONS, screen)


SHOWN: list[Callable[[Screen], None]] = [
    show_status, show_status_of_a_new_device, show_doctor, show_why, show_ping, show_failures,
]  # fmt: skip


@pytest.fixture(autouse=True)
def colourful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize("show", SHOWN)
def test_every_screen_is_what_it_was(
    show: Callable[[Screen], None], columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = set()
    for has_rich in (True, False):
        if not has_rich:
            monkeypatch.setitem(sys.modules, "rich.table", None)
        terminal = Terminal(columns)
        show(Screen(out=terminal, err=terminal))
        lines = [line.rstrip() for line in STYLE.sub("", terminal.getvalue()).splitlines()]
        assert [line for line in lines if len(line) > columns and " " in line.strip()] == []
        shown.add("\n".join(lines) + "\n")
    assert len(shown) == 1, "the same without rich"
    compare(f"cli_{show.__name__.removeprefix('show_')}_{columns}", shown.pop())


def compare(name: str, shown: str) -> None:
    """With the golden screen; one that is missing is written, to be looked at before it is committed."""
    path = GOLDEN / f"{name}.txt"
    if not path.exists():
        path.write_text(shown)
        pytest.fail(f"{path} was missing and is written: look at it")
    assert shown == path.read_text()


def test_the_name_is_there_at_any_width() -> None:
    for columns in range(20, 200, 5):
        terminal = Terminal(columns)
        say_status(status_of(SPOKEN, SILENT, AWAY), OPTIONS, Screen(out=terminal, err=terminal))
        assert "database-primary" in terminal.getvalue()


def test_a_failure_is_said_once() -> None:
    failure = explain(LOST)
    assert not {"--control-url", "TS_CONTROL_URL", "--timeout"} & set(failure.remedy.split())
