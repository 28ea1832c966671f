"""The devices of an embedded tailnet over time: what changed, who must hear of it, and when.

Owns every deadline (keep-alive, offline, ephemeral, expiry), the open map streams and the news not told yet. A change
is told at once, those right behind it together; of a device that is joining once it has said where it is, because what
costs most in a large tailnet is that everybody is told. Knows nothing of auth keys, administrators, Noise or HTTP.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable

import msgspec

from ts_base.ip import Prefix
from ts_base.timers import Timers
from ts_control.directory import MAX_ENDPOINTS, Directory, DirectoryError, Enrolled, parse_routes_untrusted
from ts_control.framing import encode_frame
from ts_control.policy import Policy, approves
from ts_control.policy_index import PolicyIndex
from ts_control.server_maps import ONLINE, WHOLE, Changes, MapWriter, ServedMap
from ts_control.wire import MapRequest

KEEP_ALIVE_INTERVAL = 50.0
OFFLINE_GRACE = 2.0  # a stream that comes back sooner was never away
EPHEMERAL_TIMEOUT = 120.0
BATCH_DELAY = 0.01
NEWCOMER_DELAY = 0.1  # whoever has registered asks for its map next, and then says where it is
MAX_STREAMS = 20_000

_PUBLISH: tuple[str, Hashable] = ("publish", None)
_EXPIRY, _OFFLINE, _EPHEMERAL, _KEEP_ALIVE = "expiry", "offline", "ephemeral", "keep alive"


class News:
    """`note` what happened to a device, then `settle`: whoever must hear of it has it queued."""

    def __init__(
        self,
        directory: Directory,
        maps: MapWriter,
        *,
        wall_clock: Callable[[], float],
    ) -> None:
        self.directory = directory
        self.maps = maps
        self.changes = Changes()
        self.drops: Counter[str] = Counter()
        self._wall_clock = wall_clock
        self._streams: dict[ServedMap, None] = {}
        self._streams_of: dict[int, list[ServedMap]] = {}
        self._published_at = -BATCH_DELAY
        self._publish_at = math.inf
        self._timers: Timers[tuple[str, Hashable]] = Timers()
        self._ready: dict[object, None] = {}
        self.policy = maps.policy.policy

    def take_ready(self) -> list[object]:
        """The owners for which something was queued since last asked."""
        ready = list(self._ready)
        self._ready.clear()
        return ready

    def wake(self, owner: object) -> None:
        self._ready[owner] = None

    # Streams

    @property
    def streams(self) -> int:
        return len(self._streams)

    def open_stream(self, device: Enrolled, compress: bool, owner: object, now: float) -> ServedMap:
        """A stream that holds the full map; the others hear that the device is online."""
        if len(self._streams) >= MAX_STREAMS:
            self.drops["control.map_streams_full"] += 1
            raise DirectoryError("too many map streams")
        self._timers.clear((_OFFLINE, device.id))
        self._timers.clear((_EPHEMERAL, device.id))
        if not device.online:
            device.online = True
            self.note(device, {ONLINE}, now)
        self.settle(now)
        stream = ServedMap(device.id, compress, owner)
        self._streams[stream] = None
        self._streams_of.setdefault(device.id, []).append(stream)
        self._put(stream, self.one_map(device, compress, stream), now)
        return stream

    def one_map(self, device: Enrolled, compress: bool, stream: ServedMap | None = None) -> bytes:
        return encode_frame(self.maps.full(device, stream, self._wall_clock()), compressed=compress)

    def close_stream(self, stream: ServedMap, now: float) -> None:
        """The client, or the connection under it, is gone."""
        if stream.closed:
            return
        stream.closed = True
        del self._streams[stream]
        self._timers.clear((_KEEP_ALIVE, stream))
        remaining = self._streams_of[stream.device]
        remaining.remove(stream)
        if not remaining:
            del self._streams_of[stream.device]
            self._timers.set((_OFFLINE, stream.device), now + OFFLINE_GRACE)
            if self.directory.devices[stream.device].ephemeral:
                self._timers.set((_EPHEMERAL, stream.device), now + EPHEMERAL_TIMEOUT)

    def abandon(self, owner: object, now: float) -> None:
        """The connection of `owner` ended."""
        for stream in [stream for stream in self._streams if stream.owner is owner]:
            self.close_stream(stream, now)
        self._ready.pop(owner, None)

    def send(self, device_id: int, message: bytes, now: float) -> None:
        """Queue one message on every stream of one device."""
        for stream in list(self._streams_of.get(device_id, ())):
            self._put(stream, encode_frame(message, compressed=stream.compress), now)

    def _put(self, stream: ServedMap, framed: bytes, now: float) -> None:
        self._ready[stream.owner] = None
        if stream.put(framed):
            self._timers.set((_KEEP_ALIVE, stream), now + KEEP_ALIVE_INTERVAL)
        else:
            self.drops["control.map_read_too_slowly"] += 1
            self.close_stream(stream, now)

    # Time

    def next_timer(self) -> float:
        return self._timers.next()

    def handle_timer(self, now: float) -> None:
        for kind, who in self._timers.pop_due(now):
            if kind == _KEEP_ALIVE and isinstance(who, ServedMap):
                self._put(who, encode_frame(self.maps.keep_alive(), compressed=who.compress), now)
            elif isinstance(who, int) and who in self.directory.devices:
                self._device_timer(kind, self.directory.devices[who], now)
        self.settle(now)

    def _device_timer(self, kind: str, device: Enrolled, now: float) -> None:
        if kind == _OFFLINE:
            device.online, device.last_seen = False, self._wall_clock()
            self.note(device, {ONLINE}, now)
        elif kind == _EPHEMERAL:
            self.remove(device)
        elif device.expires and device.expires <= self._wall_clock():
            device.expired = True
            self.note(device, {"expired"}, now)
        else:
            self._watch_expiry(device, now)

    def _watch_expiry(self, device: Enrolled, now: float) -> None:
        if device.expires and not device.expired:
            # Wall clocks get set: this timer only says when to look again.
            self._timers.set((_EXPIRY, device.id), now + max(0.0, device.expires - self._wall_clock()))
        else:
            self._timers.clear((_EXPIRY, device.id))

    # News

    def learn(self, device: Enrolled, request: MapRequest, now: float) -> None:
        """Take over what a device says of itself; only what differs is news."""
        changed: set[str] = set()
        if not request.disco_key.is_zero and request.disco_key != device.disco:
            device.disco = request.disco_key
            changed.add("disco")
        endpoints = request.endpoints[:MAX_ENDPOINTS]
        if endpoints and endpoints != device.endpoints:
            device.endpoints = endpoints
            changed.add("endpoints")
        device.version = request.version or device.version
        info = request.hostinfo
        if info is not None:
            home = device.home_region
            if info.net_info is None:
                info = msgspec.structs.replace(info, net_info=device.hostinfo.net_info)
            same_net = msgspec.structs.replace(info, net_info=device.hostinfo.net_info)
            if same_net != device.hostinfo:
                changed.add("hostinfo")
            device.hostinfo = info
            if device.home_region != home:
                changed.add("home_region" if device.home_region else "hostinfo")  # a patch cannot say "none"
        if changed:
            self.note(device, changed, now)

    def note(self, device: Enrolled, changed: set[str], now: float) -> None:
        """The one place where a change to a device becomes news, and where what follows from it is derived."""
        if changed & {"hostinfo", "new"}:
            advertised = parse_routes_untrusted(device.hostinfo.routable_ips)
            if advertised != device.advertised:
                before, device.advertised = device.advertised, advertised
                self._approve_automatically(device)
                self.elect({*before, *advertised})
            if not device.renamed and device.hostinfo.hostname:
                self.directory.relabel(device, device.hostinfo.hostname)
        if changed & {ONLINE, "expired", "routes"}:
            self.elect(device.routes)
        if changed & {"expires", "expired", "new"}:
            self._watch_expiry(device, now)
        if device.ephemeral and device.id not in self._streams_of and "new" in changed:
            self._timers.set((_EPHEMERAL, device.id), now + EPHEMERAL_TIMEOUT)
        self.maps.forget(device.id)
        self.maps.policy.put(device.subject())
        if device.is_authorized == (device.id in self.maps.unauthorized):
            self.maps.unauthorized ^= {device.id}
        self.changes.devices.setdefault(device.id, set()).update(changed)

    def elect(self, routes: Iterable[Prefix]) -> None:
        for device_id in self.directory.elect_routers(routes):
            if device_id in self.directory.devices:
                self.maps.forget(device_id)
                self.changes.devices.setdefault(device_id, set()).add(WHOLE)

    def remove(self, device: Enrolled) -> None:
        for stream in self._streams_of.pop(device.id, []):
            del self._streams[stream]
            stream.closed = True
            self._timers.clear((_KEEP_ALIVE, stream))
            self._ready[stream.owner] = None
        for kind in (_OFFLINE, _EPHEMERAL, _EXPIRY):
            self._timers.clear((kind, device.id))
        self.directory.remove(device)
        self.maps.services.forget(device.id)
        self.elect(device.routes)
        self.maps.forget(device.id)
        self.maps.unauthorized -= {device.id}
        self.maps.policy.remove(device.id)
        self.changes.devices.pop(device.id, None)
        self.changes.removed.add(device.id)

    def use_policy(self, policy: Policy, now: float) -> None:
        self.policy = policy
        self.maps.policy = PolicyIndex(policy, (device.subject() for device in self.directory))
        for device in self.directory:
            if self._approve_automatically(device):
                self.note(device, {"routes"}, now)
        self.changes.policy = True

    def _approve_automatically(self, device: Enrolled) -> bool:
        allowed = frozenset(
            route
            for route in device.advertised
            if route not in device.approved
            and approves(self.policy, route, device.login, device.tags, device.addresses)
        )
        device.approved |= allowed
        return bool(allowed)

    def settle(self, now: float) -> None:
        """After anything happened: tell the streams now, or together with what follows within the batch delay."""
        if not self.changes:
            return
        ripe = min(self._ripe_at(now), self._publish_at)
        if ripe <= now:
            self._publish(now)
        elif ripe < self._publish_at:
            self._publish_at = ripe
            self._timers.set(_PUBLISH, ripe)

    def _ripe_at(self, now: float) -> float:
        """When the news should be told, if nothing is added to them."""
        joining = [self.directory.devices[number] for number, news in self.changes.devices.items() if "new" in news]
        if not joining or self.changes.removed or self.changes.policy or len(joining) < len(self.changes.devices):
            return self._published_at + BATCH_DELAY
        if all(device.home_region for device in joining):
            return self._published_at + BATCH_DELAY
        return now + (BATCH_DELAY if any(device.online for device in joining) else NEWCOMER_DELAY)

    def _publish(self, now: float) -> None:
        self._timers.clear(_PUBLISH)
        self._publish_at = math.inf
        changes, self.changes = self.changes, Changes()
        self._published_at = now
        framed: dict[tuple[int, bool], bytes] = {}
        for stream, message in self.maps.deltas(self._streams, changes):
            key = (id(message), stream.compress)  # the list keeps every message alive meanwhile
            if key not in framed:
                framed[key] = encode_frame(message, compressed=stream.compress)
            self._put(stream, framed[key], now)
