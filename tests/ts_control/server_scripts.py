"""A tailnet in a table of calls: one ControlServer, its clock, and members that fold what they are told."""

from __future__ import annotations

from typing import Any

import msgspec
from control_scripts import NOW, seeded

from ts_base.keys import DiscoPrivate, MachinePrivate, NodePrivate
from ts_control.framing import FrameReader
from ts_control.gojson import decode_json_untrusted, from_unix_time
from ts_control.netmap import NetMap
from ts_control.server import ControlServer
from ts_control.server_login import Parked
from ts_control.server_maps import ServedMap
from ts_control.wire import Hostinfo, MapRequest, MapResponse, NetInfo
from ts_control.wire_register import RegisterAuth, RegisterRequest, RegisterResponse

VERSION = 131


class World:
    """The server and the two clocks; `at(t)` moves both and lets the server do what has come due."""

    def __init__(self, **options: Any) -> None:
        self.now = 0.0
        self.server = ControlServer(entropy=seeded(7), wall_clock=lambda: NOW + self.now, **options)
        self.members = 0

    def at(self, moment: float) -> None:
        while self.server.next_timer() <= moment:
            self.now = max(self.now, self.server.next_timer())
            self.server.handle_timer(self.now)
        self.now = moment

    def do(self, name: str, *arguments: Any, **named: Any) -> Any:
        return getattr(self.server, name)(*arguments, self.now, **named)

    def member(self, hostname: str, **options: Any) -> Member:
        """A device that registered with a key of its own and streams."""
        made = Member(self, hostname)
        answer = made.register(self.server.create_auth_key(**options))
        assert isinstance(answer, RegisterResponse)
        assert not answer.error, answer.error
        made.stream()
        return made


class Member:
    """One client, at the level of messages."""

    def __init__(self, world: World, hostname: str, **hostinfo: Any) -> None:
        world.members += 1
        self._draw = seeded(1000 + world.members)
        self.world = world
        self.machine = MachinePrivate.generate(self._draw(32)).public
        self.key = NodePrivate.generate(self._draw(32)).public
        self.disco = DiscoPrivate.generate(self._draw(32)).public
        self.hostinfo = Hostinfo(hostname=hostname, os="linux", **hostinfo)
        self.netmap = NetMap.empty()
        self.heard: list[MapResponse] = []
        self.streaming: ServedMap | None = None

    @property
    def id(self) -> int:
        device = self.world.server.directory.by_key(self.key)
        assert device is not None
        return device.id

    def new_key(self) -> None:
        self.key = NodePrivate.generate(self._draw(32)).public

    def register(self, auth_key: str = "", **fields: Any) -> RegisterResponse | Parked:
        request = RegisterRequest(
            version=VERSION,
            node_key=self.key,
            hostinfo=self.hostinfo,
            auth=RegisterAuth(auth_key=auth_key) if auth_key else None,
            **fields,
        )
        return self.world.server.register(self.machine, request, self.world.now, self)

    def request(self, **fields: Any) -> ServedMap | bytes:
        fields = {"hostinfo": self.hostinfo, "disco_key": self.disco, **fields}
        request = MapRequest(version=VERSION, node_key=self.key, **fields)
        return self.world.server.request_map(self.machine, request, self.world.now, self)

    def stream(self, *, compress: str = "") -> None:
        answer = self.request(stream=True, compress=compress)
        assert isinstance(answer, ServedMap)
        self.streaming = answer
        self._reader = FrameReader(compressed=bool(compress))
        self.netmap = NetMap.empty()
        self.hear()

    def report(self, **fields: Any) -> None:
        self.request(omit_peers=True, **fields)

    def set_home(self, region: int) -> None:
        self.hostinfo = msgspec.structs.replace(self.hostinfo, net_info=NetInfo(preferred_derp=region))
        self.report()

    def hear(self) -> list[MapResponse]:
        """What arrived since last asked; folded into `netmap`."""
        assert self.streaming is not None
        new = []
        for chunk in self.streaming.take():
            self._reader.receive(chunk)
            while (text := self._reader.next_frame_untrusted()) is not None:
                message = decode_json_untrusted(MapResponse, text)
                self.netmap = self.netmap.apply(message, NOW + self.world.now)
                new.append(message)
        self.heard += new
        return new

    def leave(self) -> None:
        assert self.streaming is not None
        self.world.server.close_map(self.streaming, self.world.now)

    def peer_names(self) -> set[str]:
        self.hear()
        return {peer.name.split(".")[0] for peer in self.netmap.peers.values()}

    def full(self) -> NetMap:
        """What a stream opened now would begin with."""
        text = self.request(read_only=True)
        assert isinstance(text, bytes)
        reader = FrameReader(compressed=False)
        reader.receive(text)
        message = reader.next_frame_untrusted()
        assert message is not None
        return NetMap.empty().apply(decode_json_untrusted(MapResponse, message), NOW + self.world.now)


def past(seconds: float = 100.0) -> Any:
    return from_unix_time(NOW - seconds)
