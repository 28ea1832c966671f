"""The Rig: starts each kind of peer in a folder of its own, waits until it can be used, and ends it.

What a peer can do once it runs stands in the file named after it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import trio

from tests.interop import build
from tests.interop.processes import PORTS, Json, Process, bracketed, poll_until, work_folder
from tests.interop.rig import derper, headscale
from tests.interop.rig.certificates import PrivateCa, pin
from tests.interop.rig.derper import Derper
from tests.interop.rig.headscale import HEADSCALE, Headscale
from tests.interop.rig.tailscaled import Tailscaled
from tests.interop.rig.testcontrol import Testcontrol, go_names
from tests.interop.rig.tsnet import TsnetPeer

# What every Go peer gets: no logs to the internet, no port mapping, a panic if it ever meets the
# real control server, and a proxy that refuses, so that a stray call fails instead of leaving.
QUIET_ENV = {
    "TS_NO_LOGS_NO_SUPPORT": "1",
    "TS_PANIC_IF_HIT_MAIN_CONTROL": "1",
    "TS_DISABLE_PORTMAPPER": "1",
    "TS_DEBUG_LOG_RATE": "all",
    "TS_ASSUME_NETWORK_UP_FOR_TEST": "1",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1,localhost,10.99.0.1,10.99.0.2,fd00:99::1,fd00:99::2,.rig,100.64.0.0/10",
}


class Rig:
    """Starts peers; every one of them is a context manager, and logs go to `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._counts: dict[str, int] = {}
        self._ca: PrivateCa | None = None

    @property
    def ca(self) -> PrivateCa:
        if self._ca is None:
            self._ca = PrivateCa(self.room("ca"))
        return self._ca

    def room(self, name: str) -> Path:
        """A fresh folder for one process."""
        count = self._counts[name] = self._counts.get(name, 0) + 1
        folder = self.folder / (name if count == 1 else f"{name}{count}")
        folder.mkdir()
        return folder

    @contextlib.asynccontextmanager
    async def derper(
        self,
        *,
        tls: bool = True,
        region_id: int = 900,
        stun: bool = True,
        verify_url: str = "",
        pinned: bool = True,
        host: str = "127.0.0.1",
    ) -> AsyncIterator[Derper]:
        """A relay with STUN. `pinned`: clients know its self-signed certificate by hash; else
        `insecurefortests` is set. Without `tls` it speaks plain HTTP, which Go clients use only with
        TS_DEBUG_USE_DERP_HTTP=1."""
        room = self.room(f"derper-{region_id}")
        port, stun_port = PORTS.take(), PORTS.take()
        name = derper.derp_name(host, region_id)
        if name != host:  # derper makes a certificate by itself for an address only
            (room / "certs").mkdir()
            for made, suffix in zip(self.ca.leaf(name), ("crt", "key"), strict=True):
                shutil.copy(made, room / "certs" / f"{name}.{suffix}")
        address = f"{bracketed(host)}:{port}"
        command = derper.command_line(room, name, address, stun_port, tls=tls, stun=stun, verify_url=verify_url)

        async def start() -> Process:
            process = Process("derper", command, room, env=QUIET_ENV)

            async def listens() -> bool:
                process.check()
                await (await trio.open_tcp_stream(host, port)).aclose()
                return True

            await poll_until("derper to listen", listens, 15)
            return process

        process = await start()
        cert_name = ""
        if tls and pinned:
            cert_name = pin(room / "certs" / f"{name}.crt")
        relay = Derper(
            process, region_id, port, stun_port, tls, cert_name, start, host, insecure=tls and not pinned, stun=stun
        )
        try:
            yield relay
        finally:
            await relay.stop()

    @contextlib.asynccontextmanager
    async def headscale(
        self,
        version: str = HEADSCALE,
        *,
        regions: Sequence[Json] = (),
        tls: bool = False,
        embedded_derp: bool = False,
        policy: Json | None = None,
        families: str = "46",
        settings: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        host: str = "127.0.0.1",
    ) -> AsyncIterator[Headscale]:
        """A control server tuned to answer at once. `families`: "46", "4" or "6" for the tailnet's
        addresses; `settings` are merged into its configuration, dotted keys allowed."""
        room = self.room("hs")
        port, metrics_port, grpc_port = (PORTS.take(), PORTS.take(), PORTS.take())
        config = headscale.configuration(room, version, host, port, metrics_port, grpc_port, families)
        if tls:
            cert, key = self.ca.leaf(host, "localhost", "hs.rig")
            config |= {"tls_cert_path": str(cert), "tls_key_path": str(key), "server_url": f"https://{host}:{port}"}
        if embedded_derp:
            config["derp"]["server"] = headscale.embedded_derp(room, host, PORTS.take())
        headscale.merge(config, settings or {})
        hs = Headscale(room, version, config, list(regions), env or {}, self.ca.pem if tls else None)
        try:
            await hs.start()
            if policy is not None:
                await hs.set_policy(policy)
            yield hs
        finally:
            await hs.aclose()

    @contextlib.asynccontextmanager
    async def tsnet(
        self,
        control: Headscale | Testcontrol | str,
        auth_key: str,
        name: str,
        *,
        ephemeral: bool = False,
        tags: Sequence[str] = (),
        derp_http: bool = False,
        relay_only: bool = False,
        port: int = 0,
        state: Path | None = None,
        verbose: bool = True,
        wait_up: bool = True,
        env: Mapping[str, str] | None = None,
        namespace: str | None = None,
        timeout: float = 60,
        program: Sequence[str | Path] = (),
    ) -> AsyncIterator[TsnetPeer]:
        """A tsnet node, up when the body runs (unless `wait_up` is off: then `await peer.event("up")`)."""
        room = self.room(name)
        url = control if isinstance(control, str) else control.url
        command: list[str | Path] = list(program) or [build.binary("tsnetpeer")]
        command += ["-control", url, "-hostname", name]
        command += ["-dir", state or room / "state", "-port", str(port), "-timeout", f"{timeout}s"]
        if auth_key:
            command += ["-authkey", auth_key]
        if ephemeral:
            command += ["-ephemeral"]
        if tags:
            command += ["-tags", ",".join(tags)]
        if verbose:
            command += ["-verbose"]
        await trio.Path(state or room / "state").mkdir(exist_ok=True)
        process = Process(
            name,
            command,
            room,
            env=self._go_env(control, room, derp_http, relay_only) | (dict(env) if env else {}),
            pipes=True,
            namespace=namespace,
        )
        peer = TsnetPeer(name, process)
        # Not in a nursery of ours: that would wrap every error of the body in a group.
        trio.lowlevel.spawn_system_task(peer.listen)
        try:
            if wait_up:
                up = await peer.event("up", timeout + 5)
                peer.ip4, peer.ip6, peer.join_ms = up["ip4"], up["ip6"], up["elapsed_ms"]
            yield peer
        finally:
            await peer.stop()

    def ours(
        self, control: Headscale | Testcontrol | str, auth_key: str, name: str, **options: Any
    ) -> contextlib.AbstractAsyncContextManager[TsnetPeer]:
        """Our Device in a process of its own, driven exactly like `tsnet` (see ournode.py)."""
        root = Path(__file__).resolve().parents[3]
        options["env"] = {"PYTHONPATH": str(root), **(options.get("env") or {})}
        program = [sys.executable, "-m", "tests.interop.ournode"]
        return self.tsnet(control, auth_key, name, program=program, **options)

    @contextlib.asynccontextmanager
    async def tailscaled(
        self,
        name: str,
        *,
        control: Headscale | Testcontrol | None = None,
        auth_key: str = "",
        old: bool = False,
        derp_http: bool = False,
        relay_only: bool = False,
        arguments: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        namespace: str | None = None,
        tun: str = "userspace-networking",
        port: int = 0,
    ) -> AsyncIterator[Tailscaled]:
        """A tailscaled without TUN or root, `up` already when control and key are given."""
        room = self.room(name)
        socks_port = PORTS.take()
        socket = room / "d.sock"
        suffix = "-old" if old else ""
        command = [str(build.binary(f"tailscaled{suffix}")), f"--tun={tun}", f"--statedir={room / 'state'}"]
        command += [f"--socket={socket}", f"--port={port}", f"--socks5-server=127.0.0.1:{socks_port}", "--verbose=1"]
        go_env = self._go_env(control, room, derp_http, relay_only) | (dict(env) if env else {})
        process = Process(name, command, room, env=go_env, namespace=namespace)
        daemon = Tailscaled(name, process, socket, build.binary(f"tailscale{suffix}"), socks_port)
        try:
            await poll_until("tailscaled's socket", _exists(process, socket), 20)
            if control is not None and auth_key:
                await daemon.up(control.url, auth_key, *arguments)
            yield daemon
        finally:
            await daemon.stop()

    @contextlib.asynccontextmanager
    async def stund(self, host: str = "127.0.0.1") -> AsyncIterator[int]:
        """A STUN server alone; yields its port."""
        port = PORTS.take()
        room = self.room("stund")
        command: list[str | Path] = [build.binary("stund"), "-stun", f"{host}:{port}", "-http", "127.0.0.1:0"]
        process = Process("stund", command, room, env=QUIET_ENV)
        try:
            await poll_until("stund", _logged(process, "STUN server listening"), 10)
            yield port
        finally:
            await process.stop()

    @contextlib.asynccontextmanager
    async def testcontrol(self, *, regions: Sequence[Json] = (), **settings: Any) -> AsyncIterator[Testcontrol]:
        """The scripted control server; `settings` are its flags (require_auth=True ...)."""
        room = self.room("testcontrol")
        port, admin_port = PORTS.take(), PORTS.take()
        derp_map = {"Regions": {str(r["regionid"]): go_names(r) for r in regions}}
        (room / "derp.json").write_text(json.dumps(derp_map))
        command: list[str | Path] = [build.binary("scripted"), "-listen", f"127.0.0.1:{port}"]
        command += ["-admin", f"127.0.0.1:{admin_port}", "-derp-map", room / "derp.json"]
        for name, value in settings.items():
            command += [f"-{name.replace('_', '-')}={str(value).lower() if isinstance(value, bool) else value}"]
        process = Process("testcontrol", command, room, env=QUIET_ENV)
        server = Testcontrol(process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}")

        async def ready() -> bool:
            process.check()
            try:
                await server.admin("ping")
            except httpx.TransportError:
                return False
            return True

        try:
            await poll_until("testcontrol", ready, 10)
            yield server
        finally:
            await server.stop()

    @contextlib.asynccontextmanager
    async def lockcontrol(self, *, regions: Sequence[Json] = ()) -> AsyncIterator[str]:
        """Upstream's in-memory control server with tailnet lock; its URL. `lock add` and its like end it."""
        room, port = self.room("lockcontrol"), PORTS.take()
        derp_map = {"Regions": {str(r["regionid"]): go_names(r) for r in regions}}
        (room / "derp.json").write_text(json.dumps(derp_map))
        command: list[str | Path] = [build.binary("lockcontrol"), "-listen", f"127.0.0.1:{port}"]
        process = Process("lockcontrol", [*command, "-derp-map", room / "derp.json"], room, env=QUIET_ENV)

        async def ready() -> bool:
            process.check()
            try:
                await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
            except OSError:
                return False
            return True

        try:
            await poll_until("lockcontrol", ready, 10)
            yield f"http://127.0.0.1:{port}"
        finally:
            await process.stop()

    def _go_env(
        self, control: Headscale | Testcontrol | str | None, room: Path, derp_http: bool, relay_only: bool
    ) -> dict[str, str]:
        env = QUIET_ENV | {"TS_LOGS_DIR": str(room), "XDG_CACHE_HOME": str(room), "HOME": str(room)}
        if isinstance(control, Headscale) and control.ca is not None:
            env["SSL_CERT_FILE"] = str(control.ca)
        if derp_http:
            env["TS_DEBUG_USE_DERP_HTTP"] = "1"
        if relay_only:
            env["TS_DEBUG_NEVER_DIRECT_UDP"] = "1"
        return env


def _exists(process: Process, path: Path) -> Any:
    async def probe() -> bool:
        process.check()
        return path.exists()

    return probe


def _logged(process: Process, text: str) -> Any:
    async def probe() -> bool:
        process.check()
        return text in process.log()

    return probe


@contextlib.asynccontextmanager
async def rig(name: str = "rig", keep: bool = False) -> AsyncIterator[Rig]:
    """A folder to start peers in; on failure the folder is kept and named."""
    async with work_folder(name, keep) as folder:
        yield Rig(folder)
