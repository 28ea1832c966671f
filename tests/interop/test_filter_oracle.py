"""Our filter against upstream's own, packet by packet: random rules, mutated packets, and real-world rule captures.

One wanted difference: an IPv4 header length under 20 bytes is nonsense to us, so such packets are not asked about.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.interop import build
from ts_base.ip import parse_address, parse_prefix
from ts_base.ip_headers import ip_packet
from ts_dataplane.bart import Bart
from ts_dataplane.filter import NO_RULE, Rule, compile_filter
from ts_dataplane.packets import parse, reply_flow, without_padding
from ts_dataplane.reply_flows import ReplyFlows

pytestmark = [pytest.mark.interop, pytest.mark.peers("oracle")]

HOSTS4 = ["100.64.0.1", "100.64.0.2", "100.64.0.3", "100.64.0.7", "10.20.1.2", "10.21.0.1", "224.0.0.1", "169.254.1.1"]
HOSTS4 += ["169.254.169.254", "127.0.0.1", "8.8.8.8", "255.255.255.255", "0.0.0.0", "100.127.255.255"]
HOSTS6 = ["fd7a:115c:a1e0::1", "fd7a:115c:a1e0::2", "fd7a:115c:a1e0::77", "2001:db8::1", "ff02::1", "fe80::1", "::1"]
SOURCES = ["*", "100.64.0.2", "100.64.0.0/24", "100.64.0.0/10", "100.64.0.5-100.64.0.9", "10.20.0.0/16", "0.0.0.0/1"]
SOURCES += [
    "fd7a:115c:a1e0::2",
    "fd7a:115c:a1e0::/48",
    "fd7a::-fd7b::",
    "::/0",
    "cap:example.com/x",
    "cap:example.com/y",
]
TARGETS = [
    "*",
    "100.64.0.1",
    "100.64.0.0/30",
    "10.20.0.0/16",
    "0.0.0.0/0",
    "::/0",
    "fd7a:115c:a1e0::1",
    "10.0.0.0-10.255.0.0",
]
PORTS = [0, 1, 22, 53, 79, 80, 85, 90, 91, 443, 40_000, 65_534, 65_535]
RANGES = [(0, 65_535), (0, 65_534), (1, 65_535), (22, 22), (80, 90), (0, 0), (443, 443), (90, 80)]
PROTOCOLS: list[list[int]] = [[], [], [], [6], [17], [6, 17], [1, 58], [47], [132], [99], [300, -1], [0, 44, 255]]
HELD = {"100.64.0.3": ["example.com/x"], "fd7a:115c:a1e0::2": ["example.com/y", "example.com/z"]}


class Oracle:
    """Upstream's code, asked one line at a time."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [build.binary("oracle"), "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def judge(self, case: dict[str, Any]) -> list[bool]:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps({"op": "filter", **case}) + "\n")
        self._child.stdin.flush()
        answer = json.loads(self._child.stdout.readline())
        assert "error" not in answer, answer
        verdicts: list[bool] = answer["accept"]
        return verdicts

    def close(self) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        self._child.wait(10)
        self._child.stdout.close()


@pytest.fixture
def oracle() -> Iterator[Oracle]:
    asked = Oracle()
    yield asked
    asked.close()


def our_verdicts(case: dict[str, Any]) -> list[bool]:
    rules = [
        Rule(
            tuple(rule["SrcIPs"]),
            tuple((target["IP"], target["Ports"]["First"], target["Ports"]["Last"]) for target in rule["DstPorts"]),
            tuple(rule["IPProto"]),
        )
        for rule in case["rules"]
    ]
    built, flows, local = compile_filter(rules), ReplyFlows(limit=512), Bart[bool]()
    assert not built.problems
    for text in case["local"]:
        local.insert(parse_prefix(text), True)
    holders = {parse_address(text): frozenset(held) for text, held in case["caps"].items()}
    verdicts = []
    for step in case["steps"]:
        whole = without_padding(bytes.fromhex(step["packet"]))
        accepted = False
        if whole and step["direction"] == "out":
            if flow := reply_flow(whole):
                flows.record(flow)
            verdicts.append(True)
            continue
        if whole:
            parsed = parse(whole)
            held = holders.get(parsed.source, frozenset())
            verdict = built.decide(whole, parsed, is_local=bool(local.lookup(parsed.destination)), held=held)
            accepted = not verdict or (verdict == NO_RULE and flows.admits((parsed.protocol, parsed.flow)))
        verdicts.append(accepted)
    return verdicts


def random_packet(source: random.Random) -> bytes:
    """A packet as likely to be odd as plain; every tenth is mutated anywhere."""
    is_six = source.random() < 0.3
    hosts = HOSTS6 if is_six else HOSTS4
    ends = [source.choice(hosts), source.choice(hosts[:2] if source.random() < 0.8 else hosts)]
    protocol = source.choice([6, 6, 6, 17, 17, 17, 132, 1, 58, 2, 99, 47, 255, 0, 44])
    kind = source.choice([0, 3, 5, 8, 11, 12, 18, 1, 2, 4, 128, 129, 135])
    flags = source.choice([2, 2, 0x12, 0x10, 4, 0, 0xC2, 0x42])
    body = bytes([kind, source.choice([0, 0, 1]), 0, 0])
    if protocol in (6, 17, 132):
        body = b"".join(source.choice(PORTS).to_bytes(2, "big") for _ in range(2))
    body += bytes(8) + bytes([0x50, flags]) + bytes(source.choice([6, 6, 6, 90]))
    if source.random() < 0.1:
        body = body[: source.randrange(len(body))]
    if is_six and source.random() < 0.3:
        offset = source.choice([0, 0, 0, 1, 5, 9, 10, 11, 100]) << 3 | source.choice([0, 1])
        body = bytes([protocol, 0]) + offset.to_bytes(2, "big") + bytes(4) + body
        protocol = 44
    whole = bytearray(ip_packet(parse_address(ends[0]), parse_address(ends[1]), protocol, body))
    if not is_six and source.random() < 0.2:
        whole[6:8] = source.choice([0x2000, 0x2001, 1, 2, 9, 10, 11, 0x200A, 0x1FFF, 0x4000, 0x8000]).to_bytes(2, "big")
    if not is_six and source.random() < 0.05:
        whole[20:20] = bytes([1, 1, 1, 0])
        whole[0] = 0x46
        whole[2:4] = len(whole).to_bytes(2, "big")
    if source.random() < 0.1:
        whole[source.randrange(len(whole))] = source.randrange(256)
    if whole[0] >> 4 == 4 and whole[0] & 15 < 5:
        whole[0] |= 5
    # WireGuard hands upstream's filter packets cut to the length they declare.
    return without_padding(bytes(whole)) or bytes(whole)


