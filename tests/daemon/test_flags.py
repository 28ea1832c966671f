"""Every flag does something: each is named here with the test that shows it, and a flag that is not fails."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from daemon.daemon_scripts import ECHO_PORT, PATIENCE, World, client_of
from daemon.test_commands_hosted import command, environment, run, wait_until

from tailscale.cli import main
from tailscale.cli.arguments import Parser, build_parser, parse
from tailscale.cli.hosted import login_options
from tailscale.daemon.daemon import Daemon
from tailscale.runtime.network import list_interfaces

TESTS = Path(__file__).parents[1]
COMMON = {
    "--state": "test_login_keeps_the_device_and_its_name",
    "--socket": "test_socket_names_the_daemon",
    "--hostname": "test_hostname_asked_for_renames_the_daemons_device",
    "--auth-key": "test_wrong_auth_key_is_a_login_failure",
    **dict.fromkeys(
        ("--client-id", "--id-token", "--audience", "--advertise-tags"), "test_command_line_says_by_what_to_log_in"
    ),
    "--control-url": "test_unreachable_control_server_is_told_in_time",
    **dict.fromkeys(("--uplink", "--paths"), "test_uplinks_are_named_weighed_and_switched_by_words"),
    "--ephemeral": "test_words_for_another_device_are_not_the_daemons",
    "--timeout": "test_unreachable_control_server_is_told_in_time",
    "--verbose": "test_verbose_shows_the_daemons_log",
    "--plain": "test_plain_has_no_colours",
    "--json": "test_json_is_what_its_schema_says",
    "--help": "test_wrong_usage_is_told_by_the_daemon_too",
}
MESH = "test_verbs_share_the_daemons_mesh_and_print_what_their_schemas_say"
OF_ONE = {
    **dict.fromkeys(
        ("up --advertise-routes", "up --no-advertise-exit-node"),
        "test_up_offers_routes_and_takes_them_back_while_it_runs",
    ),
    "up --no-ssh": "test_up_turns_the_ssh_server_on_and_off",
    "status --watch": "test_status_is_shown_again_and_again",
    **dict.fromkeys(("bench --seconds", "bench --streams", "bench --dir"), "test_bench_draws_what_it_measured"),
    **dict.fromkeys(("uplinks --watch", "paths --watch"), "test_uplinks_and_paths_are_shown_again_and_again"),
    "nc --udp": "test_nc_carries_datagrams",
    "nc --wait": "test_nc_carries_datagrams",
    "ssh --port": "test_ssh_goes_to_the_port_it_is_given",
    "sshd --port": "test_sshd_gives_a_shell_only_where_it_is_asked_to",
    "sshd --shell": "test_sshd_gives_a_shell_only_where_it_is_asked_to",
    "status --online": "test_online_leaves_out_who_is_not",
    "ping --count": "test_ping_takes_count_kind_and_size",
    "ping --interval": "test_ping_takes_count_kind_and_size",
    "ping --kind": "test_ping_takes_count_kind_and_size",
    "ping --size": "test_ping_takes_count_kind_and_size",
    "ping --until-direct": "test_ping_says_latency_and_path",
    "ip -4": "test_ip_takes_a_family",
    "ip -6": "test_ip_takes_a_family",
    "metrics --peers": "test_metrics_are_printed_as_prometheus_reads_them",
    "metrics --listen": "test_metrics_are_served_until_ctrl_c",
    "dns --listen": "test_names_are_asked_shown_and_answered_until_ctrl_c",
    "web --listen": "test_the_status_page_is_served_until_ctrl_c",
    "web --allow-changes": "test_the_status_page_is_served_until_ctrl_c",
    "listen --to": "test_listen_forwards_to_a_port_of_this_machine",
    "listen --once": "test_listen_forwards_to_a_port_of_this_machine",
    "listen --echo": "test_listen_forwards_and_leaves_on_ctrl_c",
    **dict.fromkeys(("ls --all", "send --all", "recv --from", "recv -n", "tcp --check"), MESH),
    "ls --long": "test_ls_shows_members_and_others_when_asked",
    "send --ns": "test_send_says_why_not",
    **{
        f"{verb} --app": "test_ls_shows_members_and_others_when_asked"
        for verb in ("ls", "send", "recv", "wait", "watch")
    },
    "cp --app": "test_cp_finds_only_members_of_its_app",
    "cp --no-resume": "test_cp_sends_fetches_and_says_what_became_of_it",
    "up --foreground": "test_systemd_is_told",
    "up --restart": "test_restart_in_place_keeps_the_process_and_the_device",
    "up --install-unit": "test_unit_is_installed_where_systemd_looks",
    "up --app": "test_a_part_that_cannot_run_says_so_and_harms_no_other",
    "up --config": "test_settings_may_be_elsewhere",
    **dict.fromkeys(
        ("cert --cert-file", "cert --key-file", "cert --min-validity"), "test_cert_writes_files_of_the_right_modes"
    ),
    "capture --count": "test_capture_writes_a_file_or_down_a_pipe",
    "capture --peer": "test_capture_takes_a_peer_and_limits",
    "capture --seconds": "test_capture_takes_a_peer_and_limits",
    "capture --snaplen": "test_capture_takes_a_peer_and_limits",
    "listen --http": "test_listen_tells_a_server_who_calls",
    "listen --proxy-protocol": "test_listen_tells_a_server_who_calls",
    "exec --exit": "test_exec_takes_one_way_out",
    "exec --no-direct": "test_exec_takes_one_way_out",
    "proxy --config": "test_file_says_all_of_it",
    "proxy --exit": "test_ports_and_their_exits_are_read",
    "proxy --no-direct": "test_arguments_that_cannot_be_meant_say_why",
    "proxy --no-ui": "test_exec_runs_a_command_through_the_tailnet_and_passes_its_code_on",
    "proxy --users": "test_users_file_that_cannot_be_meant_names_the_line",
    "file cp --name": "test_file_cp_sends_files_and_standard_input",
    "file cp --targets": "test_file_cp_sends_files_and_standard_input",
    "file get --wait": "test_file_get_waits_and_goes_on",
    "file get --loop": "test_file_get_waits_and_goes_on",
    "file get --conflict": "test_file_get_fetches_what_waits",
    **dict.fromkeys(
        (
            *("serve --http", "serve --tcp", "serve --bg"),
            *("serve --set-path", "serve --proxy-protocol", "serve --accept-app-caps"),
        ),
        "test_serve_in_the_background_is_shown_kept_and_ended",
    ),
    "serve --service": "test_services_are_served_drained_and_cleared",
    **dict.fromkeys(
        ("serve --https", "serve --tls-terminated-tcp"), "test_https_has_its_certificate_before_it_is_served"
    ),
    **dict.fromkeys(
        (
            *("funnel --https", "funnel --tcp", "funnel --tls-terminated-tcp", "funnel --bg"),
            *("funnel --set-path", "funnel --proxy-protocol"),
        ),
        "test_funnel_is_turned_on_shown_and_turned_off",
    ),
    **dict.fromkeys(
        (
            *("ingress --to", "ingress --name", "ingress --port", "ingress --no-ui"),
            *("ingress --connections", "ingress --per-name", "ingress --per-source"),
        ),
        "test_ingress_is_a_relay_until_ctrl_c",
    ),
    "ingress --proxy-protocol": "test_ingress_in_front_of_which_a_balancer_stands",
    "why --udp": "test_why_takes_udp",
    **dict.fromkeys(
        ("tun --name", "tun --mtu", "tun --split", "tun --exclude", "tun --no-dns"), "test_tun_takes_its_options"
    ),
    "tun --cleanup": "test_cleanup_needs_no_device_and_finds_nothing_twice",
}


def every_command(parser: Parser, before: str = "") -> Iterator[tuple[str, Parser]]:
    """Those of several words too."""
    for name, below in parser.commands().items():
        yield f"{before}{name}", below
        yield from every_command(below, f"{before}{name} ")


def test_every_flag_has_a_test_that_there_is() -> None:
    flags = {
        f"{name} {action.option_strings[-1]}"
        for name, parser in every_command(build_parser())
        for action in parser.actions()
        if action.option_strings and action.option_strings[-1] not in COMMON
    }
    assert flags == OF_ONE.keys()
    written = set()
    for path in (*TESTS.glob("daemon/test_*.py"), *TESTS.glob("tailscale/test_cli*.py")):
        tree = ast.parse(path.read_text())
        written |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert {*COMMON.values(), *OF_ONE.values()} <= written


@pytest.fixture
def state(daemon: Daemon) -> list[str]:
    return ["--state", str(Path(daemon.places.state).parent)]


def test_ping_takes_count_kind_and_size(state: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["ping", *state, "db", "-c", "2", "-i", "0.01", "--kind", "tsmp", "--json"]) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["kind"] for line in lines] == ["tsmp", "tsmp"]
    assert main(["ping", *state, "db", "-c", "1", "--size", "1281"]) == 2
    assert main(["ping", *state, "db", "-c", "1", "--size", "1000"]) == 0


def test_ip_takes_a_family(state: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["ip", *state, "db", "-4"]) == 0
    assert main(["ip", *state, "db", "-6"]) == 0
    assert capfd.readouterr().out == "100.64.0.1\nfd7a:115c:a1e0::1\n"


@pytest.mark.slow
def test_online_leaves_out_who_is_not(
    net: World, daemon: Daemon, state: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    async def come_and_go() -> None:
        _, leave = await net.net.join("gone", ephemeral=False)
        await leave()

    net.within(come_and_go)
    peers = client_of(daemon)
    wait_until(lambda: any(node["online"] is False for node in peers.get("peers")))
    assert main(["status", *state, "--online"]) == 0
    assert "gone" not in capfd.readouterr().out
    assert main(["status", *state]) == 0
    assert "gone" in capfd.readouterr().out


def test_socket_names_the_daemon(daemon: Daemon, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    link = tmp_path / "other.sock"
    link.symlink_to(daemon.places.socket)
    assert main(["status", "--socket", str(link), "--state", str(Path(daemon.places.state).parent)]) == 0
    assert capfd.readouterr().out.startswith("keeper.")


def test_verbose_shows_the_daemons_log(state: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["nc", *state, "db", "9", "-vv"]) == 6
    assert "Traceback" in capfd.readouterr().err


def test_plain_has_no_colours(state: list[str]) -> None:
    """Colours are for terminals: the client's, which here is one end of a pair."""
    pty = pytest.importorskip("pty")
    shown = {}
    for words in ((), ("--plain",)):
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            command("status", *state, *words), stdout=theirs, stderr=theirs, env=environment() | {"TERM": "xterm"}
        ) as process:
            os.close(theirs)
            got = b""
            while True:
                try:
                    piece = os.read(ours, 65536)
                except OSError:  # how Linux says that nobody has the other end
                    break
                if not piece:
                    break
                got += piece
            process.wait(PATIENCE)
        os.close(ours)
        shown[words] = got
    assert b"\x1b[" in shown[()]
    assert b"\x1b[" not in shown[("--plain",)]


