"""The doctor names each of the faults that people meet most, and says what to set: the same as `device.explain`."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator

import pytest
import trio
from fault_scripts import SCRIPTS, Scene, Script, healthy
from trio.testing import MockClock

from tailscale.cli.doctor_tailnet import look_around
from tailscale.cli.findings import BAD, Finding, bad, good, warn
from tailscale.cli.screen import Screen
from tailscale.errors import ControlUnreachable, LoginRequired, StateLocked
from tailscale.faults import REMEDIES
from tailscale.testing import Tailnet


async def findings(scene: Scene) -> AsyncIterator[tuple[str, Finding]]:
    screen = Screen(plain=True, out=io.StringIO(), err=io.StringIO())
    async for title, found in look_around(scene.device, scene.host, scene.port, screen):
        for finding in found:
            yield title, finding


@pytest.mark.parametrize(("fault", "script"), [(code, row[0]) for code, row in SCRIPTS.items()], ids=SCRIPTS)
async def test_doctor_names_the_fault_and_what_to_set(
    autojump_clock: MockClock, tailnet: Tailnet, fault: str, script: Script
) -> None:
    async with script(tailnet) as scene:
        named = [finding async for _, finding in findings(scene) if finding.fault == fault]
        assert named, f"{fault} is not named"
        assert {finding.remedy for finding in named} == {REMEDIES[fault]}
        assert all(finding.verdict in ("warn", "bad") and finding.sentence for finding in named)


async def test_doctor_finds_nothing_in_a_healthy_tailnet(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with healthy(tailnet) as scene:
        await scene.device.ping("b")
        found = [(title, finding.verdict) async for title, finding in findings(scene)]
    assert {verdict for _, verdict in found} == {"ok"}
    assert list(dict.fromkeys(title for title, _ in found)) == [
        *("key", "UDP", "relays", "MTU", "health", "peers", "the way")
    ]


async def test_doctor_says_what_a_router_carries_and_what_is_not_approved(
    autojump_clock: MockClock, tailnet: Tailnet
) -> None:
    async with healthy(tailnet) as scene:
        router = scene.device
        await router.set(advertise_routes=["192.168.7.0/24"], advertise_exit_node=True)
        while not tailnet.control.server.directory.find(tailnet.id_of(router)).advertised:  # noqa: ASYNC110
            await trio.sleep(0.01)
        tailnet.approve_routes(router, "192.168.7.0/24")
        while not router.forwarding.approved:  # noqa: ASYNC110 - a fact, not an event
            await trio.sleep(0.01)
        found = [finding async for title, finding in findings(scene) if title == "forwarding"]
    assert [finding.verdict for finding in found] == ["ok", "warn", "warn"]
    assert found[0].sentence.startswith("192.168.7.0/24: ")
    assert found[1].sentence.startswith("0.0.0.0/0 is advertised, not approved")
    assert "approve" in found[1].remedy


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (StateLocked("/x", 7), "state-in-use"),
        (ControlUnreachable("no answer"), "control-unreachable"),
        (LoginRequired("https://x"), "login-needed"),
    ],
)
def test_what_keeps_a_device_from_joining_is_named_too(error: Exception, fault: str) -> None:
    finding = bad(error)
    assert (finding.verdict, finding.fault) == (BAD, fault)
    assert finding.remedy
    assert fault in REMEDIES


def test_findings_without_a_fault_have_no_code() -> None:
    assert good("fine").fault == warn("doubtful").fault == ""
