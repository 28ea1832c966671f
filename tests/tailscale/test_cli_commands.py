"""The commands through `main(argv)`, against a tailnet on loopback that lives in another thread."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import trio

from tailscale.cli import main
from tailscale.cli.arguments import parse
from tailscale.device import Device
from tailscale.dns import wire
from tailscale.testing import Tailnet

ECHO_PORT, TIMEOUT = 7, 20


@dataclass
class Rig:
    """A tailnet with one peer, `db`, that echoes on port 7."""

    url: str = ""
    auth_key: str = ""
    net: Tailnet | None = None
    token: trio.lowlevel.TrioToken | None = None

    def in_tailnet(self, verb: Callable[..., object], *arguments: object) -> object:
        return trio.from_thread.run_sync(verb, *arguments, trio_token=self.token)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    rig, ready = Rig(), threading.Event()
    stop: list[trio.CancelScope] = []

    async def echo(stream: trio.abc.HalfCloseableStream) -> None:
        async with stream:
            async for data in stream:
                await stream.send_all(data)

    async def live() -> None:
        with trio.CancelScope() as scope:
            async with Tailnet(real=True) as net, trio.open_nursery() as nursery:
                db: Device = await net.device("db")
                nursery.start_soon(trio.serve_listeners, echo, [await db.listen(ECHO_PORT)])
                rig.url, rig.auth_key = net.control.url, net.auth_key(reusable=True)
                rig.net, rig.token = net, trio.lowlevel.current_trio_token()
                stop.append(scope)
                ready.set()
                await trio.sleep_forever()

    thread = threading.Thread(target=trio.run, args=(live,))
    thread.start()
    assert ready.wait(TIMEOUT)
    yield rig
    assert rig.token is not None
    rig.token.run_sync_soon(stop[0].cancel)
    thread.join(TIMEOUT)


@pytest.fixture
def join(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a device of the test's own."""
    for name in ("TS_AUTHKEY", "TS_AUTH_KEY", "TS_CONTROL_URL", "TS_HOSTNAME"):
        monkeypatch.delenv(name, raising=False)
    return ["--state", str(tmp_path / "state"), "--control-url", rig.url, "--auth-key", rig.auth_key]


