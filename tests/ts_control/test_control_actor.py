"""The control actor against a scripted control server: joining, trouble, logins, pings and goodbyes on one clock."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
import trio.testing
from msgspec.structs import replace

from tailscale._config import Config, Preferences
from tailscale.errors import AuthKeyRejected, ControlProtocolError
from tailscale.runtime.bus import Bus, Message
from tailscale.runtime.control_actor import LONGEST_ASKED_SLEEP, ControlActor, run_control
from tailscale.runtime.health import Health
from tailscale.runtime.hidden_news import PAUSE
from tailscale.runtime.messages import (
    ControlStateChanged,
    EndpointsChanged,
    NetInfoChanged,
    NetMapChanged,
    NetworkChanged,
    Offer,
    PreferencesChanged,
)
from tailscale.runtime.network import Network
from tailscale.runtime.offers import offer
from tailscale.state_file import MemoryStore, State
from ts_base.keys import DiscoPrivate
from ts_control.errors import ControlLost
from ts_control.gojson import decode_json_untrusted, encode_json, from_unix_time
from ts_control.wire import Debug, MapRequest, MapResponse, PingRequest, Service
from ts_control.wire_register import RegisterRequest, RegisterResponse

from control_scripts import NOW, make_node, seeded  # isort: skip
from fake_control import FakeControl, Stream, frame  # isort: skip

URL = "http://127.0.0.1:8080"
SECRET = "hskey-auth-verysecret"
OURSELVES = make_node(1, machine_authorized=True)


def a_map(*numbers: int, **fields: Any) -> bytes:
    return frame(MapResponse(node=OURSELVES, peers=tuple(make_node(n) for n in numbers), **fields))


class Scene:
    """A control actor, the server it talks to, and everything it said."""

    def __init__(self, control: FakeControl, nursery: trio.Nursery, **settings: Any) -> None:
        self.server = control
        control.map_reply = a_map(2, 3)
        self.store = MemoryStore()
        self.bus = Bus()
        self.heard: list[Message] = []
        settings.setdefault("auth_key", SECRET)
        config = Config(URL, Preferences("py"), login_timeout=30.0, **settings)
        network = cast(Network, control)
        disco = DiscoPrivate.generate(seeded(8)(32)).public
        self.actor = ControlActor(config, network, self.store, State.generate(seeded(7), URL), disco, self.bus)

    def latest(self) -> ControlStateChanged:
        latest = self.bus.latest(ControlStateChanged)
        assert latest is not None
        return latest

    def active(self) -> set[str]:
        return {warning.code for warning in Health(self.bus).active}

    async def until(self, holds: Callable[[], bool], timeout: float = 600.0) -> None:
        with trio.fail_after(timeout):
            while not holds():  # noqa: ASYNC110  # the clock jumps, and some facts have no message
                await trio.sleep(0.05)

    async def until_state(self, state: str) -> None:
        await self.until(lambda: self.latest().state == state)

    def map_requests(self) -> list[MapRequest]:
        return [
            decode_json_untrusted(MapRequest, body) for path, body in self.server.requests if path == "/machine/map"
        ]


@asynccontextmanager
async def a_scene(**settings: Any) -> AsyncIterator[Scene]:
    async with trio.open_nursery() as nursery:
        scene = Scene(FakeControl(nursery), nursery, **settings)

        async def listen() -> None:
            with scene.bus.subscribe(Message) as inbox:
                while True:
                    scene.heard.append(await inbox.receive())

        nursery.start_soon(listen)
        await trio.testing.wait_all_tasks_blocked()
        await nursery.start(run_control, scene.actor)
        yield scene
        nursery.cancel_scope.cancel()


async def test_it_registers_maps_and_saves(autojump_clock: trio.testing.MockClock) -> None:
    async with a_scene() as scene:
        await scene.until_state("running")
        netmap = scene.bus.latest(NetMapChanged)
        assert netmap is not None
        assert set(netmap.netmap.peers) == {2, 3}
        await scene.until(lambda: scene.store.state is not None and scene.store.state.registered)
        assert scene.store.state is not None
        assert scene.store.state.stable_id == "1"


async def test_control_hears_of_changes_once_and_of_noise_never(autojump_clock: trio.testing.MockClock) -> None:
    async with a_scene() as scene:
        scene.bus.publish(EndpointsChanged((("192.0.2.1:1", 2),)))
        await scene.until_state("running")
        await trio.sleep(1)
        before = len(scene.map_requests())
        assert scene.map_requests()[-1].endpoints == ("192.0.2.1:1",)
        scene.bus.publish(NetInfoChanged(900, {"900-v4": 0.01}, working_udp=True))
        scene.bus.publish(PreferencesChanged(Preferences("other")))
        await trio.sleep(1)
        last = scene.map_requests()[-1]
        assert last.hostinfo is not None
        assert last.hostinfo.net_info is not None
        assert (last.hostinfo.hostname, last.hostinfo.net_info.preferred_derp) == ("other", 900)
        assert not last.disco_key.is_zero
        assert len(scene.map_requests()) == before + 1
        scene.bus.publish(NetInfoChanged(900, {"900-v4": 0.02}, working_udp=True))
        await trio.sleep(1)
        assert len(scene.map_requests()) == before + 1


async def test_control_away_for_five_minutes_and_back(autojump_clock: trio.testing.MockClock) -> None:
    async with a_scene() as scene:
        scene.server.map_reply = a_map(2) + b"\x01\x00\x00\x00!"  # and then nonsense that cuts the stream
        await scene.until(lambda: scene.bus.latest(NetMapChanged) is not None)
        scene.server.refuses = True
        scene.server.map_reply = a_map(2, 9)
        began, dials = trio.current_time(), len(scene.server.dials)
        await trio.sleep(300)
        assert scene.latest().state == "offline"
        assert "control-unreachable" in scene.active()
        netmap = scene.bus.latest(NetMapChanged)
        assert netmap is not None
        assert set(netmap.netmap.peers) == {2}
        assert len(scene.server.dials) - dials <= trio.current_time() - began
        scene.server.refuses = False
        recovered = trio.current_time()
        await scene.until_state("running")
        assert trio.current_time() - recovered <= 30.0
        assert "control-unreachable" not in scene.active()


async def hang(stream: Stream) -> None:
    await trio.sleep_forever()


async def babble(stream: Stream) -> None:
    await stream.send_all(bytes(range(256)) * 8)


TROUBLES: list[tuple[str, dict[str, Any]]] = [
    ("gone", {"refuses": True}),
    ("black hole", {"is_black_hole": True}),
    ("a captive portal", {"key_reply": (200, b"<html>please pay</html>")}),
    ("a bad gateway", {"key_reply": (502, b"bad gateway")}),
    ("hangs after the upgrade", {"after_upgrade": hang}),
    ("garbage after the upgrade", {"after_upgrade": babble}),
    ("answers no request", {"is_mute": True}),
    ("refuses the map", {"map_status": 503}),
    ("half a frame for ever", {"map_reply": a_map()[:-1]}),
    ("garbage for a map", {"map_reply": b"\xff" * 64}),
]


@pytest.mark.parametrize(("trouble"), [row[1] for row in TROUBLES], ids=[row[0] for row in TROUBLES])
async def test_no_trouble_outlasts_its_cause_by_thirty_seconds(
    trouble: dict[str, Any], autojump_clock: trio.testing.MockClock
) -> None:
    async with a_scene() as scene:
        scene.server.map_reply = a_map(2) + b"\x01\x00\x00\x00!"  # and then nonsense that cuts the stream
        await scene.until(lambda: scene.bus.latest(NetMapChanged) is not None)
        healthy = {name: getattr(scene.server, name) for name in trouble} | {"map_reply": a_map(2, 9)}
        for name, value in ({"map_reply": a_map(2, 9)} | trouble).items():
            setattr(scene.server, name, value)
        await scene.until_state("offline")
        for _ in range(30):
            dials = len(scene.server.dials)
            await trio.sleep(10)
            assert len(scene.server.dials) - dials <= 10 + 8
        assert "control-unreachable" in scene.active()
        netmap = scene.bus.latest(NetMapChanged)
        assert netmap is not None
        assert set(netmap.netmap.peers) == {2}
        for name, value in healthy.items():
            setattr(scene.server, name, value)
        recovered = trio.current_time()
        await scene.until_state("running")
        assert trio.current_time() - recovered <= 30.0
        await scene.until(lambda: "control-unreachable" not in scene.active())


@pytest.mark.parametrize("fresh_database", [False, True], ids=["the same database", "a fresh database"])
@pytest.mark.parametrize("new_noise_key", [False, True], ids=["the same Noise key", "a new Noise key"])
async def test_a_server_that_restarts_is_joined_again(
    new_noise_key: bool, fresh_database: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with a_scene() as scene:
        scene.server.map_reply = a_map(2) + b"\x01\x00\x00\x00!"
        await scene.until(lambda: scene.bus.latest(NetMapChanged) is not None)
        scene.server.refuses = True
        await scene.until_state("offline")
        await trio.sleep(300)
        if new_noise_key:
            fresh = FakeControl(scene.server._nursery)
            scene.server.private, scene.server.key_reply = fresh.private, fresh.key_reply
        if fresh_database:
            scene.server.map_status = 404

            def reply(body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
                asked = decode_json_untrusted(RegisterRequest, body)
                if asked.auth is None:
                    return 200, [], encode_json(RegisterResponse(auth_url="http://hs/register/one"))
                scene.server.map_status = 200
                return 200, [], encode_json(RegisterResponse(machine_authorized=True))

            scene.server.register_reply = reply
        scene.server.map_reply = a_map(7)
        scene.server.refuses = False
        restarted = trio.current_time()
        await scene.until_state("running")
        assert trio.current_time() - restarted <= 30.0
        netmap = scene.bus.latest(NetMapChanged)
        assert netmap is not None
        assert set(netmap.netmap.peers) == {7}


async def test_a_request_to_slow_down_is_obeyed(autojump_clock: trio.testing.MockClock) -> None:
    async with a_scene() as scene:
        scene.server.register_reply = lambda body: (429, [("retry-after", "45")], b"slow down")
        await scene.until_state("offline")
        requests = len(scene.server.requests)
        await trio.sleep(44)
        assert len(scene.server.requests) == requests
        scene.server.register_reply = FakeControl(scene.server._nursery).register_reply
        await scene.until_state("running")


@pytest.mark.parametrize(("asked", "slept"), [(10.0, 10.0), (86_400.0, LONGEST_ASKED_SLEEP)])
async def test_a_map_may_ask_us_to_read_on_later_but_not_much(
    asked: float, slept: float, autojump_clock: trio.testing.MockClock
) -> None:
    async with a_scene() as scene:
        began = trio.current_time()
        scene.server.map_reply = a_map(2, debug=Debug(sleep_seconds=asked))
        await scene.until_state("running")
        assert trio.current_time() - began == pytest.approx(slept, abs=1.0)


async def test_a_machine_waits_for_its_approval(autojump_clock: trio.testing.MockClock) -> None:
    async with a_scene() as scene:
        scene.server.register_reply = lambda body: (200, [], encode_json(RegisterResponse()))
        scene.server.map_reply = frame(MapResponse(node=make_node(1)))
        await scene.until_state("needs_approval")
        await scene.until(lambda: scene.active() == {"approval-needed"})
        scene.server.map_reply = a_map(2)
        scene.actor._interrupt()
        await scene.until_state("running")
        await scene.until(lambda: not scene.active())


async def test_a_spent_key_fails_at_once_with_the_servers_words(autojump_clock: trio.testing.MockClock) -> None:
    async with a_scene() as scene:
        scene.server.register_reply = lambda body: (
            200,
            [],
            encode_json(RegisterResponse(error="authkey already used")),
        )
        await scene.until_state("failed")
        error = scene.latest().error
        assert isinstance(error, AuthKeyRejected)
        assert error.reason == "authkey already used"


async def test_what_is_no_control_server_fails_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async with a_scene() as scene:
        scene.server.key_reply = (404, b"")
        await scene.until_state("failed")
        assert isinstance(scene.latest().error, ControlProtocolError)


async def test_the_login_page_is_shown_to_whoever_asked(autojump_clock: trio.testing.MockClock) -> None:
    shown: list[str] = []
    async with a_scene(auth_key=None, on_login_url=shown.append) as scene:
        page = "http://hs/register/one"

        def reply(body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            asked = decode_json_untrusted(RegisterRequest, body)
            answer = RegisterResponse(machine_authorized=True) if asked.followup else RegisterResponse(auth_url=page)
            return 200, [], encode_json(answer)

        scene.server.register_reply = reply
        await scene.until_state("running")
        assert shown == [page]
        assert scene.active() == set()


@pytest.mark.parametrize("page", ["javascript:alert(1)", "file:///etc/passwd", "https://a\x1b[2J", "--help"])
async def test_a_login_page_that_is_not_of_the_web_is_shown_to_nobody(
    autojump_clock: trio.testing.MockClock, page: str
) -> None:
    """A program may hand what it is given to a browser."""
    shown: list[str] = []
    async with a_scene(auth_key=None, on_login_url=shown.append) as scene:
        scene.server.register_reply = lambda body: (200, [], encode_json(RegisterResponse(auth_url=page)))
        await scene.until_state("needs_login")
        told = scene.latest()
        assert shown == []
        assert told.url == ""
        assert "no page of the web" in told.detail
        assert scene.active() == {"login-needed"}


async def test_a_callable_gives_the_key_when_it_is_needed(autojump_clock: trio.testing.MockClock) -> None:
    asked = 0

    async def fresh_key() -> str:
        nonlocal asked
        asked += 1
        return SECRET

    async with a_scene(auth_key=fresh_key) as scene:
        await scene.until_state("running")
        assert asked == 1
        request = decode_json_untrusted(RegisterRequest, scene.server.requests[0][1])
        assert request.auth is not None
        assert request.auth.auth_key == SECRET


async def test_our_key_runs_out_by_the_clock_and_a_login_renews_it(autojump_clock: trio.testing.MockClock) -> None:
    async with a_scene(auth_key=None) as scene:
        began = trio.current_time()
        scene.server.wall_clock = lambda: NOW + trio.current_time() - began  # type: ignore[method-assign]
        scene.actor.network = cast(Network, scene.server)
        dying = make_node(1, machine_authorized=True, key_expiry=from_unix_time(NOW + 100))
        scene.server.map_reply = frame(MapResponse(node=dying))
        await scene.until_state("running")
        scene.server.map_reply = a_map()
        await trio.sleep(101)
        assert scene.latest().state == "expired"
        assert scene.active() == {"key-expired"}
        await scene.actor.login()
        await scene.until_state("running")
        await scene.until(lambda: scene.active() == set())
        registered = [
            decode_json_untrusted(RegisterRequest, b) for p, b in scene.server.requests if p.endswith("register")
        ]
        assert len(registered) == 2
        assert registered[1].old_node_key == registered[0].node_key
        assert scene.actor.machine.node_key.public == registered[1].node_key


async def test_pings_are_answered_once_each(autojump_clock: trio.testing.MockClock) -> None:
    async with a_scene() as scene:
        ping = frame(MapResponse(keep_alive=True, ping_request=PingRequest(url=f"{URL}/pong?id=1")))
        scene.server.map_reply = a_map(2) + ping + ping
        await scene.until(lambda: bool(scene.server.heads))
        await trio.sleep(1)
        assert scene.server.heads == ["/pong?id=1"]


async def test_controls_own_warnings_come_and_go(autojump_clock: trio.testing.MockClock) -> None:
    async with a_scene() as scene:
        scene.server.map_reply = a_map(health=("update me",)) + frame(MapResponse(domain="x"))
        await scene.until(lambda: "control-says-1" in scene.active())
        scene.server.map_reply = a_map()
        await scene.actor.login()
        await scene.until(lambda: "control-says-1" not in scene.active())


async def test_a_router_asks_for_its_own_node_after_a_new_policy_and_not_without_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Headscale tells a router's peers which of its routes were approved, and the router only of the policy."""
    async with a_scene() as scene:
        scene.bus.publish(PreferencesChanged(Preferences("py", advertise_routes=("10.9.0.0/24",))))
        scene.server.map_reply = a_map() + frame(MapResponse(packet_filters={"base": ()}))
        await scene.until_state("running")
        await trio.sleep(60)
        assert len([request for request in scene.map_requests() if request.stream]) == 2


