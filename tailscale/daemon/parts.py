"""What a daemon carries beside its device, as config.toml says: forwards, exposed ports, and what else has a `Start`.

Owns their lives: each is started when a device is usable and again when it failed, and ended when it is taken out of
the settings. One that cannot start costs nothing but a line in the log and its place in `GET config`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from tailscale._causes import sole_cause
from tailscale._private_files import Draft
from tailscale.daemon.transport import remove_stale_socket
from tailscale.device import Device
from tailscale.errors import TailscaleError
from tailscale.metrics import serve_metrics
from tailscale.tun_options import tun

log = logging.getLogger("tailscale.daemon")
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
CERTIFICATE_LOOK = 3600.0  # between looks whether it was renewed
STARTING, RUNNING, FAILED = "starting", "running", "failed"

Started = Callable[[str], None]
"""Says that a part runs, and where."""
Run = Callable[[Device, dict[str, Any], Started], Awaitable[None]]
"""Runs one part until cancelled."""


@dataclass(slots=True, eq=False)
class Part:
    """One thing that is carried."""

    kind: str
    keys: dict[str, Any]
    state: str = STARTING
    where: str = ""
    problem: str = ""
    scope: trio.CancelScope | None = None

    def to_dict(self) -> dict[str, Any]:
        """Without passwords."""
        shown = {name: sorted(value) if name == "users" else value for name, value in self.keys.items()}
        return {"kind": self.kind, "keys": shown, "state": self.state, "where": self.where, "problem": self.problem}


class Parts:
    """All of one daemon's."""

    def __init__(self, kinds: dict[str, Run]) -> None:
        self._kinds = kinds
        self._wanted: list[tuple[str, dict[str, Any]]] = []
        self._present: list[Part] = []
        self._nursery: trio.Nursery | None = None
        self._device: Device | None = None

    def to_list(self) -> list[dict[str, Any]]:
        return [part.to_dict() for part in self._present]

    def want(self, parts: list[tuple[str, dict[str, Any]]]) -> None:
        """From now on these; those that are there already and are wanted again go on as they are."""
        self._wanted = list(parts)
        self._reconcile()

    async def run(self, device: Device) -> None:
        """While a device is usable."""
        async with trio.open_nursery() as nursery:
            self._nursery, self._device = nursery, device
            try:
                self._reconcile()
                await trio.sleep_forever()
            finally:
                self._nursery = self._device = None
                self._present = []

    def _reconcile(self) -> None:
        if self._nursery is None or self._device is None:
            return
        missing = list(self._wanted)
        kept = []
        for part in self._present:
            if (part.kind, part.keys) in missing:
                missing.remove((part.kind, part.keys))
                kept.append(part)
            elif part.scope is not None:
                part.scope.cancel()
        self._present = kept + [Part(kind, keys, scope=trio.CancelScope()) for kind, keys in missing]
        for part in self._present[len(kept) :]:
            self._nursery.start_soon(self._keep, part, self._device)

    async def _keep(self, part: Part, device: Device) -> None:
        assert part.scope is not None
        pause = FIRST_PAUSE
        with part.scope:
            while True:
                try:
                    await self._kinds[part.kind](device, part.keys, lambda where: self._on_started(part, where))
                except* (TailscaleError, OSError, ValueError) as group:
                    error = sole_cause(group)
                    part.state, part.problem = FAILED, str(error)
                    log.warning("%s %s failed: %s. Again in %g s", part.kind, _name(part), error, pause)
                await trio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)

    def _on_started(self, part: Part, where: str) -> None:
        part.state, part.where, part.problem = RUNNING, where, ""
        log.info("%s %s runs at %s", part.kind, _name(part), where)


def _name(part: Part) -> str:
    return str(part.keys.get("listen") or part.keys.get("port") or part.keys.get("app") or "")


# The kinds


