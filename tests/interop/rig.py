"""The rig: real Headscale, derper, tsnet, tailscaled and friends, as async context managers.

    async with rig() as r:                                   # a folder for logs and keys
        async with r.derper() as relay, r.headscale(regions=[relay.region]) as hs:
            key = await hs.auth_key()
            async with r.tsnet(hs, key, "db") as db: ...

Everything listens on loopback, on ports nobody else was given, and dies with this process.
`python -m tests.interop.rig up --json FILE` keeps one such tailnet running for a human.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import datetime
import hashlib
import ipaddress
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.interop import build
from tests.interop.processes import PORTS, Process, poll_until, work_folder
from tests.interop.processes import RigError as RigError

Json = dict[str, Any]

# What every Go peer gets: no logs to the internet, no port mapping, a panic if it ever meets the
# real control server, and a proxy that refuses, so that a stray call fails instead of leaving.
HEADSCALE = os.environ.get("HEADSCALE", "0.29.2")  # 0.28.0 runs the whole suite against the release before
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


# --- certificates ---------------------------------------------------------------------------------


class PrivateCa:
    """A throw-away certificate authority; `pem` is the file clients trust."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pytailscale rig CA")])
        self._cert = self._sign(self._name, self._key.public_key(), [x509.BasicConstraints(ca=True, path_length=0)])
        self.pem = folder / "ca.pem"
        self.pem.write_bytes(self._cert.public_bytes(serialization.Encoding.PEM))

    def leaf(self, *names: str) -> tuple[Path, Path]:
        """A certificate and key file for these host names or addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives: list[x509.GeneralName] = []
        for name in names:
            try:
                alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
            except ValueError:
                alternatives.append(x509.DNSName(name))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        cert = self._sign(subject, key.public_key(), [x509.SubjectAlternativeName(alternatives)])
        cert_path, key_path = self._folder / f"{names[0]}.crt", self._folder / f"{names[0]}.key"
        cert_path.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return cert_path, key_path

    def _sign(
        self, subject: x509.Name, public: ec.EllipticCurvePublicKey, extensions: Sequence[x509.ExtensionType]
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=30))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(self._key, hashes.SHA256())


# --- relays ---------------------------------------------------------------------------------------


@dataclass
class Derper:
    """A running derper. `region` is its entry for a DERP map (lower-cased Go names, as Headscale wants)."""

    process: Process
    region_id: int
    port: int
    stun_port: int
    tls: bool
    cert_name: str
    host: str = "127.0.0.1"
    insecure: bool = False
    stun: bool = True
    start: Any = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return _derp_name(self.host, self.region_id)

    @property
    def region(self) -> Json:
        node: Json = {
            "name": f"{self.region_id}a",
            "regionid": self.region_id,
            "hostname": self.name,
            "ipv4": "none" if ":" in self.host else self.host,
            "ipv6": self.host if ":" in self.host else "none",
            "derpport": self.port,
            "stunport": self.stun_port if self.stun else -1,
            "stuntestip": self.host if self.stun else "",
            "canport80": False,
            "certname": self.cert_name,
        }
        if self.insecure:
            node["insecurefortests"] = True
        code = f"rig{self.region_id}"
        return {"regionid": self.region_id, "regioncode": code, "regionname": code, "nodes": [node]}

    async def stop(self) -> None:
        await self.process.stop()

    async def restart(self) -> None:
        """Stops it if needed and starts it again on the same ports with the same keys."""
        await self.process.stop()
        self.process = await self.start()


# --- control --------------------------------------------------------------------------------------


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
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
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
    import ssl

    return ssl.create_default_context(cafile=str(ca)) if ca else True


# --- nodes ----------------------------------------------------------------------------------------


class TsnetPeer:
    """A tsnet node. It serves echo :7, hash :9, reset :11, generator :19, HTTP :80 and UDP echo :7."""

    def __init__(self, name: str, process: Process) -> None:
        self.name, self.process = name, process
        self.ip4 = self.ip6 = ""
        self.join_ms = 0.0
        self.events: list[Json] = []
        self._replies: dict[int, Json] = {}
        self._changed = trio.Event()
        self._next_id = 0
        self._turn = trio.Lock()

    async def _read(self) -> None:
        assert self.process.stdout is not None
        buffer = b""
        with contextlib.suppress(trio.ClosedResourceError):
            async for chunk in self.process.stdout:
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    said = json.loads(line)
                    if "id" in said:
                        self._replies[said["id"]] = said
                    else:
                        self.events.append(said)
                self._changed.set()
                self._changed = trio.Event()
        with contextlib.suppress(Exception):
            await self.process.wait()
        self._changed.set()

    async def event(self, name: str, timeout: float = 60) -> Json:
        """The first event of this name, past or to come."""
        with trio.move_on_after(timeout):
            while True:
                for said in self.events:
                    if said["event"] == name:
                        return said
                    if said["event"] == "failed":
                        raise RigError(f"{self.name}: {said['error']}\n{self.process.tail()}")
                self.process.check()
                await self._changed.wait()
        raise RigError(f"{self.name} said no {name!r} in {timeout:g} s; it said {self.events}\n{self.process.tail()}")

    async def ask(self, cmd: str, *, check: bool = True, **arguments: Any) -> Json:
        """Sends one command and returns its reply; see peers/tailscale/tsnetpeer/commands.go."""
        assert self.process.stdin is not None
        self._next_id += 1
        number = self._next_id
        if isinstance(arguments.get("data"), bytes):
            arguments["data"] = base64.b64encode(arguments["data"]).decode()
        line = json.dumps({"id": number, "cmd": cmd, **arguments}).encode() + b"\n"
        async with self._turn:
            await self.process.stdin.send_all(line)
        while number not in self._replies:
            self.process.check()
            await self._changed.wait()
        reply = self._replies.pop(number)
        if "head" in reply:
            reply["head"] = base64.b64decode(reply["head"] or "")
        if check and not reply["ok"]:
            raise RigError(f"{self.name} {cmd} {arguments}: {reply['error']}")
        return reply

    async def dial(self, host: str, port: int, **arguments: Any) -> Json:
        """TCP: sends `bytes` of the pattern (or `data`), ends as `end` says, reads `read` bytes (-1: to EOF)."""
        return await self.ask("dial", host=host, port=port, **arguments)

    async def ping(self, host: str, kind: str = "disco", **arguments: Any) -> Json:
        """The last answer of one or more pings."""
        return cast(Json, (await self.ask("ping", host=host, kind=kind, **arguments))["pings"][-1])

    async def bench(self, host: str, kind: str, seconds: float = 5) -> Json:
        """One figure against a peer with our services: up, down, rtt or connect."""
        return await self.ask("bench", host=host, kind=kind, seconds=seconds, timeout=seconds + 30)

    async def status(self) -> Json:
        return cast(Json, (await self.ask("status"))["status"])

    async def path_to(self, host: str) -> Json:
        """The backend's view of one peer: CurAddr, Relay, RxBytes, TxBytes ..."""
        for peer in ((await self.status()).get("Peer") or {}).values():
            if host in (peer.get("TailscaleIPs") or []) or peer["HostName"] == host:
                return cast(Json, peer)
        raise RigError(f"{self.name} knows no peer {host}")

    async def wait_direct(self, host: str, timeout: float = 30) -> str:
        """Pings until the answer came over direct UDP; returns the endpoint."""

        async def probe() -> str | None:
            return cast(str, (await self.ping(host, timeout=5))["Endpoint"]) or None

        return await poll_until(f"{self.name} direct to {host}", probe, timeout)

    async def stop(self) -> None:
        await self.process.stop(6)


