"""ServeConfig: what is served, in upstream's JSON (ipn/serve.go), read, changed and written.

Owns its shape. What it does not know it keeps: another version's fields survive a round through here. Host names are
those of the config; "" stands for this device, whatever it is called. Serves nothing.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Self

from tailscale.serve.mounts import clean
from tailscale.serve.targets import UNIX, Files, Forward, Proxy, Redirect, Target, Text
from ts_base.errors import TailscaleError

LONGEST_CONFIG = 1 << 20
MOST_ENTRIES = 4096  # of one table: a config is written by people
DEEPEST = 4  # foreground configs have none of their own
Json = dict[str, Any]


OWN_HOST = ""  # in Web and AllowFunnel: this device, whatever it is called
OWN_NAME = "."  # in TerminateTLS: the same


class BadServeConfig(TailscaleError, ValueError):
    """A ServeConfig, or a change of one, that cannot be."""


WORDS: dict[type, str] = {str: "a text", bool: "true or false", int: "a number", list: "a list of texts", dict: "{...}"}
PORT_HANDLER: dict[str, type] = {
    "HTTPS": bool,
    "HTTP": bool,
    "TCPForward": str,
    "TerminateTLS": str,
    "ProxyProtocol": int,
}
HANDLER: dict[str, type] = {"Path": str, "Proxy": str, "Text": str, "Redirect": str, "AcceptAppCaps": list}
ORDER = ("TCP", "Web", "Services", "AllowFunnel", "Foreground")


class ServeConfig:
    """One config; `told` is its JSON."""

    def __init__(self, told: Json | None = None) -> None:
        self.told: Json = told if told is not None else {}

    @classmethod
    def read(cls, text: str | bytes) -> Self:
        """Of a text. Raises BadServeConfig, which names what is of the wrong type and where it stands."""
        if len(text) > LONGEST_CONFIG:
            raise BadServeConfig(f"a ServeConfig has at most {LONGEST_CONFIG} bytes")
        try:
            told = json.loads(text) if text.strip() else {}
        except (ValueError, RecursionError) as problem:
            raise BadServeConfig(f"this is not JSON: {problem}") from None
        if told is None:
            told = {}
        _check_config(told, "")
        return cls(told)

    def copy(self) -> ServeConfig:
        return ServeConfig(copy.deepcopy(self.told))

    def to_json(self, *, own_name: str = "") -> str:
        """As upstream writes it: nothing that is empty, its own tables first. `own_name` is told in place of ""."""
        kept = _without_empty(_named(self.told, own_name) if own_name else self.told)
        ordered = {name: kept[name] for name in ORDER if name in kept}
        return json.dumps(ordered | kept, separators=(",", ":"), ensure_ascii=False)

    @property
    def etag(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    # Looked at

    def parts(self) -> Iterator[Json]:
        """The foreground's, each, and then the background's: in the order in which they count."""
        yield from _table(self.told, "Foreground").values()
        yield self.told

    def port(self, port: int) -> Json | None:
        """Who has a port."""
        return next((found for part in self.parts() if (found := _table(part, "TCP").get(str(port)))), None)

    def ports(self) -> dict[int, Json]:
        """All that are served on the device's own addresses."""
        found: dict[int, Json] = {}
        for part in self.parts():
            for port, handler in _table(part, "TCP").items():
                found.setdefault(int(port), handler or {})
        return found

    def web(self) -> dict[tuple[str, int], dict[str, Json]]:
        """Mounts by host and port."""
        found: dict[tuple[str, int], dict[str, Json]] = {}
        for part in self.parts():
            for place, server in _table(part, "Web").items():
                found.setdefault(split_place(place), {k: v or {} for k, v in _table(server, "Handlers").items()})
        return found

    def funnel_wishes(self) -> dict[tuple[str, int], bool]:
        """Hosts and ports that the internet is to reach, or not now."""
        found: dict[tuple[str, int], bool] = {}
        for part in self.parts():
            for place, is_on in _table(part, "AllowFunnel").items():
                found[split_place(place)] = is_on is True or found.get(split_place(place), False)
        return found

    def funnels(self) -> set[tuple[str, int]]:
        """Hosts and ports that the internet reaches."""
        return {place for place, is_on in self.funnel_wishes().items() if is_on}

    def destinations(self) -> Iterator[str]:
        """All that is led to: URLs, and places of TCP servers."""
        for part in (*self.parts(), *self.services().values()):
            for handler in _table(part, "TCP").values():
                yield (handler or {}).get("TCPForward") or ""
            for server in _table(part, "Web").values():
                for handler in _table(server or {}, "Handlers").values():
                    yield (handler or {}).get("Proxy") or ""

    def services(self) -> dict[str, Json]:
        return {name: service or {} for name, service in _table(self.told, "Services").items()}

    def service_ports(self) -> dict[tuple[str, int], Json]:
        """All that is served at addresses of services."""
        return {
            (name, int(port)): handler or {}
            for name, service in self.services().items()
            for port, handler in _table(service, "TCP").items()
        }

    def service_web(self) -> dict[tuple[str, int], dict[str, Json]]:
        """Mounts by service and port: the address is the name, so that of several hosts the service's own counts."""
        found: dict[tuple[str, int], dict[str, Json]] = {}
        for name, service in self.services().items():
            for place, server in _table(service, "Web").items():
                host, port = split_place(place)
                if (name, port) not in found or host.partition(".")[0] == name.removeprefix("svc:"):
                    found[name, port] = {k: v or {} for k, v in _table(server or {}, "Handlers").items()}
        return found

    # Changed

    def foreground(self, session: str) -> ServeConfig:
        """The part that lives as long as a session; changes of it are changes of this."""
        part: Json = self.told.setdefault("Foreground", {}).setdefault(session, {})
        return ServeConfig(part)

    def service(self, name: str) -> ServeConfig:
        """The part that is served at the addresses of a service; changes of it are changes of this."""
        part: Json = self.told.setdefault("Services", {}).setdefault(name, {})
        return ServeConfig(part)

    def remove_service(self, name: str) -> bool:
        """All that is served of a service. Whether there was any."""
        return _table(self.told, "Services").pop(name, None) is not None

    def sessions(self) -> set[str]:
        return set(_table(self.told, "Foreground"))

    def end_session(self, session: str) -> bool:
        """Forget a session's part. Whether there was one."""
        return _table(self.told, "Foreground").pop(session, None) is not None

    def set_web(self, host: str, port: int, mount: str, handler: Json, *, tls: bool) -> None:
        """A mount. One that differs by a last slash is replaced."""
        self.set_port_kind(port, tls=tls)
        server = self.told.setdefault("Web", {}).setdefault(join_place(host, port), {})
        handlers: Json = server.setdefault("Handlers", {})
        for other in [m for m in handlers if m.removesuffix("/") == mount.removesuffix("/")]:
            del handlers[other]
        handlers[mount] = handler

    def set_port_kind(self, port: int, *, tls: bool) -> None:
        """A port of web servers, whatever stands behind it."""
        self._refuse_other_kind(port, "https" if tls else "http")
        self._set_port(port, {"HTTPS": True} if tls else {"HTTP": True})

    def set_tcp(self, port: int, to: str, *, sni: str = "", proxy_protocol: int = 0) -> None:
        """A TCP server; `sni` names the certificate that takes TLS off."""
        self._refuse_other_kind(port, "tls-terminated-tcp" if sni else "tcp")
        handler: Json = {"TCPForward": to}
        if sni:
            handler["TerminateTLS"] = sni
        if proxy_protocol:
            handler["ProxyProtocol"] = proxy_protocol
        self._set_port(port, handler)

    def set_forward(self, port: int, to: Forward) -> None:
        """The same of a target; where TLS is taken off, with this device's certificate."""
        self.set_tcp(port, to.to, sni=OWN_NAME if to.tls else "", proxy_protocol=to.proxy_protocol)

    def _set_port(self, port: int, handler: Json) -> None:
        ports: Json = self.told.setdefault("TCP", {})
        unknown = {name: value for name, value in (ports.get(str(port)) or {}).items() if name not in PORT_HANDLER}
        ports[str(port)] = unknown | handler

    def _refuse_other_kind(self, port: int, kind: str) -> None:
        present = _table(self.told, "TCP").get(str(port))
        if present and kind_of(present) != kind:
            raise BadServeConfig(
                f'want to serve "{kind}", but port {port} is already serving "{kind_of(present)}": turn that off first'
            )

    def set_funnel(self, host: str, port: int, is_on: bool) -> None:
        """Whether the internet reaches a port."""
        if is_on:
            self.told.setdefault("AllowFunnel", {})[join_place(host, port)] = True
            return
        allowed = _table(self.told, "AllowFunnel")
        allowed.pop(join_place(host, port), None)
        if not allowed:
            self.told.pop("AllowFunnel", None)

    def remove_web(self, host: str, port: int, mount: str | None = None) -> bool:
        """A mount, or all of that port; the port goes with its last. Whether there was any."""
        place = join_place(host, port)
        handlers = _table(_table(self.told, "Web").get(place) or {}, "Handlers")
        gone = [m for m in handlers if mount is None or m.removesuffix("/") == mount.removesuffix("/")]
        for each in gone:
            del handlers[each]
        if gone and not handlers:
            del self.told["Web"][place]
            _table(self.told, "TCP").pop(str(port), None)
            _table(self.told, "AllowFunnel").pop(place, None)
        return bool(gone)

    def remove_tcp(self, port: int) -> bool:
        """A forwarded port. Whether there was one."""
        present = _table(self.told, "TCP").get(str(port))
        if not present or not present.get("TCPForward"):
            return False
        del self.told["TCP"][str(port)]
        return True

    def check_follows(self, present: ServeConfig) -> None:
        """Whether this may come after that: nobody's port is taken, and none changes its kind (ipnlocal/serve.go)."""
        taken = present.ports()
        behind = {int(port) for part in _table(present.told, "Foreground").values() for port in _table(part, "TCP")}
        for session, part in _table(self.told, "Foreground").items():
            if session not in _table(present.told, "Foreground"):
                for port in map(int, _table(part, "TCP")):
                    if port in taken:
                        raise BadServeConfig(f"listener already exists for port {port}")
        for port, handler in ((int(p), h or {}) for p, h in _table(self.told, "TCP").items()):
            if port in behind:
                raise BadServeConfig(f"foreground listener already exists for port {port}")
            if port in taken and kind_of(handler) != kind_of(taken[port]):
                raise BadServeConfig(
                    f'want to serve "{kind_of(handler)}", but port {port} is already serving "{kind_of(taken[port])}"'
                )


