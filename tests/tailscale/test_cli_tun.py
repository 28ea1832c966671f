"""`pytailscale tun` without a kernel that takes part: words, refusals, and what it tells systemd-resolved."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tailscale._spelling import DEFAULT_TUN_NAME
from tailscale.cli import main
from tailscale.cli.arguments import parse
from tailscale.cli.doctor_tun import tun as look_for_tun
from tailscale.kernel import names, record
from tailscale.kernel.names import Domains, by_hand, domains_of, is_domain, tell_resolved
from tailscale.tun_options import tun
from ts_control.netmap import NetMap
from ts_control.wire import DNSConfig, Node, Resolver

linux = pytest.mark.skipif(sys.platform != "linux", reason="TUN devices are Linux's")


def test_tun_takes_its_options() -> None:
    words = ["tun", "up", "--name", "vpn0", "--mtu", "1200", "--split", "--exclude", "10.1.0.0/16,fd00::/8", "--no-dns"]
    asked = parse(words)
    options = tun(asked.name, mtu=asked.mtu, split=asked.split, exclude=asked.exclude, dns=asked.dns)
    assert (options.name, options.mtu, options.split, options.dns) == ("vpn0", 1200, True, False)
    assert options.exclude == ("10.1.0.0/16", "fd00::/8")
    plain = parse(["tun"])
    assert (plain.verb, plain.name, plain.dns, plain.cleanup) == ("status", DEFAULT_TUN_NAME, "auto", False)
    assert parse(["tun", "up", "--dns"]).dns is True


def test_tun_that_cannot_be_meant_joins_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tun", "up", "--ephemeral", "--name", "a/b"]) == 2
    assert "no name for a network interface" in capsys.readouterr().err


@linux
def test_cleanup_needs_no_device_and_finds_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(record, "PLACES", ("XDG_RUNTIME_DIR",))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for _ in range(2):
        assert main(["tun", "--cleanup", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"tun": None, "cleaned": []}
    for verb in ("status", "down"):
        assert main(["tun", verb, "--json", "--state", str(tmp_path / "s")]) == 0, "and joins nothing"
        assert json.loads(capsys.readouterr().out) == {"tun": None}
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "nowhere"))
    assert main(["tun", "--cleanup"]) == 1
    assert "XDG_RUNTIME_DIR" in capsys.readouterr().err


@linux
async def test_doctor_says_what_a_tun_device_would_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "PLACES", ("XDG_RUNTIME_DIR",))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    [finding] = await look_for_tun(parse(["doctor"]))
    assert finding.verdict in ("ok", "skip")
    assert "pytailscale tun" in finding.sentence
    inode = os.stat("/proc/thread-self/ns/net").st_ino
    left = tmp_path / "pytailscale" / f"ts0@{inode}.json"
    left.parent.mkdir()
    left.write_text('{"name": "ts0", "base": 5300, "pid": 1}')
    findings = await look_for_tun(parse(["doctor"]))
    assert findings[0].verdict == "warn"
    assert findings[0].remedy.startswith("pytailscale tun --cleanup")


def netmap(**dns: object) -> NetMap:
    ourselves = Node(name="desk.tail.example.ts.net.")
    return replace(NetMap.empty(), self_node=ourselves, dns=DNSConfig(**dns))  # type: ignore[arg-type]


def test_domains_of_a_netmap_are_names_and_nothing_else() -> None:
    wicked = {"corp.example.": (), "; rm -rf /": (), "--help": (), "a b": (), "-x.com": (), "": None}
    found = domains_of(netmap(routes=wicked, domains=("search.example.", "$(id).example")))
    assert found == Domains(("tail.example.ts.net", "search.example"), ("corp.example",), False)
    assert domains_of(netmap(resolvers=(Resolver(addr="9.9.9.9"),))).everything
    assert not is_domain("a" * 254)


RESOLVECTL = """#!/bin/sh
echo "$@" >> "$0.log"
[ "$1" != "$FAILS" ]
"""


@linux
async def test_resolved_is_told_and_what_it_refuses_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "resolvectl"
    program.write_text(RESOLVECTL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(names, "RESOLVED", str(program))
    assert names.has_resolved()
    with trio.fail_after(30):
        assert await tell_resolved("ts0", Domains(("tail.ts.net",), ("corp.example",), True)) == ""
    assert (tmp_path / "resolvectl.log").read_text().splitlines() == [
        "dns ts0 100.100.100.100",
        "domain ts0 tail.ts.net ~corp.example ~.",
        "default-route ts0 yes",
    ]
    monkeypatch.setenv("FAILS", "domain")
    assert await tell_resolved("ts0", Domains()) == "resolvectl domain: exit code 1"
    assert "nameserver 100.100.100.100" in by_hand(Domains(("tail.ts.net",)))
