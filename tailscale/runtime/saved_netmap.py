"""The last netmap, kept where control asks for it, so that a device comes up while control is away.

Owns: the entry that holds it, when it is written, and control's word about that (`cache-network-maps`). Refuses to
know: what a netmap is good for. Upstream: ipn/ipnlocal/netmapcache and tailcfg's two attributes; absent means discard.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping

import trio

from tailscale.runtime.saved_state import SavedState
from tailscale.runtime.stepping import in_steps
from ts_base.errors import BadPacket
from ts_base.keys import NodePublic
from ts_control.gojson import encode_json
from ts_control.map_reader import decode_map_response_steps
from ts_control.netmap import NetMap
from ts_control.wire import MapResponse

NETMAP = "netmap"  # the entry
WANTED, UNWANTED = "cache-network-maps", "disable-cache-network-maps"  # the second wins
SWITCH = "TS_USE_CACHED_NETMAP"  # upstream's own; a word for no is as if control did not ask
NO = {"0", "f", "false"}
SETTLE, PAUSE = 5.0, 60.0  # from a change until it is written, and between two writes
PEERS_PER_STEP = 200  # some 1 ms
NOTHING = b"{}"

log = logging.getLogger("tailscale.control")


class SavedNetMap:
    """One device's. `note` every netmap that control told."""

    def __init__(self, saved: SavedState, environment: Mapping[str, str]) -> None:
        self._saved = saved
        self._is_allowed = environment.get(SWITCH, "").lower() not in NO
        self._told: NetMap | None = None
        self._may_be_kept = True
        self._changed = trio.Event()

    async def remembered(self, node_key: NodePublic, now: float) -> NetMap | None:
        """What control told this very node in an earlier run; None where nothing was kept, or it cannot be read."""
        entry = self._saved.read(NETMAP)
        if entry is None or entry == NOTHING or not self._is_allowed:
            return None
        try:
            netmap = NetMap.empty().apply(await in_steps(decode_map_response_steps(entry)), now)
        except BadPacket as problem:
            log.info("the netmap of the last run is not known any more: %s", problem)
            return None
        return netmap if netmap.self_node.key == node_key else None

    def note(self, told: NetMap) -> None:
        """This is what control says now."""
        caps = told.self_node.cap_map
        if self._is_allowed and WANTED in caps and UNWANTED not in caps:
            self._told = told
            self._changed.set()
        else:
            self.forget()

    def forget(self) -> None:
        """Nothing is kept any more."""
        self._told = None
        if self._may_be_kept and self._saved.read(NETMAP) not in (None, NOTHING):
            self._saved.keep(NETMAP, NOTHING)
        self._may_be_kept = False

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Write what changes, not too often: the whole of it each time."""
        while True:
            await self._changed.wait()
            await trio.sleep(SETTLE)
            self._changed = trio.Event()
            if self._told is not None:
                self._keep(await in_steps(_entry(self._told)))
            await trio.sleep(PAUSE)

    def keep_now(self) -> None:
        """The last chance, when the device ends."""
        if self._told is None or not self._changed.is_set():
            return
        steps = _entry(self._told)
        try:
            while True:
                next(steps)
        except StopIteration as done:
            self._keep(done.value)

    def _keep(self, entry: bytes) -> None:
        self._may_be_kept = True
        if not self._saved.keep_if_small(NETMAP, entry):
            log.info("a netmap of %d bytes is too large to be kept here", len(entry))
            self.forget()


def _entry(told: NetMap) -> Generator[None, None, bytes]:
    """As a whole message of control's would have said it."""
    whole = MapResponse(
        node=told.self_node,
        derp_map=told.derp_map,
        dns_config=told.dns,
        domain=told.domain,
        collect_services=told.collect_services,
        packet_filters=dict(told.named_filters),
        user_profiles=tuple(told.user_profiles.values()),
        ssh_policy=dict(told.ssh_policy) if told.ssh_policy is not None else None,
        tka_info=told.tka,
    )
    pieces = [encode_json(whole)[:-1], b',"Peers":[']
    numbers = list(told.peers)
    for start in range(0, len(numbers), PEERS_PER_STEP):
        nodes = [encode_json(told.as_told(number)) for number in numbers[start : start + PEERS_PER_STEP]]
        pieces.append((b"," if start else b"") + b",".join(nodes))
        yield
    return b"".join([*pieces, b"]}"])