def kind_of(handler: Mapping[str, Any]) -> str:
    """http, https, tcp or tls-terminated-tcp."""
    if handler.get("HTTPS"):
        return "https"
    if handler.get("HTTP"):
        return "http"
    return "tls-terminated-tcp" if handler.get("TerminateTLS") else "tcp"


def clean_mount(path: str, target: object = None) -> str:
    """A mount as upstream keeps it: from the root, without `..`, and with a last slash where a folder is behind it."""
    is_folder = isinstance(target, Files) and target.is_folder
    if not path.startswith("/") and path:
        path = "/" + path
    mount = clean(path or "/")
    if path.endswith("/") or is_folder:
        mount = mount.rstrip("/") + "/"
    return mount


def join_place(host: str, port: int) -> str:
    return f"{host}:{port}"


def split_place(place: str) -> tuple[str, int]:
    """`host:port` in two."""
    host, _, port = place.rpartition(":")
    return host.lower().rstrip("."), int(port)


# Targets in its words


def target_in(handler: Json) -> Target:
    """What a handler of a config says; what says nothing is an empty text, which nobody is given."""
    if handler.get("Text"):
        return Text(handler["Text"])
    if handler.get("Redirect"):
        return Redirect(handler["Redirect"])
    if handler.get("Path"):
        return Files(handler["Path"])
    if handler.get("Proxy"):
        return Proxy(in_full(handler["Proxy"]), tuple(handler.get("AcceptAppCaps") or ()))
    return Text("")


