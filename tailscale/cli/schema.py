"""`schema`: what each command prints with `--json`, as JSON schemas that come with the package.

Owns where they are. Files in `schemas/` are named after the verb; `failure.json` is what any of them prints when it
fails.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import trio

from tailscale.cli.exit_codes import OK
from tailscale.cli.screen import Screen

FOLDER = Path(__file__).parent / "schemas"


def read_schema(verb: str) -> dict[str, Any]:
    """Raises ValueError where a verb has none."""
    if verb not in verbs():
        raise ValueError(f"{verb!r} has no --json; these have: {', '.join(verbs())}")
    schema: dict[str, Any] = json.loads((FOLDER / f"{verb}.json").read_text(encoding="utf-8"))
    return schema


def verbs() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json"))


async def schema(options: argparse.Namespace, screen: Screen) -> int:
    await trio.lowlevel.checkpoint()
    if options.verb is not None:
        screen.json(read_schema(options.verb))
    else:
        screen.json({verb: read_schema(verb) for verb in verbs()})
    return OK