class Tailscaled:
    """A userspace tailscaled; whatever listens on 127.0.0.1:N here is its service on port N."""

    def __init__(self, name: str, process: Process, socket: Path, cli_binary: Path, socks_port: int) -> None:
        self.name, self.process, self.socket, self.socks_port = name, process, socket, socks_port
        self._cli = cli_binary
        self.ip4 = self.ip6 = ""

    async def cli(self, *arguments: str, check: bool = True, stdin: bytes = b"", timeout: float = 60) -> str:
        """Runs the tailscale command against this daemon and returns what it printed."""
        command = [str(self._cli), f"--socket={self.socket}", *arguments]
        with trio.fail_after(timeout):
            done = await trio.run_process(command, stdin=stdin, capture_stdout=True, capture_stderr=True, check=False)
        if check and done.returncode != 0:
            raise RigError(f"{self.name}: tailscale {' '.join(arguments)}: {(done.stdout + done.stderr).decode()}")
        return done.stdout.decode()

    async def status(self) -> Json:
        return cast(Json, json.loads(await self.cli("status", "--json")))

    async def connect(self, host: str, port: int) -> trio.SocketStream:
        """A TCP connection through the daemon's SOCKS5 proxy; a refusal raises ConnectionRefusedError."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.socks_port)
        name = host.encode()
        await stream.send_all(b"\5\1\0")
        await _read_exactly(stream, 2)
        await stream.send_all(b"\5\1\0\3" + bytes([len(name)]) + name + port.to_bytes(2, "big"))
        answer = await _read_exactly(stream, 4)
        await _read_exactly(stream, {1: 4, 4: 16}[answer[3]] + 2)
        if answer[1] != 0:
            await stream.aclose()
            raise ConnectionRefusedError(f"{self.name}: no connection to {host}:{port} (SOCKS answer {answer[1]})")
        return stream

    async def up(self, control: str, auth_key: str, *arguments: str) -> None:
        options = [f"--login-server={control}", f"--auth-key={auth_key}", f"--hostname={self.name}"]
        options += ["--accept-dns=false", "--timeout=40s", *arguments]
        try:
            await self.cli("up", *options)
        except RigError as problem:
            # What counts is that the daemon runs, not that its command line was told so.
            state = (await self.status())["BackendState"]
            if state != "Running":
                raise RigError(f"{problem}; it is {state}; its log ends:\n{self.process.tail()}") from problem
        for ip in (await self.cli("ip")).split():
            if ":" in ip:
                self.ip6 = ip
            else:
                self.ip4 = ip

    async def stop(self) -> None:
        await self.process.stop()


async def _read_exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    got = b""
    while len(got) < count:
        chunk = await stream.receive_some(count - len(got))
        if not chunk:
            raise ConnectionResetError("the stream ended early")
        got += chunk
    return got


class Testcontrol:
    """Upstream's in-memory control server behind an admin port, for what Headscale does not offer."""

    def __init__(self, process: Process, url: str, admin_url: str) -> None:
        self.process, self.url = process, url
        self._http = httpx.AsyncClient(base_url=admin_url, timeout=20.0, trust_env=False)

    async def admin(self, verb: str, body: Json | None = None) -> Json:
        """One administrative verb; see peers/tailscale/scripted/main.go for the list."""
        answer = await self._http.post(f"/{verb}", json=body or {})
        if answer.status_code != 200:
            raise RigError(f"testcontrol {verb}: {answer.text}")
        return cast(Json, answer.json())

    async def stop(self) -> None:
        await self._http.aclose()
        await self.process.stop()


