"""ServeConfig: read and written in upstream's JSON, unknown fields kept, wrong types named; names in headers."""

from __future__ import annotations

import json
import ssl
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve_scripts import published

from tailscale.serve import BadServeConfig, Serve, files, proxy, redirect, text
from tailscale.serve.config import ServeConfig
from tailscale.serve.headers import in_header
from tailscale.serve.mounts import clean, find_mount
from tailscale.testing import Tailnet

WHOLE: dict[str, Any] = {
    "TCP": {"80": {"HTTP": True, "Since": 3}, "443": {"HTTPS": True}, "5432": {"TCPForward": "127.0.0.1:1"}},
    "Web": {"a.test:80": {"Handlers": {"/": {"Text": "x", "New": [1]}}, "More": {}}},
    "Services": {
        "svc:web": {"TCP": {"80": {"HTTP": True}}, "Web": {"web.test:80": {"Handlers": {"/": {"Text": "s"}}}}}
    },
    "AllowFunnel": {"a.test:443": True},
    "Foreground": {"abc": {"TCP": {"81": {"TCPForward": "unix:/x"}}}},
    "Version": "9",
}
WRONG: list[tuple[Any, str]] = [
    ([], "a ServeConfig must be"),
    ({"TCP": 1}, "TCP must be {...}, not 1"),
    ({"TCP": {"x": {}}}, "TCP.x: 'x' is no port"),
    ({"TCP": {"70000": {}}}, "is no port"),
    ({"TCP": {"80": {"HTTP": 1}}}, "TCP.80.HTTP must be true or false, not 1"),
    ({"TCP": {"80": {"ProxyProtocol": True}}}, "TCP.80.ProxyProtocol must be a number"),
    ({"TCP": {"80": {"ProxyProtocol": 3}}}, "TCP.80.ProxyProtocol must be 0, 1 or 2"),
    ({"TCP": {"80": {"HTTP": True, "TCPForward": "x:1"}}}, "TCP.80 is HTTP and TCPForward"),
    ({"Web": {"a.test": {}}}, "Web.a.test: 'a.test' is not host:port"),
    ({"Web": {"a:80": {"Handlers": {"x": {}}}}}, "Web.a:80.Handlers.x: a mount begins with /"),
    ({"Web": {"a:80": {"Handlers": {"/": {"Text": 5}}}}}, "Web.a:80.Handlers./.Text must be a text, not 5"),
    ({"Web": {"a:80": {"Handlers": {"/": {"AcceptAppCaps": [1]}}}}}, "AcceptAppCaps must be a list of texts"),
    ({"Services": {"web": {}}}, "Services.web: the name of a service begins with svc:"),
    ({"Services": {"svc:web": {"Tun": True, "TCP": {"80": {"HTTP": True}}}}}, "cannot configure TUN mode"),
    ({"Foreground": {"a": {"Foreground": {"b": {}}}}}, "has none of its own"),
    ({"AllowFunnel": {"a:80": "yes"}}, "AllowFunnel.a:80 must be true or false"),
]


def test_round_keeps_what_is_not_known() -> None:
    assert json.loads(ServeConfig.read(json.dumps(WHOLE)).to_json()) == {
        name: value for name, value in WHOLE.items() if name != "Web"
    } | {"Web": {"a.test:80": {"Handlers": {"/": {"Text": "x", "New": [1]}}, "More": {}}}}
    assert ServeConfig.read("null").to_json() == ServeConfig.read("").to_json() == "{}"


@pytest.mark.parametrize(("told", "sentence"), WRONG, ids=[sentence for _, sentence in WRONG])
def test_what_cannot_be_is_named_with_its_path(told: Any, sentence: str) -> None:
    with pytest.raises(BadServeConfig) as refused:
        ServeConfig.read(json.dumps(told))
    assert sentence in str(refused.value)


@settings(max_examples=40)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
                        ("TCP", "Web", "Services", "AllowFunnel", "Foreground", "Handlers", "80", "a:80", "/", "svc:a")
                    ), inner, max_size=4), max_leaves=20))  # fmt: skip
def test_any_json_is_read_or_refused(told: Any) -> None:
    try:
        config = ServeConfig.read(json.dumps(told))
    except BadServeConfig:
        return
    config.ports(), config.web(), config.funnels(), list(config.destinations())
    assert ServeConfig.read(config.to_json()).to_json() == config.to_json()


