"""Upstream's verdicts, step by step. The one wanted difference: a header length under 20 bytes is nonsense to us."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from golden.filter import SlowFilter
from ts_base.ip import parse_address, parse_prefix
from ts_dataplane.bart import Bart
from ts_dataplane.filter import ADMITTED, NO_RULE, Rule, compile_filter
from ts_dataplane.packets import parse, reply_flow, without_padding
from ts_dataplane.reply_flows import ReplyFlows

VECTORS = Path(__file__).parents[1] / "vectors" / "filter.json"


def rules_of(wire: list[dict[str, Any]]) -> list[Rule]:
    return [
        Rule(
            tuple(rule.get("SrcIPs") or ()),
            tuple((d["IP"], d["Ports"]["First"], d["Ports"]["Last"]) for d in rule.get("DstPorts") or ()),
            tuple(rule.get("IPProto") or ()),
        )
        for rule in wire
    ]


def cases() -> list[Any]:
    return json.loads(VECTORS.read_text())["cases"] if VECTORS.exists() else []


@pytest.mark.parametrize("case", cases(), ids=lambda case: case["name"])
def test_filter_agrees_with_upstream(case):
    rules = rules_of(case["rules"])
    built, flows, local = compile_filter(rules), ReplyFlows(), Bart[bool]()
    slow = SlowFilter(rules, case["local"])
    for text in case["local"]:
        local.insert(parse_prefix(text), True)
    holders = {parse_address(text): frozenset(held) for text, held in (case["caps"] or {}).items()}
    for number, step in enumerate(case["steps"]):
        packet = bytes.fromhex(step["packet"])
        if step["direction"] == "out":
            if flow := reply_flow(packet):
                flows.record(flow)
            slow.outbound(packet)
            continue
        if packet and packet[0] >> 4 == 4 and packet[0] & 15 < 5:
            assert not without_padding(packet)
            continue
        whole = without_padding(packet)
        held: frozenset[str] = frozenset()
        accepted = not packet
        if whole:
            parsed = parse(whole)
            held = holders.get(parsed.source, held)
            verdict = built.decide(whole, parsed, is_local=bool(local.lookup(parsed.destination)), held=held)
            if verdict == NO_RULE and flows.admits((parsed.protocol, parsed.flow)):
                verdict = ADMITTED
            accepted = not verdict
        assert accepted == step["accept"], (number, step)
        assert slow.inbound(packet, held) == step["accept"], (number, step)
