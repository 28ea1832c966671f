"""Why a connection did not take a segment, or only part of it: the names its stack counts them under.

Owns the words. What no connection is there for is counted by tcp_demux, what is no segment at all by wire.
"""

from __future__ import annotations

# Opening.
BLIND_RESET = "tcp.blind_reset"  # a RST in SYN-SENT that does not acknowledge our SYN
HANDSHAKE_ACK = "tcp.handshake_ack"  # an ACK of something else than our SYN; answered by a RST
HANDSHAKE_NO_SYN = "tcp.handshake_no_syn"  # an acceptable ACK in SYN-SENT, and no SYN with it

# What RFC 9293 section 3.10.7.4 asks of every segment, in its order.
BAD_CHECKSUM = "tcp.checksum"
PAWS = "tcp.paws"  # its timestamp is older than the newest one (RFC 7323 section 5)
DUPLICATE = "tcp.duplicate"  # all of it was here before
OUT_OF_WINDOW = "tcp.out_of_window"  # beyond what we offered
RESET_OUT_OF_WINDOW = "tcp.reset_out_of_window"
RESET_IN_WINDOW = "tcp.reset_in_window"  # not exactly RCV.NXT: challenged (RFC 5961 section 3)
SYN_IN_WINDOW = "tcp.syn_in_window"  # challenged (RFC 5961 section 4)
NO_ACK = "tcp.no_ack"
WILD_ACK = "tcp.wild_ack"  # of what we never sent, or of long ago: challenged (RFC 5961 section 5)
WILD_SACK = "tcp.wild_sack"  # an impossible block; the rest of the segment is taken
URGENT = "tcp.urgent"  # a note, not a drop: the bytes are delivered in line
CHALLENGE_LIMIT = "tcp.challenge_limit"  # a challenge that was due and not sent

# Text, and endings.
ISLANDS_LIMIT = "tcp.islands_limit"  # too many holes: it will come again
AFTER_FIN = "tcp.after_fin"  # text or a FIN behind the peer's FIN
READER_GONE = "tcp.reader_gone"  # text for a connection that was closed here: reset (RFC 9293 section 3.6.1)
RESET_IN_TIME_WAIT = "tcp.reset_in_time_wait"  # RFC 1337
CLOSED = "tcp.closed"  # behind the segment that ended the connection, in the same run