# --- the rig --------------------------------------------------------------------------------------


class Rig:
    """Starts peers; every one of them is a context manager, and logs go to `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._counts: dict[str, int] = {}
        self._ca: PrivateCa | None = None

    @property
    def ca(self) -> PrivateCa:
        if self._ca is None:
            self._ca = PrivateCa(self._room("ca"))
        return self._ca

    def _room(self, name: str) -> Path:
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
        room = self._room(f"derper-{region_id}")
        port, stun_port = PORTS.take(), PORTS.take()
        command: list[str | Path] = [build.binary("derper"), "-a", f"{bracketed(host)}:{port}"]
        command += ["-c", room / "derper.key"]
        name = _derp_name(host, region_id)
        if name != host:  # derper makes a certificate by itself for an address only
            (room / "certs").mkdir()
            for made, suffix in zip(self.ca.leaf(name), ("crt", "key"), strict=True):
                shutil.copy(made, room / "certs" / f"{name}.{suffix}")
        command += ["-hostname", name, "-http-port", "-1", "-stun-port", str(stun_port)]
        # derper serves plain HTTP on any port but 443 unless the certificate mode is manual.
        command += ["-certdir", room / "certs", "-certmode", "manual" if tls else "letsencrypt"]
        command += [f"-stun={str(stun).lower()}"]
        if verify_url:
            command += ["-verify-client-url", verify_url, "-verify-client-url-fail-open=false"]

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
            cert_name = _pin(room / "certs" / f"{name}.crt")
        relay = Derper(
            process,
            region_id,
            port,
            stun_port,
            tls,
            cert_name,
            host,
            insecure=tls and not pinned,
            stun=stun,
            start=start,
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
        room = self._room("hs")
        port, metrics_port, grpc_port = (PORTS.take(), PORTS.take(), PORTS.take())
        config = _headscale_config(room, version, host, port, metrics_port, grpc_port, families)
        if tls:
            cert, key = self.ca.leaf(host, "localhost", "hs.rig")
            config |= {"tls_cert_path": str(cert), "tls_key_path": str(key), "server_url": f"https://{host}:{port}"}
        if embedded_derp:
            config["derp"]["server"] = {
                "enabled": True,
                "region_id": 999,
                "region_code": "hs",
                "region_name": "hs",
                "verify_clients": True,
                "stun_listen_addr": f"{host}:{PORTS.take()}",
                "private_key_path": str(room / "derp.key"),
                "ipv4": host,
                "ipv6": "none",
                "automatically_add_embedded_derp_region": True,
            }
        for name, value in (settings or {}).items():
            place = config
            *parents, last = name.split(".")
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value
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
        room = self._room(name)
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
        trio.lowlevel.spawn_system_task(peer._read)
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
        root = Path(__file__).resolve().parents[2]
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
        room = self._room(name)
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
        room = self._room("stund")
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
        room = self._room("testcontrol")
        port, admin_port = PORTS.take(), PORTS.take()
        derp_map = {"Regions": {str(r["regionid"]): _go_names(r) for r in regions}}
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


def _derp_name(host: str, region_id: int) -> str:
    """What the DERP map calls the relay: Go takes no IPv6 literal there."""
    return f"derp{region_id}.rig" if ":" in host else host


def bracketed(host: str) -> str:
    """The host as it stands before `:port`."""
    return f"[{host}]" if ":" in host else host


def _pin(cert: Path) -> str:
    """The CertName by which clients accept exactly this certificate."""
    der = x509.load_pem_x509_certificate(cert.read_bytes()).public_bytes(serialization.Encoding.DER)
    return "sha256-raw:" + hashlib.sha256(der).hexdigest()


_GO_NAMES = {
    "regionid": "RegionID", "regioncode": "RegionCode", "regionname": "RegionName", "nodes": "Nodes", "name": "Name",
    "hostname": "HostName", "ipv4": "IPv4", "ipv6": "IPv6", "derpport": "DERPPort", "stunport": "STUNPort",
    "stuntestip": "STUNTestIP", "canport80": "CanPort80", "certname": "CertName",
    "insecurefortests": "InsecureForTests",
}  # fmt: skip


def _go_names(value: Any) -> Any:
    if isinstance(value, dict):
        return {_GO_NAMES[k]: _go_names(v) for k, v in value.items()}
    return [_go_names(v) for v in value] if isinstance(value, list) else value


def _headscale_config(
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


@contextlib.asynccontextmanager
async def rig(name: str = "rig", keep: bool = False) -> AsyncIterator[Rig]:
    """A folder to start peers in; on failure the folder is kept and named."""
    async with work_folder(name, keep) as folder:
        yield Rig(folder)


# --- by hand --------------------------------------------------------------------------------------


async def _up(options: argparse.Namespace) -> None:
    # The receiver is open to the very end: a second Ctrl-C must not interrupt the clearing up.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with contextlib.AsyncExitStack() as stack:
            await _serve(options, stack)
            async for _ in signals:
                break


async def _serve(options: argparse.Namespace, stack: contextlib.AsyncExitStack) -> None:
    r = await stack.enter_async_context(rig("up", keep=options.keep))
    relay = await stack.enter_async_context(r.derper(tls=not options.derp_http))
    hs = await stack.enter_async_context(
        r.headscale(options.headscale, regions=[] if options.embedded_derp else [relay.region],
                    tls=options.tls, embedded_derp=options.embedded_derp)
    )  # fmt: skip
    key = await hs.auth_key()
    db = await stack.enter_async_context(
        r.tsnet(hs, key, "db", derp_http=options.derp_http, relay_only=options.relay_only)
    )
    said: Json = {
        "control_url": hs.url,
        "auth_key": key,
        "ca_file": str(hs.ca or ""),
        "metrics_url": hs.metrics_url,
        "domain": hs.domain,
        "derp_region": relay.region,
        "derp_http": options.derp_http,
        "headscale": [str(hs.binary), "-c", str(hs.folder / "hs.yaml")],
        "logs": str(r.folder),
        "peers": {db.name: {"ip4": db.ip4, "ip6": db.ip6, "join_ms": db.join_ms}},
        "pid": os.getpid(),
    }
    if options.json:
        partial = trio.Path(f"{options.json}.{os.getpid()}")
        await partial.write_text(json.dumps(said, indent=1) + "\n")
        await partial.rename(options.json)
    print(json.dumps(said, indent=1), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.interop.rig", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="one Headscale, one derper and a tsnet peer named db, until killed")
    up.add_argument("--json", help="write the control URL, an auth key and the rest to this file once ready")
    up.add_argument("--headscale", default="0.29.2", help="version (0.29.2 or 0.28.0)")
    up.add_argument("--tls", action="store_true", help="control over https with a private CA (ca_file)")
    up.add_argument("--derp-http", action="store_true", help="the relay speaks plain HTTP")
    up.add_argument("--embedded-derp", action="store_true", help="Headscale's own relay (plain unless --tls)")
    up.add_argument("--relay-only", action="store_true", help="db refuses direct paths")
    up.add_argument("--keep", action="store_true", help="keep logs and keys at the end")
    options = parser.parse_args()
    started = time.monotonic()
    lacking = build.missing((f"headscale-{options.headscale}", "derper", "tsnetpeer"))
    if (lacking and build.main(lacking) != 0) or build.missing(tuple(lacking)):
        return 1
    print(f"starting (peers ready after {time.monotonic() - started:.0f} s) ...", file=sys.stderr, flush=True)
    trio.run(_up, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
