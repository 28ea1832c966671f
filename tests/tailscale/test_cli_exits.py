"""`pytailscale exits`, against a tailnet on loopback, and what is said of a choice that is none."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path

import pytest
from exit_scripts import exit_node
from proxy_scripts import cut, desk_and_exits, outside
from trio.testing import MockClock

from tailscale.cli import main
from tailscale.cli.exits import measure, show
from tailscale.cli.screen import Screen
from tailscale.proxy import Exits
from tailscale.testing import Tailnet
from tailscale.testing.threaded import TailnetThread


def test_exits_lists_them_and_says_which_one_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TS_AUTHKEY", "TS_AUTH_KEY", "TS_CONTROL_URL", "TS_HOSTNAME"):
        monkeypatch.delenv(name, raising=False)
    with TailnetThread() as net:
        net.wait_for(partial(exit_node, net.inner, "swiss"))
        join = [
            *("--control-url", net.options()["control_url"]),
            *("--auth-key", net.options()["auth_key"]),
            "--ephemeral",
        ]
        assert main(["exits", *join]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == ["NAME", "LOCATION", "STATE", "PATH", "LATENCY", "priority", "address"]
        assert lines[1].split()[:4] == ["swiss", "-", "in", "use"]
        assert lines[-1].startswith("any: swiss, best by path")
        check_json(net, capsys)
        assert main(["exits", "none", *fresh(net)]) == 0
        assert capsys.readouterr().out == "none: only the tailnet and the subnets that it routes\n"


def check_json(net: TailnetThread, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exits", "NL", "--json", *fresh(net)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["choice"], found["policy"], found["current"]) == ("NL", "NL", None)
    [exit_standing] = found["exits"]
    assert (exit_standing["node"], exit_standing["state"]) == ("swiss", "unwanted")
    assert exit_standing["reason"] == "it is in an unknown country"


def fresh(net: TailnetThread) -> list[str]:
    options = net.options()
    return ["--control-url", options["control_url"], "--auth-key", options["auth_key"], "--ephemeral"]


@pytest.mark.parametrize(("choice", "sentence"), [("XX", "no country of ISO 3166"), ("noone", "did you mean 'none'?")])
def test_a_choice_that_is_none_is_wrong_usage(choice: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["exits", choice])
    assert caught.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
async def test_the_table_has_places_paths_and_reasons(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    desk, _ = await desk_and_exits(
        tailnet, "dutch", "other", country="Netherlands", country_code="NL", city="Amsterdam", city_code="ams"
    )
    async with outside(tailnet):
        cut(tailnet, "other")
        chosen = Exits(desk, nodes=["dutch"])
        await measure(desk, desk.exit_nodes)
        screen = Screen(plain=True, out=io.StringIO(), err=io.StringIO())
        show(screen, chosen.status())
    lines = screen.out.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[1].split()[:5] == ["dutch", "Amsterdam,", "Netherlands", "in", "use"]
    assert "direct 10.77." in lines[1]
    assert "unwanted: it is not among the named exits" in lines[2]
    assert lines[-1] == "node:dutch: dutch, first of the named that is there"
    nobody = Screen(plain=True, out=io.StringIO(), err=io.StringIO())
    show(nobody, Exits(await tailnet.device("lonely"), country="SE").status())
    assert nobody.out.getvalue().endswith("SE: no exit fits, or can be used\n")  # type: ignore[attr-defined]
