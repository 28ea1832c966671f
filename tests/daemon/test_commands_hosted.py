"""Commands through a daemon: the same words, the same answers, in the terminal of whoever typed them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from daemon.daemon_scripts import ECHO_PORT, PATIENCE, World, client_of
from daemon.json_schema import check

from tailscale.cli import main
from tailscale.cli.arguments import build_parser
from tailscale.cli.schema import read_schema
from tailscale.daemon.calls import Call
from tailscale.daemon.daemon import Daemon
from tailscale.daemon.frames import OUT
from tailscale.daemon.light import look_at
from tailscale.daemon.places import default_state
from tailscale.daemon.settings import Settings
from tailscale.kernel import interface
from tailscale.notebook import Refused, Tailnet

LOOKS = {
    "status": [], "ping": ["db", "-c", "1"], "whois": ["db"], "ip": ["db"], "netcheck": [], "doctor": ["db"],
    "version": [], "login": [], "config": ["check", "FILE"], "top": [], "why": ["db:7"],
    "uplinks": [], "paths": ["db"], "bench": ["db", "--seconds", "0.1"],
    "exits": ["any"], "dns": ["query", "db"], "lock": ["status"], "serve": ["status"], "funnel": ["status"],
    "tun": ["status"],
}  # fmt: skip
STARTS_A_DAEMON = {"up"}
OF_FILES = {"file"}  # test_file_commands.py
OF_A_MESH = {"ls", "send", "recv", "wait", "watch", "tcp", "cp"}  # test_mesh_commands.py
HEAVY = ("trio", "cryptography", "argparse", "msgspec", "httpx", "logging", "ssl", "asyncio")


@pytest.fixture
def state(daemon: Daemon) -> list[str]:
    return ["--state", str(Path(daemon.places.state).parent)]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "tailscale.cli", *words]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TS_")}
    return kept | {"PYTHONPATH": os.pathsep.join(sys.path)}


def run(*words: str, stdin: bytes = b"", cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command(*words), input=stdin, capture_output=True, timeout=PATIENCE, env=environment(), cwd=cwd, check=False
    )


@pytest.mark.parametrize("verb", LOOKS)
def test_json_is_what_its_schema_says(
    verb: str, state: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.toml").write_text("[device]\nhostnme = 1\n")
    words = [str(tmp_path / "config.toml") if word == "FILE" else word for word in LOOKS[verb]]
    assert main([verb, *state, *words, "--json"]) == (1 if verb == "config" else 0)
    for line in capfd.readouterr().out.splitlines():
        check(json.loads(line), read_schema(verb))


def test_every_command_with_json_has_a_schema_and_a_test() -> None:
    has_json = {
        name
        for name, parser in build_parser().commands().items()
        if any("--json" in action.option_strings for action in parser.actions())
    }
    assert has_json == LOOKS.keys() | STARTS_A_DAEMON | OF_A_MESH | OF_FILES


def test_failure_is_what_its_schema_says(state: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["ping", *state, "nobody", "--json"]) == 5
    check(json.loads(capfd.readouterr().out), read_schema("failure"))


def test_wrong_usage_is_told_by_the_daemon_too(state: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["ping", *state]) == 2
    assert "usage: pytailscale ping" in capfd.readouterr().err


def test_tun_that_cannot_be_is_told_and_kept_by_nobody(
    state: list[str], daemon: Daemon, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interface, "DEVICE", Path("/dev/net/nowhere"))  # whoever runs this may be root
    assert main(["tun", "up", *state]) == 1
    assert "this process needs /dev/net/nowhere" in capfd.readouterr().err
    assert not [part for part in daemon.parts.to_list() if part["kind"] == "tun"]
    assert main(["tun", "down", *state]) == 0
    assert "no TUN device" in capfd.readouterr().out


def test_nc_carries_both_ways_with_half_close(state: list[str]) -> None:
    blob = os.urandom(3_000_000)
    done = run("nc", *state, "db", str(ECHO_PORT), stdin=blob)
    assert (done.returncode, done.stderr, done.stdout == blob) == (0, b"", True)


def test_a_command_that_wants_no_input_leaves_it_alone(state: list[str]) -> None:
    script = f"{' '.join(command('ip', *state))}; cat"
    done = subprocess.run(
        ["sh", "-c", script],
        input=b"still here\n",
        capture_output=True,
        timeout=PATIENCE,
        env=environment(),
        check=True,
    )
    assert done.stdout.endswith(b"still here\n")


def test_ctrl_c_ends_the_command_in_the_daemon(state: list[str], daemon: Daemon, net: World) -> None:
    with subprocess.Popen(
        command("listen", *state, "8080"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as listening:
        assert listening.stderr is not None
        assert "listening on keeper port 8080" in listening.stderr.readline()
        listening.send_signal(signal.SIGINT)
        listening.communicate(timeout=5)
    assert listening.returncode == 130
    wait_until(lambda: daemon.calls.under_way == 0)


@pytest.mark.parametrize("whose", ["daemon", pytest.param("own", marks=pytest.mark.slow)])
def test_ctrl_c_in_a_ping_says_what_came_of_it(whose: str, state: list[str], net: World, tmp_path: Path) -> None:
    own = ["--state", str(tmp_path), "--control-url", net.url, "--auth-key", net.auth_key]
    which = state if whose == "daemon" else own
    with subprocess.Popen(
        command("ping", *which, "db", "-c", "1000", "-i", "0.01"), stdout=subprocess.PIPE, env=environment(), text=True
    ) as pinging:
        assert pinging.stdout is not None
        assert "db answered in" in pinging.stdout.readline()
        pinging.send_signal(signal.SIGINT)
        said = pinging.communicate(timeout=PATIENCE)[0].splitlines()[-1]
    assert re.fullmatch(r"\d+ sent, \d+ answered, \d+% lost; min .*, avg .*, max .*; by (direct|relay) .*", said), said
    assert pinging.returncode == 0


def test_a_lost_client_ends_its_command(state: list[str], daemon: Daemon) -> None:
    with subprocess.Popen(
        command("listen", *state, "8080"), stderr=subprocess.PIPE, text=True, env=environment()
    ) as lost:
        assert lost.stderr is not None
        assert "listening on keeper port 8080" in lost.stderr.readline()
        lost.kill()
    wait_until(lambda: daemon.calls.under_way == 0)


def wait_until(fact: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_closed_pipe_is_no_error_worth_a_word(state: list[str]) -> None:
    script = f"{' '.join(command('status', *state))} | head -1"
    done = subprocess.run(["sh", "-c", script], capture_output=True, timeout=PATIENCE, env=environment(), check=True)
    assert (done.stdout.startswith(b"keeper.tailnet.test"), done.stderr) == (True, b"")


def test_client_imports_nothing_heavy(state: list[str]) -> None:
    code = (
        "import sys; from tailscale.cli import main; code = main(sys.argv[1:]); "
        f"print([m for m in {HEAVY!r} if m in sys.modules]); "
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "ip", *state], capture_output=True, timeout=PATIENCE, env=environment(), check=True
    )
    assert done.stdout.splitlines()[-1] == b"[]"


@pytest.mark.slow
def test_words_for_another_device_are_not_the_daemons(net: World, state: list[str], tmp_path: Path) -> None:
    own = ["--control-url", net.url, "--auth-key", net.auth_key]
    done = run("ip", "--ephemeral", *own, "--hostname", "other")
    assert (done.returncode, done.stderr) == (0, b"")
    done = run("ip", *state, "--control-url", "http://127.0.0.1:9")
    assert (done.returncode, b"the daemon's device belongs to" in done.stderr) == (2, True)


def test_command_line_is_looked_at_without_a_parser() -> None:
    assert look_at(["--state", "x", "status"])[:3] == ("status", "x", None)
    assert look_at(["status", "--state=x", "--socket", "/s"])[:3] == ("status", "x", "/s")
    assert look_at(["nc", "--", "--ephemeral"]).is_alone is False
    for alone in (["up"], [], ["status", "--ephemeral"], ["--help"], ["status", "-h"], ["version"]):
        assert look_at(alone).is_alone


def test_hostname_asked_for_renames_the_daemons_device(state: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["ip", *state, "--hostname", "renamed"]) == 0
    assert main(["status", *state]) == 0
    assert main(["ip", *state, "--hostname", "keeper"]) == 0


def test_a_program_runs_where_the_command_was_typed(net: World, tmp_path: Path) -> None:
    """As `exec` has it: the program's folder, environment, input and exit code are the client's."""

    async def run_it(_: Daemon, call: Call) -> int:
        code = await call.run_program(call.argv[3:], {"FROM_DAEMON": "yes"})
        missing = await call.run_program(["/no/such/program"], {})
        call.write(OUT, f"{missing}\n".encode())
        return code

    with net.daemon(tmp_path, run=run_it):
        script = "read x; echo $x $FROM_DAEMON $FROM_HERE; pwd; exit 7"
        words = ["exec", "sh", "-c", script]
        done = subprocess.run(
            command("--state", str(tmp_path), *words),
            input=b"hello\n",
            capture_output=True,
            timeout=PATIENCE,
            cwd="/",
            env=environment() | {"FROM_HERE": "too"},
            check=False,
        )
    assert (done.returncode, done.stdout) == (7, b"hello yes too\n/\n127\n")
    assert b"/no/such/program: No such file or directory" in done.stderr


def test_a_part_that_cannot_run_says_so_and_harms_no_other(net: World, tmp_path: Path) -> None:
    listed = (("proxy", {"listen": "127.0.0.1:0"}), ("mesh", {"app": "Not A Name"}))
    with net.daemon(tmp_path, read=lambda: Settings("c.toml", parts=listed)) as daemon:
        client = client_of(daemon)
        wait_until(lambda: all(part["state"] != "starting" for part in client.get("config")["parts"]))
        for part in client.get("config")["parts"]:
            assert part["state"] == "running" or part["problem"]
        assert client.get("status")["daemon"]["is_ready"]
        client.post("up", {"app": "notes"})
        assert client.get("config")["parts"][-1]["keys"] == {"app": "notes"}


def test_signals_are_as_they_were_after_a_command(state: list[str]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert main(["ip", *state]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_exec_runs_its_program_here_and_its_proxy_in_the_daemon(state: list[str]) -> None:
    done = run("exec", *state, "--", "sh", "-c", "pwd; echo $ALL_PROXY; exit 3", cwd=Path("/"))
    assert done.returncode == 3
    assert done.stdout.startswith(b"/\nsocks5h://exec:")


def test_the_notebooks_magic_asks_a_daemon_where_nothing_is_up(
    net: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with net.daemon(Path(default_state())):
        here = Tailnet(print)
        here.run("ip db")
        assert capsys.readouterr().out.startswith("100.64.")
        with pytest.raises(Refused, match="did you mean 'db'"):
            here.run("ping dbb")
