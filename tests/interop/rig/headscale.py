"""A running Headscale: its configuration, its life, and its administration (users, keys, nodes, policy).

Ports, folder and certificates are given by the rig.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import httpx
import trio

from tests.interop import build
from tests.interop.processes import Json, Process, RigError, bracketed, finished, poll_until

HEADSCALE = os.environ.get("HEADSCALE", "0.29.2")  # 0.28.0 runs the whole suite against the release before


class Headscale:
    """A running Headscale and its administration. Node arguments are ids or given names."""

    def __init__(
        self,
        folder: Path,
        version: str,
        config: Json,
        regions: list[Json],
        env: Mapping[str, str],
        ca: Path | None,
    ) -> None:
        self.folder, self.version, self.config, self.ca = folder, version, config, ca
        self.url: str = config["server_url"]
        self.metrics_url = f"http://{config['metrics_listen_addr']}"
        self.domain: str = config["dns"]["base_domain"]
        self.process: Process | None = None
        self._env = env
        self._token = ""
        self._users: dict[str, int] = {}
        self.set_regions(regions)
        self.set_extra_records([])
        (folder / "hs.yaml").write_text(json.dumps(config))  # JSON is YAML
        self._http = httpx.AsyncClient(base_url=self.url, verify=_context(ca), timeout=20.0, trust_env=False)

    @property
    def binary(self) -> Path:
        return build.binary(f"headscale-{self.version}")

    # running and stopping

    async def start(self) -> None:
        env = {"HEADSCALE_DEBUG_DUMP_MAPRESPONSE_PATH": str(self.folder / "maps"), **self._env}
        command: list[str | Path] = [self.binary, "-c", self.folder / "hs.yaml", "serve"]
        self.process = Process("headscale", command, self.folder, env=env)
        await poll_until("headscale to be healthy", self._is_healthy, 30)
        if not self._token:
            self._token = cast(str, await self.cli("apikeys", "create"))

    async def _is_healthy(self) -> bool:
        assert self.process is not None
        if not self.process.is_running:
            self.process.check()
        try:
            return (await self._http.get("/health")).status_code == 200
        except httpx.TransportError:
            return False

    async def stop(self) -> None:
        if self.process is not None:
            await self.process.stop()
            (self.folder / "hs.sock").unlink(missing_ok=True)

    async def kill(self) -> None:
        """As when the machine dies: no goodbye to anybody."""
        assert self.process is not None
        self.process.kill()
        (self.folder / "hs.sock").unlink(missing_ok=True)

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def aclose(self) -> None:
        with trio.CancelScope(shield=True):
            await self._http.aclose()
            await self.stop()

    # administration

    async def cli(self, *arguments: str) -> Any:
        """Runs `headscale ... -o json` and returns what it printed."""
        command = [str(self.binary), "-c", str(self.folder / "hs.yaml"), *arguments, "-o", "json"]
        done = await finished(command)
        if done.returncode != 0:
            raise RigError(f"headscale {' '.join(arguments)}: {(done.stdout + done.stderr).decode()}")
        try:
            return json.loads(done.stdout)
        except ValueError:
            return done.stdout.decode().strip()

    async def api(self, method: str, path: str, body: Json | None = None) -> Json:
        """One call of the REST API; an answer that is not 200 raises RigError with its text."""
        headers = {"Authorization": f"Bearer {self._token}"}
        try:
            answer = await self._http.request(method, f"/api/v1/{path}", json=body, headers=headers)
        except httpx.TransportError as e:
            raise RigError(f"{method} {path}: {e!r}") from e
        if answer.status_code != 200:
            raise RigError(f"{method} {path}: {answer.status_code} {answer.text}")
        return cast(Json, answer.json())

    async def user(self, name: str = "alice") -> int:
        """The id of this user, made when there is none."""
        if name not in self._users:
            found = (await self.api("GET", f"user?name={name}"))["users"]
            made = found[0] if found else (await self.api("POST", "user", {"name": name}))["user"]
            self._users[name] = int(made["id"])
        return self._users[name]

    async def auth_key(
        self,
        user: str = "alice",
        *,
        reusable: bool = True,
        ephemeral: bool = False,
        tags: Sequence[str] = (),
        lifetime: float = 3600,
    ) -> str:
        """A fresh pre-auth key; with tags it belongs to no user."""
        until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=lifetime)
        body: Json = {
            "reusable": reusable,
            "ephemeral": ephemeral,
            "expiration": until.isoformat().replace("+00:00", "Z"),
            "aclTags": list(tags),
        }
        if not tags:
            body["user"] = str(await self.user(user))
        return cast(str, (await self.api("POST", "preauthkey", body))["preAuthKey"]["key"])

    async def nodes(self) -> list[Json]:
        return cast(list[Json], (await self.api("GET", "node")).get("nodes") or [])

    async def node(self, which: int | str) -> Json:
        for node in await self.nodes():
            if str(which) in (node["id"], node["givenName"], node["name"]):
                return node
        raise RigError(f"no node {which!r}")

    async def _id(self, which: int | str) -> str:
        return str(which) if isinstance(which, int) else cast(str, (await self.node(which))["id"])

    async def wait_node(self, which: int | str, *, online: bool = True, timeout: float = 30) -> Json:
        """The node's record once control considers it online (or offline)."""

        async def probe() -> Json | None:
            node = await self.node(which)
            return node if node.get("online", False) == online else None

        return await poll_until(f"node {which} online={online}", probe, timeout)

    async def expire(self, which: int | str) -> None:
        await self.api("POST", f"node/{await self._id(which)}/expire", {})

    async def delete(self, which: int | str) -> None:
        await self.api("DELETE", f"node/{await self._id(which)}")

    async def rename(self, which: int | str, name: str) -> None:
        await self.api("POST", f"node/{await self._id(which)}/rename/{name}", {})

    async def tag(self, which: int | str, tags: Sequence[str]) -> None:
        await self.api("POST", f"node/{await self._id(which)}/tags", {"tags": list(tags)})

    async def approve_routes(self, which: int | str, routes: Sequence[str]) -> None:
        await self.api("POST", f"node/{await self._id(which)}/approve_routes", {"routes": list(routes)})

    async def set_policy(self, policy: Json | str) -> None:
        text = policy if isinstance(policy, str) else json.dumps(policy)
        await self.api("PUT", "policy", {"policy": text})

    async def register(self, login: str, user: str = "alice") -> Json:
        """Completes an interactive login, given its URL or its auth id."""
        await self.user(user)
        auth_id = login.rsplit("/", 1)[-1]
        if self.version.startswith("0.28"):
            return cast(Json, (await self.api("POST", f"node/register?user={user}&key={auth_id}", {}))["node"])
        return cast(Json, (await self.api("POST", "auth/register", {"user": user, "authId": auth_id}))["node"])

    async def reject(self, login: str) -> None:
        await self.api("POST", "auth/reject", {"authId": login.rsplit("/", 1)[-1]})

    def set_extra_records(self, records: Sequence[Mapping[str, str]]) -> None:
        """Extra DNS records, each {name, type, value}; pushed live to the nodes."""
        _replace(self.folder / "extra.json", json.dumps(list(records)))

    def set_regions(self, regions: Sequence[Json]) -> None:
        """The DERP map; a running server reads it again within `derp.update_frequency`."""
        entries = ", ".join(f"{r['regionid']}: {json.dumps(r)}" for r in regions)  # the keys must be numbers
        _replace(self.folder / "derp.yaml", f"regions: {{{entries}}}\n")

    async def debug(self, path: str) -> Any:
        """One of the /debug pages of the metrics port, as JSON."""
        async with httpx.AsyncClient(timeout=20.0, trust_env=False) as http:
            answer = await http.get(f"{self.metrics_url}/debug/{path}", headers={"Accept": "application/json"})
        try:
            return answer.json()
        except ValueError:
            return answer.text

    async def debug_ping(self, which: int | str) -> str:
        """Sends the node a PingRequest, which it must answer to control; returns Headscale's sentence on it."""
        page = str(await self.debug(f"ping?node={await self._id(which)}"))
        said = re.search(r"Node \d+ responded in [^<]*|No response after [^<]*|Request cancelled", page)
        return said.group() if said else page

    def map_responses(self) -> list[Json]:
        """Every map response the server has dumped so far, oldest first."""
        files = sorted((self.folder / "maps").rglob("*.json"), key=lambda p: p.stat().st_mtime_ns)
        return [json.loads(p.read_text()) for p in files]


