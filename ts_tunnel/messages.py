"""What an endpoint tells: rare facts for the shell, counts for whoever asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ts_base.who import PeerId


class SessionEstablished(NamedTuple):
    """From now on packets to `peer` are sealed at once; said anew for every rekey."""

    peer: PeerId
    at: float


class SessionLost(NamedTuple):
    """Nothing can be sealed for `peer` without a new handshake. `reason` is one of the constants below."""

    peer: PeerId
    reason: str


Message = SessionEstablished | SessionLost

EXPIRED = "expired"  # three minutes without a new session: normal for a peer nobody talks to
NO_ANSWER = "no answer"  # ninety seconds of initiations brought no response
KEY_CHANGED = "key changed"  # our own key, or the peer's


class PeerSilence(NamedTuple):
    """What a peer owes us, for whoever judges the path that our datagrams take to it."""

    asking_since: float  # the first initiation that no session has answered; infinity: none is open
    initiations: int  # how many went out since, that one included
    packets_in: int  # authentic data and keepalives ever heard: while this grows, the old session works


class PeerStatistics(NamedTuple):
    """Bytes are those of the encrypted datagrams; handshakes are not counted."""

    handshake_at: float | None  # on the clock of `now`
    packets_in: int = 0
    bytes_in: int = 0
    packets_out: int = 0
    bytes_out: int = 0
    staged: int = 0


class EndpointStatistics(NamedTuple):
    peers: int
    active_peers: int  # those talked to at least once
    sessions: int
    pending_handshakes: int
    drops: Mapping[str, int]
