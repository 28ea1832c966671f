"""Real processes and kill -9: whichever end dies in the middle of a file, the next push sends only the rest."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import trio

from bench.mesh_files import MIB, Bench
from tailscale.testing import Tailnet
from ts_mesh.blocks import BLOCK

pytestmark = pytest.mark.slow
SIZE = 96 * MIB


@pytest.mark.parametrize("victim", ["sender", "receiver"])
async def test_process_killed_in_the_middle_costs_a_block(tmp_path: Path, victim: str) -> None:
    async with Tailnet(real=True) as net:
        bench = Bench(net, tmp_path, argparse.Namespace(rsyncd=1))
        path = bench.file("big", SIZE)
        target = tmp_path / "b" / "in" / "big"
        part = target.with_name(".big.part")
        async with bench.node("b") as (there, _), bench.node("a") as (here, _):
            await here.tell(do="push", path=str(path), into="")
            with trio.fail_after(60):
                while not (part.exists() and part.stat().st_size >= SIZE // 2):  # noqa: ASYNC110 - another process's
                    await trio.sleep(0.002)
            killed = here if victim == "sender" else there
            killed.process.kill()
            await killed.process.wait()
            assert not target.exists()
        reached = part.stat().st_size
        async with bench.node("b"), bench.node("a") as (here, _):
            done = await here.ask(do="push", path=str(path), into="")
        assert target.read_bytes() == path.read_bytes()
        assert done["sent"] <= SIZE - reached + 2 * BLOCK
        assert sorted(each.name for each in target.parent.iterdir()) == ["big"]
