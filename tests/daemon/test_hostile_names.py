"""A control server that calls everything something wicked, and every face of the daemon that shows it."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon.daemon_scripts import PATIENCE, World, client_of
from daemon.hostile_names import WICKED, is_harmless, wicked_words
from daemon.test_commands_hosted import command, environment, wait_until
from daemon.test_completion import needs_bash
from prometheus_client.parser import text_string_to_metric_families

from tailscale.cli import main
from tailscale.cli.completion import bash, read_parser
from tailscale.cli.screen import LONGEST_CELL
from tailscale.daemon.answering import encode
from tailscale.daemon.client import Client
from tailscale.daemon.daemon import Daemon
from tailscale.foreign_text import harmless_json
from tailscale.tui.app import Top
from tailscale.tui.source import DaemonSource
from tests.tailscale.tui_scripts import screen_of

SHOWN = 40  # characters of a name that any face shows


@pytest.fixture(scope="module")
def wicked(net: World, daemon: Daemon) -> Iterator[Client]:
    """A client of the daemon whose tailnet is full of wicked names; the address of `db` is still 100.64.0.1."""
    client = client_of(daemon)
    words = wicked_words(next(client.stream("/localapi/v0/watch-ipn-bus?mask=8"))["NetMap"])

    async def say() -> None:
        net.net.control.do(net.net.control.server.send_to, net.net.id_of("keeper"), words)

    net.within(say)
    wait_until(lambda: "evil" in client.get("peers")[0]["hostname"])
    wait_until(lambda: any("evil" in each["sentence"] for each in client.get("status")["device"]["health"]))
    return client


@pytest.fixture
def state(daemon: Daemon) -> list[str]:
    return ["--state", daemon.places.state]


@pytest.mark.parametrize(
    "words",
    [
        ["status"], ["status", "--json"], ["top", "--plain"], ["metrics", "--peers"], ["why", "100.64.0.1:7"],
        ["why", "100.64.0.1:7", "--json"], ["why", WICKED + ":7"], ["doctor", "100.64.0.1"], ["doctor", "--json"],
        ["whois", "100.64.0.1"], ["whois", "100.64.0.1", "--json"], ["ping", "100.64.0.1", "-c", "1"],
        ["ping", "evil", "-c", "1"], ["exits", "any"], ["netcheck"], ["ls", "-a"], ["ls", "-a", "--json"],
    ],
    ids=lambda words: " ".join(words)[:20].replace("\x1b", ""),
)  # fmt: skip
def test_no_command_shows_it_raw(
    wicked: Client, state: list[str], words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    main([words[0], *state, *words[1:]])
    said = capfd.readouterr()
    assert is_harmless(said.out)
    assert is_harmless(said.err)
    assert said.out + said.err
    assert "Traceback" not in said.err


def test_one_long_name_does_not_make_every_line_long(
    wicked: Client, state: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", *state]) == 0
    table = capfd.readouterr().out.partition("NAME")[2].splitlines()
    assert max(len(line) for line in table[:2]) < 6 * LONGEST_CELL


def test_metrics_are_read_by_prometheus_own_parser(
    wicked: Client, state: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["metrics", *state, "--peers"]) == 0
    families = list(text_string_to_metric_families(capfd.readouterr().out))
    online = next(one for one in families if one.name == "pytailscale_peer_online")
    assert "evil" in online.samples[0].labels["peer"]


def test_log_has_whole_lines_of_ours(wicked: Client, daemon: Daemon) -> None:
    text = Path(daemon.places.log).read_text()
    assert "evil" in text
    assert is_harmless(text)
    assert all(line[:4].isdigit() for line in text.splitlines())


def test_upstreams_clients_get_what_they_may_print(wicked: Client) -> None:
    for path in ("status", "whois?addr=100.64.0.1:1", "profiles/", "profiles/current"):
        said = wicked.get(f"/localapi/v0/{path}")
        assert is_harmless(json.dumps(said, ensure_ascii=False)), path
        assert "evil?[2J" in json.dumps(said)
    first = next(wicked.stream(f"/localapi/v0/watch-ipn-bus?mask={8 + 128 + 16384}"))
    assert is_harmless(json.dumps(first, ensure_ascii=False))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\nb\x1b\u202e\x7f\u2028", "a?b????"),
        ('größer 日本 😀 \\n \\u001b "', 'größer 日本 😀 \\n \\u001b "'),
        ("\U000e0001\ud800", "??"),
        ({"k\x1b": ["\x07", 1, None]}, {"k?": ["?", 1, None]}),
    ],
)
def test_what_is_unprintable_is_a_question_mark_and_all_else_stays(value: object, shown: object) -> None:
    assert json.loads(harmless_json(encode(value))) == shown


def test_python_shows_it_harmlessly(wicked: Client, daemon: Daemon, net: World) -> None:
    async def shown() -> list[str]:
        device = daemon.keeper.device
        peers, status = device.peers, device.status()
        return [repr(peers), repr(status), repr(status.peers[0]), repr(device), str(status.peers[0].path)]

    for text in net.within(shown):
        assert is_harmless(text), text[:200]


@pytest.mark.slow
@needs_bash
def test_bash_completes_no_name_that_is_a_command(wicked: Client, state: list[str], tmp_path: Path) -> None:
    """`compgen -W` expands what it is given: a name such as $(rm x) would be run."""
    tool, script = tmp_path / "pytailscale", tmp_path / "complete.bash"
    tool.write_text(f"#!/bin/sh\nexec {' '.join(command('completion', *state, 'peers'))}\n")
    tool.chmod(0o755)
    script.write_text(bash(read_parser()))
    code = f"source {script}; COMP_WORDS=(pytailscale ping ''); COMP_CWORD=2; _pytailscale; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(
        ["bash", "--norc", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment() | {"PATH": f"{tmp_path}:/usr/bin:/bin"},
        timeout=PATIENCE,
        check=True,
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["complete.bash", "pytailscale"]


@pytest.mark.slow
def test_terminal_interface_shows_lines_of_its_own(wicked: Client) -> None:
    async def look() -> list[str]:
        pages = []
        async with Top(DaemonSource(wicked.path)).run_test(size=(100, 30)) as pilot:
            assert isinstance(pilot.app, Top)
            for _ in range(1500):
                await pilot.pause(0.02)
                if "keeper" in screen_of(pilot.app):
                    break
            for page in "12345678":
                await pilot.press(page)
                await pilot.pause(0.05)
                pages.append(screen_of(pilot.app))
        return pages

    pages = asyncio.run(look())
    assert any("evil?[2J" in page or "evil [2J" in page for page in pages)
    for page in pages:
        assert is_harmless(page), [ascii(line) for line in page.splitlines()]
        assert len(page.splitlines()) <= 30
