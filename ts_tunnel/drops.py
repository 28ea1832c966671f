"""Why something was dropped: the keys of `Endpoint.drops`, each counted in packets."""

from __future__ import annotations

NOT_WIREGUARD = "not wireguard"
NO_SESSION = "no session"  # an index nobody has, usually of a session from before a restart
STALE_SESSION = "stale session"
FORGED = "forged"
REPLAYED = "replayed"  # usual: the same datagram came by a direct path and by the relay

WRONG_MAC = "wrong mac"
NO_COOKIE = "no cookie"
TOO_BUSY = "too busy"
UNKNOWN_KEY = "unknown key"
STALE_INITIATION = "stale initiation"  # usual, for the same reason as replayed
HURRIED_INITIATION = "hurried initiation"
REPLIES_FULL = "replies full"

STAGED_TOO_LONG = "staged too long"
STAGED_TOO_MANY = "staged too many"
UNKNOWN_PEER = "unknown peer"
UNUSABLE_KEY = "unusable key"
MESSAGES_FULL = "messages full"
