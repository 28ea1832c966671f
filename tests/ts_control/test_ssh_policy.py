"""Rules of SSH: who is let in as whom, and what a policy becomes for one device."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ts_base.errors import BadPacket
from ts_control.gojson import encode_json
from ts_control.policy import Policy, PolicyError
from ts_control.policy_index import Subject
from ts_control.ssh_policy import (
    Caller,
    SSHPolicy,
    Verdict,
    accepted_environment,
    check_user_untrusted,
    delegation_path,
    judge,
    must_be_recorded,
    read_policy_untrusted,
    still_allows,
)
from ts_control.ssh_rules import policy_for

NOW = 1_800_000_000.0
CALLER = Caller(7, "n7CNTRL", "100.64.0.7", "alice@example.com")
OWN = Caller(9, "n9CNTRL", "100.64.0.9", "tagged-devices")
ANY = [{"any": True}]
ACCEPT, REJECT = {"accept": True}, {"reject": True}
NONROOT = {"*": "=", "root": ""}


def rule(action: Any, principals: Any = ANY, users: Any = NONROOT, **more: Any) -> dict[str, Any]:
    return {"principals": principals, "sshUsers": users, "action": action, **more}


def verdict(rules: Any, user: str = "dev", now: float = NOW, caller: Caller = CALLER) -> Verdict:
    policy = read_policy_untrusted({"rules": rules})
    return judge(policy, caller, user, now, lambda name: name in {"dev", "root"})


def becomes(rules: Any, user: str = "dev", now: float = NOW) -> str:
    """The local user, or "" where the login is refused."""
    told = verdict(rules, user, now)
    assert bool(told.refusal) == (not told.local_user)
    return told.local_user


@pytest.mark.parametrize(
    ("rules", "user", "expected"),
    [
        (None, "dev", ""),
        ([], "dev", ""),
        ([None, rule(None), rule(ACCEPT)], "dev", "dev"),
        ([rule(ACCEPT)], "root", ""),  # = never means root, and here it is refused by name
        ([rule(ACCEPT, users={"*": "="})], "root", ""),
        ([rule(ACCEPT, users={"root": "root"})], "root", "root"),
        ([rule(ACCEPT)], "nobody-here", ""),
        ([rule(ACCEPT, users={"*": "web"})], "whoever", "web"),
        ([rule(ACCEPT, users={"dev": "", "*": "="})], "dev", ""),  # listed as nobody: the star does not count
        ([rule(ACCEPT, users=None)], "dev", ""),
        ([rule(ACCEPT, users={})], "dev", ""),
        ([rule(REJECT, users=None), rule(ACCEPT)], "dev", ""),
        ([rule(REJECT, [{"nodeIP": "100.64.0.8"}]), rule(ACCEPT)], "dev", "dev"),
        ([rule(ACCEPT, [{"nodeIP": "100.64.0.7"}])], "dev", "dev"),
        ([rule(ACCEPT, [{"node": "n7CNTRL"}])], "dev", "dev"),
        ([rule(ACCEPT, [{"userLogin": "alice@example.com"}])], "dev", "dev"),
        ([rule(ACCEPT, [{"userLogin": "bob@example.com"}, None])], "dev", ""),
        ([rule(ACCEPT, [{"pubKeys": ["ssh-ed25519 AAAA"]}])], "dev", ""),
        ([rule(ACCEPT, [])], "dev", ""),
        ([rule(ACCEPT, ruleExpires="2020-01-01T00:00:00Z")], "dev", ""),
        ([rule(ACCEPT, ruleExpires="2099-01-01T00:00:00Z")], "dev", "dev"),
        ([rule(ACCEPT, ruleExpires="0001-01-01T00:00:00Z")], "dev", "dev"),
    ],
)
def test_rules_let_in_whom_they_name(rules: Any, user: str, expected: str) -> None:
    assert becomes(rules, user) == expected


def test_no_policy_lets_nobody_in() -> None:
    assert "no SSH rules" in judge(None, CALLER, "dev", NOW, lambda _: True).refusal


def test_refusals_say_whether_node_or_user_is_the_reason() -> None:
    assert "log in as root" in verdict([rule(ACCEPT)], "root").refusal
    assert "rejects" in verdict([rule(REJECT)]).refusal
    assert "connect by SSH" in verdict([rule(ACCEPT, [])]).refusal


def test_rule_expires_by_the_time_that_is_handed_in() -> None:
    rules = [rule(ACCEPT, ruleExpires="2027-01-15T08:00:00Z")]
    assert (becomes(rules, now=NOW - 1), becomes(rules, now=NOW)) == ("dev", "")


@pytest.mark.parametrize(
    "told",
    [
        {"rules": 5},
        {"rules": [{"principals": "all"}]},
        {"rules": [rule({"accept": "yes"}), rule(ACCEPT)]},
        {"rules": [rule(ACCEPT, ruleExpires="soon")]},
        {"rules": [rule({"accept": True, "sessionDuration": "1h"})]},
    ],
)
def test_policy_that_cannot_be_read_is_refused_whole(told: Any) -> None:
    with pytest.raises(BadPacket):
        read_policy_untrusted(told)


@pytest.mark.parametrize(
    "name", ["", "-oProxyCommand=x", "a/b", "a\0b", "a\nb", "x" * 257, "x" * 10_000, " dev", "‮dev"]
)
def test_names_of_nobody_are_refused(name: str) -> None:
    with pytest.raises(BadPacket):
        check_user_untrusted(name)


@pytest.mark.parametrize("name", ["dev", "root", "alice.b", "größe", "dev+password"])
def test_names_of_users_pass(name: str) -> None:
    check_user_untrusted(name)


def test_recorders_that_must_record_are_known() -> None:
    failing = {"accept": True, "recorders": ["100.64.0.1:80"], "onRecordingFailure": {"RejectSessionWithMessage": "no"}}
    action = verdict([rule(failing)]).action
    assert action is not None
    assert must_be_recorded(action) == "no"
    assert not still_allows(verdict([rule(failing)]), "dev")


def test_session_goes_on_while_accepted_or_checked_as_the_same_user() -> None:
    held = {"holdAndDelegate": "https://unused/machine/ssh/action/1"}
    assert still_allows(verdict([rule(ACCEPT)]), "dev")
    assert still_allows(verdict([rule(held)]), "dev")
    assert not still_allows(verdict([rule(ACCEPT, users={"*": "web"})]), "dev")
    assert not still_allows(verdict([rule(REJECT)]), "dev")
    assert not still_allows(verdict([rule({})]), "dev")


def test_check_is_asked_at_control_whatever_host_it_names() -> None:
    url = "https://elsewhere.test/machine/ssh/action/$SRC_NODE_ID/to/$DST_NODE_ID?u=$SSH_USER&l=$LOCAL_USER&i=$SRC_NODE_IP"
    assert delegation_path(url, CALLER, OWN, "a&b c", "$DST_NODE_ID") == (
        "/machine/ssh/action/7/to/9?u=a%26b+c&l=%24DST_NODE_ID&i=100.64.0.7"
    )
    for bad in ("", "nonsense", "https://a/ b", "https://a/\r\nHost: b", "https://a/\u2028"):
        with pytest.raises(BadPacket):
            delegation_path(bad, CALLER, OWN, "dev", "dev")


def test_environment_reaches_the_session_as_far_as_the_policy_says() -> None:
    asked = {
        "LANG": "C",
        "LC_ALL": "C",
        "GIT_DIR": "x",
        "GIT_A": "y",
        "LD_PRELOAD": "z",
        "ld_x": "z",
        "A B": "z",
        "T": "\0",
    }
    some = accepted_environment(asked, ("GIT_?", "T"), policy_counts=True)
    assert some == {"LANG": "C", "LC_ALL": "C", "GIT_A": "y"}
    assert "GIT_A" not in accepted_environment(asked, ("*",), policy_counts=False)
    assert accepted_environment(asked, ("*",), policy_counts=True).keys() == {"LANG", "LC_ALL", "GIT_DIR", "GIT_A"}
    assert not accepted_environment({"a" * 300: "x"}, ("a*" * 100 + "b",), policy_counts=True)


# --- the section of a policy ------------------------------------------------------------------------

ALICE = Subject(1, "alice@example.com", frozenset(), (bytes([100, 64, 0, 1]),))
PHONE = Subject(2, "alice@example.com", frozenset(), (bytes([100, 64, 0, 2]),))
BOB = Subject(3, "bob@example.com", frozenset(), (bytes([100, 64, 0, 3]),))
SERVER = Subject(4, "alice@example.com", frozenset({"tag:server"}), (bytes([100, 64, 0, 4]),))
EVERYBODY = [ALICE, PHONE, BOB, SERVER]


def section(*entries: dict[str, Any], **more: Any) -> Policy:
    return Policy.parse({"tagOwners": {"tag:server": ["alice@example.com"]}, "ssh": list(entries), **more})


def written(policy: Policy, own: Subject) -> SSHPolicy:
    compiled = policy_for(policy.ssh, own, EVERYBODY, "https://control.test")
    read = read_policy_untrusted({} if not compiled.rules else json.loads(encode_json(compiled)))
    assert read == compiled
    return compiled


def test_section_becomes_rules_with_addresses_and_root_refused() -> None:
    policy = section(
        {"action": "accept", "src": ["autogroup:member"], "dst": ["tag:server"], "users": ["autogroup:nonroot", "web"]}
    )
    (only,) = written(policy, SERVER).rules
    assert only is not None
    assert [one.node_ip for one in only.principals if one] == ["100.64.0.1", "100.64.0.2", "100.64.0.3"]
    assert only.ssh_users == {"*": "=", "web": "web", "root": ""}
    assert written(policy, ALICE).rules == ()


def test_checks_come_before_what_is_merely_accepted() -> None:
    entry = {"src": ["alice@example.com"], "dst": ["tag:server"], "users": ["root"]}
    policy = section({"action": "accept", **entry}, {"action": "check", "checkPeriod": "1h30m", **entry})
    first, second = written(policy, SERVER).rules
    assert first is not None
    assert second is not None
    assert first.action is not None
    assert second.action is not None
    assert first.action.hold_and_delegate.startswith("https://control.test/machine/ssh/action/$SRC_NODE_ID/to/")
    assert second.action.accept
    assert [entry.check for entry in policy.ssh] == [5400.0, None]


def test_self_is_the_devices_of_the_same_user() -> None:
    policy = section({"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["root"]})
    (only,) = written(policy, ALICE).rules
    assert only is not None
    assert [one.node_ip for one in only.principals if one] == ["100.64.0.1", "100.64.0.2"]
    assert written(policy, SERVER).rules == ()


def test_localpart_gives_each_user_the_name_in_the_login() -> None:
    policy = section(
        {"action": "accept", "src": ["autogroup:member"], "dst": ["tag:server"], "users": ["localpart:*@example.com"]}
    )
    assert [rule.ssh_users for rule in written(policy, SERVER).rules if rule] == [{"alice": "alice"}] * 2 + [
        {"bob": "bob"}
    ]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"action": "reject"}, "action must be"),
        ({"action": "accept", "checkPeriod": "1h"}, "checkPeriod only goes with"),
        ({"action": "check", "checkPeriod": "5s"}, "from 1m to 168h"),
        ({"action": "check", "checkPeriod": "soon"}, "neither a duration"),
        ({"src": ["*"]}, "src: only users"),
        ({"dst": ["*"]}, "dst: write users"),
        ({"users": []}, "users is missing"),
        ({"users": ["autogroup:root"]}, "neither a user"),
        ({"src": ["tag:server"], "dst": ["autogroup:self"]}, "a tagged device may not"),
        ({"dst": ["bob@example.com"]}, "only for the same user"),
    ],
)
def test_mistakes_of_the_section_are_named(entry: dict[str, Any], words: str) -> None:
    good = {"action": "accept", "src": ["alice@example.com"], "dst": ["tag:server"], "users": ["root"]}
    with pytest.raises(PolicyError, match=words):
        section({**good, **entry})
