"""What others wrote is harmless wherever it is shown: in logs, on terminals, in JSON, as an address to open."""

from __future__ import annotations

import ast
import io
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from tailscale import foreign_text
from tailscale.cli.screen import Screen
from tailscale.runtime.bus import Bus
from tailscale.runtime.health import Health
from ts_control.wire import DisplayMessage, DisplayMessageAction

ROOT = Path(foreign_text.__file__).parent
WICKED = ["\x1b[31mred", "\x9b31mCSI", "del\x7f", "\u202eturned", "a\r\nforged", "\u2028line", "\U000e0001tag"]


@pytest.mark.parametrize("text", WICKED)
def test_no_unprintable_character_reaches_a_log_or_a_terminal(text: str) -> None:
    for shown in (foreign_text.for_log(text), foreign_text.for_terminal(text), foreign_text.for_json(text)):
        assert shown.isprintable()
    assert json.loads(foreign_text.for_json({"n": text}, indent=2)) == {"n": text}
    assert json.loads(foreign_text.for_json({"n": text}, unicode=False)) == {"n": text}


@pytest.mark.parametrize("text", ["plain", "größer", "日本", "a b", "\\n"])
def test_printable_text_of_any_language_passes_as_it_is(text: str) -> None:
    assert foreign_text.for_log(text) == foreign_text.for_terminal(text) == text
    assert foreign_text.for_json(text) == json.dumps(text, ensure_ascii=False)


def test_a_log_line_is_bounded() -> None:
    assert len(foreign_text.for_log("x" * 1_000_000)) < 3000


@pytest.mark.parametrize("name", foreign_text.LOGGERS)
def test_every_record_of_our_loggers_is_one_harmless_line(name: str, caplog: pytest.LogCaptureFixture) -> None:
    foreign_text.guard_logs()
    log = logging.getLogger(name)
    error = OSError("a\nCRITICAL:root:forged\x1b[2J")
    log.warning("%s and %r and %d in %g s", error, error, 3, 0.5)
    line = caplog.records[-1].getMessage()
    assert line.isprintable()
    assert "CRITICAL:root:forged" in line
    assert line.endswith("and 3 in 0.5 s")
    assert log.filters.count(foreign_text._GUARD) == 1


def log_calls() -> list[tuple[str, ast.Call]]:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value
                if isinstance(owner, ast.Name) and owner.id in ("log", "logging"):
                    found.append((path.name, node))
    return found


def test_every_logger_has_the_guard_and_every_sentence_is_our_own() -> None:
    for file, call in log_calls():
        assert isinstance(call.func, ast.Attribute)
        if call.func.attr == "getLogger" and isinstance(call.args[0], ast.Constant):
            assert call.args[0].value in foreign_text.LOGGERS, f"{file} has a logger without the guard"
        if call.func.attr in ("debug", "info", "warning", "error", "exception", "critical"):
            sentence = call.args[0]
            assert isinstance(sentence, ast.Constant), f"{file} line {call.lineno}: values go into the arguments"


@pytest.mark.parametrize("text", WICKED)
def test_json_on_a_terminal_is_the_same_value_without_raw_controls(text: str) -> None:
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    out = Terminal()
    screen = Screen(out=out, err=Terminal())
    screen.json({"n": text})
    screen.json_line({"n": text})
    assert out.getvalue().replace("\n", "").isprintable()
    assert json.loads(out.getvalue().splitlines()[-1]) == {"n": text}


@pytest.mark.parametrize(
    ("url", "is_offered"),
    [
        ("https://login.example/a?b=c", True),
        ("HTTP://login.example", True),
        ("javascript:alert(1)", False),
        ("file:///etc/passwd", False),
        ("https://a b", False),
        ("https://a\x1b[2J", False),
        ("https://a\u202eb", False),
        ("", False),
    ],
)
def test_only_pages_of_the_web_are_offered(url: str, is_offered: bool) -> None:
    assert foreign_text.web_address(url) == (url if is_offered else "")


async def test_a_warning_of_control_offers_no_other_address() -> None:
    action = DisplayMessageAction(url="javascript:1", label="Open")
    netmap = SimpleNamespace(health=(), display_messages={"x": DisplayMessage(title="t", primary_action=action)})
    health = Health(Bus())
    health.show_netmap(netmap)  # type: ignore[arg-type]
    assert [warning.remedy for warning in health.active] == [""]
