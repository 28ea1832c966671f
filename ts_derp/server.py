"""DerpServer: the relay itself, sans-IO, for any number of connections. What derper does, for one machine.

Owns admission, who is connected under which key, fair bounded queues, peer-gone notices and keep-alives. Refuses to
know sockets, TLS and HTTP: a shell accepts, upgrades (`upgrade_headers`) and carries bytes. No mesh: one server is a
whole region. Rules: derp/derpserver/derpserver.go.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ts_base.box import NONCE_LENGTH
from ts_base.budget import Budget
from ts_base.errors import BadPacket
from ts_base.keys import NodePrivate, NodePublic
from ts_base.timers import Timers
from ts_derp import frames
from ts_derp.frames import MAX_PACKET_LENGTH, FrameReader
from ts_derp.greeting import (
    RateLimit,
    TokenBucket,
    decode_client_info_untrusted,
    encode_server_info,
    encode_server_key,
)
from ts_derp.outbox import Outbox

GREETING_TIMEOUT = 10.0
KEEP_ALIVE_INTERVAL = 60.0
KEEP_ALIVE_JITTER = 5.0
WRITE_TIMEOUT = 2.0  # for the shell: a client that does not read for this long is disconnected
CONNECTION_LIMIT = 4096
CONTROL_LIMIT = 1024  # frames other than packets waiting for one client
GONE_INTERVAL, GONE_BURST = 1.0, 3
PING_LIMIT = 1000
DISCO_MAGIC = b"TS\xf0\x9f\x92\xac"

UNKNOWN_DESTINATION = "derp.unknown_destination"
CONTROL_FULL = "derp.notices_full"
PINGS_TOO_FAST = "derp.pings_too_fast"
UNKNOWN_FRAME = "derp.unknown_frame"
REFUSED_CONNECTION = "derp.too_many_connections"
CONNECTION_GONE = "derp.receiver_gone"


@dataclass(frozen=True, slots=True)
class ClientAdmitted:
    connection: int
    key: NodePublic


@dataclass(frozen=True, slots=True)
class ClientClosed:
    """The server is done with this connection: write what transmit() still gives, then close the stream."""

    connection: int
    reason: str


ServerMessage = ClientAdmitted | ClientClosed


class _Client:
    """One connection, from its first byte."""

    __slots__ = (
        "bucket",
        "closed",
        "control",
        "gone_notices",
        "heard",
        "id",
        "key",
        "outbox",
        "pong",
        "preferred",
        "reader",
    )

    def __init__(self, number: int, drops: Counter[str]) -> None:
        self.id = number
        self.key = b""  # empty until admitted
        self.closed = False
        self.preferred = False
        self.reader = FrameReader(frames.SEND_PACKET, frames.MAX_CLIENT_INFO_LENGTH)
        self.bucket: TokenBucket | None = None
        self.control: deque[bytes] = deque()
        self.pong = b""
        self.outbox = Outbox(drops)
        self.heard: set[bytes] = set()  # whose packets it was given: it is told when they go
        self.gone_notices = Budget(1 / GONE_INTERVAL, GONE_BURST)

    @property
    def is_ready(self) -> bool:
        return bool(self.control or self.pong or self.outbox)


class DerpServerStatistics(NamedTuple):
    """The relay right now, and what it has dropped so far."""

    connections: int
    clients: int
    watchers: int
    homes: int
    drops: Mapping[str, int]


class DerpServer:
    """The verbs, for a shell with a reader and a writer task per connection:

    `connect(now)` a stream was upgraded; its number, or None when there is no room
    `receive(connection, data, now)` bytes from it; afterwards wake the writers of `take_ready()`
    `transmit(connection, now)` bytes for it, in one piece; write within WRITE_TIMEOUT and ask again until it is empty
    `disconnect(connection, now)` the stream ended
    `pause_until(connection)` when to read from it again: in the past unless it is over its rate
    `next_timer()`, `handle_timer(now)` as everywhere; afterwards `take_ready()` again
    `take_messages()` ClientAdmitted and ClientClosed; a closed connection is still to be disconnected
    """

    def __init__(
        self,
        private: NodePrivate,
        *,
        entropy: Callable[[int], bytes],
        admit: Callable[[bytes], bool] = lambda key: True,
        rate_limit: RateLimit | None = None,
        connection_limit: int = CONNECTION_LIMIT,
    ) -> None:
        self._private = private
        self._entropy = entropy
        self._admit = admit  # asked with the raw node key a client has proven to hold
        self._rate_limit = rate_limit  # told to clients, and enforced by `pause_until`
        self._connection_limit = connection_limit
        self._clients: dict[int, _Client] = {}
        self._by_key: dict[bytes, list[_Client]] = {}  # the most recently active one is last and gets the packets
        self._watchers: dict[bytes, set[int]] = {}  # key -> connections that received from it
        self._timers: Timers[tuple[str, int]] = Timers()
        self._next_number = 1
        self._ready: set[int] = set()
        self._messages: list[ServerMessage] = []
        self.drops: Counter[str] = Counter()

    @property
    def public(self) -> NodePublic:
        return self._private.public

    @property
    def upgrade_headers(self) -> tuple[tuple[str, str], ...]:
        """Of the 101 answer to `GET /derp` with `Upgrade: DERP`, beside those of every upgrade."""
        return ("Derp-Version", str(frames.PROTOCOL_VERSION)), ("Derp-Public-Key", self.public.raw.hex())

    @property
    def connected_keys(self) -> frozenset[bytes]:
        return frozenset(self._by_key)

    # --- connections

    def connect(self, now: float) -> int | None:
        if len(self._clients) >= self._connection_limit:
            self.drops[REFUSED_CONNECTION] += 1
            return None
        number, self._next_number = self._next_number, self._next_number + 1
        client = self._clients[number] = _Client(number, self.drops)
        self._timers.set(("greeting", number), now + GREETING_TIMEOUT)
        self._notify(client, frames.encode_frame(frames.SERVER_KEY, encode_server_key(self.public)))
        return number

    def disconnect(self, connection: int, now: float) -> None:
        client = self._clients.pop(connection, None)
        if client is None:
            return
        self._retire(client)
        if client.outbox:
            self.drops[CONNECTION_GONE] += len(client.outbox)
        self._ready.discard(connection)

    def _close(self, client: _Client, reason: str) -> None:
        if not client.closed:
            self._retire(client)
            self._messages.append(ClientClosed(client.id, reason))

    def _retire(self, client: _Client) -> None:
        """Nobody finds this client any more."""
        client.closed = True
        for timer in ("greeting", "keep-alive"):
            self._timers.clear((timer, client.id))
        for source in client.heard:
            watchers = self._watchers.get(source)
            if watchers is not None:
                watchers.discard(client.id)
                if not watchers:
                    del self._watchers[source]
        client.heard.clear()
        siblings = self._by_key.get(client.key)
        if siblings is not None and client in siblings:
            siblings.remove(client)
            if not siblings:
                del self._by_key[client.key]
                self._tell_watchers(client.key)

    def _tell_watchers(self, key: bytes) -> None:
        for number in self._watchers.pop(key, ()):
            watcher = self._clients[number]
            watcher.heard.discard(key)
            self._notify(watcher, frames.encode_peer_gone(key, frames.GONE_DISCONNECTED))

    # --- from below

    def receive(self, connection: int, data: bytes | bytearray, now: float) -> None:
        client = self._clients.get(connection)
        if client is None or client.closed:
            return
        if client.bucket is not None:
            client.bucket.refill(now)
            client.bucket.tokens -= len(data)
        try:
            for kind, key, bodies in client.reader.feed(data):
                if client.key:
                    self._on_run(client, kind, key, bodies, now)
                elif kind == frames.CLIENT_INFO:
                    self._on_client_info(client, bodies[0], now)
                else:
                    raise BadPacket("a client must begin by saying who it is")
                if client.closed:
                    return
        except BadPacket as error:
            self._close(client, str(error))

    def _on_client_info(self, client: _Client, body: bytes, now: float) -> None:
        key = decode_client_info_untrusted(body, self._private)
        if not self._admit(key.raw):
            self._close(client, "not admitted")
            return
        client.key = key.raw
        self._by_key.setdefault(key.raw, []).append(client)
        self._timers.clear(("greeting", client.id))
        self._schedule_keep_alive(client, now)
        if self._rate_limit is not None:
            client.bucket = TokenBucket(self._rate_limit, now)
        info = encode_server_info(self._private, key, self._entropy(NONCE_LENGTH), self._rate_limit)
        self._notify(client, frames.encode_frame(frames.SERVER_INFO, info))
        self._messages.append(ClientAdmitted(client.id, key))

    def _on_run(self, client: _Client, kind: int, key: bytes, bodies: list[bytes], now: float) -> None:
        siblings = self._by_key[client.key]
        if siblings[-1] is not client:
            siblings.remove(client)
            siblings.append(client)
        if key:
            self._relay(client, key, bodies, now)
        elif kind == frames.PING:
            self._on_ping(client, bodies[0])
        elif kind == frames.NOTE_PREFERRED:
            if len(bodies[0]) != 1:
                raise BadPacket("preference of a wrong size")
            client.preferred = bodies[0] != b"\0"
        elif kind in (frames.FORWARD_PACKET, frames.WATCH_CONNS, frames.CLOSE_PEER):
            raise BadPacket("mesh frames are not for clients")
        elif kind == frames.SEND_PACKET:
            raise BadPacket("packet without a destination")
        else:
            self.drops[UNKNOWN_FRAME] += 1

    def _on_ping(self, client: _Client, body: bytes) -> None:
        if not frames.PING_LENGTH <= len(body) <= PING_LIMIT:
            raise BadPacket("ping of a wrong size")
        if client.pong:
            self.drops[PINGS_TOO_FAST] += 1
            return
        client.pong = frames.encode_frame(frames.PONG, body[: frames.PING_LENGTH])
        self._ready.add(client.id)

    # --- packets

    def _relay(self, sender: _Client, destination: bytes, packets: list[bytes], now: float) -> None:
        if max(map(len, packets)) > MAX_PACKET_LENGTH:
            raise BadPacket("packet over 64 KiB")
        receivers = self._by_key.get(destination)
        disco = [packet for packet in packets if packet.startswith(DISCO_MAGIC)]
        if receivers is None:
            self.drops[UNKNOWN_DESTINATION] += len(packets)
            for _ in disco[: GONE_BURST + 1]:
                self._tell_not_here(sender, destination, now)
            return
        receiver = receivers[-1]
        if disco:
            receiver.outbox.add_disco(sender.key, disco)
            packets = [packet for packet in packets if not packet.startswith(DISCO_MAGIC)]
        if packets:
            receiver.outbox.add(sender.key, packets)
        self._ready.add(receiver.id)

    def _tell_not_here(self, sender: _Client, destination: bytes, now: float) -> None:
        if sender.gone_notices.take(now):
            self._notify(sender, frames.encode_peer_gone(destination, frames.GONE_NOT_HERE))

    def _notify(self, client: _Client, frame: bytes) -> None:
        if len(client.control) >= CONTROL_LIMIT:
            self.drops[CONTROL_FULL] += 1
            return
        client.control.append(frame)
        self._ready.add(client.id)

    # --- down

    def transmit(self, connection: int, now: float) -> bytes:
        client = self._clients.get(connection)
        if client is None or not client.is_ready:
            return b""
        pieces = [*client.control, client.pong]
        client.control.clear()
        client.pong = b""
        runs = client.outbox.take()
        if not client.closed:
            for source, _ in runs:
                if source not in client.heard and source in self._by_key:
                    client.heard.add(source)
                    self._watchers.setdefault(source, set()).add(client.id)
        if runs:
            pieces.append(frames.encode_packets(frames.RECV_PACKET, runs))
        return b"".join(pieces)

    def take_ready(self) -> set[int]:
        """Connections that have something to transmit and were not named since it came."""
        ready, self._ready = self._ready, set()
        return ready

    def pause_until(self, connection: int) -> float:
        client = self._clients.get(connection)
        return client.bucket.solvent_at() if client is not None and client.bucket is not None else -math.inf

    # --- timers and facts

    def _schedule_keep_alive(self, client: _Client, now: float) -> None:
        jitter = int.from_bytes(self._entropy(2), "big") / 0xFFFF * KEEP_ALIVE_JITTER
        self._timers.set(("keep-alive", client.id), now + KEEP_ALIVE_INTERVAL + jitter)

    def next_timer(self) -> float:
        return self._timers.next()

    def handle_timer(self, now: float) -> None:
        for timer, number in self._timers.pop_due(now):
            client = self._clients[number]
            if timer == "greeting":
                self._close(client, "it did not say who it is")
            else:
                self._notify(client, frames.encode_frame(frames.KEEP_ALIVE))
                self._schedule_keep_alive(client, now)

    def take_messages(self) -> list[ServerMessage]:
        messages, self._messages = self._messages, []
        return messages

    def statistics(self) -> DerpServerStatistics:
        return DerpServerStatistics(
            connections=len(self._clients),
            clients=len(self._by_key),
            watchers=len(self._watchers),
            homes=sum(client.preferred for client in self._clients.values()),
            drops=dict(self.drops),
        )
