"""DerpMachine: the client's side of one relay connection, from greeting to silence.

Owns the greeting, what waits to go out (bounded, oldest dropped), the keep-alive and ping deadlines and the rate
limit the server asks for. Refuses to know sockets, TLS, regions and reconnecting: one machine lives as long as one
byte stream, and `failure` says why it ended. Protocol: derp/derp_client.go, version 2.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ts_base.box import NONCE_LENGTH
from ts_base.errors import BadPacket
from ts_base.keys import NodePrivate, NodePublic
from ts_derp import frames
from ts_derp.frames import KEY_LENGTH, MAX_PACKET_LENGTH, PACKET_OVERHEAD, FrameReader, Run
from ts_derp.greeting import (
    RateLimit,
    TokenBucket,
    decode_server_info_untrusted,
    decode_server_key_untrusted,
    encode_client_info,
)

GREETING_TIMEOUT = 10.0
SILENCE_LIMIT = 120.0  # the server sends a keep-alive every 60 to 65 s
PONG_TIMEOUT = 3.0
QUEUE_LIMIT = 2 << 20  # bytes waiting to go out; a TCP window of a fast flow must fit
BURST_LIMIT = 256 << 10  # one transmit(), one write: more would let a ping wait behind it
# derper keeps 32 packets for one receiver and reads faster than it writes: of 200 in one write most would be lost.
# A gap between writes would lose fewer still, but sleeping is only as fine as 1 ms and costs more than it saves.
BURST_PACKETS = 32
CONTROL_LIMIT = 64  # frames of ours other than packets waiting to go out
MESSAGE_LIMIT = 1024  # a peer-gone storm must not fill the memory of a shell that is slow to ask
HEALTH_TEXT_LIMIT = 1024

SHORT_FRAME = "derp.short_frame"
OVERSIZED = "derp.oversized_packet"
QUEUE_FULL = "derp.queue_full"
RATE_LIMITED = "derp.rate_limited"
UNKNOWN_FRAME = "derp.unknown_frame"
UNEXPECTED_FRAME = "derp.unexpected_frame"
TOO_MANY_PINGS = "derp.pings_full"
TOO_MANY_MESSAGES = "derp.messages_full"
STRAY_PONG = "derp.stray_pong"

_KNOWN_KINDS = frozenset({*range(frames.SERVER_KEY, frames.FORWARD_PACKET + 1), frames.WATCH_CONNS, frames.CLOSE_PEER})


class Greeted(NamedTuple):
    """The server has let us in."""

    server: NodePublic
    rate_limit: RateLimit | None


class PeerGone(NamedTuple):
    """`reason` is GONE_DISCONNECTED, GONE_NOT_HERE or a number newer than we are."""

    peer: bytes
    reason: int


class ServerHealth(NamedTuple):
    """What the server says is wrong with it; empty when it is well again."""

    problem: str


class ServerRestarting(NamedTuple):
    """The server is about to go: come back in `reconnect_in` seconds, and keep trying for `try_for`."""

    reconnect_in: float
    try_for: float


class PongArrived(NamedTuple):
    round_trip: float


class DerpStatistics(NamedTuple):
    """One connection so far."""

    greeted: bool
    queued_bytes: int
    drops: Mapping[str, int]


DerpMessage = Greeted | PeerGone | ServerHealth | ServerRestarting | PongArrived


class DerpMachine:
    """The five verbs over one byte stream; `who` of every run is the peer's raw 32-byte node key."""

    def __init__(self, private: NodePrivate, *, entropy: Callable[[int], bytes], preferred: bool = False) -> None:
        self._private = private
        self._entropy = entropy
        self._reader = FrameReader(frames.RECV_PACKET)
        self._server: NodePublic | None = None
        self._preferred = preferred
        self._control: deque[bytes] = deque()
        self._queue: deque[Run] = deque()
        self.queued_bytes = 0
        self._bucket: TokenBucket | None = None
        self._greeting_deadline = math.inf
        self._silence_deadline = math.inf
        self._pong_deadline = math.inf
        self._ping: tuple[bytes, float] | None = None
        self._messages: list[DerpMessage] = []
        self.has_begun = False  # a stream was given to it: it cannot serve another
        self.greeted = False
        self.failure: str | None = None
        self.drops: Counter[str] = Counter()

    def start(self, now: float) -> None:
        """The byte stream is there: the server has to greet us in time."""
        self.has_begun = True
        self._greeting_deadline = now + GREETING_TIMEOUT

    # --- from below

    def receive(self, data: bytes | bytearray, now: float) -> list[Run]:
        """The stream's next bytes; returns the packets in them as [(source, [packet, ...]), ...]."""
        if self.failure is not None:
            return []
        try:
            arrived = self._reader.feed(data)
        except BadPacket as error:
            self.fail(str(error))
            return []
        if arrived and self.greeted:
            self._silence_deadline = now + SILENCE_LIMIT
        inbound: list[Run] = []
        for kind, key, bodies in arrived:
            if key:
                if not self.greeted:
                    self.drops[UNEXPECTED_FRAME] += len(bodies)
                elif packets := self._sound_packets(bodies):
                    inbound.append((key, packets))
                continue
            self._on_frame(kind, bodies[0], now)
            if self.failure is not None:
                break
        return inbound

    def _sound_packets(self, packets: list[bytes]) -> list[bytes]:
        if min(map(len, packets)) > 0 and max(map(len, packets)) <= MAX_PACKET_LENGTH:
            return packets
        self._count(SHORT_FRAME, packets.count(b""))
        return self._sendable([packet for packet in packets if packet])

    def _sendable(self, packets: list[bytes]) -> list[bytes]:
        if packets and max(map(len, packets)) > MAX_PACKET_LENGTH:
            self._count(OVERSIZED, sum(len(packet) > MAX_PACKET_LENGTH for packet in packets))
            return [packet for packet in packets if len(packet) <= MAX_PACKET_LENGTH]
        return packets

    def _on_frame(self, kind: int, body: bytes, now: float) -> None:
        if not self.greeted:
            self._on_greeting_frame(kind, body, now)
        elif kind == frames.KEEP_ALIVE:
            pass
        elif kind == frames.PEER_GONE:
            self._on_peer_gone(body)
        elif kind == frames.PING:
            self._on_ping(body)
        elif kind == frames.PONG:
            self._on_pong(body, now)
        elif kind == frames.HEALTH:
            self._say(ServerHealth(body[:HEALTH_TEXT_LIMIT].decode("utf-8", "replace")))
        elif kind == frames.RESTARTING:
            self._on_restarting(body)
        elif kind == frames.RECV_PACKET:
            self.drops[SHORT_FRAME] += 1
        else:
            # The server may speak a newer dialect; a mesh frame or our own kind echoed is equally harmless.
            self.drops[UNEXPECTED_FRAME if kind in _KNOWN_KINDS else UNKNOWN_FRAME] += 1

    def _on_greeting_frame(self, kind: int, body: bytes, now: float) -> None:
        try:
            if self._server is None:
                if kind != frames.SERVER_KEY:
                    raise BadPacket("the relay did not begin with its key")
                server = decode_server_key_untrusted(body)
                info = encode_client_info(self._private, server, self._entropy(NONCE_LENGTH))
                self._server = server
                self._control.appendleft(frames.encode_frame(frames.CLIENT_INFO, info))
                if self._preferred:
                    self._note_preferred()
            elif kind == frames.SERVER_INFO:
                limit = decode_server_info_untrusted(body, self._private, self._server)
                self._bucket = TokenBucket(limit, now) if limit is not None else None
                self.greeted = True
                self._greeting_deadline = math.inf
                self._silence_deadline = now + SILENCE_LIMIT
                self._say(Greeted(self._server, limit))
            else:
                self.drops[UNKNOWN_FRAME] += 1
        except BadPacket as error:
            self.fail(str(error))

    def _on_peer_gone(self, body: bytes) -> None:
        if len(body) < KEY_LENGTH:
            self.drops[SHORT_FRAME] += 1
            return
        # Old servers send no reason: the peer disconnected.
        reason = body[KEY_LENGTH] if len(body) > KEY_LENGTH else frames.GONE_DISCONNECTED
        self._say(PeerGone(body[:KEY_LENGTH], reason))

    def _on_ping(self, body: bytes) -> None:
        if len(body) < frames.PING_LENGTH:
            self.drops[SHORT_FRAME] += 1
        elif len(self._control) >= CONTROL_LIMIT:
            self.drops[TOO_MANY_PINGS] += 1
        else:
            self._control.append(frames.encode_frame(frames.PONG, body[: frames.PING_LENGTH]))

    def _on_pong(self, body: bytes, now: float) -> None:
        if self._ping is None or body[: frames.PING_LENGTH] != self._ping[0]:
            self.drops[STRAY_PONG] += 1
            return
        self._say(PongArrived(now - self._ping[1]))
        self._ping = None
        self._pong_deadline = math.inf

    def _on_restarting(self, body: bytes) -> None:
        if len(body) < frames.RESTARTING_BODY.size:
            self.drops[SHORT_FRAME] += 1
            return
        reconnect_in, try_for = frames.RESTARTING_BODY.unpack_from(body)
        self._say(ServerRestarting(reconnect_in / 1000, try_for / 1000))

    # --- from above

    def send(self, runs: list[Run], now: float) -> None:
        """Queue packets: [(destination, [packet, ...]), ...]. May be called before the server has greeted us."""
        if self.failure is not None:
            return
        for key, packets in runs:
            packets = self._sendable(packets)
            if self._bucket is not None:
                packets = self._affordable(self._bucket, packets, now)
            if packets:
                self._queue.append((key, packets))
                self.queued_bytes += weigh(packets)
        while self.queued_bytes > QUEUE_LIMIT:
            self._drop_oldest()

    def _affordable(self, bucket: TokenBucket, packets: list[bytes], now: float) -> list[bytes]:
        bucket.refill(now)
        affordable = []
        for packet in packets:
            cost = len(packet) + PACKET_OVERHEAD
            if cost <= bucket.tokens:
                bucket.tokens -= cost
                affordable.append(packet)
        self._count(RATE_LIMITED, len(packets) - len(affordable))
        return affordable

    def _drop_oldest(self) -> None:
        key, packets = self._queue.popleft()
        excess, dropped = self.queued_bytes - QUEUE_LIMIT, 0
        while excess > 0 and dropped < len(packets):
            excess -= len(packets[dropped]) + PACKET_OVERHEAD
            dropped += 1
        self.drops[QUEUE_FULL] += dropped
        self.queued_bytes -= weigh(packets[:dropped])
        if dropped < len(packets):
            self._queue.appendleft((key, packets[dropped:]))

    def prefer(self, preferred: bool) -> None:
        """Tell the server whether this region is our home."""
        if preferred != self._preferred:
            self._preferred = preferred
            if self._server is not None:
                self._note_preferred()

    def _note_preferred(self) -> None:
        note = frames.encode_frame(frames.NOTE_PREFERRED, bytes((self._preferred,)))
        # Only the newest wish counts, so a home that flaps cannot pile them up.
        for waiting in self._control:
            if waiting[0] == frames.NOTE_PREFERRED:
                self._control.remove(waiting)
                break
        self._control.append(note)

    def ping(self, now: float) -> None:
        """Is the stream alive? A PongArrived, or failure within PONG_TIMEOUT. One ping is out at a time."""
        if self.greeted and self._ping is None and self.failure is None:
            token = self._entropy(frames.PING_LENGTH)
            self._ping = (token, now)
            self._pong_deadline = now + PONG_TIMEOUT
            self._control.append(frames.encode_frame(frames.PING, token))

    # --- down, timers, facts

    def transmit(self, now: float) -> bytes:
        """The next burst to go down, in one piece; empty when there is nothing."""
        if self._server is None or self.failure is not None:
            return b""
        pieces = list(self._control)
        self._control.clear()
        runs: list[Run] = []
        weight, room = 0, BURST_PACKETS
        while self._queue and room and weight < BURST_LIMIT:
            key, packets = self._queue.popleft()
            fitting = fit(packets[:room], BURST_LIMIT - weight)
            if fitting < len(packets):
                self._queue.appendleft((key, packets[fitting:]))
                packets = packets[:fitting]
            runs.append((key, packets))
            room -= fitting
            weight += weigh(packets)
        self.queued_bytes -= weight
        if runs:
            pieces.append(frames.encode_packets(frames.SEND_PACKET, runs))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def take_unsent(self) -> list[Run]:
        """What never went down, for the machine of the next connection."""
        unsent, self._queue, self.queued_bytes = list(self._queue), deque(), 0
        return unsent

    def next_timer(self) -> float:
        if self.failure is not None:
            return math.inf
        return min(self._greeting_deadline, self._silence_deadline, self._pong_deadline)

    def handle_timer(self, now: float) -> None:
        if self.failure is not None:
            return
        if now >= self._greeting_deadline:
            self.fail("the relay did not greet us in time")
        elif now >= self._pong_deadline:
            self.fail("the relay did not answer a ping")
        elif now >= self._silence_deadline:
            self.fail("the relay fell silent")

    def take_messages(self) -> list[DerpMessage]:
        messages, self._messages = self._messages, []
        return messages

    def _say(self, message: DerpMessage) -> None:
        if len(self._messages) < MESSAGE_LIMIT:
            self._messages.append(message)
        else:
            self.drops[TOO_MANY_MESSAGES] += 1

    def _count(self, reason: str, number: int) -> None:
        if number:
            self.drops[reason] += number

    def statistics(self) -> DerpStatistics:
        return DerpStatistics(self.greeted, self.queued_bytes, dict(self.drops))

    @property
    def has_answers(self) -> bool:
        """Something other than packets waits to go out."""
        return bool(self._control)

    def fail(self, reason: str) -> None:
        """The connection is over, for this reason; the first one told is the one kept."""
        self.failure = self.failure or reason


def weigh(packets: list[bytes]) -> int:
    """Bytes these packets take as frames."""
    return sum(map(len, packets)) + PACKET_OVERHEAD * len(packets)


def fit(packets: list[bytes], budget: int) -> int:
    """How many of these packets, from the first, make at least one and at most `budget` bytes of frames."""
    count = 0
    for packet in packets:
        budget -= len(packet) + PACKET_OVERHEAD
        if budget < 0 and count:
            break
        count += 1
    return count
