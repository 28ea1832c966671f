"""One client of the embedded coordination server, from its Noise initiation on: bytes in, bytes out.

Owns the order handshake, early payload, HTTP/2, and which path asks the server for what. Hostile bytes close the
connection and are counted in the server's `drops`; nothing is raised. Knows nothing of sockets or of HTTP/1.
"""

from __future__ import annotations

from collections.abc import Callable

from ts_base.errors import BadPacket
from ts_base.keys import ChallengePublic, MachinePublic, clamp, public_of
from ts_control.directory import DirectoryError
from ts_control.gojson import GoStruct, decode_json_untrusted, encode_json
from ts_control.handshake import HandshakeRefused, accept_untrusted, encode_refusal
from ts_control.http2 import BodyArrived, BodyEnded, Http2Connection, Http2Event, RequestArrived, StreamFailed
from ts_control.record import RecordReader, RecordWriter, encode_early_payload
from ts_control.server import MINIMUM_VERSION, ControlServer
from ts_control.server_funnel import FEATURE_PATH, FeatureRequest
from ts_control.server_login import Parked
from ts_control.server_maps import ServedMap
from ts_control.server_ssh import Asked
from ts_control.ssh_rules import CHECK_PATH
from ts_control.wire import MapRequest
from ts_control.wire_lock import ROOT as LOCK_ROOT
from ts_control.wire_lock import LockRequest
from ts_control.wire_register import EarlyNoise, RegisterRequest, SetDnsRequest

MAX_BODY = 1 << 20
MAX_OPEN_REQUESTS = 64
CHUNK = 64 << 10
FULL_BACKLOG = 1 << 20  # with this much unsent, further map messages wait in the stream, where they are bounded

_JSON = (("content-type", "application/json"),)


