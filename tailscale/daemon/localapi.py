"""`/localapi/v0/`: upstream's API of a tailscaled, as far as its own command line and client library ask for it.

Owns the handlers that answer once; the stream of notices is `bus.py`, what changes preferences `prefs.py`, the words
are `ipn.py`'s. What stands on a part that this daemon does not have is refused with 501 and a sentence, never made up.
No `Tailscale-Version` is sent: the command line would warn of a version that is not its own.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import trio

from tailscale.carry import splice
from tailscale.daemon import ipn
from tailscale.daemon.answering import Answer, NotBuilt, Question, Refused, Routes, json_answer
from tailscale.daemon.door import Changed, Door
from tailscale.daemon.keeper import Keeper
from tailscale.daemon.own_api import OwnApi
from tailscale.daemon.prefs import Prefs
from tailscale.device import Device
from tailscale.errors import NameNotFound, TailscaleError
from tailscale.nodes import named
from tailscale.taildrop.recipients import standing

if TYPE_CHECKING:
    from tailscale.status import PingKind

ROOT = "/localapi/v0/"
PING_PATIENCE = 60.0  # the client's own is shorter, and it hangs up
PING_KINDS: dict[str, PingKind] = {"disco": "disco", "TSMP": "tsmp", "ICMP": "icmp"}
DIAL_TIMEOUT = 30.0
# Refused until one of `rooms.py` takes the path.
NOT_BUILT = {
    "appc-route-info": "app connectors",
    "bugreport": "bug reports",
    "cert/*": "certificates",
    "debug": "debugging",
    "drive/*": "Taildrive",
    "id-token": "identity tokens",
    "policy/*": "policies of the system",
    "suggest-exit-node": "suggesting an exit node",
    "tka/*": "changing Tailnet Lock",
    "update/check": "updating",
}


class LocalApi:
    """The handlers."""

    def __init__(self, keeper: Keeper, prefs: Prefs, own: OwnApi) -> None:
        self._keeper = keeper
        self._prefs = prefs
        self._own = own

    def add_to(self, routes: Routes, door: Door) -> None:
        reading = {
            "status": self._status,
            "whois": self._whois,
            "derpmap": self._derpmap,
            "dns-config": self._dns_config,
            "dns-osconfig": self._dns_osconfig,
            "dns-query": self._dns_query,
            "prefs": self._get_prefs,
            "usermetrics": self._metrics,
            "metrics": self._metrics,
            "check-ip-forwarding": self._no_warning,
            "check-udp-gro-forwarding": self._no_warning,
            "profiles/": self._profiles,
            "profiles/current": self._profile,
        }
        for name, handler in reading.items():
            routes.add("GET", ROOT + name, handler)
        routes.add("GET", f"{ROOT}dns-query", self._dns_query, writers=True)  # it asks others
        doing = {
            "ping": self._ping,
            "check-prefs": self._check_prefs,
            "start": self._start,
            "login-interactive": self._log_in,
            "logout": self._log_out,
        }
        for name, handler in doing.items():
            routes.add("POST", ROOT + name, handler)
        routes.add("PATCH", f"{ROOT}prefs", self._patch_prefs)
        for name, part in NOT_BUILT.items():
            for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
                routes.add(method, ROOT + name, _refuse(part), writers=True)
        door.add_upgrade(f"{ROOT}dial", "ts-dial", self._dial)

    # Who is there

    def backend_state(self) -> str:
        """One of `ipn.STATES`."""
        return ipn.backend_state(self._own.state(), self._keeper.netmap() is not None)

    def status_json(self, *, peers: bool, may_see_login: bool = True) -> dict[str, Any]:
        """ipnstate.Status."""
        keeper = self._keeper
        url = keeper.login_url if may_see_login else ""
        found = ipn.status_json(
            self._own.state(),
            url,
            keeper.status(),
            keeper.netmap(),
            keeper.preferences(),
            peers=peers,
            now=datetime.now(UTC),
        )
        if peers and found["Peer"] and (netmap := keeper.netmap()) is not None:
            for node in netmap.peers.values():
                if (told := found["Peer"].get(str(node.key))) is not None:
                    told["TaildropTarget"] = standing(keeper.device, node)
        return found

    async def _status(self, question: Question) -> Answer:
        await trio.lowlevel.checkpoint()
        peers = question.query.get("peers") != "false"
        return json_answer(self.status_json(peers=peers, may_see_login=question.asker.may_write))

    async def _whois(self, question: Question) -> Answer:
        device = self._keeper.device
        netmap = device.netmap
        address = question.query.get("addr", "")
        if netmap is None or not address:
            raise Refused(400, "whois takes addr=, an address of the tailnet or ip:port")
        if address.startswith("nodekey:"):
            node = next((n for n in (netmap.self_node, *netmap.peers.values()) if str(n.key) == address), None)
            granted: dict[str, Any] = {}
        else:
            identity = await device.whois(address)
            node = netmap.self_node if identity.node.id == netmap.self_node.id else netmap.peers.get(identity.node.id)
            granted = identity.capabilities
        if node is None:
            raise NameNotFound(address, detail="no node of this tailnet has that address")
        return json_answer(ipn.whois_json(node, netmap, granted))

    # The network

    async def _derpmap(self, _: Question) -> Answer:
        await trio.lowlevel.checkpoint()
        netmap = self._keeper.device.netmap
        return json_answer(ipn.go(netmap.derp_map) if netmap is not None else None)

    async def _ping(self, question: Question) -> Answer:
        device, query = self._keeper.usable, question.query
        address, kind = query.get("ip", ""), query.get("type", "disco")
        node = device.peers.get(address)
        found: dict[str, Any] = {"IP": address, "NodeIP": "", "NodeName": "", "Err": "", "LatencySeconds": 0.0}
        found |= {"Endpoint": "", "PeerRelay": "", "DERPRegionID": 0, "DERPRegionCode": ""}
        if node is not None:
            found |= {"NodeIP": node.ipv4 or node.ipv6, "NodeName": node.hostname}
        if address in device.node.addresses:
            return json_answer(found | {"Err": f"{address} is local Tailscale IP", "IsLocalIP": True})
        try:
            if kind == "peerapi":
                found |= await self._ping_peerapi(device, address)
            elif kind in PING_KINDS:
                found |= await self._ping_path(device, address, PING_KINDS[kind], int(query.get("size", "0")))
            else:
                raise Refused(400, f"no such kind of ping: {kind}")
        except (TailscaleError, OSError) as error:
            if isinstance(error, Refused):
                raise
            found["Err"] = str(error)
        return json_answer(found)

    async def _ping_path(self, device: Device, address: str, kind: PingKind, size: int) -> dict[str, Any]:
        pong = await device.ping(address, kind, min(max(size, 0), 1280), timeout=PING_PATIENCE)
        found: dict[str, Any] = {"LatencySeconds": pong.latency}
        if pong.node is not None:
            found |= {"NodeIP": pong.node.ipv4 or pong.node.ipv6, "NodeName": pong.node.hostname}
        if kind != "disco":  # upstream tells the path of those alone
            return found
        if pong.path.kind == "relay":
            netmap = device.netmap
            regions = netmap.derp_map.live_regions() if netmap is not None else {}
            number = next((n for n, region in regions.items() if region.region_code == pong.path.where), 0)
            return found | {"DERPRegionID": number, "DERPRegionCode": pong.path.where}
        return found | {"PeerRelay" if pong.path.kind == "peer relay" else "Endpoint": pong.path.where}

    async def _ping_peerapi(self, device: Device, address: str) -> dict[str, Any]:
        netmap = device.netmap
        node = named(address, netmap.peers.values()) if netmap is not None else None
        urls = ipn.peerapi_urls(node) if node is not None else []
        if not urls:
            raise NameNotFound(address, detail="that node announces no PeerAPI")
        pong = await device.ping(address, "peerapi", timeout=PING_PATIENCE)
        port = int(urls[0].rpartition(":")[2])
        return {"LatencySeconds": pong.latency, "PeerAPIPort": port, "PeerAPIURL": urls[0]}

    async def _dial(self, changed: Changed) -> None:
        headers = changed.headers
        network = headers.get(b"dial-network", b"tcp").decode("latin-1")
        host, port = headers.get(b"dial-host", b"").decode("latin-1"), headers.get(b"dial-port", b"").decode("latin-1")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise Refused(400, "missing or wrong Dial-Host or Dial-Port header")
        if network != "tcp":
            raise Refused(501, f"only TCP is dialled here, not {network}")
        far = await self._keeper.usable.connect_anywhere(host, int(port), timeout=DIAL_TIMEOUT)
        try:
            await changed.switch({})
            if changed.first:
                await far.send_all(changed.first)
        except BaseException:
            await trio.aclose_forcefully(far)
            raise
        await splice(changed.stream, far)

    # Names

    async def _dns_config(self, _: Question) -> Answer:
        await trio.lowlevel.checkpoint()
        netmap = self._keeper.device.netmap
        return json_answer(ipn.go(netmap.dns) if netmap is not None else {})

    async def _dns_osconfig(self, _: Question) -> Answer:
        await trio.lowlevel.checkpoint()
        raise NotBuilt("not supported: a node in user space leaves the system's resolver alone")

    async def _dns_query(self, question: Question) -> Answer:
        device = self._keeper.usable
        name = question.query.get("name", "")
        reply = await device.dns_query(name, question.query.get("type") or "A")
        netmap = device.netmap
        resolvers = ipn.resolvers_for(name.rstrip("."), netmap) if netmap is not None else []
        return json_answer({"Bytes": base64.b64encode(reply.message).decode(), "Resolvers": resolvers})

    # Preferences, and the wish to be there

    async def _get_prefs(self, _: Question) -> Answer:
        await trio.lowlevel.checkpoint()
        return json_answer(self._prefs.to_json())

    async def _check_prefs(self, question: Question) -> Answer:
        """`up` sends all of them: only what differs from now is looked at."""
        wanted, present = await question.json(), self._prefs.to_json()
        try:
            self._prefs.check(_as_mask(wanted, present))
        except (TailscaleError, ValueError) as error:
            return json_answer({"Error": str(error)})
        return json_answer({"Error": ""})

    async def _patch_prefs(self, question: Question) -> Answer:
        return json_answer(await self._prefs.apply(await question.json()))

    async def _start(self, question: Question) -> Answer:
        options = await question.json()
        wanted = options.get("UpdatePrefs")
        if isinstance(wanted, dict):
            await self._prefs.apply(
                _as_mask(wanted, self._prefs.to_json()) | {"WantRunning": False, "WantRunningSet": False}
            )
        key = options.get("AuthKey")
        await self._keeper.start(**({"auth_key": key} if isinstance(key, str) and key else {}))
        self._prefs.tell()
        return Answer(status=204)

    async def _log_in(self, _: Question) -> Answer:
        await self._keeper.start()
        if self._keeper.has_device and self._keeper.device.state in ("logged_out", "expired"):
            self._keeper.log_in()
        return Answer(status=204)

    async def _log_out(self, _: Question) -> Answer:
        await self._keeper.device.logout()
        self._prefs.tell()
        return Answer(status=204)

    async def _profile(self, _: Question) -> Answer:
        await trio.lowlevel.checkpoint()
        return json_answer(self._the_profile())

    async def _profiles(self, _: Question) -> Answer:
        await trio.lowlevel.checkpoint()
        return json_answer([self._the_profile()])

    def _the_profile(self) -> dict[str, Any]:
        """ipn.LoginProfile: a daemon keeps one."""
        netmap = self._keeper.netmap()
        found: dict[str, Any] = {
            "ID": "0000",
            "Key": "profile-0000",
            "Name": "",
            "ControlURL": self._keeper.control_url,
        }
        if netmap is None:
            return found
        profile = netmap.user_profiles.get(netmap.self_node.user)
        found["NetworkProfile"] = {"MagicDNSName": ipn.suffix_of(netmap), "DomainName": netmap.domain}
        found["NodeID"] = netmap.self_node.stable_id
        if profile is not None:
            found |= {"Name": profile.login_name, "UserProfile": ipn.go(profile)}
        return found

    async def _metrics(self, _: Question) -> Answer:
        from tailscale.metrics import exposition  # few ask

        await trio.lowlevel.checkpoint()
        return Answer(exposition(self._keeper.device).encode())

    async def _no_warning(self, _: Question) -> Answer:
        """Packets for others are carried in user space: the kernel's settings do not matter."""
        await trio.lowlevel.checkpoint()
        return json_answer({"Warning": ""})


def _refuse(part: str) -> Any:
    async def refuse(_: Question) -> Answer:
        await trio.lowlevel.checkpoint()
        raise NotBuilt(f"{part}: this daemon has no such part")

    return refuse


def _as_mask(wanted: dict[str, Any], present: dict[str, Any]) -> dict[str, Any]:
    """All preferences as changes: of those that we do not have only what is not as it is."""
    masked = dict(wanted)
    for name, value in wanted.items():
        if name != "Config" and (value or None) != (present.get(name) or None):
            masked[f"{name}Set"] = True
    return masked
