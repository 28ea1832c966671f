"""`%tailnet` over a shell that is played; tests/interop/test_notebooks.py has the real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import methodcaller
from typing import Any

import pytest

import tailscale
from tailscale import sync
from tailscale.notebook import HELP, LoginPage, Refused, Tailnet, load_ipython_extension, unload_ipython_extension
from tailscale.testing.threaded import TailnetThread

shown_lines = methodcaller("_render_traceback_")  # IPython asks by this name


@pytest.fixture(scope="module")
def net() -> Iterator[TailnetThread]:
    with TailnetThread() as net, sync.Device("db", **net.options()):
        yield net


@pytest.fixture
def shown(net: TailnetThread, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> list[object]:
    monkeypatch.setenv("TS_CONTROL_URL", net.control_url)
    monkeypatch.setenv("TS_AUTHKEY", net.auth_key(reusable=True))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return []


@pytest.fixture
def here(shown: list[object]) -> Iterator[Tailnet]:
    tailnet = Tailnet(shown.append)
    yield tailnet
    if tailnet.device is not None:
        tailnet.run("down")


class Shell:
    """What an extension asks of IPython's."""

    def __init__(self) -> None:
        self.variables: dict[str, object] = {}
        self.magics: dict[str, Callable[[str], Any]] = {}
        self.magics_manager = type("Manager", (), {"magics": {"line": self.magics}})

    def push(self, variables: dict[str, object]) -> None:
        self.variables |= variables

    def register_magic_function(self, function: Callable[[str], Any], kind: str, name: str) -> None:
        assert kind == "line"
        self.magics[name] = function


def test_up_answers_and_down_once_more(here: Tailnet, capsys: pytest.CaptureFixture[str]) -> None:
    device = here.run("up --ephemeral note")
    assert (device.hostname, here.device, here.run("up --ephemeral note")) == ("note", device, device)
    assert here.run("ip") == [device.ipv4, device.ipv6]
    assert here.run("ping db").node.hostname == "db"
    assert here.run("whois db").node.hostname == here.run(f"whois {device.peers['db'].ipv4}").node.hostname == "db"
    assert here.run("ip db") == list(device.peers["db"].addresses)
    assert here.run("peers").keys() == {"db.tailnet.test"}
    assert here.run("status").node.hostname == "note"
    assert here.run("health") == "no warnings"
    assert here.run("netcheck").udp
    assert (here.run("why db").port, here.run("why db:9").port) == (None, 9)
    assert "note" in repr(here)
    renamed = here.run("up other")
    assert (device.is_open, renamed.hostname) == (False, "other")
    capsys.readouterr()
    assert here.run("down") is here.run("down") is None
    assert capsys.readouterr().out == "other.tailnet.test has left the tailnet\nnothing is up here\n"
    assert repr(here) == "<%tailnet: nothing is up>"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("dance", "%tailnet has no verb 'dance': up, down, status"),
        ("up 'half", "%tailnet: No closing quotation"),
        ("up a b", "%tailnet up: there are words that it does not know"),
        ("up --timeout soon", "takes seconds, such as 60"),
        ("up tskey-auth-abc", "that is a key and no name"),
        ("up x --auth-key tskey-auth-none", "the control server refused the auth key"),
        ("up x --control-url nowhere", "--control-url must look like https://host"),
        ("down now", "%tailnet down takes nothing more"),
        ("status now", "%tailnet status takes nothing more"),
        ("ping", "%tailnet ping takes one name or address"),
        ("ip a b", "%tailnet ip takes a peer at most"),
        ("status", "nothing is up here: %tailnet up NAME joins, as does a daemon"),
    ],
)
def test_what_fails_is_one_sentence(here: Tailnet, line: str, sentence: str) -> None:
    with pytest.raises(Refused) as caught:
        here.run(line)
    assert sentence in str(caught.value)
    assert shown_lines(caught.value) == [str(caught.value)]
    assert "tskey" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert here.device is None


def test_a_login_page_is_shown_and_no_other_address(
    here: Tailnet, shown: list[object], net: TailnetThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TS_AUTHKEY")
    with pytest.raises(Refused, match="--auth-key"):
        here.run("up --timeout 0.3")
    assert f"{net.control_url}/register/" in repr(shown[0])
    assert "javascript" not in repr(LoginPage("javascript:alert(1)"))


def test_words_without_a_verb_are_helped(here: Tailnet, capsys: pytest.CaptureFixture[str]) -> None:
    assert here.run("") is here.run("help") is None
    assert capsys.readouterr().out == f"{HELP}\n{HELP}\n"


def test_the_extension_is_found_in_the_package_and_can_be_loaded_again(shown: list[object]) -> None:
    assert tailscale.load_ipython_extension is load_ipython_extension  # type: ignore[attr-defined]
    assert "load_ipython_extension" not in tailscale.__all__
    shell = Shell()
    load_ipython_extension(shell)
    device = shell.magics["tailnet"]("up note")
    load_ipython_extension(shell)
    assert shell.variables.pop("tailnet").device is device  # type: ignore[attr-defined]
    shell.magics["tailnet"]("")
    assert "tailnet" in shell.variables, "a %reset takes it away"
    unload_ipython_extension(shell)
    assert (shell.magics, device.is_open) == ({}, False)
    unload_ipython_extension(shell)
