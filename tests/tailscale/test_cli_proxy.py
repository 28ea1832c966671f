"""`pytailscale proxy` and `pytailscale exec`: what may be written, and both as programs on a tailnet on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from proxy_clients import ECHO_PORT, echoed, socks_open
from tailnet_scripts import echo_service

from tailscale.cli import main
from tailscale.cli.arguments import parse
from tailscale.cli.proxy_config import BadConfig, Port, read_config, read_users
from tailscale.cli.proxying import settings_of
from tailscale.testing import Tailnet


def settings(*argv: str) -> Any:
    return settings_of(parse(["proxy", *argv]))


@pytest.mark.parametrize(
    ("argv", "ports"),
    [
        ([], [Port("127.0.0.1:1080", "none")]),
        (["--direct"], [Port("127.0.0.1:1080", "direct")]),
        (["--exit", "NL"], [Port("127.0.0.1:1080", "NL")]),
        (
            ["127.0.0.1:1080", "127.0.0.1:1081=node:hq,hq-backup", "tailnet:1080=direct", "--exit", "NL/ams"],
            [
                Port("127.0.0.1:1080", "NL/ams"),
                Port("127.0.0.1:1081", "node:hq,hq-backup"),
                Port("tailnet:1080", "direct"),
            ],
        ),
    ],
)
def test_ports_and_their_exits_are_read(argv: list[str], ports: list[Port]) -> None:
    assert settings(*argv).ports == ports


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["1080"], "127.0.0.1:1080"),
        (["127.0.0.1:1080=XX"], "XX"),
        (["127.0.0.1:1080=nods:hq"], "did you mean 'node:'"),
        (["--exit", "dirct"], "did you mean 'direct'"),
        (["--exit", "NL", "--direct"], "choose one"),
        (["127.0.0.1:1080=direct", "--no-direct"], "--no-direct"),
    ],
)
def test_arguments_that_cannot_be_meant_say_why(argv: list[str], sentence: str) -> None:
    with pytest.raises(BadConfig) as caught:
        settings(*argv)
    assert sentence in str(caught.value)


WHOLE = """
[[listen]]
at = "127.0.0.1:1080"
exit = "NL"

[[listen]]
at = "tailnet:1080"

[users]
alice = "secret"

[limits]
clients = 100
allow_local = true
"""


def test_file_says_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "proxy.toml"
    path.write_text(WHOLE)
    found = settings("--config", str(path), "--exit", "tag:exit")
    assert found.ports == [Port("127.0.0.1:1080", "NL"), Port("tailnet:1080", "tag:exit")]
    assert found.users == {"alice": "secret"}
    assert (found.limits.clients, found.limits.allow_local) == (100, True)
    assert "secret" not in repr(found)
    users = tmp_path / "users"
    users.write_text("# who\n\nbob:p:w\n")
    path.write_text('users = "users"\n')
    assert settings("--config", str(path)).users == {"bob": "p:w"}
    assert settings("--users", str(users), "tailnet:1080").users == {"bob": "p:w"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[[listen]\n", "line 1"),
        ("\n[[lisen]]\nat = 'x'\n", "line 2: there is no 'lisen': did you mean 'listen'?"),
        ("[[listen]]\n\nexits = 'NL'\n", "line 3: there is no 'exits': did you mean 'exit'?"),
        ("[[listen]]\nat = '127.0.0.1:1'\n[[listen]]\nexit = 'XX'\n", "line 3: "),
        ("[[listen]]\nat = 'nowhere'\n", "line 1: 'nowhere' is no place to listen at"),
        ("[[listen]]\nat = 1080\n", "line 1: at and exit are texts"),
        ("listen = '127.0.0.1:1080'\n", "line 1: begin each place"),
        ("[limits]\nclient = 3\n", "line 2: there is no 'client': did you mean 'clients'?"),
        ("[limits]\nclients = 0\n", "line 2: clients is a number above 0"),
        ("[limits]\nallow_local = 1\n", "line 2: allow_local is true or false"),
        ("limits = 3\n", "line 1: write clients"),
        ("users = 3\n", "line 1: write users"),
        ("colour = 'red'\n", "line 1: there is no 'colour': known are listen, users, limits"),
    ],
)
def test_file_that_cannot_be_meant_names_the_line(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "proxy.toml"
    path.write_text(text)
    with pytest.raises(BadConfig) as caught:
        read_config(path, "none")
    assert sentence in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["alice\n", ":secret\n", "alice:\n", "a:1\na:2\n", "", "# nobody\n", "\xff"])
def test_users_file_that_cannot_be_meant_names_the_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "users"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(BadConfig) as caught:
        read_users(path)
    assert "secret" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("argv", [["proxy", "--exit", "dirct"], ["exec"], ["exec", "--exit", "x", "--", "true"]])
def test_mistake_is_wrong_usage_before_anything_is_joined(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--ephemeral", *argv]) == 2
    assert "pytailscale: " in capsys.readouterr().err


FETCH = """
import os, sys
sys.path.insert(0, "tests/tailscale")
import socket, urllib.request
from urllib.parse import urlsplit
proxy = urlsplit(os.environ["ALL_PROXY"])
assert proxy.scheme == "socks5h" and os.environ["NO_PROXY"] == os.environ["no_proxy"]
assert urlsplit(os.environ["https_proxy"]).scheme == "http"
sock = socket.create_connection((proxy.hostname, proxy.port))
user, password = proxy.username.encode(), proxy.password.encode()
sock.sendall(b"\\5\\1\\2\\1" + bytes([len(user)]) + user + bytes([len(password)]) + password)
sock.sendall(b"\\5\\1\\0\\3\\3web\\0\\7hello")
got = b""
while not got.endswith(b"hello"):
    got += sock.recv(100) or sys.exit("hung up")
print(sys.stdin.read() + got[-5:].decode())
sys.exit(7)
"""


@pytest.mark.slow
async def test_exec_runs_a_command_through_the_tailnet_and_passes_its_code_on() -> None:
    async with Tailnet(real=True) as net:
        web = await net.device("web")
        common = [sys.executable, "-m", "tailscale.cli", "--ephemeral", "--hostname", "desk"]
        common += ["--control-url", net.control.url, "--auth-key", net.auth_key(reusable=True)]
        async with echo_service(web, ECHO_PORT):
            command = [*common, "exec", "--", sys.executable, "-c", FETCH]
            done = await trio.run_process(command, stdin=b"in:", capture_stdout=True, capture_stderr=True, check=False)
            assert (done.returncode, done.stdout) == (7, b"in:hello\n"), done.stderr.decode()
            for program, code in (("no-such-program-anywhere", 127), (os.devnull, 126)):
                done = await trio.run_process([*common, "exec", program], capture_stderr=True, check=False)
                assert done.returncode == code
                assert program.encode() in done.stderr
            await _proxy_runs_until_it_is_told(common)


async def _proxy_runs_until_it_is_told(common: list[str]) -> None:
    async with trio.open_nursery() as nursery:
        command = [*common, "proxy", "127.0.0.1:0", "tailnet:1080=direct"]
        started = await nursery.start(partial(trio.run_process, command, stderr=subprocess.PIPE, check=False))
        said = b""
        with trio.fail_after(20):
            while said.count(b"proxy at") < 2 or not said.endswith(b"\n"):
                said += await started.stderr.receive_some()
        assert b"exit direct" in said
        port = int(said.split(b"127.0.0.1:")[1].split()[0])
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            assert (await socks_open(stream, "web", ECHO_PORT))[1] == 0
            assert await echoed(stream) == b"hello"
        started.send_signal(signal.SIGINT)
    assert started.returncode == 130
