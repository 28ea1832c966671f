"""`serve` through a daemon and alone, what upstream's LocalAPI asks of it, and `[[serve]]` of config.toml."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from daemon.daemon_scripts import World
from daemon.json_schema import check
from daemon.test_commands_hosted import command, environment, run, wait_until

from tailscale.certificates.control import DIRECTORY_VARIABLE
from tailscale.cli import main
from tailscale.cli.schema import read_schema
from tailscale.cli.serve import lines_of
from tailscale.daemon.client import Client
from tailscale.daemon.daemon import Daemon
from tailscale.daemon.requests import DaemonError
from tailscale.daemon.settings import BadSettings, read_settings
from tailscale.serve.config import ServeConfig

API = "/localapi/v0/"
NAME = "keeper.tailnet.test"


@pytest.fixture
def state(daemon: Daemon, net: World) -> Iterator[list[str]]:
    yield ["--state", str(Path(daemon.places.state).parent)]
    net.thread.do(lambda: daemon.serving.set(ServeConfig()))


def asked(net: World, request: str, port: int = 80, host: str = "keeper") -> bytes:
    """What the peer `db` is answered."""

    async def ask() -> bytes:
        with trio.fail_after(30):
            async with await net.db.tcp_connect(host, port) as stream:
                await stream.send_all(request.replace("|", "\r\n").encode())
                return b"".join([bytes(piece) async for piece in stream])

    answer: bytes = net.within(ask)
    return answer


def page(net: World, path: str = "/", port: int = 80) -> bytes:
    return asked(net, f"GET {path} HTTP/1.1|Host: keeper|Connection: close||", port).partition(b"\r\n\r\n")[2]


def test_serve_in_the_background_is_shown_kept_and_ended(
    net: World, daemon: Daemon, state: list[str], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["serve", *state, "--bg", "--http=80", "text:hello"]) == 0
    assert main(["serve", *state, "--bg", "--http=80", "--set-path=/docs", str(tmp_path)]) == 0
    said = ["--http=80", "--set-path=/api", "--accept-app-caps=x.test/a,x.test/b"]
    assert main(["serve", *state, "--bg", *said, "localhost:3000"]) == 0
    assert main(["serve", *state, "--bg", "--tcp=5432", "--proxy-protocol=2", "5432"]) == 0
    out = capfd.readouterr().out
    assert "http://keeper.tailnet.test (tailnet only)" in out
    (tmp_path / "a.txt").write_text("file")
    assert (page(net), page(net, "/docs/a.txt")) == (b"hello", b"file")
    assert main(["serve", *state, "status", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    check(told, read_schema("serve"))
    proxied = {"Proxy": "http://localhost:3000", "AcceptAppCaps": ["x.test/a", "x.test/b"]}
    mounts = {"/": {"Text": "hello"}, "/docs/": {"Path": str(tmp_path)}, "/api": proxied}
    assert told["Web"][f"{NAME}:80"]["Handlers"] == mounts
    assert told["TCP"]["5432"] == {"TCPForward": "127.0.0.1:5432", "ProxyProtocol": 2}
    kept = daemon.serving
    net.thread.do(kept.load)
    assert json.loads(kept.config.to_json()) == told
    assert main(["serve", *state, "--http=80", "--set-path=/docs", "off"]) == 0
    assert main(["serve", *state, "--tcp=5432", "off"]) == 0
    assert main(["serve", *state, "--tcp=5432", "off"]) == 1
    assert page(net, "/docs/a.txt") == b"hello"
    capfd.readouterr()
    assert main(["serve", *state, "status"]) == 0
    shown = capfd.readouterr().out
    assert f'http://{NAME} (tailnet only)\n|-- /    text  "hello"\n|-- /api proxy http://localhost:3000\n' in shown
    assert main(["serve", *state, "reset"]) == 0
    assert main(["serve", *state, "status"]) == 0
    assert "nothing is served" in capfd.readouterr().err


def test_services_are_served_drained_and_cleared(net: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    addresses = net.thread.do(lambda: net.net.service("svc:web", tags=["tag:web"]))
    key = net.thread.do(lambda: net.net.auth_key(tags=["tag:web"]))
    settings = read_settings('[[serve]]\nservice = "svc:db"\ntcp = 5432\nto = "5432"\n', "config.toml")
    with net.daemon(tmp_path, auth_key=key, read=lambda: settings) as made:
        state = ["--state", str(Path(made.places.state).parent)]
        wait_until(lambda: "svc:db" in made.serving.advertised)

        def hosts() -> set[str]:
            control = net.net.control.server
            return {name for device in control.directory for name in device.hosted}

        assert main(["serve", *state, "--service=svc:web", "--http=80", "text:of the service"]) == 0
        assert "http://web.tailnet.test (tailnet only)" in capfd.readouterr().out
        wait_until(lambda: net.thread.do(hosts) == {"svc:web"})  # control knows of no svc:db
        assert made.prefs.to_json()["AdvertiseServices"] == ["svc:db", "svc:web"]
        wait_until(lambda: net.thread.do(lambda: is_led_to(net, addresses[0])))
        told = asked(net, "GET / HTTP/1.1|Host: web|Connection: close||", host=addresses[0])
        assert told.endswith(b"of the service")
        assert main(["serve", *state, "drain", "svc:web"]) == 0
        wait_until(lambda: net.thread.do(hosts) == set())
        capfd.readouterr()
        assert main(["serve", *state, "status"]) == 0
        shown = capfd.readouterr().out
        assert "svc:db\n  tcp port 5432\n" in shown
        assert "svc:web (draining: it gets nobody new)\n  http://web.tailnet.test (tailnet only)\n" in shown
        net.thread.do(made.serving.load)
        assert made.serving.advertised == ("svc:db",)
        wanted = {"AdvertiseServicesSet": True, "AdvertiseServices": ["svc:db", "svc:web"]}
        net.within(partial(made.prefs.apply, wanted))
        wait_until(lambda: net.thread.do(hosts) == {"svc:web"})
        assert main(["serve", *state, "drain", "svc:web"]) == 0
        assert main(["serve", *state, "advertise", "svc:web"]) == 0
        wait_until(lambda: net.thread.do(hosts) == {"svc:web"})
        assert main(["serve", *state, "--service=svc:web", "--http=80", "off"]) == 0
        wait_until(lambda: net.thread.do(hosts) == set())
        assert main(["serve", *state, "clear", "svc:web"]) == 1
        assert "svc:web is not served here: of services there is svc:db" in capfd.readouterr().err
        kept = ServeConfig.read(made.serving.config.to_json())
        made_own = net.thread.do(lambda: made.serving.set(kept))
        assert made_own is None
        assert "svc:db" in made.serving.config.services()
    for bad in ("web", "svc:", "svc:-"):
        with pytest.raises(SystemExit):
            main(["serve", "--service", bad, "text:x"])
        assert "its name is svc: and a DNS label" in capfd.readouterr().err
    with pytest.raises(BadSettings, match="service must be the name of a Service"):
        read_settings('[[serve]]\nservice = "db"\ntcp = 1\nto = "3000"\n', "config.toml")


def is_led_to(net: World, address: str) -> bool:
    return any(f"{address}/32" in node.routes for node in net.db.peers.values())


def test_service_needs_a_tag(daemon: Daemon, state: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *state, "--service=svc:web", "--http=80", "text:x"]) == 1
    assert "has no tags" in capfd.readouterr().err
    assert not daemon.serving.config.services()


def test_serve_in_the_foreground_ends_with_the_command(net: World, daemon: Daemon, state: list[str]) -> None:
    words = command("serve", *state, "--http=81", "text:now")
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment()) as served:
        wait_until(lambda: 81 in daemon.serving.config.ports())
        assert page(net, port=81) == b"now"
        assert main(["serve", *state, "--bg", "--http=81", "text:other"]) == 1  # somebody has the port
        served.send_signal(signal.SIGINT)
        assert served.wait(30) == 130
    wait_until(lambda: 81 not in daemon.serving.config.ports())


@pytest.mark.slow
def test_serve_alone_has_a_device_of_its_own(net: World, tmp_path: Path) -> None:
    words = ["--state", str(tmp_path), "--hostname", "alone", "--control-url", net.url]
    assert b"pytailscale up" in run("serve", *words, "--bg", "--http=80", "3000").stderr
    served = subprocess.Popen(
        command("serve", *words, "--http=80", "text:alone"),
        env=environment() | {"TS_AUTHKEY": net.auth_key},
        stdout=subprocess.PIPE,
    )
    try:
        assert served.stdout is not None
        assert served.stdout.readline() == b"http://alone.tailnet.test (tailnet only)\n"

        async def ask() -> bytes:
            async with await net.db.tcp_connect("alone", 80) as stream:
                await stream.send_all(b"GET / HTTP/1.0\r\nHost: alone\r\n\r\n")
                return b"".join([bytes(piece) async for piece in stream])

        assert net.within(ask).endswith(b"alone")
    finally:
        served.send_signal(signal.SIGINT)
        assert served.wait(30) == 130
        assert served.stdout is not None
        served.stdout.close()


def test_https_has_its_certificate_before_it_is_served(
    net: World, daemon: Daemon, state: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DIRECTORY_VARIABLE, net.net.certificates.directory)
    assert main(["serve", *state, "--bg", "--https=8443", "text:secure"]) == 0
    assert main(["serve", *state, "--bg", "--tls-terminated-tcp=5433", "5432"]) == 0
    assert daemon.serving.config.told["TCP"]["5433"] == {"TCPForward": "127.0.0.1:5432", "TerminateTLS": NAME}

    async def ask() -> bytes:
        with trio.fail_after(30):
            async with await net.db.tcp_connect("keeper", 8443) as tcp:
                context = net.net.certificates.client_context()
                stream = trio.SSLStream(tcp, context, server_hostname=NAME, https_compatible=True)
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: keeper\r\nConnection: close\r\n\r\n")
                return b"".join([bytes(piece) async for piece in stream])

    assert net.within(ask).endswith(b"secure")


def test_a_config_is_shown_as_upstream_shows_it() -> None:
    tcp = {"5433": {"TCPForward": "127.0.0.1:5432", "TerminateTLS": NAME}, "8443": {"HTTPS": True}}
    web = {f"{NAME}:8443": {"Handlers": {"/": {"Text": "x" * 30}, "/a": {"Redirect": "/b"}}}}
    shown = list(lines_of(ServeConfig({"TCP": tcp, "Web": web, "AllowFunnel": {f"{NAME}:8443": True}})))
    assert shown == [
        "tcp port 5433 (TLS-terminated)",
        "|--> tcp://127.0.0.1:5432",
        f"https://{NAME}:8443 (Funnel on)",
        f'|-- /  text  "{"x" * 17}..."',
        "|-- /a redirect /b",
    ]


def test_what_cannot_be_is_a_sentence(state: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    for words, sentence in {
        ("--http=80", "--proxy-protocol=1", "3000"): "--proxy-protocol is of TCP",
        ("--tcp=80", "--set-path=/x", "3000"): "TCP has no paths",
        ("--http=80", "example.com:80"): "say how to speak to it",
        ("--http=80", "3000", "4000"): "one target",
    }.items():
        assert main(["serve", *state, "--bg", *words]) in (1, 2)
        assert sentence in capfd.readouterr().err


@pytest.mark.slow
def test_config_goes_out_and_in_as_a_file(state: list[str], tmp_path: Path) -> None:
    path = str(tmp_path / "serve.json")
    assert main(["serve", *state, "--bg", "--http=80", "text:hello"]) == 0
    assert main(["serve", *state, "get-config", path]) == 0
    assert main(["serve", *state, "reset"]) == 0
    assert main(["serve", *state, "set-config", path]) == 0
    done = run("serve", *state, "set-raw", stdin=b'{"TCP": {"80": {"HTTPS": 1}}}')
    assert b"TCP.80.HTTPS must be true or false" in done.stderr
    told = json.loads(run("serve", *state, "status", "--json").stdout)
    assert told["Web"][f"{NAME}:80"]["Handlers"] == {"/": {"Text": "hello"}}


def posted(client: Client, config: Any) -> None:
    assert client.ask("POST", f"{API}serve-config", config) == {}


def test_serve_config_of_upstreams_api(net: World, client: Client, daemon: Daemon, state: list[str]) -> None:
    web = {
        "TCP": {"80": {"HTTP": True}},
        "Web": {f"{NAME}:80": {"Handlers": {"/": {"Text": "x", "Later": [1]}}}},
        "New": 1,
    }
    posted(client, web)
    assert client.get(f"{API}serve-config") == web
    for wrong, sentence in (
        ({"TCP": {"80": {"TCPForward": "127.0.0.1:1"}}}, "but port 80 is already serving"),
        ({"TCP": {"81": {"TCPForward": f"unix:{daemon.places.socket}"}}}, "own socket"),
        ({"Foreground": {"none": {}}}, "no session none"),
        ({"Web": {"x": {}}}, "Web.x: 'x' is not host:port"),
    ):
        with pytest.raises(DaemonError, match=sentence):
            posted(client, wrong)
    stream = client.stream(f"{API}watch-ipn-bus?mask=2")
    session = next(stream)["SessionID"]
    part = {"TCP": {"82": {"HTTP": True}}, "Web": {f"{NAME}:82": {"Handlers": {"/": {"Text": "fore"}}}}}
    posted(client, web | {"Foreground": {session: part}})
    assert page(net, port=82) == b"fore"
    with pytest.raises(DaemonError, match="foreground listener already exists for port 82"):
        posted(client, web | {"TCP": {"82": {"HTTP": True}}, "Foreground": {session: part}})
    stream.close()
    wait_until(lambda: 82 not in daemon.serving.config.ports())
    stream = client.stream(f"{API}watch-ipn-bus?mask=2")
    session = next(stream)["SessionID"]
    posted(client, web | {"Foreground": {session: part}})
    posted(client, {})
    assert not [notice for notice in stream if "SessionID" in notice]  # it ends


@pytest.mark.slow
def test_settings_say_what_is_served(net: World, tmp_path: Path) -> None:
    text = '[[serve]]\nhttp = 80\nto = "text:root"\n[[serve]]\nhttp = 80\npath = "/b"\nto = "text:b"\n'
    settings = read_settings(text + '[[serve]]\ntcp = 81\nto = "3000"\nproxy_protocol = 1\n', "config.toml")
    with net.daemon(tmp_path, read=lambda: settings) as made:
        wait_until(lambda: 81 in made.serving.config.ports())
        assert json.loads(made.serving.config.to_json(own_name="x"))["Foreground"]["config.toml"]["TCP"]["81"] == {
            "TCPForward": "127.0.0.1:3000",
            "ProxyProtocol": 1,
        }
    with pytest.raises(BadSettings, match=r"3: path must be a text"):
        read_settings('[[serve]]\nhttp = 80\npath = 1\nto = "3000"\n', "config.toml")
    assert os.path.exists(made.places.state)