async def test_a_second_policy_is_no_echo_of_asking(autojump_clock: trio.testing.MockClock) -> None:
    async with a_scene() as scene:
        scene.bus.publish(PreferencesChanged(Preferences("py", advertise_routes=("10.9.0.0/24",))))
        policy = frame(MapResponse(packet_filters={"base": ()}))
        scene.server.map_reply = a_map() + policy * 2
        await scene.until_state("running")
        began = trio.current_time()
        await scene.until(lambda: len([request for request in scene.map_requests() if request.stream]) == 3)
        assert trio.current_time() - began >= PAUSE, "asked again, but not at once"


async def test_a_router_in_waiting_asks_when_the_other_one_loses_their_subnet(
    autojump_clock: trio.testing.MockClock,
) -> None:
    route = "10.9.0.0/24"
    other = replace(make_node(2), allowed_ips=("100.64.0.2/32", route))
    async with a_scene() as scene:
        scene.bus.publish(PreferencesChanged(Preferences("py", advertise_routes=(route,))))
        policy = frame(MapResponse(packet_filters={"base": ()}))
        base = frame(MapResponse(node=OURSELVES, peers=(other,)))
        scene.server.map_reply = base + policy * 3
        await scene.until_state("running")
        await trio.sleep(60)
        asked = [request for request in scene.map_requests() if request.stream]
        assert len(asked) == 1, "a policy is no news while another router has all that we lack"
        lost = frame(MapResponse(peers_changed=(replace(other, allowed_ips=("100.64.0.2/32",)),)))
        scene.server.map_reply = base + lost
        await scene.actor.login()
        began = trio.current_time()
        await scene.until(lambda: len([request for request in scene.map_requests() if request.stream]) >= 3)
        assert trio.current_time() - began < 2


