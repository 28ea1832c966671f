"""Disco messages on their way out: sealed, sorted by path, bounded; and the pings among them that wait for a pong.

Owns nonces, transactions and the waiting datagrams. Decides nothing: its callers say who is told what.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from ts_base.who import Direct, Path, PathRun, PeerId
from ts_dataplane import geneve
from ts_dataplane.disco import TRANSACTION_LENGTH, Bind, Boxes, Message, Ping
from ts_dataplane.ping_ledger import Outstanding, PingLedger

MAX_WAITING = 4096


class DiscoOutbox:
    def __init__(self, boxes: Boxes, node_key: bytes, entropy: Callable[[int], bytes], drops: Counter[str]) -> None:
        self.ledger = PingLedger()
        self.crowded_out: list[Outstanding] = []
        self._boxes = boxes
        self.node_key = node_key
        self._entropy = entropy
        self._drops = drops
        self._out: dict[Path, list[bytes]] = {}
        self._waiting = 0

    def send(self, disco_key: bytes, path: Path, message: Message) -> bool:
        return self._put(path, lambda: self._boxes.seal(disco_key, message))

    def knock(self, server_disco: bytes, address: Direct, vni: int, message: Bind) -> bool:
        """A bind message to a peer relay: its Geneve header says "control", unlike that of what travels through it."""
        header = geneve.encode_header(geneve.DISCO, vni, control=True)
        return self._put(address, lambda: header + self._boxes.seal(server_disco, message))

    def ping(
        self, peer: PeerId, disco_key: bytes, path: Path, now: float, *, padding: int = 0, mtu: int = 0, token: int = 0
    ) -> bool:
        transaction = self._entropy(TRANSACTION_LENGTH)
        crowded_out = self.ledger.add(transaction, Outstanding(peer, disco_key, path, now, mtu, token))
        if crowded_out is not None:
            self.crowded_out.append(crowded_out)
        return self.send(disco_key, path, Ping(transaction, self.node_key, padding))

    def _put(self, path: Path, make: Callable[[], bytes]) -> bool:
        if self._waiting >= MAX_WAITING:
            self._drops["disco.outbox_full"] += 1
            return False
        self._waiting += 1
        self._out.setdefault(path, []).append(make())
        return True

    def transmit(self) -> list[PathRun]:
        if not self._out:
            return []
        out, self._out, self._waiting = self._out, {}, 0
        return list(out.items())
