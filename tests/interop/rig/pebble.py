"""Let's Encrypt's test server: Pebble, which issues, and challtestsrv, which is the DNS that Pebble believes."""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import trio

from tests.interop import build
from tests.interop.processes import PORTS, Process, poll_until
from tests.interop.rig.launch import QUIET_ENV

if TYPE_CHECKING:
    from tests.interop.rig.launch import Rig


class Pebble:
    """Running, with its DNS. `root_pem` is the authority that certificates of this run lead to."""

    def __init__(self, ca_file: Path, directory: str, management: str, set_txt: str, processes: list[Process]) -> None:
        self.ca_file = ca_file  # who vouches for Pebble's own HTTPS
        self.directory = directory
        self.set_txt = set_txt
        self.processes = processes
        self.published: list[tuple[str, str]] = []
        self._management = management

    @property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca_file))

    @property
    def environment(self) -> dict[str, str]:
        """What makes tailscaled ask Pebble."""
        return {"TS_DEBUG_ACME_DIRECTORY_URL": self.directory, "SSL_CERT_FILE": str(self.ca_file)}

    async def root_pem(self) -> str:
        async with httpx.AsyncClient(verify=self.tls, trust_env=False) as client:
            return (await client.get(f"{self._management}/roots/0")).text

    def publish(self, name: str, value: str) -> None:
        """For our control server, which has no task of its own: the answer to a record is never long."""
        self.published.append((name, value))
        httpx.post(self.set_txt, json={"host": f"{name}.", "value": value}, trust_env=False).raise_for_status()

    def log(self) -> str:
        return self.processes[0].log()


@contextlib.asynccontextmanager
async def pebble(
    r: Rig,
    *,
    refused_nonces: int = 0,
    reused_authorizations: int = 0,
    lifetime: int = 90 * 86_400,
    tls_port: int = 5001,
) -> AsyncIterator[Pebble]:
    """`refused_nonces` and `reused_authorizations` in percent, `lifetime` in seconds."""
    room, dns_room = r.room("pebble"), r.room("challtestsrv")
    port, management, dns, admin = (PORTS.take() for _ in range(4))
    certificate, key = r.ca.leaf("localhost", "127.0.0.1")
    config = {
        "listenAddress": f"127.0.0.1:{port}",
        "managementListenAddress": f"127.0.0.1:{management}",
        "certificate": str(certificate),
        "privateKey": str(key),
        "httpPort": 5002,
        "tlsPort": tls_port,
        "ocspResponderURL": "",
        "externalAccountBindingRequired": False,
        "keyAlgorithm": "ecdsa",
        "retryAfter": {"authz": 0, "order": 0},
        "profiles": {"default": {"description": "the one there is", "validityPeriod": lifetime}},
    }
    (room / "config.json").write_text(json.dumps({"pebble": config}))
    names: list[str | Path] = [build.binary("pebble-challtestsrv"), "-dns01", f"127.0.0.1:{dns}"]
    names += ["-management", f"127.0.0.1:{admin}", "-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", ""]
    names += ["-defaultIPv6", "", "-defaultIPv4", "127.0.0.1"]
    command: list[str | Path] = [
        build.binary("pebble"),
        "-config",
        room / "config.json",
        "-dnsserver",
        f"127.0.0.1:{dns}",
    ]
    env = QUIET_ENV | {
        "PEBBLE_VA_NOSLEEP": "1",
        "PEBBLE_WFE_NONCEREJECT": str(refused_nonces),
        "PEBBLE_AUTHZREUSE": str(reused_authorizations),
    }
    processes = [Process("pebble", command, room, env=env), Process("challtestsrv", names, dns_room, env=QUIET_ENV)]
    made = Pebble(
        r.ca.pem, f"https://localhost:{port}/dir", f"https://localhost:{management}", f"http://127.0.0.1:{admin}/set-txt",
        processes,
    )  # fmt: skip

    async def listens() -> bool:
        for process in processes:
            process.check()
        try:
            for each in (port, management, admin):
                await (await trio.open_tcp_stream("127.0.0.1", each)).aclose()
        except OSError:
            return False
        return True

    try:
        await poll_until("pebble and its DNS to listen", listens, 15)
        yield made
    finally:
        for process in processes:
            await process.stop()