async def test_who_routes_nothing_does_not_mind_policies(autojump_clock: trio.testing.MockClock) -> None:
    async with a_scene() as scene:
        scene.server.map_reply = a_map() + frame(MapResponse(packet_filters={"base": ()}))
        await scene.until_state("running")
        await trio.sleep(60)
        assert len([request for request in scene.map_requests() if request.stream]) == 1


async def test_an_ephemeral_node_says_goodbye(autojump_clock: trio.testing.MockClock) -> None:
    async with a_scene(ephemeral=True) as scene:
        await scene.until_state("running")
        await scene.actor.leave()
        last = decode_json_untrusted(RegisterRequest, scene.server.requests[-1][1])
        assert last.expiry == from_unix_time(123.0)
        count = len(scene.server.requests)
        await trio.sleep(60)
        assert len(scene.server.requests) == count


async def test_no_secret_is_said_or_logged(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with a_scene() as scene:
        await scene.until_state("running")
        scene.server.refuses = True
        await trio.sleep(30)
        state = scene.actor.saved.state
        shown = caplog.text + repr(scene.heard) + repr(state) + repr(scene.actor.machine) + repr(scene.actor.config)
        for secret in ("verysecret", state.node_key.raw.hex(), state.machine_key.raw.hex()):
            assert secret not in shown


async def test_control_can_be_asked_at_any_time(autojump_clock: trio.testing.MockClock) -> None:
    async with a_scene() as scene:
        await scene.until_state("running")
        assert await scene.actor.ask("POST", "/machine/set-dns", b"{}") == b""
        assert ("/machine/set-dns", b"{}") in scene.server.requests
        scene.server.refuses = True
        scene.bus.publish(NetworkChanged(rebound=True))
        await scene.until_state("offline")
        answers: list[bytes] = []

        async def ask() -> None:
            answers.append(await scene.actor.ask("GET", "/machine/whoami", timeout=120.0))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(60)
            assert answers == []
            scene.server.refuses = False  # the question waits for the next connection
        assert answers == [b""]


async def test_a_question_nobody_can_carry_ends_in_time(autojump_clock: trio.testing.MockClock) -> None:
    async with a_scene() as scene:
        scene.server.refuses = True
        await scene.until_state("offline")
        began = trio.current_time()
        with pytest.raises(ControlLost, match="was not there"):
            await scene.actor.ask("GET", "/machine/whoami", timeout=10.0)
        assert trio.current_time() - began == pytest.approx(10.0)
        scene.server.refuses = False
        await scene.until_state("running")
        scene.server.is_mute = True
        with pytest.raises(ControlLost, match="not answered"):
            await scene.actor.ask("GET", "/machine/whoami", timeout=10.0)
        scene.server.is_mute = False


async def test_what_is_offered_is_told_to_control_until_it_is_taken_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with a_scene() as scene:
        await scene.until_state("running")
        await trio.sleep(1)
        mine = Service(proto="peerapi4", port=41234)
        offer(scene.bus, "peerapi", Offer(services=(mine,)))
        offer(scene.bus, "ssh", Offer(ssh_host_keys=("ssh-ed25519 AAAA",), routes=("10.0.0.0/8",)))
        await trio.sleep(1)
        told = scene.map_requests()[-1].hostinfo
        assert told is not None
        assert (told.services, told.ssh_host_keys, told.routable_ips) == (
            (mine,),
            ("ssh-ed25519 AAAA",),
            ("10.0.0.0/8",),
        )
        offer(scene.bus, "peerapi", None)
        await trio.sleep(1)
        told = scene.map_requests()[-1].hostinfo
        assert told is not None
        assert (told.services, told.ssh_host_keys) == ((), ("ssh-ed25519 AAAA",))