def test_listen_forwards_to_a_port_of_this_machine(net: World, daemon: Daemon, state: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            with server.accept()[0] as caller:
                caller.sendall(b"from this machine")

        thread = threading.Thread(target=answer)
        thread.start()
        with subprocess.Popen(
            command("listen", *state, "8090", "--once", "--to", f"127.0.0.1:{port}"),
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        ) as listening:
            assert listening.stderr is not None
            assert "listening on" in listening.stderr.readline()

            async def call() -> bytes:
                async with await net.db.tcp_connect("keeper", 8090) as stream:
                    return b"".join([data async for data in stream])

            assert net.within(call) == b"from this machine"
            listening.communicate(timeout=PATIENCE)
        thread.join(PATIENCE)
    assert listening.returncode == 0


@pytest.mark.slow
def test_settings_may_be_elsewhere(tmp_path: Path, net: World) -> None:
    settings = tmp_path / "other.toml"
    settings.write_text("[device]\nhostnme = 'x'\n")
    words = ["--foreground", "--state", str(tmp_path / "s"), "--control-url", net.url]
    assert "other.toml:2: [device] has no hostnme" in run("up", *words, "--config", str(settings)).stderr.decode()


@pytest.mark.parametrize("whose", ["daemon", pytest.param("own", marks=pytest.mark.slow)])
def test_nc_carries_datagrams(whose: str, net: World, state: list[str], tmp_path: Path) -> None:
    """With the daemon's device and with one of the command's own."""
    own = ["--state", str(tmp_path), "--control-url", net.url, "--auth-key", net.auth_key]

    async def echo(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with await net.db.udp(7) as socket:
            task_status.started()
            while True:
                data, sender = await socket.receive_from()
                await socket.send_to(data.upper(), sender)

    async def live(task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(echo)
                task_status.started(scope)

    scope = net.thread.start(live)
    try:
        which = state if whose == "daemon" else own
        done = run("nc", *which, "-u", "-w", "0.5", "db:7", stdin=b"hello")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"HELLO", b"")
    finally:
        net.thread.do(scope.cancel)
    refused = run("nc", *state, "-u", "-w", "5", "db", "9", stdin=b"hello")
    assert (refused.returncode, b"no UDP port 9 is open" in refused.stderr) == (6, True)


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_status_is_shown_again_and_again(more: list[str], state: list[str]) -> None:
    with subprocess.Popen(
        command("status", *state, "--watch", "0.01", *more), stdout=subprocess.PIPE, env=environment()
    ) as watching:
        assert watching.stdout is not None
        seen = 0
        for line in watching.stdout:
            seen += b"100.64." in line and b"keeper" in line
            if seen == 3:
                break
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=PATIENCE)
    assert watching.returncode == 130


@pytest.mark.parametrize("words", [["uplinks"], ["paths", "db"]])
def test_uplinks_and_paths_are_shown_again_and_again(words: list[str], state: list[str]) -> None:
    with subprocess.Popen(
        command(*words, *state, "--watch", "0.01", "--json"), stdout=subprocess.PIPE, env=environment()
    ) as watching:
        assert watching.stdout is not None
        for line, _ in zip(watching.stdout, range(3), strict=False):
            assert words[0] in json.loads(line)
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=PATIENCE)
    assert watching.returncode == 130