class ServedConnection:
    """`receive`, then `transmit`; `transmit` again whenever the server's `take_ready` names this connection."""

    def __init__(self, server: ControlServer, initiation: bytes, *, entropy: Callable[[int], bytes]) -> None:
        self._server = server
        self._out = bytearray()
        self._reader: RecordReader | None = None
        self._writer: RecordWriter | None = None
        self._http = Http2Connection(client=False)
        self._requests: dict[int, tuple[RequestArrived, bytearray]] = {}
        self._maps: dict[int, ServedMap] = {}
        self._parked: dict[int, Parked | Asked] = {}
        self.machine = MachinePublic.zero()
        self.version = 0
        self.closed = False
        try:
            accepted = accept_untrusted(initiation, server.machine, entropy=entropy)
            if accepted.version < MINIMUM_VERSION:
                raise HandshakeRefused(f"client version {accepted.version} is older than {MINIMUM_VERSION}")
        except HandshakeRefused as refusal:
            self._out += encode_refusal(str(refusal))
            self._fail("control.handshake_refused")
        except BadPacket:
            self._fail("control.bad_handshake")
        else:
            self.machine, self.version = accepted.machine, accepted.version
            self._reader, self._writer = RecordReader(accepted.keys.receive), RecordWriter(accepted.keys.send)
            challenge = ChallengePublic(public_of(clamp(entropy(32))))
            early = encode_early_payload(EarlyNoise(node_key_challenge=challenge))
            self._out += accepted.response + self._writer.write(early)

    def receive(self, data: bytes, now: float) -> None:
        if self.closed or self._reader is None:
            return
        try:
            events = self._http.receive_untrusted(self._reader.receive_untrusted(data))
        except BadPacket:
            self._fail("control.bad_bytes")
            self.close(now)
            return
        for event in events:
            self._handle(event, now)

    def transmit(self, now: float) -> bytes:
        """Everything that is ready for the wire."""
        if self._writer is None:
            out, self._out = bytes(self._out), bytearray()
            return out
        for stream, parked in list(self._parked.items()):
            if parked.response is not None:
                del self._parked[stream]
                self._answer(stream, parked.response)
        for number, stream_map in list(self._maps.items()):
            self._feed(number, stream_map, now)
        plain = self._http.transmit()
        out = bytes(self._out) + (self._writer.write(plain) if plain else b"")
        self._out.clear()
        return out

    def close(self, now: float) -> None:
        """The stream under us is gone, or is to go."""
        self.closed = True
        self._requests.clear()
        self._maps.clear()
        self._parked.clear()
        self._server.abandon(self, now)

    def _fail(self, reason: str) -> None:
        self._server.drops[reason] += 1
        self.closed = True

    def _feed(self, number: int, stream_map: ServedMap, now: float) -> None:
        if not self._http.is_open(number):
            del self._maps[number]
            self._server.close_map(stream_map, now)
            return
        if self._http.backlog(number) < FULL_BACKLOG:
            for message in stream_map.take():
                for start in range(0, len(message), CHUNK):
                    self._http.send_body(number, message[start : start + CHUNK])
        if stream_map.closed:
            self._http.send_body(number, b"", end=True)
            del self._maps[number]

    def _handle(self, event: Http2Event, now: float) -> None:
        if isinstance(event, RequestArrived):
            if len(self._requests) >= MAX_OPEN_REQUESTS:
                self._server.drops["control.requests_full"] += 1
                self._refuse(event.stream, 429, "too many requests at once")
            else:
                self._requests[event.stream] = (event, bytearray())
        elif isinstance(event, BodyArrived):
            self._http.acknowledge(event.stream, event.window)
            request = self._requests.get(event.stream)
            if request is not None:
                request[1].extend(event.data)
                if len(request[1]) > MAX_BODY:
                    del self._requests[event.stream]
                    self._server.drops["control.body_too_long"] += 1
                    self._refuse(event.stream, 413, "request body too long")
        elif isinstance(event, BodyEnded):
            request = self._requests.pop(event.stream, None)
            if request is not None:
                self._dispatch(request[0], bytes(request[1]), now)
        elif isinstance(event, StreamFailed):
            self._requests.pop(event.stream, None)
            parked = self._parked.pop(event.stream, None)
            if isinstance(parked, Asked):
                self._server.give_up_ssh_action(parked)
            stream_map = self._maps.pop(event.stream, None)
            if stream_map is not None:
                self._server.close_map(stream_map, now)

    def _dispatch(self, request: RequestArrived, body: bytes, now: float) -> None:
        path, _, query = request.path.partition("?")
        try:
            if path == "/machine/register":
                self._register(request.stream, body, now)
            elif path == "/machine/map":
                self._map(request.stream, body, now)
            elif path == "/machine/ping-answer":
                known = self._server.answer_ping(query.removeprefix("id="), body, now)
                self._refuse(request.stream, 200 if known else 404, "")
            elif path.startswith(LOCK_ROOT):
                self._lock(request.stream, path.removeprefix(LOCK_ROOT), body, now)
            elif path.startswith(CHECK_PATH):
                self._ssh_action(request.stream, path, query)
            elif path == "/machine/set-dns" and self._server.serves_certificates:
                self._set_dns(request.stream, body)
            elif path == FEATURE_PATH:
                self._feature(request.stream, body)
            elif path.startswith("/machine/webclient/"):
                self._refuse(request.stream, 404, "not found")
            else:
                self._refuse(request.stream, 501, "not implemented by this control server")
        except BadPacket as problem:
            self._server.drops["control.bad_request"] += 1
            self._refuse(request.stream, 400, str(problem))

    def _register(self, stream: int, body: bytes, now: float) -> None:
        request = decode_json_untrusted(RegisterRequest, body)
        if request.version < MINIMUM_VERSION:
            self._refuse(stream, 400, f"unsupported client version {request.version}")
            return
        answer = self._server.register(self.machine, request, now, self)
        if isinstance(answer, Parked):
            self._parked[stream] = answer
        else:
            self._answer(stream, answer)

    def _map(self, stream: int, body: bytes, now: float) -> None:
        request = decode_json_untrusted(MapRequest, body)
        if request.version < MINIMUM_VERSION:
            self._refuse(stream, 400, f"unsupported client version {request.version}")
            return
        try:
            answer = self._server.request_map(self.machine, request, now, self)
        except DirectoryError as problem:
            self._refuse(stream, 404, str(problem))
            return
        self._http.respond(stream, 200, _JSON)
        if isinstance(answer, ServedMap):
            self._maps[stream] = answer
        else:
            self._http.send_body(stream, answer, end=True)

    def _set_dns(self, stream: int, body: bytes) -> None:
        try:
            self._server.publish_text(self.machine, decode_json_untrusted(SetDnsRequest, body))
        except DirectoryError as problem:
            self._refuse(stream, 400, str(problem))
        else:
            self._http.respond(stream, 200, _JSON)
            self._http.send_body(stream, b"{}", end=True)

    def _feature(self, stream: int, body: bytes) -> None:
        request = decode_json_untrusted(FeatureRequest, body)
        try:
            self._answer(stream, self._server.answer_feature(self.machine, request))
        except DirectoryError as problem:
            self._refuse(stream, 404, str(problem))

    def _lock(self, stream: int, what: str, body: bytes, now: float) -> None:
        request = decode_json_untrusted(LockRequest, body)
        try:
            answer = self._server.ask_lock(self.machine, what, request, now)
        except DirectoryError as problem:
            self._refuse(stream, 404, str(problem))
            return
        self._http.respond(stream, 200, _JSON)
        self._http.send_body(stream, encode_json(answer), end=True)

    def _ssh_action(self, stream: int, path: str, query: str) -> None:
        try:
            answer = self._server.ask_ssh_action(self.machine, path, query, self)
        except DirectoryError as problem:
            self._refuse(stream, 404, str(problem))
        except PermissionError as problem:
            self._refuse(stream, 401, str(problem))
        else:
            if isinstance(answer, Asked):
                self._parked[stream] = answer
            else:
                self._answer(stream, answer)

    def _answer(self, stream: int, response: GoStruct) -> None:
        self._http.respond(stream, 200, _JSON)
        self._http.send_body(stream, encode_json(response), end=True)

    def _refuse(self, stream: int, status: int, text: str) -> None:
        self._http.respond(stream, status, (("content-type", "text/plain"),))
        self._http.send_body(stream, text.encode(), end=True)
