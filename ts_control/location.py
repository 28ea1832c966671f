"""Where a control server is: its URL taken apart, the ports worth trying, and the proxy the environment asks for.

Owns: upstream's port rules and the HTTP_PROXY, HTTPS_PROXY, NO_PROXY conventions. Refuses to know: dialling.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from ts_base.errors import BadPacket
from ts_base.hosts import check_host_untrusted


class ControlAddress(NamedTuple):
    """One way in: scheme, host, port."""

    host: str
    port: int
    is_tls: bool

    @property
    def authority(self) -> str:
        """For a Host header: the port is left out where it is the scheme's own."""
        return self.host_and_port if self.port != (443 if self.is_tls else 80) else _bracketed(self.host)

    @property
    def host_and_port(self) -> str:
        return f"{_bracketed(self.host)}:{self.port}"


@dataclass(frozen=True, slots=True)
class Proxy:
    location: ControlAddress
    authorization: str = field(default="", repr=False)  # a whole header value, or nothing


def parse_url(url: str) -> ControlAddress:
    """The place a control URL names; ValueError with a sentence for the user when it names none."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"control_url must look like https://host or http://host:port, not {url!r}")
    is_tls = parts.scheme == "https"
    return ControlAddress(parts.hostname, parts.port or (443 if is_tls else 80), is_tls)


def answer_target_untrusted(url: str) -> tuple[ControlAddress, str]:
    """The place and the path where control wants a ping answered. BadPacket when they cannot be asked for as they are:
    a path with a space or a control character in it would have to be guessed at.
    """
    try:
        where = parse_url(url)
        parts = urlsplit(url)
    except ValueError:
        raise BadPacket("a ping request without a usable URL") from None
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not path.startswith("/") or not path.isascii() or not path.isprintable() or " " in path:
        raise BadPacket("a ping request for a path that no request line can hold")
    return ControlAddress(check_host_untrusted(where.host), where.port, where.is_tls), path


def base_path(url: str) -> str:
    return urlsplit(url).path.rstrip("/")


def upgrade_locations(first: ControlAddress) -> list[ControlAddress]:
    """Where to try the upgrade, in order. Noise proves itself, so plain HTTP is a lawful way round a middlebox."""
    if first.is_tls:
        return [first, ControlAddress(first.host, 80, is_tls=False)]
    return [first] if is_local(first.host) else [first, ControlAddress(first.host, 443, is_tls=True)]


def is_local(host: str) -> bool:
    """Loopback, private and CGNAT hosts: no public name server or certificate vouches for them."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return not address.is_global


def maybe_proxy(target: ControlAddress, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy for `target`, by the usual variables in either case; loopback never goes through one."""

    def variable(name: str) -> str:
        return environment.get(name) or environment.get(name.lower()) or ""

    text = variable("HTTPS_PROXY" if target.is_tls else "HTTP_PROXY")
    if not text or _is_bypassed(target, variable("NO_PROXY")):
        return None
    parts = urlsplit(text if "://" in text else f"http://{text}")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("the proxy in the environment must look like http://host:port")
    is_tls = parts.scheme == "https"
    authorization = ""
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(login.encode()).decode()
    return Proxy(ControlAddress(parts.hostname, parts.port or (443 if is_tls else 80), is_tls), authorization)


def _is_bypassed(target: ControlAddress, rules: str) -> bool:
    host = target.host.lower()
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    return any(_rule_matches(rule.strip().lower(), target, host, address) for rule in rules.split(","))


def _rule_matches(
    rule: str, target: ControlAddress, host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None
) -> bool:
    if not rule:
        return False
    if rule == "*":
        return True
    if "/" in rule:
        try:
            return address is not None and address in ipaddress.ip_network(rule, strict=False)
        except ValueError:
            return False
    name, colon, port = rule.rpartition(":")
    if colon and port.isdigit() and ":" not in name.strip("[]"):
        if int(port) != target.port:
            return False
        rule = name
    rule = rule.strip("[]").removeprefix("*")
    # ".example.com" covers the hosts below it, "example.com" the host as well.
    return host.endswith(rule) if rule.startswith(".") else host == rule or host.endswith("." + rule)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
