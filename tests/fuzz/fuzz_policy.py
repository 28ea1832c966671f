"""Policy text from anybody: HuJSON, then the language."""

from __future__ import annotations

from ts_control.policy import Policy, PolicyError


def fuzz_one(data: bytes) -> None:
    try:
        Policy.parse(data.decode("utf-8", "replace"))
    except PolicyError:
        return


def seeds() -> list[bytes]:
    return [
        b'{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}], /* c */ // d\n}',
        b'{"grants": [{"src": ["a@"], "dst": ["10.0.0.0/8"], "ip": ["tcp:1-2"], "app": {"x.y/z": [1]}}]}',
        b'{"groups": {"group:a": ["b@"]}, "tagOwners": {"tag:a": ["group:a"]}}',
        b'{"autoApprovers": {"exitNode": ["a@"], "routes": {"10.0.0.0/8": ["*"]}}}',
    ]
