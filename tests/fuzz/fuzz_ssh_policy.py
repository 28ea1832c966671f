"""SSH policies from control, and names from callers: a verdict or BadPacket, and nobody becomes root by a star."""

from __future__ import annotations

import contextlib
import json

from ts_base.errors import BadPacket
from ts_control.ssh_policy import Caller, check_user_untrusted, delegation_path, judge, read_policy_untrusted

CALLER = Caller(7, "n7", "100.64.0.7", "alice@example.com")


def fuzz_one(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(BadPacket):
        check_user_untrusted(text[:300])
    with contextlib.suppress(BadPacket):
        path = delegation_path(text[:500], CALLER, CALLER, "dev", "dev")
        assert path.startswith("/")
        assert path.isprintable()
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return
    if not isinstance(told, dict):
        return
    with contextlib.suppress(BadPacket):
        policy = read_policy_untrusted(told)
        for user in ("dev", "root"):
            verdict = judge(policy, CALLER, user, 1e9, lambda _: True)
            assert bool(verdict.local_user) != bool(verdict.refusal)


def seeds() -> list[bytes]:
    action = {"accept": True, "holdAndDelegate": "https://x/machine/ssh/action/$SRC_NODE_ID", "sessionDuration": 5}
    rule = {"principals": [{"any": True}], "sshUsers": {"*": "=", "root": ""}, "action": action, "acceptEnv": ["GIT_*"]}
    return [json.dumps({"rules": [rule, None]}).encode(), b"https://x/a?b=$LOCAL_USER", b"dev+password"]
