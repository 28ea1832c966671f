"""The constants of the WireGuard paper under the paper's names, and the bounds we add. Seconds unless a unit is named.

Section numbers are those of the WireGuard paper (Donenfeld, NDSS 2017). The bounds keep a stranger's flood, or a peer
that went mute, from costing more than a known share of processor and memory.
"""

from __future__ import annotations

# Section 6.1
REKEY_AFTER_MESSAGES = 1 << 60
REJECT_AFTER_MESSAGES = (1 << 64) - (1 << 13) - 1
REKEY_AFTER_TIME = 120.0
REJECT_AFTER_TIME = 180.0
REKEY_ATTEMPT_TIME = 90.0
REKEY_TIMEOUT = 5.0
KEEPALIVE_TIMEOUT = 10.0

# Section 6.2: an initiator that still receives on an old session renews it before its answers would need a new one.
REKEY_AFTER_TIME_RECEIVING = REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT
REKEY_TIMEOUT_JITTER = 0.333
NO_ANSWER_TIMEOUT = KEEPALIVE_TIMEOUT + REKEY_TIMEOUT
ERASE_AFTER_TIME = 3 * REJECT_AFTER_TIME

# Sections 5.4.6 and 5.4.7
PADDING_MULTIPLE = 16
REPLAY_WINDOW = 8192
COOKIE_LIFETIME = 120.0
INITIATION_SPACING = 0.020

# Section 5.3, with rates in place of queue lengths: nothing queues between these machines.
UNDER_LOAD_STICKINESS = 1.0
CALM_INITIATIONS_PER_SECOND = 128
SOURCE_INITIATIONS_PER_SECOND = 20
SOURCE_BURST = 5
SOURCE_REST_TIME = 1.0
SOURCE_TABLE_LIMIT = 4096
HANDSHAKES_PER_SECOND = 400  # of either kind; one costs about a quarter of a millisecond
COOKIE_REPLIES_PER_SECOND = 1000
REPLIES_LIMIT = 256

STAGED_PACKETS_LIMIT = 128
MESSAGES_LIMIT = 4096