async def run_forward(device: Device, keys: dict[str, Any], started: Started) -> None:
    host, _, port = keys["to"].rpartition(":")
    listen: str = keys["listen"]
    if listen.startswith("unix:"):
        await remove_stale_socket(listen.removeprefix("unix:"))
        opening = device.forward(host.strip("[]"), int(port), path=listen.removeprefix("unix:"))
    else:
        local = listen.rpartition(":")
        if local[0] not in ("127.0.0.1", "localhost"):
            raise ValueError(f"forward listens on 127.0.0.1, not on {local[0]}: it asks nobody who they are")
        opening = device.forward(host.strip("[]"), int(port), local_port=int(local[2]))
    async with opening as forward:
        started(forward.host if listen.startswith("unix:") else f"{forward.host}:{forward.port}")
        await trio.sleep_forever()


async def run_expose(device: Device, keys: dict[str, Any], started: Started) -> None:
    host, _, port = keys["to"].rpartition(":")
    telling = keys.get("proxy_protocol", 0)
    async with device.expose(keys["port"], host.strip("[]"), int(port), proxy_protocol=telling) as exposed:
        started(f"{device.name}:{exposed.port}")
        await trio.sleep_forever()


async def run_metrics(device: Device, keys: dict[str, Any], started: Started) -> None:
    async with trio.open_nursery() as nursery:
        serve = partial(serve_metrics, device, keys["listen"], peers=keys.get("peers", False))
        started(await nursery.start(serve))


async def run_proxy(device: Device, keys: dict[str, Any], started: Started) -> None:
    from tailscale.proxy import Exits, serve  # few daemons have one

    way_out = Exits.from_spec(device, keys.get("exit", "none"))
    async with trio.open_nursery() as nursery:
        proxy = await nursery.start(partial(serve, users=keys.get("users")), device, keys["listen"], way_out)
        started(f"{proxy.host}:{proxy.port}")


async def run_ingress(device: Device, keys: dict[str, Any], started: Started) -> None:
    from tailscale.ingress import IngressLimits, ingress  # few daemons are relays

    if ("to" in keys) == ("names" in keys):
        raise ValueError("[ingress] has `to`, the node of all names, or `names`, a table of names and nodes")
    limits = {name: keys[name] for name in RELAY_LIMITS if name in keys}
    run = partial(ingress, to=keys.get("names") or keys["to"], port=keys.get("port", 0), limits=IngressLimits(**limits))
    async with trio.open_nursery() as nursery:
        relay = await nursery.start(run, device, keys["listen"])
        started(f"{relay.address[0]}:{relay.port}")


async def run_ssh(device: Device, keys: dict[str, Any], started: Started) -> None:
    """A shell of the user whose daemon this is, for whom the tailnet's policy lets in."""
    from tailscale.ssh import serve_ssh  # needs asyncssh

    serve = partial(serve_ssh, device, None, keys.get("port", 22), True)
    await serve(started=lambda port: started(f"{device.name}:{port}"))
    await trio.sleep_forever()


async def run_tun(device: Device, keys: dict[str, Any], started: Started) -> None:
    """One that a command has brought up already goes on; one that is taken down stays so until the settings change."""
    chosen = tun(**keys)
    if device.tun is None or device.tun.name != chosen.name:
        await device.tun_up(chosen)
    try:
        started(chosen.name)
        await device.tun_ended()
        started("down, as was asked")
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await device.tun_down()


RELAY_LIMITS = ("connections", "per_name", "per_source", "proxy_protocol")


async def run_certificate(device: Device, keys: dict[str, Any], started: Started) -> None:
    """A certificate is held and renewed from the start, and what servers of this machine read is always the newest."""
    name, written = keys.get("name"), b""
    files = [Path(keys[key]) if key in keys else None for key in ("key_file", "cert_file")]
    while True:
        found = await device.certificate(name)
        if found.chain_pem != written:
            for path, data, mode in zip(files, (found.key_pem, found.chain_pem), (0o600, 0o644), strict=True):
                if path is not None:
                    await trio.to_thread.run_sync(Draft.put, path, data, mode)
            written = found.chain_pem
            started(f"{found.names[0]} until {found.expires:%Y-%m-%d}")
        await trio.sleep(CERTIFICATE_LOOK)


KINDS: dict[str, Run] = {
    "certificate": run_certificate,
    "expose": run_expose,
    "forward": run_forward,
    "ingress": run_ingress,
    "metrics": run_metrics,
    "proxy": run_proxy,
    "ssh": run_ssh,
    "tun": run_tun,
}
