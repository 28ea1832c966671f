"""`funnel` and `ingress` as they are typed, and `[ingress]` of config.toml."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from daemon.daemon_scripts import World
from daemon.json_schema import check
from daemon.test_commands_hosted import command, environment, wait_until
from hello_scripts import hello

from tailscale.cli import main
from tailscale.cli.schema import read_schema
from tailscale.daemon.daemon import Daemon
from tailscale.daemon.settings import BadSettings, read_settings
from tailscale.peerapi.actor import PORT
from tailscale.serve.config import ServeConfig
from ts_base.client_hello import INTERNAL_ERROR, UNRECOGNIZED_NAME, encode_alert
from ts_control.server_funnel import FunnelRules

NAME = "keeper.tailnet.test"


@pytest.fixture
def state(net: World, daemon: Daemon) -> Iterator[list[str]]:
    yield ["--state", str(Path(daemon.places.state).parent)]
    net.thread.do(lambda: daemon.serving.set(ServeConfig()))


def allow(net: World, rules: FunnelRules | None) -> None:
    net.thread.do(lambda: net.net.control.do(net.net.control.server.allow_funnel, rules))


def brought(net: World, target: str) -> bytes:
    """The status that the daemon's device gives `db`, which means to be a relay, and what comes after 101."""

    async def ask() -> bytes:
        with trio.fail_after(30):
            async with await net.db.tcp_connect("keeper", PORT) as stream:
                lines = ["POST /v0/ingress HTTP/1.1", "Host: peer", "Tailscale-Ingress-Src: 203.0.113.9:1"]
                lines += [f"Tailscale-Ingress-Target: {target}", "Content-Length: 0", "", ""]
                await stream.send_all("\r\n".join(lines).encode())
                head = bytes(await stream.receive_some())
                if b" 101 " not in head:
                    return head[9:12]
                await stream.send_all(b"hello")
                return bytes(await stream.receive_some())

    answer: bytes = net.within(ask)
    return answer