def handler_of(target: Target) -> Json:
    """The same in a config's words."""
    match target:
        case Text(text=text):
            return {"Text": text}
        case Redirect(to=to):
            return {"Redirect": to}
        case Files(path=path):
            return {"Path": path}
        case Proxy(to=to, accept_caps=caps):
            return {"Proxy": to} | ({"AcceptAppCaps": list(caps)} if caps else {})
    raise ValueError("an app of this process has no words in a ServeConfig")


def in_full(to: str) -> str:
    """expandProxyArg of upstream: a config may have a port, or a host and a port."""
    if to.startswith(UNIX) or "://" in to:
        return to
    return f"http://127.0.0.1:{to}" if to.isdigit() else f"http://{to}"


# What it may be


def _check_config(told: Any, path: str, depth: int = 0) -> None:
    config = _of_type(told, dict, path)
    at = f"{path}." if path else ""
    _check_tables(config, at)
    for name, service in _entries(config, "Services", at):
        if not name.startswith("svc:"):
            raise BadServeConfig(f"{at}Services.{name}: the name of a service begins with svc:")
        service = _of_type(service, dict, f"{at}Services.{name}")
        _check_tables(service, f"{at}Services.{name}.")
        is_tun = _of_type(service.get("Tun"), bool, f"{at}Services.{name}.Tun")
        if is_tun and (_table(service, "TCP") or _table(service, "Web")):
            raise BadServeConfig(f"cannot configure TUN mode in combination with TCP or web handlers for {name}")
    for place, is_on in _entries(config, "AllowFunnel", at):
        _check_place(place, f"{at}AllowFunnel.{place}")
        _of_type(is_on, bool, f"{at}AllowFunnel.{place}")
    for session, part in _entries(config, "Foreground", at):
        if depth:
            raise BadServeConfig(f"{at}Foreground: a foreground config has none of its own")
        _check_config(part, f"{at}Foreground.{session}", depth + 1)


