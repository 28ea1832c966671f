"""The policy language: what is read, and which mistakes are refused with which words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ts_base.errors import BadPacket
from ts_base.ip import parse_prefix
from ts_control.hujson import parse_untrusted
from ts_control.policy import Policy, PolicyError, approves, is_same_user


def test_hujson_takes_comments_and_trailing_commas_and_leaves_strings_alone() -> None:
    text = """{
        // who
        "groups": {"group:a": ["x@example.com", /* and */ "y//z@example.com",],},
        "url": "http://a/*b*/,]",
    }"""
    assert parse_untrusted(text) == {
        "groups": {"group:a": ["x@example.com", "y//z@example.com"]},
        "url": "http://a/*b*/,]",
    }


@pytest.mark.parametrize("text", ["{", "[1,,]", '{"a":1} x', "/* open", "", "[" * 5000])
def test_hujson_refuses_what_is_not_json_in_the_end(text: str) -> None:
    with pytest.raises(BadPacket):
        parse_untrusted(text)


def test_hujson_error_names_the_place() -> None:
    with pytest.raises(BadPacket, match="line 3 column"):
        parse_untrusted('{\n// fine\n"a": }')


@settings(max_examples=80)
@given(st.text(max_size=60))
def test_policy_text_raises_only_policy_errors(text: str) -> None:
    with pytest.raises(PolicyError):
        Policy.parse("[" + text)


def acl(**fields: Any) -> dict[str, Any]:
    return {"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"], **fields}]}


def grant(**fields: Any) -> dict[str, Any]:
    return {"grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"], **fields}]}


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"aclz": []}, "unknown section 'aclz'"),
        (acl(action="deny"), r"acls\[0\]: action must be 'accept'"),
        (acl(src=["bob"]), r"acls\[0\].src: 'bob' is no user"),
        (acl(src=["group:x"]), "group 'group:x' is not defined"),
        (acl(src=["tag:x"]), "tag 'tag:x' is not defined under tagOwners"),
        (acl(src=["autogroup:owner"]), "'autogroup:owner' is not supported"),
        (acl(src=["autogroup:self"]), "autogroup:self can only be a destination"),
        (acl(src=["autogroup:internet"]), "autogroup:internet can only be a destination"),
        (acl(dst=["*"]), "has no port"),
        (acl(dst=["*:99999"]), "not a range of ports"),
        (acl(dst=["*:http"]), "not a port"),
        (acl(dst=["*:90-80"]), "not a range of ports"),
        (acl(dst=["10.0.0.1/8:22"]), "is no user, group, tag, host, address"),
        (acl(proto="warp"), "unknown protocol 'warp'"),
        (acl(src="*"), "expected a list of strings"),
        (grant(src=["10.0.0.1"], dst=["autogroup:self"]), "autogroup:self only goes with"),
        (grant(dst=["autogroup:danger-all"]), "autogroup:danger-all can only be a source"),
        (grant(via=["tag:x"]), "via"),
        (grant(ip=[]), "needs 'ip' or 'app'"),
        (grant(ip=["0"]), "not a range of ports"),
        (grant(app={"nonsense": []}), "a capability is named like"),
        ({"groups": {"admins": []}}, "starts with 'group:'"),
        ({"groups": {"group:a": ["bob"]}}, "write 'bob@'"),
        ({"hosts": {"x": "10.0.0.300"}}, "hosts.x"),
        ({"tagOwners": {"tag:-": []}}, "'tag:-' is not a tag"),
        ({"acls": {}}, "acls: expected a list"),
    ],
)
def test_mistake_is_refused_with_words_that_name_the_place(policy: dict[str, Any], words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        Policy.parse(policy)


def test_sections_of_other_features_are_ignored() -> None:
    assert Policy.parse({"postures": {"anything": 1}, "tests": []}).rules == Policy.allow_all().rules
    assert Policy.parse({"acls": []}).rules == ()


@pytest.mark.parametrize(
    ("written", "login", "same"),
    [
        ("alice@", "alice", True),
        ("alice@", "alice@example.com", True),
        ("alice@", "alicea@example.com", False),
        ("alice@example.com", "alice@example.com", True),
        ("alice@example.com", "alice@example.org", False),
        ("user:*@example.com", "bob@example.com", True),
        ("user:*@example.com", "bob@example.org", False),
    ],
)
def test_users_are_recognised(written: str, login: str, same: bool) -> None:
    assert is_same_user(written, login) is same


def test_tags_are_owned_by_users_groups_and_through_tags() -> None:
    policy = Policy.parse(
        {
            "groups": {"group:ops": ["olga@example.com"]},
            "tagOwners": {
                "tag:a": ["group:ops"], "tag:b": ["tag:a", "bob@"], "tag:loop": ["tag:loop"],
                "tag:any": ["autogroup:member"],
            },
        }
    )  # fmt: skip
    owners = {
        tag: [who for who in ("olga@example.com", "bob@x") if policy.may_own(tag, who)] for tag in policy.tag_owners
    }
    assert owners == {
        "tag:a": ["olga@example.com"],
        "tag:b": ["olga@example.com", "bob@x"],
        "tag:loop": [],
        "tag:any": ["olga@example.com", "bob@x"],
    }


def test_routes_are_approved_by_themselves_where_the_policy_says_so() -> None:
    policy = Policy.parse(
        {
            "tagOwners": {"tag:router": ["ops@"]},
            "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:router"]}, "exitNode": ["ops@"]},
        }
    )

    def approved(route: str, login: str = "", tags: tuple[str, ...] = ()) -> bool:
        return approves(policy, parse_prefix(route), login, tags, ())

    assert approved("10.1.0.0/16", tags=("tag:router",))
    assert not approved("192.168.0.0/16", tags=("tag:router",))
    assert not approved("10.1.0.0/16", login="ops")
    assert approved("0.0.0.0/0", login="ops")
    assert not approved("0.0.0.0/0", tags=("tag:router",))
