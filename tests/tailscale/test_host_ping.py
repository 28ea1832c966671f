"""Echo requests by the machine's own means, whichever of them it has."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tailscale.runtime.host_ping import HostPing, ask_program
from tailscale.runtime.network import HostNetwork, list_interface_prefixes
from ts_base.ip import parse_prefix


async def test_this_machine_answers_where_anybody_may_ask() -> None:
    pings = HostPing()
    for _ in range(2):
        with contextlib.suppress(PermissionError):  # what a machine is that lets nobody
            assert await pings.ask("127.0.0.1", 5.0)


async def test_an_address_that_cannot_be_asked_is_an_error_or_no_answer() -> None:
    with contextlib.suppress(OSError):
        assert not await HostPing().ask("240.0.0.1", 0.2)


@pytest.mark.parametrize(("code", "answer"), [(0, True), (1, False), (2, None)])
async def test_the_ping_program_is_understood_by_its_exit_code(
    code: int, answer: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "ping"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nexit {code}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    if answer is None:
        with pytest.raises(PermissionError):
            await ask_program("192.0.2.1", 3.0)
    else:
        assert await ask_program("192.0.2.1", 3.0) is answer
    assert (tmp_path / "asked").read_text().split()[-1] == "192.0.2.1"


async def test_without_a_ping_program_that_is_no_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PermissionError):
        await ask_program("192.0.2.1", 3.0)


def test_the_networks_of_this_machine_hold_its_addresses() -> None:
    found = list_interface_prefixes()
    assert parse_prefix("127.0.0.1/32") in found


def test_the_system_says_how_many_sockets_there_may_be() -> None:
    assert HostNetwork().socket_limit() > 0
