"""`device.explain` names what stands in the way, in the words of the dial's own error, and what to set."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import trio
from fault_scripts import PORT, SCRIPTS, Script, black_hole_just_begun, healthy, pair
from tailnet_scripts import runtime_of, until
from trio.testing import MockClock

import tailscale
from tailscale import TailscaleError
from tailscale.explanation import Step
from tailscale.faults import REMEDIES
from tailscale.testing import Tailnet
from ts_control.gojson import encode_json

HEALS = {"clock-wrong"}  # by the time of a second dial the peer has said hello itself


@pytest.mark.parametrize(("fault", "script", "verdict"), [(code, *row) for code, row in SCRIPTS.items()], ids=SCRIPTS)
async def test_explain_names_the_fault(
    autojump_clock: MockClock, tailnet: Tailnet, fault: str, script: Script, verdict: str
) -> None:
    async with script(tailnet) as scene:
        explanation = await scene.device.explain(scene.host, scene.port)
        print(explanation)  # pytest -rP: all of them to read
        assert (explanation.code, explanation.faults[0]) == (fault, fault)
        assert explanation.remedy == REMEDIES[fault]
        assert re.search(verdict, explanation.verdict)
        if fault in HEALS or not explanation.error:
            return
        with pytest.raises(TailscaleError) as caught:
            await scene.device.tcp_connect(scene.host, scene.port, timeout=10)
        assert str(caught.value) == explanation.verdict
        assert (type(caught.value).__name__, caught.value.fault) == (explanation.error, fault)


async def test_nothing_in_the_way_is_said_step_by_step(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with healthy(tailnet) as scene:
        await scene.device.ping("b")
        found = await scene.device.explain("b", PORT)
        assert found.is_reachable
        assert (found.code, found.faults, found.remedy, found.error) == ("reachable", (), "", "")
        assert [step.name for step in found.steps] == [
            *("this device", "name", "route", "peer", "path", "tunnel", "policy here", "policy there", "tcp")
        ]
        assert {step.outcome for step in found.steps} == {"ok"}
        assert re.fullmatch(r"b port 80 can be reached, by direct \S+ in [\d.]+ ms", found.verdict)
        assert str(found).splitlines()[0] == "the way to b port 80 (tcp)"
        assert str(found).splitlines()[-1] == found.verdict
        assert json.loads(json.dumps(found.to_dict()))["steps"][1]["sentence"].startswith("b is 100.64.0.2, fd7a:")


async def test_without_a_port_the_way_alone_is_looked_at(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with healthy(tailnet) as scene:
        found = await scene.device.explain("b")
        assert [step.name for step in found.steps] == ["this device", "name", "route", "peer", "path", "tunnel"]
        assert found.is_reachable


async def test_a_black_hole_is_found_before_the_device_has_left_the_path(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    async with black_hole_just_begun(tailnet) as scene:
        found = await scene.device.explain("b", PORT)
        assert found.code == "black-hole"


async def test_a_udp_port_answers_refuses_or_says_nothing(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with pair(tailnet) as (a, b):
        refused = await a.explain("b", 53, protocol="udp")
        assert (refused.code, refused.error, refused.is_reachable) == ("port-closed", "ConnectionRefused", False)
        async with await b.udp(53):
            silent = await a.explain("b", 53, protocol="udp")
        assert (silent.code, silent.is_reachable) == ("port-unanswered", None)
        with pytest.raises(ValueError, match="'sctp' is not one of tcp, udp"):
            await a.explain("b", 53, protocol="sctp")


async def test_a_port_of_our_own_tells_whom_the_policy_lets_in(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with pair(tailnet) as (_, b):
        found = await b.explain("b", PORT)
        assert found.code == "reachable"
        assert "lets 1 of 1 peers open port 80 here" in str(found)
        assert (await b.explain("b", 81)).code == "port-closed"
        tailnet.policy({"acls": [{"action": "accept", "src": ["*"], "dst": ["*:22"]}]})
        await trio.sleep(1)
        found = await b.explain((b.ipv4 or "", PORT))
        assert found.code == "policy-here"


async def test_a_via_that_is_no_exit_is_said(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with pair(tailnet) as (a, _):
        found = await a.explain("198.51.100.7", PORT, via="b")
        assert found.code == "no-exit"
        assert (await a.explain("198.51.100.7", PORT, via="nobody")).code == "name-not-found"


async def test_what_no_socket_can_be_opened_for_is_said(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with pair(tailnet) as (a, b):
        netmap = runtime_of(a).directory.netmap
        assert netmap is not None
        own = json.loads(encode_json(netmap.self_node))
        ipv4_only = {"Node": own | {name: [f"{a.ipv4}/32"] for name in ("Addresses", "AllowedIPs")}}
        tailnet.control.do(tailnet.control.server.send_to, a.node.id, ipv4_only)
        await until(lambda: a.ipv6 is None)
        found = await a.explain(b.ipv6 or "", PORT)
        assert (found.code, found.is_reachable) == ("no-socket", False)
        with pytest.raises(OSError, match=re.escape(found.verdict)):
            await a.tcp_connect(b.ipv6 or "", PORT)


async def test_names_of_others_reach_no_terminal_raw() -> None:
    step = Step("name", "ok", "\x1b[2Jb is here")
    found = tailscale.Explanation("\x1b[1m", 80, "tcp", (step,), "b\x07", "reachable", True)
    assert "\x1b" not in str(found)
    assert "\x07" not in str(found)


def test_every_fault_of_a_script_has_a_remedy() -> None:
    assert SCRIPTS.keys() <= REMEDIES.keys()


def test_the_page_lists_every_fault_with_its_remedy() -> None:
    page = (Path(__file__).parents[2] / "docs" / "explain.md").read_text()
    assert re.findall(r"^\| `([\w-]+)` \| (.+) \|$", page.split("## Faults")[1].split("## ")[0], re.MULTILINE) == [
        *REMEDIES.items()
    ]
