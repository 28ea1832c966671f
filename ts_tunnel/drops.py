"""Why something was dropped: the keys of `Endpoint.drops`, each counted in packets."""

from __future__ import annotations

NOT_WIREGUARD = "tunnel.not_wireguard"
NO_SESSION = "tunnel.no_session"  # an index nobody has, usually of a session from before a restart
STALE_SESSION = "tunnel.stale_session"
FORGED = "tunnel.forged"
REPLAYED = "tunnel.replayed"  # usual: the same datagram came by a direct path and by the relay

WRONG_MAC = "tunnel.wrong_mac"
NO_COOKIE = "tunnel.no_cookie"
TOO_BUSY = "tunnel.too_busy"
UNKNOWN_KEY = "tunnel.unknown_key"
STALE_INITIATION = "tunnel.stale_initiation"  # usual, for the same reason as replayed
HURRIED_INITIATION = "tunnel.hurried_initiation"
REPLIES_FULL = "tunnel.replies_full"

STAGED_TOO_LONG = "tunnel.staged_too_long"
STAGED_TOO_MANY = "tunnel.staged_too_many"
UNKNOWN_PEER = "tunnel.unknown_peer"
UNUSABLE_KEY = "tunnel.unusable_key"
MESSAGES_FULL = "tunnel.messages_full"