def read_json(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_login_keeps_the_device_and_its_name(join: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["login", *join, "--hostname", "keeper"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("logged in as keeper.tailnet.test (100.64.")
    state = join[:2]
    assert main(["status", *state, "--json"]) == 0
    status = read_json(capsys)
    assert status["self"]["hostname"] == "keeper"  # type: ignore[index]
    assert main(["logout", *state]) == 0
    assert "logged out: keeper.tailnet.test" in capsys.readouterr().out
    assert main(["logout", *state]) == 0
    assert "not logged in" in capsys.readouterr().out


def test_status_lists_peers_plainly_when_piped(join: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", *join, "--hostname", "looker"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].startswith("looker.tailnet.test  100.64.")
    header = next(line for line in lines if line.startswith("NAME"))
    assert header.split() == ["NAME", "ADDRESS", "STATE", "PATH", "LATENCY", "user", "os", "received", "sent"]
    assert any(line.split()[:3] == ["db", "100.64.0.1", "online"] for line in lines)
    assert "\x1b" not in captured.out + captured.err


def test_status_as_json_has_the_promised_fields(join: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--ephemeral", "status", *join[2:], "--json"]) == 0
    status = read_json(capsys)
    assert {"state", "self", "tailnet", "control_url", "relay", "peers", "health", "drops"} <= status.keys()
    assert status["state"] == "running"


def test_metrics_are_printed_as_prometheus_reads_them(join: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics", *join, "--peers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "pytailscale_running 1" in lines
    assert any(line.startswith('pytailscale_peer_online{peer="db.tailnet.test"') for line in lines)
    assert main(["metrics", *join[:2], "--listen", "9100"]) == 2
    assert "HOST:PORT" in capsys.readouterr().err


def test_top_is_a_table_where_there_is_no_terminal(join: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", *join]) == 0
    assert any(line.split()[:1] == ["db"] for line in capsys.readouterr().out.splitlines())
    assert main(["top", *join[:2], "--json"]) == 0
    assert read_json(capsys)["count"]["peers"] >= 1  # type: ignore[index]


def test_ping_says_latency_and_path(join: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ping", *join, "db", "-c", "2", "-i", "0.01", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["sequence"] for line in lines] == [1, 2]
    assert all(line["node"] == "db" and line["latency"] < 1 for line in lines)
    assert main(["ping", *join[:2], "db", "--until-direct"]) == 0
    assert "db answered in" in capsys.readouterr().out


def test_whois_takes_addresses_and_names(join: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["whois", *join, "100.64.0.1:80", "--json"]) == 0
    assert read_json(capsys)["node"]["hostname"] == "db"  # type: ignore[index]
    assert main(["whois", *join[:2], "db"]) == 0
    assert capsys.readouterr().out.startswith("name         db.tailnet.test\n")


def test_ip_prints_only_addresses(join: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ip", *join, "db", "-4"]) == 0
    assert capsys.readouterr().out == "100.64.0.1\n"
    assert main(["ip", *join[:2], "db", "--json"]) == 0
    assert read_json(capsys)["addresses"] == ["100.64.0.1", "fd7a:115c:a1e0::1"]


def test_netcheck_measures_the_relay(join: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["netcheck", *join, "--json"]) == 0
    report = read_json(capsys)
    assert (report["udp"], report["home"]) == (True, "test")
    assert "test" in report["latencies"]  # type: ignore[operator]


def test_doctor_is_content_in_a_healthy_tailnet(join: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *join, f"db:{ECHO_PORT}", "--json"]) == 0
    report = read_json(capsys)
    checks = {check["check"]: check["verdict"] for check in report["checks"]}  # type: ignore[attr-defined]
    assert list(checks) == [
        *("import name", "Python", "dependencies", "environment", "state", "login", "clock", "tun", "control"),
        *("joining", "key", "UDP", "relays", "MTU", "health", "peers", "the way"),
    ]
    doubts = {check["sentence"] for check in report["checks"] if check["verdict"] not in ("ok", "skip")}  # type: ignore[attr-defined]
    assert doubts <= {"expired keys: keeper"}, "one that has logged out"


def test_doctor_without_a_tailnet_says_what_it_would_take(
    join: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = ["--state", str(tmp_path / "none"), "--control-url", "http://127.0.0.1:9"]
    assert main(["doctor", *nowhere]) == 1
    out = capsys.readouterr().out
    assert "BAD   control" in out
    assert "skip  tailnet" in out
    assert "pytailscale login" in out
    assert not (tmp_path / "none").exists()


def test_why_walks_the_way_and_says_the_verdict(join: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", *join, f"db:{ECHO_PORT}"]) == 0
    out = capsys.readouterr().out
    assert "ok    name          db is 100.64.0.1" in out
    assert f"db port {ECHO_PORT} can be reached, by " in out
    assert main(["why", *join[:2], "db:9", "--json"]) == 6
    found = read_json(capsys)
    assert (found["code"], found["error"], found["is_reachable"]) == ("port-closed", "ConnectionRefused", False)
    assert found["remedy"]
    assert main(["why", *join[:2], "dbb"]) == 5
    assert "did you mean 'db'?" in capsys.readouterr().out


@pytest.mark.slow
def test_capture_writes_a_file_or_down_a_pipe(
    rig: Rig, join: list[str], tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Its own hellos are what a device that does nothing else sees: the rig's peer pings it meanwhile."""
    for target in (str(tmp_path / "x.pcapng"), "-"):
        assert main(["capture", *join, target, "--seconds", "0.1", "-c", "50", "--peer", "db"]) == 0
    written = (tmp_path / "x.pcapng").read_bytes()
    out, err = capfdbinary.readouterr()
    for data in (written, out):
        assert data.startswith(b"\x0a\x0d\x0d\x0a")
        assert b"pytailscale" in data
    assert b"capturing db of " in err
    assert b"packets, " in err


def test_version_needs_no_tailnet(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--json"]) == 0
    assert read_json(capsys)["pytailscale"]


@pytest.mark.parametrize(
    ("argv", "code", "sentence"),
    [
        (["nc", "db", "9"], 6, "db port 9 refused the connection"),
        (["nc", "dbb", "9"], 5, "did you mean 'db'?"),
        (["whois", "100.64.9.9"], 5, "no node of this tailnet has that address"),
        (["ping", "192.0.2.99"], 4, "no peer owns or routes 192.0.2.99"),
    ],
)
def test_failure_is_one_sentence_and_a_code(
    argv: list[str], code: int, sentence: str, join: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*argv, *join]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("pytailscale: ")
    assert sentence in captured.err
    assert "Traceback" not in captured.err


def test_wrong_auth_key_is_a_login_failure(join: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", *join[:4], "--auth-key", "tskey-auth-wrong", "--json"]) == 3
    failure = read_json(capsys)
    assert failure["exit"] == 3
    assert failure["error"]["kind"] == "AuthKeyRejected"  # type: ignore[index]


@pytest.mark.slow
def test_login_is_asked_for_once_where_nobody_waits(
    join: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(os.devnull) as nobody:
        monkeypatch.setattr("sys.stdin", nobody)
        assert main(["status", *join[:4], "--timeout", "0.5"]) == 3
    assert capsys.readouterr().err.count("/register/") == 1


@pytest.mark.slow
def test_unreachable_control_server_is_told_in_time(join: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["ip", *join[:2], "--auth-key", "k", "--control-url", "http://127.0.0.1:9", "--timeout", "0.3"]
    assert main(argv) == 4
    assert "http://127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.slow
def test_words_of_python_are_not_said_to_those_who_type(
    join: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of nobody who logs it in, of a server that is not there, of a state in use, of a key that is refused."""
    nowhere = ["--control-url", "http://127.0.0.1:9", "--timeout", "0.3", "--auth-key", "k"]
    with open(os.devnull) as nobody:
        monkeypatch.setattr("sys.stdin", nobody)
        assert main(["status", *join[:4], "--timeout", "0.5"]) == 3
        assert main(["ip", "--ephemeral", *nowhere]) == 4
        assert main(["status", *join[:4], "--auth-key", "tskey-auth-wrong"]) == 3
        assert main(["status", *join[:2], "--control-url", "nowhere"]) == 2
    said = capsys.readouterr().err
    assert not [word for word in ("auth_key=", "control_url", "timeout=", "state=", "on_login_url") if word in said]
    assert "or pass --auth-key (or set TS_AUTHKEY)" in said
    assert "cannot connect to 127.0.0.1:9: Connection refused" in said
    assert "all attempts" not in said
    assert "peers stay reachable" not in said


@pytest.mark.slow
def test_a_web_server_is_no_control_server(join: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    server = HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        assert main(["ip", *join[:2], "--control-url", url, "--auth-key", "k"]) == 4
        assert main(["doctor", *join[:2], "--control-url", url, "--auth-key", "k"]) == 1
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    out, err = capsys.readouterr()
    assert f"a web server answered at {url}, not a control server (HTTP 404 for its key)" in err
    assert out.count("a web server answered") == 1
    assert "html" not in (out + err).lower()


def test_status_says_the_domain_of_its_names(join: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", *join]) == 0
    out, err = capsys.readouterr()
    assert "running in tailnet.test as user@tailnet.test" in out
    assert "a device that stays: `pytailscale up`" in err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["db", "7"], ("db", 7)),
        (["db:7"], ("db", 7)),
        (["db", "http"], ("db", 80)),
        (["db:ssh"], ("db", 22)),
        (["[fd7a::1]:7"], ("fd7a::1", 7)),
        (["fd7a::1", "7"], ("fd7a::1", 7)),
        (["-u", "db", "domain"], ("db", 53)),
    ],
)
def test_nc_takes_hosts_and_ports_as_people_write_them(words: list[str], meant: tuple[str, int]) -> None:
    options = parse(["nc", *words])
    assert (options.host, options.port) == meant


def test_service_names_need_no_list_of_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: str) -> int:
        raise OSError("service/proto not found")

    monkeypatch.setattr(socket, "getservbyname", unknown)
    assert parse(["nc", "db", "https"]).port == 443


@pytest.mark.parametrize(
    "argv",
    [
        *(["nc", "db"], ["nc", "db", "99999"], ["nc", "db:7", "8"], ["nc", "db:x"], ["nc", "fd7a::1"]),
        *(["nc", "db", "²"], ["tcp", "db"], ["listen", "x"], ["nosuch"], []),
    ],
)
def test_wrong_usage_is_two(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(argv)
    assert leaving.value.code == 2
    assert "usage: pytailscale" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--http"], ["--proxy-protocol", "1"], ["--to", "h:1", "--http", "--once"]])
def test_who_calls_is_told_to_a_server_only(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["listen", "80", *argv]) == 2
    assert "--http" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("how", [["--proxy-protocol", "1"], ["--http"]])
def test_listen_tells_a_server_who_calls(how: list[str], rig: Rig, join: list[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(TIMEOUT)
        to = f"127.0.0.1:{server.getsockname()[1]}"
        name = "front" + how[0]
        listening_command = command("listen", *join, "--hostname", name, "--to", to, *how, "8080")
        with subprocess.Popen(listening_command, stderr=subprocess.PIPE, text=True, env=environment()) as listening:
            assert listening.stderr is not None
            assert name in listening.stderr.readline()
            state = ["--state", str(tmp_path / "other"), *join[2:]]
            calling_command = command("nc", *state, name, "8080")
            with subprocess.Popen(calling_command, stdin=subprocess.PIPE, env=environment()) as calling:
                assert calling.stdin is not None
                calling.stdin.write(b"GET / HTTP/1.1\r\nHost: x\r\nTailscale-User-Login: root@evil\r\n\r\n")
                calling.stdin.flush()
                accepted, _ = server.accept()
                with accepted:
                    heard = b""
                    while b"\r\n\r\n" not in heard:
                        heard += accepted.recv(4096)
                calling.kill()
            listening.kill()
    if how == ["--http"]:
        assert b"evil" not in heard
        assert b"tailscale-user-login: user@tailnet.test" in heard.lower()
    else:
        assert heard.startswith(b"PROXY TCP4 100.64.0.")


def command(*argv: str) -> list[str]:
    return [sys.executable, "-m", "tailscale.cli", *argv]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TS_")}
    return kept | {"PYTHONPATH": os.pathsep.join(sys.path)} | more


@pytest.mark.slow
def test_nc_carries_both_ways_with_half_close(join: list[str]) -> None:
    blob = os.urandom(3_000_000)
    done = subprocess.run(
        command("nc", *join, "db", str(ECHO_PORT)), input=blob, capture_output=True, timeout=TIMEOUT, env=environment()
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == blob


@pytest.mark.slow
def test_listen_forwards_and_leaves_on_ctrl_c(rig: Rig, join: list[str], tmp_path: Path) -> None:
    with subprocess.Popen(
        command("listen", *join, "--hostname", "front", "--echo", "8080"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as listening:
        assert listening.stderr is not None
        assert "listening on front port 8080" in listening.stderr.readline()
        state = ["--state", str(tmp_path / "other"), *join[2:]]
        done = subprocess.run(
            command("nc", *state, "front", "8080"),
            input=b"ping",
            capture_output=True,
            timeout=TIMEOUT,
            env=environment(),
        )
        assert done.stdout == b"ping"
        listening.send_signal(signal.SIGINT)
        _, err = listening.communicate(timeout=5)
    assert listening.returncode == 130
    assert "Traceback" not in err
    assert rig.net is not None


@contextmanager
def serving(*words: str, sign: str = "http://") -> Iterator[str]:
    """A command that serves on this machine until Ctrl-C; what it says of where."""
    with subprocess.Popen(
        command(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if sign in line)
        yield line[line.index(sign) :].removeprefix("port ").split()[0].rstrip(",")
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.communicate(timeout=TIMEOUT)[0]
    assert process.returncode == 130


@pytest.mark.slow
def test_names_are_asked_shown_and_answered_until_ctrl_c(join: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with serving("dns", *join, "--listen", "127.0.0.1:0", sign="port ") as port:
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(TIMEOUT)
            client.connect(("127.0.0.1", int(port)))
            client.send(wire.encode_question("db", wire.A, 3))
            assert wire.decode_records_untrusted(client.recv(512))[1][0].body == "100.64.0.1"
    assert main(["dns", *join, "query", "db", "a", "--json"]) == 0
    assert read_json(capsys)["Answers"][0]["Body"] == "100.64.0.1"
    assert main(["dns", *join[:2], "query", "nobody.tailnet.test"]) == 5
    assert "NameError" in capsys.readouterr().out
    assert main(["dns", *join[:2]]) == 0
    assert "in tailnet.test" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["dns", "status", "db"])
    assert "a name goes with query" in capsys.readouterr().err


@pytest.mark.slow
def test_metrics_are_served_until_ctrl_c(join: list[str]) -> None:
    with serving("metrics", *join, "--listen", "127.0.0.1:0") as url:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            assert b"pytailscale_running 1" in answer.read()


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--allow-changes"]])
def test_the_status_page_is_served_until_ctrl_c(more: list[str], join: list[str]) -> None:
    with serving("web", *join, "--listen", "127.0.0.1:0", *more) as link:
        url, secret = link.split("/#")
        with urllib.request.urlopen(f"{url}/session", json.dumps({"link": secret}).encode(), TIMEOUT) as answer:
            bearer = f"Bearer {json.load(answer)['session']}"
        looks = urllib.request.Request(f"{url}/looks", headers={"Authorization": bearer})
        with urllib.request.urlopen(looks, timeout=TIMEOUT) as answer:
            assert json.loads(answer.readline())["may_change"] is bool(more)


@pytest.mark.slow
def test_ctrl_c_while_joining_is_quick_and_silent(join: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        argv = ["status", *join[:2], "--control-url", f"http://127.0.0.1:{silent.getsockname()[1]}", "--auth-key", "k"]
        with subprocess.Popen(
            command(*argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
        ) as process:
            with silent.accept()[0]:  # it has called the control server, and waits for an answer
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    assert (out, err) == (b"", b"")


@pytest.mark.parametrize("moment", ["before", "after"])
def test_ctrl_c_around_a_command_is_as_quiet_as_during_it(
    moment: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Signals are heard from a moment after the start until a moment before the end."""
    trio_run = trio.run

    def pressed(*arguments: Any) -> int:
        if moment == "after":
            trio_run(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr("tailscale.cli.run.trio.run", pressed)
    assert main(["version"]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_commands_work_without_rich(join: list[str]) -> None:
    code = "import sys; sys.modules['rich'] = None; from tailscale.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "status", *join],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    assert "NAME" in done.stdout


@pytest.mark.slow
def test_reader_that_leaves_early_is_not_an_error_worth_a_word(join: list[str]) -> None:
    with subprocess.Popen(
        command("ping", *join, "db", "-c", "50", "-i", "0.01"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