def _replace(path: Path, text: str) -> None:
    # In place: the server watches this very file, and a rename would end the watch.
    path.write_text(text)


def _context(ca: Path | None) -> Any:
    return ssl.create_default_context(cafile=str(ca)) if ca else True


def configuration(
    room: Path, version: str, host: str, port: int, metrics_port: int, grpc_port: int, families: str
) -> Json:
    prefixes: Json = {"allocation": "sequential"}
    if "4" in families:
        prefixes["v4"] = "100.64.0.0/10"
    if "6" in families:
        prefixes["v6"] = "fd7a:115c:a1e0::/48"
    config: Json = {
        "server_url": f"http://{bracketed(host)}:{port}",
        "listen_addr": f"{bracketed(host)}:{port}",
        "metrics_listen_addr": f"127.0.0.1:{metrics_port}",
        "grpc_listen_addr": f"127.0.0.1:{grpc_port}",
        "disable_check_updates": True,
        "noise": {"private_key_path": str(room / "noise.key")},
        "prefixes": prefixes,
        "database": {"type": "sqlite", "sqlite": {"path": str(room / "db.sqlite"), "write_ahead_log": True}},
        "unix_socket": str(room / "hs.sock"),
        "unix_socket_permission": "0700",
        "tls_cert_path": "",
        "tls_key_path": "",
        "derp": {
            "server": {"enabled": False},
            "urls": [],
            "paths": [str(room / "derp.yaml")],
            "auto_update_enabled": True,
            "update_frequency": "10s",
        },
        "dns": {
            "magic_dns": True,
            "base_domain": "rig.test",
            "override_local_dns": False,
            "nameservers": {"global": [], "split": {}},
            "extra_records_path": str(room / "extra.json"),
        },
        "policy": {"mode": "database"},
        "log": {"level": "debug", "format": "text"},
        # With the defaults (800 ms and 500 ms) a join waits three half seconds on the server.
        "tuning": {"batch_change_delay": "10ms", "node_store_batch_timeout": "5ms"},
    }
    if version.startswith("0.28"):
        config["ephemeral_node_inactivity_timeout"] = "66s"
    else:
        config["node"] = {"expiry": 0, "ephemeral": {"inactivity_timeout": "66s"}}
    return config


def embedded_derp(room: Path, host: str, stun_port: int) -> Json:
    """The `derp.server` part of a configuration in which Headscale relays too."""
    return {
        "enabled": True,
        "region_id": 999,
        "region_code": "hs",
        "region_name": "hs",
        "verify_clients": True,
        "stun_listen_addr": f"{host}:{stun_port}",
        "private_key_path": str(room / "derp.key"),
        "ipv4": host,
        "ipv6": "none",
        "automatically_add_embedded_derp_region": True,
    }


def merge(config: Json, settings: Mapping[str, Any]) -> None:
    """Puts each setting, whose name may be dotted, at its place."""
    for name, value in settings.items():
        place = config
        *parents, last = name.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
