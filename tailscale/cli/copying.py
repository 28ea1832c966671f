"""The command `cp`: files and folders to a member of a mesh, or from one.

What is meant is worked out before anything is joined, with paths that are absolute: whoever carries it out, here or in
another process, needs no directory of ours.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tailscale.cli.exit_codes import OK
from tailscale.cli.hosted import hosting
from tailscale.cli.screen import Screen
from tailscale.cli.session import meshed
from tailscale.figures import in_bytes

if TYPE_CHECKING:
    from tailscale.files.transfers import Transfer, TransferReport
    from tailscale.mesh import Mesh


class Push(NamedTuple):
    """Local files and folders, into a folder of a member's inbox."""

    peer: str
    paths: tuple[str, ...]
    into: str


class Pull(NamedTuple):
    """What a member shares, into a local folder."""

    peer: str
    path: str
    into: str


def planned(sources: Sequence[str], target: str, directory: str) -> list[Push | Pull]:
    """What `cp SRC... DST` means when it is typed in `directory`. Raises ValueError."""
    there = remote(target)
    if there is not None:
        if any(remote(source) for source in sources):
            raise ValueError("cp goes to a peer or from one: name a peer on one side only (./a:b is a local file)")
        return [Push(there[0], tuple(os.path.abspath(os.path.join(directory, each)) for each in sources), there[1])]
    into = os.path.abspath(os.path.join(directory, target))
    pulls: list[Push | Pull] = []
    for source in sources:
        place = remote(source)
        if place is None:
            raise ValueError(f"{source} and {target} are both here: write PEER:PATH on one side")
        pulls.append(Pull(*place, into))
    return pulls


def remote(text: str) -> tuple[str, str] | None:
    """`peer:path` in its parts; None for a local path. One with a slash before its first colon is local."""
    peer, colon, path = text.partition(":")
    return (peer, path.strip("/")) if colon and peer and "/" not in peer else None


async def cp(options: argparse.Namespace, screen: Screen) -> int:
    host = hosting()
    steps = planned(options.source, options.target, str(host.call.cwd if host is not None else Path.cwd()))
    async with meshed(options, screen, options.app) as mesh:
        for step in steps:
            report = await follow(await begun(mesh, step, options), screen)
            tell(report, options, screen)
    return OK


async def begun(mesh: Mesh, step: Push | Pull, options: argparse.Namespace) -> Transfer:
    """The transfer of one step. Waits for the peer to appear in the mesh."""
    peer = await mesh.peer(step.peer, timeout=options.timeout)
    if isinstance(step, Push):
        return peer.push(*step.paths, into=step.into, resume=options.resume)
    return peer.pull(step.path, step.into, resume=options.resume)


async def follow(transfer: Transfer, screen: Screen) -> TransferReport:
    async with transfer:
        async for progress in transfer:
            done = f"{in_bytes(progress.done)} of {in_bytes(progress.total)}"
            screen.show(f"{progress.fraction:4.0%}  {done}  {in_bytes(progress.rate)}/s  {progress.name}")
    screen.hide()
    return transfer.result


def tell(report: TransferReport, options: argparse.Namespace, screen: Screen) -> None:
    if options.json:
        skipped = [{"path": each.path, "why": each.why} for each in report.skipped]
        screen.json_line({**report._asdict(), "skipped": skipped})
        return
    for each in report.skipped:
        screen.note((f"left out {each.path}: {each.why}", "yellow"))
    there = f", {in_bytes(report.bytes_skipped)} were there already" if report.bytes_skipped else ""
    files = f"{report.files} file{'' if report.files == 1 else 's'}"
    screen.say(f"{files}, {in_bytes(report.bytes_sent)} sent{there}")
