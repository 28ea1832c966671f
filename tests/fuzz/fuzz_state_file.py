"""Any bytes as a state file: the identity that was written, or BadPacket without a word of what is inside."""

from __future__ import annotations

import random
from dataclasses import replace

from tailscale.state_file import State, decode_state_untrusted, encode_state
from ts_base.errors import BadPacket
from ts_base.keys import NodePrivate

MADE = State.generate(random.Random(1).randbytes, "https://control.example")
SECRETS = [key.raw.hex() for key in (MADE.machine_key, MADE.node_key)]


def fuzz_one(data: bytes) -> None:
    try:
        state = decode_state_untrusted(data)
    except BadPacket as problem:
        said = str(problem)
        state = None
    if state is None:
        assert not any(secret[:12] in said for secret in SECRETS)
        return
    assert decode_state_untrusted(encode_state(state)) == state
    assert repr(state).count("[redacted]") >= 2


def seeds() -> list[bytes]:
    old, tried = (NodePrivate.generate(bytes(range(n, n + 32))) for n in (0, 1))
    rotating = replace(
        MADE,
        old_node_key=old,
        next_node_key=tried,
        stable_id="nodeStable",
        registered=True,
        home_region=7,
        udp_port=41641,
    )
    return [encode_state(MADE), encode_state(rotating), b"{}", b'{"version": 2}']