def _check_tables(config: Json, at: str) -> None:
    for port, handler in _entries(config, "TCP", at):
        where = f"{at}TCP.{port}"
        if not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
            raise BadServeConfig(f"{where}: {port!r} is no port")
        found = _check_fields(handler, PORT_HANDLER, where)
        kinds = [name for name in ("HTTPS", "HTTP", "TCPForward") if found.get(name)]
        if len(kinds) > 1:
            raise BadServeConfig(f"{where} is {' and '.join(kinds)}: a port is one of them")
        if found.get("ProxyProtocol") not in (None, 0, 1, 2):
            raise BadServeConfig(f"{where}.ProxyProtocol must be 0, 1 or 2")
    for place, server in _entries(config, "Web", at):
        where = f"{at}Web.{place}"
        _check_place(place, where)
        for mount, handler in _entries(_of_type(server, dict, where), "Handlers", f"{where}."):
            if not mount.startswith("/"):
                raise BadServeConfig(f"{where}.Handlers.{mount}: a mount begins with /")
            _check_fields(handler, HANDLER, f"{where}.Handlers.{mount}")


def _check_fields(value: Any, kinds: dict[str, type], path: str) -> Json:
    found: Json = _of_type(value, dict, path)
    for name, kind in kinds.items():
        _of_type(found.get(name), kind, f"{path}.{name}")
    return found


def _check_place(place: str, path: str) -> None:
    host, colon, port = place.rpartition(":")
    if not (colon and port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
        raise BadServeConfig(f"{path}: {place!r} is not host:port")
    if any(c.isspace() for c in host):
        raise BadServeConfig(f"{path}: {host!r} is no host")


def _entries(config: Json, name: str, at: str) -> Iterator[tuple[str, Any]]:
    table = _of_type(config.get(name), dict, f"{at}{name}")
    if len(table) > MOST_ENTRIES:
        raise BadServeConfig(f"{at}{name} has more than {MOST_ENTRIES} entries")
    yield from table.items()


def _of_type(value: Any, kind: type, path: str) -> Any:
    """The value, or what nothing is of its type: Go's null."""
    if value is None:
        return kind()
    if type(value) is not kind or not _are_texts(value):
        raise BadServeConfig(f"{path or 'a ServeConfig'} must be {WORDS[kind]}, not {json.dumps(value)[:40]}")
    return value


def _are_texts(value: Any) -> bool:
    """A list is one of texts."""
    return not isinstance(value, list) or all(isinstance(each, str) for each in value)


def _table(config: Mapping[str, Any], name: str) -> Json:
    return config.get(name) or {}


def _without_empty(config: Json) -> Json:
    kept: Json = {}
    for name in config:
        value: Any = config[name]
        if isinstance(value, dict) and name in ("Foreground", "Services"):
            value = {str(key): _without_empty(part or {}) for key, part in value.items()}
        if value not in (None, {}, [], "", False, 0):
            kept[name] = value
    return kept


def _named(config: Json, own_name: str) -> Json:
    """With this device's name where "" stands for it."""
    found = dict(config)
    for name in ("Web", "AllowFunnel"):
        if isinstance(found.get(name), dict):
            found[name] = {f"{own_name}{k}" if k.startswith(":") else k: v for k, v in found[name].items()}
    if isinstance(found.get("TCP"), dict):
        named = {"TerminateTLS": own_name}
        found["TCP"] = {
            port: handler | named if (handler or {}).get("TerminateTLS") == OWN_NAME else handler
            for port, handler in found["TCP"].items()
        }
    if isinstance(found.get("Foreground"), dict):
        found["Foreground"] = {key: _named(part or {}, own_name) for key, part in found["Foreground"].items()}
    return found
