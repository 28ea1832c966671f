"""What we tell peers inside the tunnel, and hear from them: TSMP beside the packets of the overlay.

Owns what is said when (dataplane notes E.8) and the bounds on it: pongs, refusals, our own pings, and the disco key
that begins a session. The bodies are tsmp.py's. Refuses to know sessions: what it says waits for the next transmit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ts_base.errors import BadPacket
from ts_base.who import PeerId, PeerRun
from ts_dataplane import tsmp
from ts_dataplane.filter import NOT_LOCAL
from ts_dataplane.packets import Parsed
from ts_dataplane.tables import NOT_OWNER, Tables
from ts_tunnel.messages import Message, SessionEstablished

UNKNOWN, FULL, REFUSALS_LIMITED = "engine.tsmp_unknown", "engine.tsmp_full", "engine.refusals_limited"

OUTBOUND_LIMIT = 256  # packets that wait for the next transmit
MESSAGES_LIMIT = 256
REFUSALS_PER_SECOND = 100


class TsmpTalk:
    """One per engine, which empties `outbound` and `messages` by putting new lists in their place."""

    def __init__(self, drops: Counter[str], disco_key: bytes | None) -> None:
        self.peerapi_port = 0  # told in every pong; 0 where we have none
        self.outbound: list[PeerRun] = []
        self.messages: list[Message | tsmp.TsmpMessage] = []
        self._drops = drops
        self._disco_key = disco_key
        self._refusing_since, self._refusals = 0.0, 0

    def hear(self, tables: Tables, peer: PeerId, packet: bytes, parsed: Parsed, *, is_usual: bool) -> None:
        """A TSMP packet whose source `peer` may speak for, if only as one of several exits: then to refuse a dial."""
        try:
            message = tsmp.decode_untrusted(peer, packet, parsed)
        except BadPacket:
            self._drops[UNKNOWN] += 1
            return
        if not tables.is_local(parsed.destination):
            self._drops[NOT_LOCAL] += 1
        elif not is_usual and not isinstance(message, tsmp.TsmpReject):
            self._drops[NOT_OWNER] += 1
        elif isinstance(message, tsmp.TsmpPing):
            self._say(peer, tsmp.encode_pong(parsed.destination, parsed.source, message.token, self.peerapi_port))
        elif len(self.messages) >= MESSAGES_LIMIT:
            self._drops[FULL] += 1
        elif isinstance(message, tsmp.TsmpReject):
            self.messages.append(message._replace(is_usual=is_usual))
        else:
            self.messages.append(message)

    def refuse(self, tables: Tables, peer: PeerId, opening: Parsed, now: float) -> None:
        """The filter dropped a connection's first packet: say so, that its dial need not time out."""
        if now - self._refusing_since >= 1.0:
            self._refusing_since, self._refusals = now, 0
        self._refusals += 1
        if self._refusals > REFUSALS_PER_SECOND:
            self._drops[REFUSALS_LIMITED] += 1
            return
        known = tables.peers.get(peer)
        shielded = tables.shields_up or known is None or known.routes.jailed
        self._say(peer, tsmp.encode_rejected(opening, "S" if shielded else "A"))

    def ping(self, tables: Tables, peer: PeerId, token: bytes) -> bool:
        """Ask `peer` for a TsmpPong with these 8 bytes; False where we share no address family with it."""
        ends = tables.addresses_towards(peer)
        if ends is not None:
            self._say(peer, tsmp.encode_ping(*ends, token))
        return ends is not None

    def follow(self, told: Iterable[Message], tables: Tables) -> list[tuple[PeerId, bytes]]:
        """Keep what the tunnel tells for the shell; returns what new sessions begin with.

        That is our disco key, so that a peer that restarted finds our paths without asking control.
        """
        first: list[tuple[PeerId, bytes]] = []
        for message in told:
            self.messages.append(message)
            if isinstance(message, SessionEstablished) and self._disco_key is not None:
                known, ends = tables.peers.get(message.peer), tables.addresses_towards(message.peer)
                if known is not None and known.routes.takes_adverts and ends is not None:
                    advert = tsmp.encode_disco_key(*ends, self._disco_key)
                    first.append((message.peer, known.as_it_knows_us([advert])[0]))
        return first

    def _say(self, peer: PeerId, packet: bytes) -> None:
        if len(self.outbound) >= OUTBOUND_LIMIT:
            self._drops[FULL] += 1
        else:
            self.outbound.append((peer, [packet]))