def test_nesting_without_end_is_refused() -> None:
    with pytest.raises(BadServeConfig, match="not JSON"):
        ServeConfig.read("[" * 100_000)
    with pytest.raises(BadServeConfig, match="at most"):
        ServeConfig.read(b" " * (2 << 20))


def test_mount_replaces_one_that_differs_by_its_last_slash() -> None:
    config = ServeConfig()
    config.set_web("a", 80, "/x", {"Text": "1"}, tls=False)
    config.set_web("a", 80, "/x/", {"Text": "2"}, tls=False)
    assert config.web() == {("a", 80): {"/x/": {"Text": "2"}}}
    with pytest.raises(BadServeConfig, match='want to serve "https"'):
        config.set_web("a", 80, "/", {"Text": "3"}, tls=True)


def test_new_config_takes_nobodys_port() -> None:
    present = ServeConfig.read(json.dumps(WHOLE))
    for told, sentence in (
        ({"Foreground": {"new": {"TCP": {"80": {"HTTP": True}}}}}, "listener already exists for port 80"),
        ({"TCP": {"81": {"HTTP": True}}}, "foreground listener already exists for port 81"),
        ({"TCP": {"5432": {"HTTP": True}}}, 'want to serve "http", but port 5432 is already serving "tcp"'),
    ):
        with pytest.raises(BadServeConfig, match=sentence):
            ServeConfig.read(json.dumps(told)).check_follows(present)
    present.check_follows(present)


async def test_serve_is_written_and_read_back(tailnet: Tailnet) -> None:
    def say(web: Serve) -> None:
        web.http(80, {"/": proxy("3000", accept_caps=["x.test/a"]), "/t": text("t"), "/r": redirect("301:/t")})
        web.https(443, {"/f": files("site")}, funnel=True).tcp(5432, "localhost:1", tls=True, proxy_protocol=2)

    async def none(name: str) -> ssl.SSLContext:
        raise OSError(name)

    async with published(tailnet, say, certificates=none) as s:
        told = json.loads(s.web.to_json())
        assert told["TCP"]["5432"] == {"TCPForward": "localhost:1", "TerminateTLS": s.device.name, "ProxyProtocol": 2}
        assert told["AllowFunnel"] == {f"{s.device.name}:443": True}
        caps = {"Proxy": "http://127.0.0.1:3000", "AcceptAppCaps": ["x.test/a"]}
        assert told["Web"][f"{s.device.name}:80"]["Handlers"]["/"] == caps
        again = Serve.from_json(s.device, s.web.to_json())
        assert json.loads(again.to_json()) == told

        async def app(scope: Any, receive: Any, send: Any) -> None: ...

        with pytest.raises(BadServeConfig, match="/app on port 80 is an app of this process"):
            Serve(s.device).http(80, {"/app": app}).to_json()


@given(st.text(max_size=200))
def test_headers_are_ascii_and_read_back(name: str) -> None:
    from email.header import decode_header, make_header

    coded = in_header(name)
    assert coded.isascii()
    assert b"\r" not in coded
    assert b"\n" not in coded
    if coded.startswith(b"=?"):
        assert all(len(word) <= 75 for word in coded.split(b" "))
        assert str(make_header(decode_header(coded.decode()))) == name


def test_headers_are_spelt_as_go_spells_them() -> None:
    assert in_header("plain name") == b"plain name"
    assert in_header("Jürgen Müller") == b"=?utf-8?q?J=C3=BCrgen_M=C3=BCller?="
    assert in_header("\ud800") == b""


@given(
    st.lists(st.sampled_from(["/", "/a", "/a/", "/a/b", "/a/b/", "/c/"]), unique=True), st.text("/abc.", max_size=12)
)
def test_mounts_are_found_as_a_slow_twin_finds_them(mounts: list[str], path: str) -> None:
    found = find_mount(dict.fromkeys(mounts, 1), path)
    if path in mounts:
        assert found == (path, 1)
        return
    level = clean(path)
    candidates = []
    while level.startswith("/"):
        candidates += [level.rstrip("/") + "/", level]
        if level == "/":
            break
        level = level.rsplit("/", 1)[0] or "/"
    wanted = next((candidate for candidate in candidates if candidate in mounts), None)
    assert (found[0] if found else None) == wanted
