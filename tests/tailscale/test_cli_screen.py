"""What reaches a terminal, a pipe, and neither."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from tailscale.cli.exit_codes import EXIT_TABLE
from tailscale.cli.failures import explain
from tailscale.cli.screen import Screen, cut, fitting, in_time
from tailscale.errors import LoginRequired, NameNotFound, StateLocked
from tailscale.figures import in_bytes


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def colourful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((80, 24)))


def test_colours_only_on_terminals() -> None:
    for out, expected in ((Terminal(), "\x1b[32myes\x1b[0m\n"), (io.StringIO(), "yes\n")):
        Screen(out=out, err=io.StringIO()).say(("yes", "green"))
        assert out.getvalue() == expected


def test_no_color_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    Screen(out=out, err=Terminal()).say(("yes", "green"))
    assert out.getvalue() == "yes\n"


def test_escape_sequences_of_others_never_reach_a_terminal() -> None:
    out = Terminal()
    screen = Screen(out=out, err=Terminal())
    screen.say("evil\x1b[2J")
    screen.table(("NAME", "USER"), [("a\x1b]0;x\x07", "[bold]b[/bold]")])
    assert "\x1b[2J" not in out.getvalue()
    assert "\x1b]0" not in out.getvalue()
    assert "[bold]b[/bold]" in out.getvalue()


def test_live_line_is_erased_before_anything_else() -> None:
    err = Terminal()
    screen = Screen(out=io.StringIO(), err=err)
    screen.show("joining")
    screen.note("done")
    assert err.getvalue().endswith("\r\x1b[Kdone\n")


def test_live_line_is_silent_in_a_pipe() -> None:
    err = io.StringIO()
    Screen(out=io.StringIO(), err=err).show("joining")
    assert err.getvalue() == ""


def test_narrow_terminal_drops_optional_columns_first() -> None:
    header, rows = ("NAME", "user", "os"), [("a" * 20, "b" * 20, "linux")]
    assert fitting(header, rows, 80) == {0: 20, 1: 20, 2: 5}
    assert fitting(header, rows, 35) == {0: 20, 2: 5}
    assert fitting(header, rows, 10) == {0: 10}


def test_columns_that_say_nothing_go_before_any_that_do() -> None:
    header, rows = ("NAME", "PATH", "user"), [("db", "-", "alice"), ("web", ("-", "dim"), "bob")]
    assert fitting(header, rows, 80) == {0: 4, 2: 5}
    out = Terminal()
    Screen(out=out, err=Terminal()).table(header, rows)
    assert "PATH" not in out.getvalue()
    piped = io.StringIO()
    Screen(out=piped, err=Terminal()).table(header, rows)
    assert piped.getvalue().split() == ["NAME", "PATH", "user", "db", "-", "alice", "web", "-", "bob"]


def test_the_widest_is_cut_and_the_name_is_not() -> None:
    header, rows = ("NAME", "ADDRESS", "STATE"), [("a" * 12, "100.100.100.100", "offline since 2026-11-30 12:00")]
    assert fitting(header, rows, 80) == {0: 12, 1: 15, 2: 30}
    assert fitting(header, rows, 50) == {0: 12, 1: 15, 2: 19}
    assert fitting(header, rows, 40) == {0: 12, 1: 15, 2: 9}
    assert fitting(header, rows, 38) == {0: 12, 1: 15}
    assert cut(("offline since", "dim"), 8, True) == ("offline…", "dim")
    assert cut("offline", 7, False) == "offline"
    assert cut("offline", 6, False) == "offli~"


def test_sentences_on_a_terminal_break_between_words() -> None:
    err = Terminal()
    err.columns = 40  # type: ignore[attr-defined]
    Screen(out=io.StringIO(), err=err).note_at(("pytailscale: ", "red"), "the control server is not there today")
    assert [line.strip() for line in err.getvalue().splitlines()][1:] == ["there today"]
    piped = io.StringIO()
    Screen(out=io.StringIO(), err=piped).note_at("pytailscale: ", "word " * 40)
    assert piped.getvalue().count("\n") == 1


def test_every_error_has_a_code_of_the_table() -> None:
    codes = {code for code, _ in EXIT_TABLE}
    group = ExceptionGroup("", [ValueError("x"), ExceptionGroup("", [NameNotFound("db")])])
    assert explain(group).code == 5
    assert explain(LoginRequired("https://x")).code == 3
    assert explain(StateLocked("/x", 7)).code == 7
    assert explain(KeyError("x")).sentence.startswith("this should not happen: KeyError")
    assert {explain(error).code for error in (TimeoutError(), ConnectionRefusedError(111, "no"), OSError("x"))} <= codes


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.00042, "0.4 ms"), (0.042, "42 ms"), (1.5, "1.50 s"), (180.0, "3 min"), (0.0997, "0.10 s")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert in_time(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(7, "7 B"), (12_345, "12 kB"), (103_000_000, "103 MB"), (2 * 10**12, "2.0 TB")],
)
def test_byte_counts_read_well(count: int, text: str) -> None:
    assert in_bytes(count) == text


def test_manual_and_help_tell_the_same_exit_codes() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "cli.md").read_text().replace("`", "")
    for code, meaning in EXIT_TABLE:
        assert f"| {code} | {meaning} |" in manual
