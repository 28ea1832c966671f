"""The embedded server and Funnel: what nodes are told, and who asks how to turn it on."""

from __future__ import annotations

import pytest

from ts_control.policy import Policy, PolicyError
from ts_control.server_funnel import FunnelRules, answer_feature


def test_rules_of_funnel_are_added_to_any_policy() -> None:
    policy = Policy.parse({"acls": [{"action": "accept", "src": ["*"], "dst": ["*:80"]}]})
    added = FunnelRules(("100.64.0.7",), "443").added_to(policy)
    assert added.rules[:1] == policy.rules
    assert list(added.rules[1].capabilities) == ["https://tailscale.com/cap/ingress"]
    assert added.attributes[-1][1] == ("https", "funnel", "https://tailscale.com/cap/funnel-ports?ports=443")
    assert FunnelRules(()).added_to(policy).rules == policy.rules
    with pytest.raises(PolicyError):
        FunnelRules(("nobody knows",)).added_to(policy)


def test_who_asks_how_to_turn_a_feature_on_is_told_what_is_missing() -> None:
    assert answer_feature("funnel", ["https", "funnel"]).complete
    assert answer_feature("serve", ["https"]).complete
    told = answer_feature("funnel", ["https"])
    assert (told.complete, told.should_wait) == (False, False)
    assert told.text.endswith("it lacks funnel")
    assert not answer_feature("teleport", ["https"]).complete
