"""What the daemon publishes: the config that is kept, what lives as long as a session, and what config.toml says.

Owns `serve-config` of upstream's API, which Services drain, and the entries "serve" and "draining-services" of the
state. A session is a stream of notices, or a command of ours, and its part goes with it. What is published is a Serve's
to do.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import trio

from tailscale.daemon.answering import Answer, Question, Refused, Routes, json_answer
from tailscale.daemon.keeper import Keeper
from tailscale.daemon.localapi import ROOT
from tailscale.daemon.parts import Started
from tailscale.device import Device
from tailscale.errors import FunnelUnavailable, StateCorrupt
from tailscale.serve import BadServeConfig, Serve, read_target, tcp
from tailscale.serve.config import ServeConfig, clean_mount, handler_of
from tailscale.serve.site import is_socket
from tailscale.state_file import NamedStore

log = logging.getLogger("tailscale.daemon")
ENTRY = "serve"
DRAINING = "draining-services"
OF_SETTINGS = "config.toml"  # the session that lives as long as the settings say so
KINDS = ("http", "https", "tcp", "tls_terminated_tcp")
HTTP_PORT, HTTPS_PORT = 80, 443


class Serving:
    """Of one daemon."""

    def __init__(self, keeper: Keeper, store: NamedStore, socket: str) -> None:
        self._keeper = keeper
        self._store = store
        self._socket = socket  # never published: whoever reached it would be taken for ourselves
        self._config = ServeConfig()
        self._sessions: dict[str, Callable[[], object]] = {}
        self._settings: dict[int, dict[str, Any]] = {}
        self._draining: set[str] = set()
        self._serve: Serve | None = None

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", f"{ROOT}serve-config", self._get)
        routes.add("POST", f"{ROOT}serve-config", self._post)
        routes.add("POST", f"{ROOT}query-feature", self._query_feature)

    # Kept between runs

    def load(self) -> None:
        """What earlier runs were told. What lived as long as a session is gone."""
        text = self._store.read(ENTRY)
        try:
            self._config = ServeConfig.read(text or b"")
        except BadServeConfig as problem:
            log.warning("what the daemon kept of its serve config cannot be used: %s. It serves nothing", problem)
        self._config.told.pop("Foreground", None)
        told = self._store.read(DRAINING)
        try:
            self._draining = {str(name) for name in json.loads(told or b"[]")}
        except (ValueError, TypeError):
            log.warning("which services the daemon was draining cannot be read: all are advertised")

    def _keep(self) -> None:
        kept = self._config.copy()
        kept.told.pop("Foreground", None)
        try:
            self._store.write(ENTRY, kept.to_json().encode())
            self._store.write(DRAINING, json.dumps(sorted(self._draining)).encode())
        except StateCorrupt as error:
            raise StateCorrupt(f"what is served now is lost when the daemon ends: {error}") from error

    # What is published

    @property
    def config(self) -> ServeConfig:
        """All of it: a copy."""
        whole = self._config.copy()
        if self._settings:
            part = whole.foreground(OF_SETTINGS)
            for keys in self._settings.values():
                add_setting(whole.service(keys["service"]) if "service" in keys else part, keys)
        return whole

    def set(self, config: ServeConfig) -> None:
        """Publish that, and keep it. Raises BadServeConfig, and then nothing has changed."""
        present = self.config
        config.check_follows(present)
        self._check_sockets(config)
        following = config.copy()
        following.end_session(OF_SETTINGS)
        for keys in self._settings.values():  # what config.toml says of a service, nobody changes here
            following.remove_service(keys.get("service", ""))
        there, had = following.sessions(), present.sessions()
        if unknown := there - self._sessions.keys():
            raise BadServeConfig(f"no session {', '.join(sorted(unknown))}: it is what watch-ipn-bus says first")
        self._config = following
        self._draining &= self.config.services().keys()
        self._apply()
        for session in had - there:
            if (end := self._sessions.get(session)) is not None:
                end()
        self._keep()

    def _check_sockets(self, config: ServeConfig) -> None:
        for to in config.destinations():
            if is_socket(to, self._socket):
                raise BadServeConfig("the daemon's own socket is not served: whoever came by it would be its owner")

    @property
    def advertised(self) -> tuple[str, ...]:
        """The services for which control may send somebody here."""
        return tuple(sorted(self.config.services().keys() - self._draining))

    def advertise(self, services: Collection[str]) -> None:
        """Of the services that are served exactly these; the others drain."""
        self._draining = self.config.services().keys() - set(services)
        self._apply()
        self._keep()

    def _apply(self) -> None:
        if self._serve is not None:
            self._serve.use(self.config).drain(*self._draining)

    @contextmanager
    def session(self, end: Callable[[], object], name: str = "") -> Iterator[str]:
        """A new one; what is published in its name ends with the block. `end` is called when others take it away."""
        session = name or secrets.token_hex(8)
        self._sessions[session] = end
        try:
            yield session
        finally:
            del self._sessions[session]
            if self._config.end_session(session):
                self._apply()

    # How it runs

    async def run(self, device: Device) -> None:
        """While a device is usable."""
        self._serve = Serve(device, own_socket=self._socket)
        try:
            # What is wanted comes after the start: a port that cannot be opened is tried again, and ends nothing.
            await self._serve.run(started=lambda _: self._apply())
        finally:
            self._serve = None

    async def run_setting(self, device: Device, keys: dict[str, Any], started: Started) -> None:
        """A `[[serve]]` of config.toml."""
        add_setting(ServeConfig(), keys)
        self._settings[id(keys)] = keys
        try:
            self._apply()
            started(f"{device.name}:{port_of(keys)}")
            await trio.sleep_forever()
        finally:
            del self._settings[id(keys)]
            self._apply()

    # Upstream's path

    async def _get(self, _: Question) -> Answer:
        await trio.lowlevel.checkpoint()
        config = self.config
        text = config.to_json(own_name=self._own_name())
        return Answer(text.encode(), kind="application/json", headers={"etag": config.etag})

    async def _post(self, question: Question) -> Answer:
        config = ServeConfig.read(await question.body())
        expected = question.headers.get(b"if-match", b"").decode("latin-1").strip('"')
        if expected and expected != self.config.etag:
            raise Refused(412, "the serve config has changed since it was read: read it again")
        self._keeper.usable  # noqa: B018 - names are those of a device that has joined
        self.set(config)
        return json_answer({})

    async def _query_feature(self, question: Question) -> Answer:
        """What is asked before `funnel` and `serve --https` are turned on by a node that may not use them yet."""
        await trio.lowlevel.checkpoint()
        device = self._keeper.usable
        if question.query.get("feature") != "funnel":
            device.certificate_keeper().names()  # where there is none, the error says why
            return json_answer({"Complete": True})
        try:
            device.check_funnel(device.name, HTTPS_PORT)
        except FunnelUnavailable as problem:
            return json_answer({"Text": str(problem)})
        return json_answer({"Complete": True})

    def _own_name(self) -> str:
        netmap = self._keeper.netmap()
        return netmap.self_node.name.rstrip(".") if netmap is not None else ""


def port_of(keys: dict[str, Any]) -> int:
    """The port of a setting."""
    found = [keys[kind] for kind in KINDS if kind in keys]
    if len(found) != 1:
        raise BadServeConfig(f"[[serve]] has one of {', '.join(KINDS)}: the port, and how it is served")
    port: int = found[0]
    return port


def add_setting(config: ServeConfig, keys: dict[str, Any]) -> None:
    """What a `[[serve]]` says, for this device. Raises ValueError."""
    port, to = port_of(keys), keys["to"]
    if "http" in keys or "https" in keys:
        if keys.get("proxy_protocol"):
            raise BadServeConfig("proxy_protocol is of TCP: web servers are told by headers who calls")
        target = read_target(to)
        config.set_web("", port, clean_mount(keys.get("path", "/"), target), handler_of(target), tls="https" in keys)
        return
    if "path" in keys:
        raise BadServeConfig("path is of http and https: TCP has none")
    forward = tcp(to, tls="tls_terminated_tcp" in keys, proxy_protocol=keys.get("proxy_protocol", 0))
    config.set_forward(port, forward)
