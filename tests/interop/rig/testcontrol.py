"""The scripted control server (`peers/tailscale/scripted`), and DERP maps as it wants them."""

from __future__ import annotations

from typing import Any, cast

import httpx

from tests.interop.processes import Json, Process, RigError


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


_GO_NAMES = {
    "regionid": "RegionID", "regioncode": "RegionCode", "regionname": "RegionName", "nodes": "Nodes", "name": "Name",
    "hostname": "HostName", "ipv4": "IPv4", "ipv6": "IPv6", "derpport": "DERPPort", "stunport": "STUNPort",
    "stuntestip": "STUNTestIP", "canport80": "CanPort80", "certname": "CertName",
    "insecurefortests": "InsecureForTests",
}  # fmt: skip


def go_names(value: Any) -> Any:
    """A part of a DERP map under the names of its Go fields."""
    if isinstance(value, dict):
        return {_GO_NAMES[k]: go_names(v) for k, v in value.items()}
    return [go_names(v) for v in value] if isinstance(value, list) else value
