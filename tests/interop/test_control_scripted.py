"""What only a scripted control server says, as a table: raw deltas, pings of every kind, c2n, pages, refusals.

The server is upstream's own test server (peers/tailscale/scripted); the other node is tsnet.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

import tailscale
from tests.interop.ours import converse, joined, make_device
from tests.interop.processes import PORTS, poll_until
from tests.interop.rig import Rig, TsnetPeer

if TYPE_CHECKING:
    from tests.interop.rig import Testcontrol

Json = dict[str, Any]


@dataclass
class Scene:
    """Our Device, a tsnet node, and the server that both listen to."""

    control: Testcontrol
    us: tailscale.Device
    db: TsnetPeer
    told: list[tailscale.Event] = field(default_factory=list)

    async def raw(self, **message: Any) -> None:
        await self.control.admin("raw", {"node": "ours", "response": message})

    @property
    def peer(self) -> tailscale.Node:
        return self.us.peers["db"]

    async def until(self, what: str, holds: Callable[[], object], timeout: float = 15) -> None:
        async def probe() -> bool:
            await trio.lowlevel.checkpoint()
            return bool(holds())

        await poll_until(what, probe, timeout)

    async def echoes(self) -> bool:
        return (await converse(await self.us.tcp_connect(self.db.ip4, 7, timeout=10), b"x")).head == b"x"

    @property
    def codes(self) -> set[str]:
        """But for those of this control server's own: it numbers everybody's name, and lives in 2020."""
        return {warning.code for warning in self.us.health} - {"name-taken", "clock-wrong"}

    @property
    def tailnet(self) -> str:
        return self.us.status().tailnet


@contextlib.asynccontextmanager
async def scripted(r: Rig, **settings: Any) -> AsyncIterator[Scene]:
    settings.setdefault("same_user", True)
    async with (
        r.derper() as relay,
        r.testcontrol(regions=[relay.region], **settings) as control,
        r.tsnet(control, "key", "db") as db,
        joined(control, auth_key="key") as us,
    ):
        scene = Scene(control, us, db)
        await scene.until("the peer", lambda: "db" in us.peers and us.peers["db"].ipv4)
        yield scene


# --- raw map messages -----------------------------------------------------------------------------

Row = tuple[str, Callable[[Scene], Json], Callable[[Scene], object]]
EXPIRED_LONG_AGO = "2020-01-01T00:00:00Z"
STRANGERS = {
    "OnlineChange": {999: True},
    "PeersRemoved": [998],
    "PeersChangedPatch": [{"NodeID": 997, "Online": True}],
    "Domain": "told.test",
}


def patch(s: Scene, **fields: Any) -> Json:
    return {"PeersChangedPatch": [{"NodeID": s.peer.id, **fields}]}


DELTAS: list[Row] = [
    # what              message                                               what must come of it
    ("offline",         lambda s: {"OnlineChange": {s.peer.id: False}},       lambda s: s.peer.online is False),
    ("last seen",       lambda s: {"PeerSeenChange": {s.peer.id: True}},      lambda s: s.peer.last_seen),
    ("patched offline", lambda s: patch(s, Online=False),                     lambda s: s.peer.online is False),
    ("patched expiry",  lambda s: patch(s, KeyExpiry=EXPIRED_LONG_AGO),       lambda s: s.peer.expired),
    ("removed",         lambda s: {"PeersRemoved": [s.peer.id]},              lambda s: "db" not in s.us.peers),
    ("strangers",       lambda s: STRANGERS,                                  lambda s: s.tailnet == "told.test"),
    ("a page to open",  lambda s: {"PopBrowserURL": "https://a.test/page"},   lambda s: "control-url" in s.codes),
    ("old warnings",    lambda s: {"Health": ["mind the gap"]},               lambda s: "control-says-1" in s.codes),
    ("new warnings",    lambda s: {"DisplayMessages": {"gap": {"Text": ""}}}, lambda s: "control-says-gap" in s.codes),
]  # fmt: skip


@pytest.mark.parametrize(("message", "holds"), [row[1:] for row in DELTAS], ids=[row[0] for row in DELTAS])
async def test_delta(r: Rig, message: Callable[[Scene], Json], holds: Callable[[Scene], object]) -> None:
    async with scripted(r) as scene:
        await scene.raw(**message(scene))
        await scene.until("the delta", partial(holds, scene))


async def test_warnings_end_when_control_takes_them_back(r: Rig) -> None:
    async with scripted(r) as scene:
        await scene.raw(DisplayMessages={"a": {"Text": "one"}, "b": {"Text": "two"}})
        await scene.until("both", lambda: {"control-says-a", "control-says-b"} <= scene.codes)
        await scene.raw(DisplayMessages={"a": None})
        await scene.until("one", lambda: "control-says-a" not in scene.codes and "control-says-b" in scene.codes)
        await scene.raw(DisplayMessages={"*": None})
        await scene.until("none", lambda: not scene.codes)


# --- what the server's verbs do -------------------------------------------------------------------


async def test_we_expire_and_come_back_when_control_relents(r: Rig) -> None:
    async with scripted(r) as scene:
        nodes = (await scene.control.admin("nodes"))["nodes"]
        (ours,) = [node for node in nodes if (node.get("Hostinfo") or {}).get("Hostname") == "ours"]
        await scene.raw(Node=ours | {"KeyExpiry": EXPIRED_LONG_AGO, "Expired": True})
        await scene.until("our expiry", lambda: scene.us.node.expired and "key-expired" in scene.codes)
        assert scene.us.status().state == "expired"
        await scene.raw(Node=ours)
        await scene.until("life", lambda: not scene.us.node.expired and not scene.codes)
        assert scene.us.status().state == "running"


async def test_a_jailed_peer_cannot_call_us_and_we_can_call_it(r: Rig) -> None:
    async with scripted(r) as scene:
        listener = await scene.us.listen(7)
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                while True:
                    await (await listener.accept()).aclose()

            nursery.start_soon(serve)
            await scene.control.admin("jail", {"node": "ours", "peer": "db", "on": True})

            async def bites() -> bool:
                call = {"host": scene.us.ipv4, "port": 7, "data": b"", "read": -1}
                return not (await scene.db.ask("dial", check=False, timeout=1, **call))["ok"]

            await poll_until("the jail to bite", bites)
            assert await scene.echoes()
            nursery.cancel_scope.cancel()


async def test_we_reach_a_peer_under_its_masquerade(r: Rig) -> None:
    async with scripted(r) as scene:
        mask = "100.88.99.11"
        await scene.control.admin("masquerade", {"node": "db", "peer": "ours", "ip": mask})
        await scene.until("the mask", lambda: mask in scene.peer.addresses)
        assert (await converse(await scene.us.tcp_connect(mask, 7, timeout=10), b"x")).head == b"x"


async def test_a_peer_is_found_at_its_new_address_only(r: Rig) -> None:
    async with scripted(r) as scene:
        nodes, old, new = (await scene.control.admin("nodes"))["nodes"], scene.peer.ipv4 or "", "100.88.99.12"
        (theirs,) = [node for node in nodes if (node.get("Hostinfo") or {}).get("Hostname") == "db"]
        await scene.raw(PeersChanged=[theirs | {"Addresses": [f"{new}/32"], "AllowedIPs": [f"{new}/32"]}])
        await scene.until("the new address", lambda: scene.peer.addresses == (new,))
        assert await scene.us.resolve("db") == new
        assert (await scene.us.whois(new)).node.hostname == "db"
        with pytest.raises(tailscale.NoRoute):
            await scene.us.tcp_connect(old, 7)


async def test_a_machine_waits_for_its_approval(r: Rig) -> None:
    async with r.derper() as relay, r.testcontrol(regions=[relay.region], machine_auth=True) as control:
        device = await make_device(control, auth_key="key", login_timeout=30)
        approved = False

        async def approve() -> None:
            nonlocal approved

            async def waits() -> bool:
                await trio.lowlevel.checkpoint()
                with contextlib.suppress(tailscale.DeviceNotReady):
                    return any(warning.code == "approval-needed" for warning in device.health)
                return False

            await poll_until("our user to be told", waits)
            approved = True
            await control.admin("approve", {"node": "ours"})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(approve)
            async with device as us:
                assert approved
                assert us.status().state == "running"


async def test_a_rate_limit_is_waited_out(r: Rig) -> None:
    async with r.derper() as relay, r.testcontrol(regions=[relay.region]) as control:
        await control.admin("rate-limit", {"count": 1, "after": "2", "text": "slow down"})
        began = trio.current_time()
        async with joined(control, auth_key="key"):
            assert 2.0 <= trio.current_time() - began < 6.0


# --- pings and c2n --------------------------------------------------------------------------------


@contextlib.contextmanager
def told_by(answers: list[Json]) -> Iterator[Callable[[trio.abc.Stream], Awaitable[None]]]:
    """A web server that keeps what it is POSTed."""

    async def handle(stream: trio.abc.Stream) -> None:
        async with stream:
            data = b""
            while b"\r\n\r\n" not in data:
                data += await stream.receive_some(65536)
            head, _, body = data.partition(b"\r\n\r\n")
            wanted = next(
                (int(x.split(b":")[1]) for x in head.lower().split(b"\r\n") if x[:15] == b"content-length:"), 0
            )
            while len(body) < wanted:
                body += await stream.receive_some(65536)
            answers.append(json.loads(body) if body else {"Method": head.split(b" ")[0].decode()})
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    yield handle


PINGS = [
    # types     what the answer must hold
    ("",        {"Method": "HEAD"}),
    ("disco",   {"Type": "disco"}),
    ("TSMP",    {"Type": "TSMP"}),
    ("ICMP",    {"Type": "ICMP"}),
    ("peerapi", {"Type": "peerapi"}),
]  # fmt: skip


@pytest.mark.parametrize(("types", "expected"), PINGS, ids=[row[0] or "head" for row in PINGS])
async def test_ping_request(r: Rig, types: str, expected: Json) -> None:
    answers: list[Json] = []
    async with scripted(r) as scene, trio.open_nursery() as nursery:
        port = PORTS.take()
        with told_by(answers) as handle:
            await nursery.start(partial(trio.serve_tcp, handle, port, host="127.0.0.1"))
            url = f"http://127.0.0.1:{port}/answer"
            await scene.control.admin("ping-request", {"node": "ours", "url": url, "types": types, "ip": scene.db.ip4})
            await scene.until("the answer", lambda: answers)
        (answer,) = answers
        assert expected.items() <= answer.items()
        if types:
            assert not answer.get("Err")
            assert answer["IP"] == scene.db.ip4
            assert 0 < answer["LatencySeconds"] < 10
        nursery.cancel_scope.cancel()


C2N = [
    # method  path                              status
    ("GET",   "/echo",                          200),
    ("GET",   "/no",                            400),
    ("GET",   "/debug/health",                  200),
    ("GET",   "/debug/prefs",                   200),
    ("GET",   "/debug/metrics",                 200),
    ("GET",   "/debug/netmap",                  501),
    ("GET",   "/debug/tka/log",                 400),
    ("GET",   "/update",                        200),
    ("GET",   "/posture/identity",              200),
    ("DELETE", "/update",                       405),
    ("GET",   "/remoteapi/localapi/v0/status",  403),
]  # fmt: skip


async def test_c2n_is_answered_by_the_table(r: Rig) -> None:
    async with scripted(r) as scene:
        for method, path, status in C2N:
            answer = await scene.control.admin("c2n", {"node": "ours", "method": method, "path": path})
            assert (path, answer["status"]) == (path, status)
