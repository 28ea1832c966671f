"""A running derper: its entry for a DERP map, its command line, its end and its return.

Certificates, ports and the folder are given by the rig.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.interop import build
from tests.interop.processes import Json, Process


def derp_name(host: str, region_id: int) -> str:
    """What the DERP map calls the relay: Go takes no IPv6 literal there."""
    return f"derp{region_id}.rig" if ":" in host else host


def command_line(
    room: Path, name: str, address: str, stun_port: int, *, tls: bool, stun: bool, verify_url: str
) -> list[str | Path]:
    command: list[str | Path] = [build.binary("derper"), "-a", address, "-c", room / "derper.key"]
    command += ["-hostname", name, "-http-port", "-1", "-stun-port", str(stun_port)]
    # derper serves plain HTTP on any port but 443 unless the certificate mode is manual.
    command += ["-certdir", room / "certs", "-certmode", "manual" if tls else "letsencrypt"]
    command += [f"-stun={str(stun).lower()}"]
    if verify_url:
        command += ["-verify-client-url", verify_url, "-verify-client-url-fail-open=false"]
    return command


@dataclass
class Derper:
    """A running derper. `region` is its entry for a DERP map (lower-cased Go names, as Headscale wants)."""

    process: Process
    region_id: int
    port: int
    stun_port: int
    tls: bool
    cert_name: str
    start: Callable[[], Awaitable[Process]] = field(repr=False)
    host: str = "127.0.0.1"
    insecure: bool = False
    stun: bool = True

    @property
    def name(self) -> str:
        return derp_name(self.host, self.region_id)

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