def test_funnel_is_turned_on_shown_and_turned_off(
    net: World, daemon: Daemon, state: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    server = net.within(partial(trio.open_tcp_listeners, 0, host="127.0.0.1"))
    net.thread.start(trio.serve_listeners, _echo, server)
    port = str(server[0].socket.getsockname()[1])
    words = ["funnel", *state, "--bg", "--tcp=8443"]
    assert main([*words, port]) == 1
    assert "docs/funnel.md" in capfd.readouterr().err
    addresses = [address for address in (net.db.ipv4, net.db.ipv6) if address]
    allow(net, FunnelRules(tuple(addresses)))
    wait_until(lambda: "funnel" in daemon.keeper.usable.node.capabilities)
    assert main(["funnel", *state, "--bg", "--tcp=444", port]) == 1
    assert "port 444 may not be used for Funnel; allowed here: 443, 8443, 10000" in capfd.readouterr().err
    assert main(["funnel", *state, "--bg", "--tls-terminated-tcp=10000", "--proxy-protocol=1", "3000"]) == 1
    assert main([*words, port]) == 0
    assert "available on the internet" in capfd.readouterr().err
    wait_until(lambda: brought(net, f"{NAME}:8443") == b"hello")
    assert brought(net, f"{NAME}:443") == b"403"
    assert main(["funnel", *state, "status", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    check(told, read_schema("funnel"))
    assert told["AllowFunnel"] == {f"{NAME}:8443": True}
    assert main(["serve", *state, "--bg", "--tcp=8443", port]) == 0, "on the tailnet only from now on"
    wait_until(lambda: brought(net, f"{NAME}:8443") == b"403")
    assert main([*words, port]) == 0
    assert main(["funnel", *state, "--tcp=8443", "off"]) == 0
    assert main(["funnel", *state, "--tcp=8443", "off"]) == 1
    assert main(["funnel", *state, "--bg", "--https=443", "--set-path=/x", "3000", "4000"]) == 2
    assert json.loads(daemon.serving.config.to_json()) == {}
    allow(net, None)


async def _echo(stream: trio.SocketStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send_all(data)


def told(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(data)
        return client.recv(100)


@contextmanager
def relaying(*words: str) -> Iterator[int]:
    """The command while the block runs; its port. Ctrl-C ends it."""
    with subprocess.Popen(command("ingress", *words), stderr=subprocess.PIPE, env=environment()) as relay:
        try:
            assert relay.stderr is not None
            line = relay.stderr.readline().decode()
            yield int(line.removeprefix("relay at 127.0.0.1:").split(" ")[0])
            relay.send_signal(signal.SIGINT)
            assert relay.wait(30) == 130
        finally:
            relay.kill()


def test_ingress_is_a_relay_until_ctrl_c(net: World, daemon: Daemon, state: list[str]) -> None:
    words = ["--name", "web.example=db", "--name", "*.none.example=nobody", "--port", "443", "--no-ui"]
    words += ["--connections", "8", "--per-name", "4", "--per-source", "2"]
    with relaying(*state, "127.0.0.1:0", *words) as port:
        assert told(port, hello(b"web.example")) == encode_alert(INTERNAL_ERROR), "db lets nobody bring anything"
        assert told(port, hello(b"a.none.example")) == encode_alert(INTERNAL_ERROR)
        assert told(port, hello(b"other.example")) == encode_alert(UNRECOGNIZED_NAME)
        drops = net.thread.do(lambda: daemon.keeper.usable.status().drops)
        assert (drops["ingress.denied"], drops["ingress.no_target"], drops["ingress.unknown_name"]) == (1, 1, 1)
        held = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(2)]
        assert told(port, b"") == encode_alert(INTERNAL_ERROR), "one source has two at most"
        for one in held:
            one.close()


def test_ingress_in_front_of_which_a_balancer_stands(state: list[str]) -> None:
    with relaying(*state, "127.0.0.1:0", "--to", "db", "--proxy-protocol", "--no-ui") as port:
        assert told(port, hello(b"web.example")) == b""
        header = b"PROXY TCP4 192.0.2.7 192.0.2.1 5 443\r\n"
        assert told(port, header + hello(b"web.example")) == encode_alert(INTERNAL_ERROR)


def test_ingress_that_leads_nowhere_is_a_sentence(state: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    for words, sentence in {
        (): "a relay leads to a node",
        ("--to", "db", "--name", "a.example=db"): "--to is the node of all names",
        ("--name", "a.example"): "is not NAME=NODE",
        ("--to", "db", "--per-name", "0"): "not a number of connections",
        ("nowhere", "--to", "db"): "no place to listen at",
    }.items():
        assert main(["ingress", *state, *words]) in (1, 2)
        assert sentence in capfd.readouterr().err


def where_of(daemon: Daemon) -> str:
    return next((str(part["where"]) for part in daemon.parts.to_list() if part["kind"] == "ingress"), "")


@pytest.mark.slow
def test_settings_make_a_relay(net: World, tmp_path: Path) -> None:
    text = '[ingress]\nlisten = "127.0.0.1:0"\nnames = { "web.example" = "db" }\nport = 443\nper_source = 9\n'
    settings = read_settings(text, "config.toml")
    with net.daemon(tmp_path, read=lambda: settings) as made:
        wait_until(lambda: where_of(made))
        port = int(where_of(made).rpartition(":")[2])
        assert told(port, hello(b"other.example")) == encode_alert(UNRECOGNIZED_NAME)
    for wrong, sentence in {
        'listen = "127.0.0.1:0"\nnames = 1': "a table of names and the nodes",
        'listen = "127.0.0.1:0"\nnames = {}': "a table of names and the nodes",
        'listen = "443"\nto = "db"': "host:port",
        'to = "db"': "listen",
        'listen = "127.0.0.1:0"\nto = "db"\nper_source = 0': "a whole number from 1",
    }.items():
        with pytest.raises(BadSettings, match=sentence):
            read_settings(f"[ingress]\n{wrong}\n", "config.toml")