def test_bench_draws_what_it_measured(net: World, state: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--seconds", "0.2", "--streams", "2"]
    assert main(["bench", *state, "db", *words]) == 0
    shown = capfd.readouterr().out
    up, down = (float(line.split()[2].replace(",", "")) for line in shown.splitlines()[:2])
    assert up > 0 < down
    assert "#" * 40 in shown
    assert re.search(
        r"^round trip +[0-9.]+ ms  [0-9.]+ ms at best, [0-9.]+ m?s at the 99th percentile$", shown, re.MULTILINE
    )
    assert main(["bench", *state, "db", *words, "--dir", "up", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert (told["down"], told["streams"], told["seconds"]) == (None, 2, 0.2)
    assert main(["bench", *state, "db", "--seconds", "61"]) == 2


def test_uplinks_are_named_weighed_and_switched_by_words(
    state: list[str], daemon: Daemon, capfd: pytest.CaptureFixture[str]
) -> None:
    found = list_interfaces()
    if not found:
        pytest.skip("this machine has no interface but loopback")
    name = found[0].name
    assert main(["uplinks", *state, "use", "nosuch0"]) == 1
    assert name in capfd.readouterr().err
    try:
        assert main(["uplinks", *state, "--uplink", name, "--paths", "redundant:2"]) == 0
        assert name in capfd.readouterr().out
        for words in (["weight", name, "2"], ["metered", name]):
            assert main(["uplinks", *state, *words]) == 0
        capfd.readouterr()
        assert main(["uplinks", *state, "disable", name, "--json"]) == 0
        [uplink] = json.loads(capfd.readouterr().out)["uplinks"]
        assert (uplink["weight"], uplink["metered"], uplink["enabled"]) == (2, True, False)
        assert main(["uplinks", *state, "enable", name]) == 0
    finally:
        assert main(["uplinks", *state, "use", "none"]) == 0
    assert "no uplinks" in capfd.readouterr().out
    for words, told in (
        (["enable"], "which uplink"),
        (["weight", name, "much"], "a weight is a number"),
        (["metered", name, "perhaps"], "on or off"),
    ):
        assert main(["uplinks", *state, *words]) != 0
        assert told in capfd.readouterr().err
    assert main(["uplinks", *state, "--paths", "fastest"]) == 2


def test_capture_takes_a_peer_and_limits(state: list[str], tmp_path: Path) -> None:
    words = ["capture", *state, str(tmp_path / "c.pcapng"), "--peer", "db", "--seconds", "0.05", "--snaplen", "64"]
    assert main(words) == 0
    assert (tmp_path / "c.pcapng").stat().st_size > 0
    assert main(["capture", *state, str(tmp_path / "d.pcapng"), "--peer", "nobody", "--seconds", "0.05"]) == 5


def test_exec_takes_one_way_out(state: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["exec", *state, "--exit", "NL", "--direct", "--", "true"]) == 2
    assert "two ways out" in capfd.readouterr().err


def test_why_takes_udp(state: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    main(["why", *state, "db:7", "--udp", "--json"])
    assert json.loads(capfd.readouterr().out)["protocol"].lower() == "udp"


def test_command_line_says_by_what_to_log_in(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--client-id", "id", "--id-token", "file:/t", "--advertise-tags", "tag:ci,tag:test", "status"]
    options = parse(words)
    assert login_options(options) == {"client_id": "id", "id_token": "file:/t"}
    assert options.tags == ("tag:ci", "tag:test")
    assert login_options(parse(["login", "--client-id", "id", "--audience", "a"]))["audience"] == "a"
    with pytest.raises(SystemExit):
        parse(["login", "--advertise-tags", "ci"])
    assert 'names such as "tag:ci"' in capsys.readouterr().err


def test_ssh_goes_to_the_port_it_is_given(state: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the ProxyCommand that OpenSSH is given; what stands in for OpenSSH does nothing but begin it."""
    played = tmp_path / "ssh"
    played.write_text('#!/bin/sh\nexec sh -c "${2#ProxyCommand=}"\n')
    played.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    done = run("ssh", *state, "--port", str(ECHO_PORT), "db", stdin=b"hello")
    assert (done.returncode, done.stdout) == (0, b"hello"), done.stderr


def test_sshd_gives_a_shell_only_where_it_is_asked_to(state: list[str]) -> None:
    refused = run("sshd", *state)
    assert (refused.returncode, b"say so with --shell" in refused.stderr) == (2, True), refused.stderr
    with subprocess.Popen(
        command("sshd", *state, "--shell", "--port", "2222"), stderr=subprocess.PIPE, env=environment()
    ) as serving:
        assert serving.stderr is not None
        assert b"port 2222 of keeper" in serving.stderr.readline()
        serving.send_signal(signal.SIGINT)
        serving.communicate(timeout=PATIENCE)
    assert serving.returncode == 130
