"""What the doctor says of uplinks: one that works, one that is up and silent, one whose binding was refused."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
import trio.testing
from tailnet_scripts import world
from uplink_scripts import UPLINKS

from tailscale.cli.doctor_tailnet import look_around
from tailscale.cli.screen import Screen
from tailscale.testing import Tailnet
from tailscale.testing.network import VirtualUdp


async def told(lost: Sequence[str] = ()) -> dict[str, tuple[str, str]]:
    """By uplink: the verdict and the sentence; through `lost` no UDP passes."""
    found: dict[str, tuple[str, str]] = {}
    async with Tailnet(latency=0.01) as net:
        internet = world(net).internet
        machine = internet.host("van", uplinks=UPLINKS)
        mute = {machine.uplinks[uplink] for uplink in lost}
        carry = internet.carry

        def carry_what_is_heard(source, destination, datagrams, drops):
            if source[0] not in mute and destination[0] not in mute:
                carry(source, destination, datagrams, drops)

        internet.carry = carry_what_is_heard  # type: ignore[method-assign]
        van = await net.device("van", uplinks=UPLINKS)
        await net.device("nas")
        screen = Screen(plain=True, out=io.StringIO(), err=io.StringIO())
        async for title, findings in look_around(van, "nas", None, screen):
            if title == "uplinks":
                found |= {one.sentence.split()[0]: (one.verdict, one.sentence) for one in findings}
    return found


async def test_uplinks_that_work_are_good(autojump_clock: trio.testing.MockClock) -> None:
    found = await told()
    assert {name: verdict for name, (verdict, _) in found.items()} == dict.fromkeys(UPLINKS, "ok")


async def test_one_that_is_up_and_silent_is_said(autojump_clock: trio.testing.MockClock) -> None:
    found = await told(lost=["wwan0"])
    assert found["wlan0"][0] == "ok"
    assert found["wwan0"] == ("warn", "wwan0 is up and silent: nothing comes by it")


async def test_binding_that_was_refused_is_said(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VirtualUdp, "bound_by", lambda self, uplink: "source")
    assert [verdict for verdict, _ in (await told()).values()] == ["warn", "warn"]
    monkeypatch.setattr(VirtualUdp, "bound_by", lambda self, uplink: "")
    assert all("no socket could be bound" in sentence for _, sentence in (await told()).values())
