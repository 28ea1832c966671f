"""Control URLs, the ports worth trying, and the proxy variables, as upstream and curl read them."""

from __future__ import annotations

import pytest

from ts_control.location import ControlAddress, base_path, maybe_proxy, parse_url, upgrade_locations

PUBLIC = ControlAddress("control.example.com", 443, is_tls=True)


@pytest.mark.parametrize(
    ("url", "location", "authority"),
    [
        ("https://hs.example.com", ControlAddress("hs.example.com", 443, True), "hs.example.com"),
        ("https://hs.example.com:8443/", ControlAddress("hs.example.com", 8443, True), "hs.example.com:8443"),
        ("http://127.0.0.1:8080", ControlAddress("127.0.0.1", 8080, False), "127.0.0.1:8080"),
        ("http://[::1]", ControlAddress("::1", 80, False), "[::1]"),
    ],
)
def test_a_url_names_a_place(url: str, location: ControlAddress, authority: str) -> None:
    assert parse_url(url) == location
    assert location.authority == authority


@pytest.mark.parametrize("url", ["", "hs.example.com", "ftp://x", "https://", "http://host:port"])
def test_what_is_no_url_is_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(ValueError):
        parse_url(url)


def test_a_path_in_front_of_the_server_is_kept() -> None:
    assert base_path("https://example.com/headscale/") == "/headscale"


@pytest.mark.parametrize(
    ("url", "ways"),
    [
        ("https://host.example", [(443, True), (80, False)]),
        ("https://host.example:8443", [(8443, True), (80, False)]),
        ("http://host.example:8080", [(8080, False), (443, True)]),
        ("http://127.0.0.1:8080", [(8080, False)]),
        ("http://192.168.1.4", [(80, False)]),
        ("http://localhost:8080", [(8080, False)]),
    ],
)
def test_ports_to_try_follow_upstream(url: str, ways: list[tuple[int, bool]]) -> None:
    assert [(way.port, way.is_tls) for way in upgrade_locations(parse_url(url))] == ways


def test_the_proxy_comes_from_the_variable_of_the_scheme() -> None:
    environment = {"HTTPS_PROXY": "http://user:p%40ss@proxy:3128", "http_proxy": "other:8080"}
    proxy = maybe_proxy(PUBLIC, environment)
    assert proxy is not None
    assert proxy.location == ControlAddress("proxy", 3128, False)
    assert proxy.authorization == "Basic dXNlcjpwQHNz"
    assert "dXNlcjpwQHNz" not in repr(proxy)
    plain = maybe_proxy(ControlAddress("hs.example", 80, False), environment)
    assert plain is not None
    assert plain.location == ControlAddress("other", 8080, False)
    assert maybe_proxy(PUBLIC, {}) is None


@pytest.mark.parametrize(
    ("rules", "host", "bypassed"),
    [
        ("*", "control.example.com", True),
        ("example.com", "control.example.com", True),
        (".example.com", "control.example.com", True),
        (".example.com", "example.com", False),
        ("example.com", "example.com", True),
        ("ample.com", "example.com", False),
        ("example.com:443", "example.com", True),
        ("example.com:8443", "example.com", False),
        ("other, 10.0.0.0/8", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("2001:db8::1", "2001:db8::1", True),
        ("10.0.0.0/99", "10.1.2.3", False),
        ("", "127.0.0.1", True),
        ("", "localhost", True),
        ("", "control.example.com", False),
    ],
)
def test_no_proxy_follows_the_convention(rules: str, host: str, bypassed: bool) -> None:
    proxy = maybe_proxy(ControlAddress(host, 443, True), {"https_proxy": "http://p:1", "no_proxy": rules})
    assert (proxy is None) == bypassed
