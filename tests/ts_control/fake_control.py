"""A scripted control server in memory: real handshake, real HTTP/2, and any lie a test wants to tell."""

from __future__ import annotations

import base64
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio
import trio.testing

from ts_base.errors import BadPacket
from ts_base.keys import MachinePrivate
from ts_control.framing import encode_frame
from ts_control.gojson import encode_json
from ts_control.handshake import accept_untrusted
from ts_control.http2 import BodyArrived, BodyEnded, Http2Connection, RequestArrived
from ts_control.record import RecordReader, RecordWriter, encode_early_payload
from ts_control.wire import MapResponse
from ts_control.wire_register import EarlyNoise, RegisterResponse, ServerKeys

from control_scripts import NOW, first_map  # isort: skip

Stream = trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]


class FakeControl:
    """Stands where the network is: every dial reaches this server. Replace the attributes to misbehave."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.private = MachinePrivate.generate(os.urandom(32))
        self.dials: list[tuple[str, int]] = []
        self.heads: list[str] = []
        self.requests: list[tuple[str, bytes]] = []
        self.key_reply = (200, encode_json(ServerKeys(public_key=self.private.public)))
        self.closes_after_key = False
        self.is_black_hole = False
        self.is_mute = False
        self.map_status = 200
        self.refuses = False
        self.after_upgrade: Callable[[Stream], Awaitable[None]] | None = None
        self.register_reply: Callable[[bytes], tuple[int, list[tuple[str, str]], bytes]] = lambda body: (
            200,
            [],
            encode_json(RegisterResponse(machine_authorized=True)),
        )
        self.map_reply: bytes | None = None
        self._nursery = nursery

    # the network's face

    async def open_tcp(self, host: str, port: int) -> Stream:
        await trio.lowlevel.checkpoint()
        self.dials.append((host, port))
        if self.refuses:
            raise ConnectionRefusedError("nobody listens there")
        ours, theirs = trio.testing.memory_stream_pair()
        self._nursery.start_soon(self._serve, ours)
        return theirs

    def wall_clock(self) -> float:
        return NOW

    def entropy(self, length: int) -> bytes:
        return os.urandom(length)

    # the server

    async def _serve(self, stream: Stream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError, BadPacket):
            await self._serve_http(stream)
        await stream.aclose()

    async def _serve_http(self, stream: Stream) -> None:
        buffer = b""
        while True:
            while b"\r\n\r\n" not in buffer:
                data = await stream.receive_some(65536)
                if not data:
                    return
                buffer += data
            if self.is_black_hole:
                await trio.sleep_forever()
            head, _, buffer = buffer.partition(b"\r\n\r\n")
            method, path = head.split(b" ", 2)[:2]
            if method == b"CONNECT":
                await stream.send_all(b"HTTP/1.1 200 Connected\r\n\r\n")
            elif method == b"HEAD":
                self.heads.append(path.decode())
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            elif path.startswith(b"/key"):
                await self._answer_key(stream)
                if self.closes_after_key:
                    return
            else:
                fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
                lowered = {name.lower(): value for name, value in fields.items()}
                await self._upgrade(stream, base64.b64decode(lowered[b"x-tailscale-handshake"]))
                return

    async def _answer_key(self, stream: Stream) -> None:
        status, body = self.key_reply
        close = b"Connection: close\r\n" if self.closes_after_key else b""
        await stream.send_all(b"HTTP/1.1 %d X\r\n%bContent-Length: %d\r\n\r\n%b" % (status, close, len(body), body))

    async def _upgrade(self, stream: Stream, initiation: bytes) -> None:
        accepted = accept_untrusted(initiation, self.private, entropy=os.urandom)
        await stream.send_all(
            b"HTTP/1.1 101 S\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\r\n" + accepted.response
        )
        if self.after_upgrade is not None:
            await self.after_upgrade(stream)
            return
        reader, writer = RecordReader(accepted.keys.receive), RecordWriter(accepted.keys.send)
        http2 = Http2Connection(client=False)
        await stream.send_all(writer.write(encode_early_payload(EarlyNoise()) + http2.transmit()))
        paths: dict[int, str] = {}
        bodies: dict[int, bytes] = {}
        while data := await stream.receive_some(65536):
            for event in http2.receive_untrusted(reader.receive_untrusted(bytes(data))):
                match event:
                    case RequestArrived(stream=number, path=path):
                        paths[number], bodies[number] = path, b""
                    case BodyArrived(stream=number, data=piece, window=window):
                        bodies[number] += piece
                        http2.acknowledge(number, window)
                    case BodyEnded(stream=number):
                        self._answer(http2, number, paths[number], bodies[number])
            if out := http2.transmit():
                await stream.send_all(writer.write(out))

    def _answer(self, http2: Http2Connection, number: int, path: str, body: bytes) -> None:
        self.requests.append((path, body))
        if self.is_mute:
            return
        if path == "/machine/register":
            status, headers, answer = self.register_reply(body)
            http2.respond(number, status, headers)
            http2.send_body(number, answer, end=True)
        elif path == "/machine/map" and self.map_status != 200:
            http2.respond(number, self.map_status, end=True)
        elif path == "/machine/map" and b'"Stream":true' in body:
            http2.respond(number, 200)
            http2.send_body(number, self.map_reply if self.map_reply is not None else frame(first_map(2, 3)))
        else:
            http2.respond(number, 200)
            http2.send_body(number, b"", end=True)


def frame(response: MapResponse) -> bytes:
    return encode_frame(encode_json(response), compressed=True)