def answer_to(packet: bytes) -> bytes | None:
    parsed = parse(whole) if (whole := without_padding(packet)) else None
    if parsed is None or parsed.protocol not in (17, 132):
        return None
    ports = parsed.destination_port.to_bytes(2, "big") + parsed.source_port.to_bytes(2, "big")
    return ip_packet(parsed.destination, parsed.source, parsed.protocol, ports + bytes(16))


def random_case(source: random.Random, steps: int) -> dict[str, Any]:
    rules = []
    for _ in range(source.randrange(6)):
        targets = [(source.choice(TARGETS), source.choice(RANGES)) for _ in range(source.randrange(4))]
        rules.append(
            {
                "SrcIPs": [source.choice(SOURCES) for _ in range(source.randrange(4))],
                "DstPorts": [{"IP": text, "Ports": {"First": first, "Last": last}} for text, (first, last) in targets],
                "IPProto": source.choice(PROTOCOLS),
            }
        )
    local = ["100.64.0.1/32", "fd7a:115c:a1e0::1/128", *source.choice([[], ["10.20.0.0/16"], ["0.0.0.0/0", "::/0"]])]
    return {"rules": rules, "local": local, "caps": HELD, "steps": list(random_steps(source, steps))}


def random_steps(source: random.Random, number: int) -> Iterator[dict[str, Any]]:
    for _ in range(number):
        packet = random_packet(source)
        yield {"direction": "in", "packet": packet.hex()}
        if source.random() < 0.1 and (answer := answer_to(packet)):
            yield {"direction": "out", "packet": answer.hex()}
            yield {"direction": "in", "packet": packet.hex()}


def compare(oracle: Oracle, case: dict[str, Any]) -> int:
    theirs, ours = oracle.judge(case), our_verdicts(case)
    incoming = [n for n, step in enumerate(case["steps"]) if step["direction"] == "in"]
    different = [n for n in incoming if theirs[n] != ours[n]]
    assert not different, (case["rules"], case["local"], case["steps"][different[0]], theirs[different[0]])
    return len(incoming)


@pytest.mark.parametrize(
    ("cases", "steps"),
    [(100, 100), pytest.param(4_000, 250, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
    ids=["ten thousand", "a million"],
)
def test_filter_agrees_with_upstream_on_random_packets(oracle: Oracle, cases: int, steps: int) -> None:
    source = random.Random(20_26)
    asked = sum(compare(oracle, random_case(source, steps)) for _ in range(cases))
    assert asked >= cases * steps


def captures() -> list[Path]:
    """Rule captures in the pinned module, as the module cache holds them."""
    go = shutil.which("go")
    if go is None:
        return []
    where = subprocess.run(
        [go, "list", "-m", "-f", "{{.Dir}}", "tailscale.com"],
        cwd=build.MODULES / "tailscale",
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return sorted((Path(where) / "wgengine/filter/testdata").glob("*.json")) if where else []


@pytest.mark.timeout(300)
def test_filter_agrees_with_upstream_on_recorded_rules(oracle: Oracle) -> None:
    found = captures()
    if not found:
        pytest.skip("NO RULE CAPTURES: the pinned module is not in the module cache")
    source = random.Random(11)
    for path in found:
        matches = json.loads(path.read_text())
        rules = [
            {
                "SrcIPs": (match.get("Srcs") or []) + [f"cap:{name}" for name in match.get("SrcCaps") or []],
                "DstPorts": [{"IP": target["Net"], "Ports": target["Ports"]} for target in match.get("Dsts") or []],
                "IPProto": match.get("IPProto") or [],
            }
            for match in matches
        ]
        sources = [text.partition("/")[0] for rule in rules for text in rule["SrcIPs"] if not text.startswith("cap:")]
        targets = [target for rule in rules for target in rule["DstPorts"] if target["IP"] != "*"]
        steps = []
        for _ in range(5_000):
            target = source.choice(targets)
            ends = parse_address(source.choice(sources)), parse_address(target["IP"].partition("/")[0])
            if len(ends[0]) != len(ends[1]):
                continue
            port = source.choice([target["Ports"]["First"], target["Ports"]["Last"], source.choice(PORTS)])
            body = bytes([0x10, 0]) + port.to_bytes(2, "big") + bytes(8) + bytes([0x50, 2]) + bytes(6)
            packet = ip_packet(*ends, source.choice([6, 17, 1, 58, 132, 47]), body)
            steps.append({"direction": "in", "packet": packet.hex()})
        local = sorted({target["IP"] for target in targets})
        assert compare(oracle, {"rules": rules, "local": local, "caps": {}, "steps": steps}) > 1_000
