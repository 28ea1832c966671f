"""Wicked names from control, in the two faces that are other people's programs: stock `tailscale` and a browser."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tailscale.daemon.client import Client
from tailscale.daemon.places import places
from tailscale.testing.threaded import TailnetThread
from tests.daemon.hostile_names import WICKED, is_harmless, wicked_words
from tests.interop import browser, build

ROOT, PATIENCE = Path(__file__).parents[2], 60
LOOKED = "Number(document.body?.dataset.looks ?? 0) >= 2"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Client]:
    """A daemon with one peer, both of which control calls wicked names."""
    path, name = places(tmp_path).socket, "keeper"
    with TailnetThread() as net:
        net.wait_for(partial(net.inner.join, "db"))
        environment = os.environ | {"TS_AUTHKEY": net.auth_key(), "PYTHONPATH": str(ROOT)}
        words = ["--state", str(tmp_path), "--control-url", net.control_url, "--hostname", name]
        command = [sys.executable, "-m", "tailscale.cli"]
        subprocess.run([*command, "up", *words], env=environment, check=True, timeout=PATIENCE)
        try:
            client = Client(path)
            control = net.inner.control
            wicked = wicked_words(next(client.stream("/localapi/v0/watch-ipn-bus?mask=8"))["NetMap"])
            events = client.stream("events")
            next(events)
            net.do(partial(control.do, control.server.send_to, net.inner.id_of(name), wicked))
            next(event for event in events if event["event"] == "HealthChanged")
            yield client
        finally:
            subprocess.run([*command, "down", "--state", str(tmp_path)], env=environment, timeout=PATIENCE, check=True)


@pytest.mark.peers("tailscale")
def test_stock_command_line_prints_nothing_that_commands_a_terminal(daemon: Client) -> None:
    tool = [str(build.binary("tailscale")), f"--socket={daemon.path}"]
    for words in (["status"], ["status", "--json"], ["whois", "100.64.0.1"], ["switch", "--list"], ["dns", "status"]):
        done = subprocess.run([*tool, *words], capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 0, done.stderr
        assert is_harmless(done.stdout.replace("\t", " ")), words
        assert is_harmless(done.stderr.replace("\t", " ")), words
        assert "evil" in done.stdout or words[0] == "dns"


@pytest.mark.peerless
@pytest.mark.skipif(browser.chromium() is None, reason=browser.MISSING)
def test_status_page_shows_text_and_runs_nothing(daemon: Client, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tailscale.cli", "web", "--state", str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    ) as web:
        assert web.stdout is not None
        link = next(word for line in web.stdout for word in line.split() if word.startswith("http://"))
        try:
            with browser.browser() as tab:
                tab.open(link)
                tab.until(LOOKED)
                tab.until("/evil/.test(document.getElementById('peers').textContent)")
                assert tab.ask("document.title") != "owned"
                assert tab.ask("document.querySelectorAll('img, #peers script, #health script').length") == 0
                for place in ("peers", "health"):
                    assert "<script>" in tab.ask(f"document.getElementById('{place}').textContent"), place
                assert [line for line in tab.said if "favicon" not in line] == []
                assert WICKED[:4] in tab.ask("document.getElementById('map').textContent")
                assert "\u202e" not in json.dumps(tab.ask("document.body.innerText"), ensure_ascii=False)
        finally:
            web.terminate()
