"""What an embedded server lets be published on the internet: attributes of nodes, who may be a relay, and what is told
to those who ask how to turn that on.

Owns these words, which are added to any policy. Refuses to know relays: whoever is one carries, control only allows.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from ts_base.keys import NodePublic
from ts_control.gojson import GoStruct
from ts_control.policy import Policy
from ts_control.wire import NO_NODE_KEY

FEATURE_PATH = "/machine/feature/query"
INGRESS = "https://tailscale.com/cap/ingress"
PORTS = "https://tailscale.com/cap/funnel-ports"
USUAL_PORTS = "443,8443,10000"  # those of Tailscale's own relays
HTTPS, FUNNEL = "https", "funnel"
FEATURES = {"serve": {HTTPS}, "funnel": {HTTPS, FUNNEL}}


class FeatureRequest(GoStruct, frozen=True):
    """What `tailscale serve` and `tailscale funnel` ask before they turn something on."""

    feature: str = ""
    node_key: NodePublic = NO_NODE_KEY


class FeatureAnswer(GoStruct, frozen=True):
    complete: bool = False
    text: str = ""
    url: str = ""
    should_wait: bool = False


@dataclass(frozen=True, slots=True)
class FunnelRules:
    """Every node may publish ports, and these addresses or tags may bring what comes."""

    relays: tuple[str, ...]
    ports: str = USUAL_PORTS

    def added_to(self, policy: Policy) -> Policy:
        """The policy with these rules. PolicyError where a relay is none that it knows."""
        attributes = [HTTPS, FUNNEL, f"{PORTS}?ports={self.ports}"]
        told = {
            "grants": [{"src": list(self.relays), "dst": ["*"], "app": {INGRESS: []}}] if self.relays else [],
            "nodeAttrs": [{"target": ["*"], "attr": attributes}],
        }
        own = Policy.parse(told)
        return replace(policy, rules=policy.rules + own.rules, attributes=policy.attributes + own.attributes)


def answer_feature(feature: str, attributes: Collection[str]) -> FeatureAnswer:
    """Whether a node may do that already, else what the administrator of this server does about it."""
    missing = sorted(FEATURES.get(feature, {feature}) - set(attributes))
    if not missing:
        return FeatureAnswer(complete=True)
    lacks = ", ".join(missing)
    return FeatureAnswer(text=f"this control server does not let this node use {feature}: it lacks {lacks}")
